"""What is measured, on tables small enough to reckon by hand."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from pipeline.estimate.former_sql import MEASUREMENTS, RATIO, TIMED_STAGES
from pipeline.query import run_query
from pipeline.records import METRICS, REJECTS, TABLES, to_schema

NUMBERS: dict[str, Any] = {
    "believed_s": 86_400,
    "min_s": 5,
    "embed_frames": 4,
    "hash_mb_per_core_s": 1000,
    "frame_row_bytes": 10,
    "video_table_bytes": 3000,
    "scan_table_bytes": 60_000,
    "clip_table_bytes": 8000,
    **{f"{name}_cores": 4 for name in TIMED_STAGES},
    "embed_gpus": 1,
    "scan_gpus": 1,
    "generate_gpus": 8,
}
START = datetime(2026, 1, 1, tzinfo=UTC)


def spent(stage: str, key: str, begun_s: float, seconds: float, frames: int | None = None, host: str = "a") -> Any:
    """A row of metrics: an item that was begun so many seconds after the start."""
    return {
        "stage": stage,
        "id": key,
        "seconds": seconds,
        "host": host,
        "finished_at": START + timedelta(seconds=begun_s + seconds),
        "frames_decoded": frames,
    }


def turn(name: str, prompt: int, cached: int, output: int) -> dict[str, Any]:
    return {
        "turn": name, "prompt_tokens": prompt, "cached_tokens": cached, "output_tokens": output, "finish_reason": "stop"
    }  # fmt: skip


def video(key: str, seconds: float | None) -> dict[str, Any]:
    """Of 10 frames of 1,000,000 pixels and 2,000,000 bytes a second."""
    size = int((seconds or 1) * 2_000_000)
    return {
        "source_key": f"s{key}", "video_id": key, "duration_s": seconds, "fps": 10.0, "width": 1000, "height": 1000,
        "bytes": size, "identity": "sha256:0",
    }  # fmt: skip


def clip(key: str, of: str, seconds: float) -> dict[str, Any]:
    return {"clip_id": key, "video_id": of, "clip_s": seconds, "clip_bytes": int(seconds * 3_000_000)}


def scanned(key: str, frames: int) -> dict[str, Any]:
    return {
        "video_id": key, "frames_decoded": frames, "grid_frames": list(range(frames // 5)), "end_pts": frames,
        "time_base_num": 1, "time_base_den": 10,
    }  # fmt: skip


ROWS: dict[str, list[dict[str, Any]]] = {
    "ingest": [video("v1", 100.0), video("v2", 50.0), video("v3", None), video("v4", 4.0)],
    "embed": [{"video_id": key} for key in ("v1", "v2", "v3")],
    "select": [{"video_id": key} for key in ("v1", "v3")],
    "scan": [scanned("v1", 990), scanned("v3", 300)],
    "cut": [clip("c1", "v1", 20.0), clip("c2", "v1", 10.0)],
    "generate": [
        {"clip_id": "c1", "turns": [turn("caption", 1000, 0, 200), turn("qa", 1300, 1152, 300)]},
        # asked twice
        {"clip_id": "c2", "turns": [turn("caption", 500, 0, 100), turn("qa", 700, 0, 400), turn("qa", 700, 640, 200)]},
    ],
    "clean": [{"clip_id": "c1"}],
    "rejects": [{"stage": "filter", "id": "v3", "shot": None, "reason": "no_clip_left"}],
    "metrics": [
        # Two hosts; on host a two items side by side, then a pause.
        spent("scan", "v1", 0, 10, 990),
        spent("scan", "v3", 5, 10, 300),
        spent("scan", "v2", 100, 5),
        spent("scan", "v9", 0, 20, host="b"),
        spent("embed", "v1", 0, 2, 40),
        spent("embed", "v2", 2, 2, 80),
        spent("embed", "v3", 4, 2, 60),
        spent("embed", "v4", 6, 2),
        spent("ingest", "sv1", 0, 1),
        spent("ingest", "sv2", 1, 1),
        spent("generate", "c1", 0, 8, 150),
        spent("generate", "c2", 4, 6, 90),
        spent("cut", "v1", 0, 6, 450),
    ],
}
EXPECTED = {
    "embeddable": 3 / 4,
    "selected_length": 100 / 75,  # of the videos that state a length: v1 is selected, v2 is not
    "clips_share": 30 / 130,  # v1 is 100 s, v3 as scan found 30 s; v2 has not come to its end, v4 is too short
    "embed_frames": 180 / (4 * 4),
    "scan_frames": 990 / 1000,  # v3 states no length
    "cut_frames": 450 / 300,
    "generate_frames": 240 / 300,
    "ingest_core_s": (4 - 0.2 + 4 - 0.1) / 2,  # 4 cores; 200 MB and 100 MB were hashed at 1000 MB/s
    "embed_core_s": 2 * 4,
    # Busy: 10 s, 5 s more, 5 s after the pause on host a. v9 is of another fingerprint's ingest.
    "scan_core_s": 20 * 4 / 1290,
    "cut_core_s": 6 * 4 / 300,
    "generate_core_s": 10 * 4 / 2,
    "scan_frames_per_core_s": 1290 / (40 * 4),
    "embed_gpu_s": 2,
    "scan_gpu_s": 40 / 258,
    "caption_prompt_tokens": 750,
    "caption_computed_tokens": 750,
    "caption_output_tokens": 150,
    "qa_prompt_tokens": (1300 + 1400) / 2,
    "qa_computed_tokens": (148 + 760) / 2,
    "qa_output_tokens": 450,
    "generate_tokens_per_gpu_s": (1000 + 148 + 500 + 500 + 760 + 700) / (10 * 8),
    "clip_bytes": 1.5,
    "video_row_bytes": 750,
    "picture_row_bytes": (60_000 - 1290 * 10) / 258,
    "clip_row_bytes": 8000,
}


@pytest.fixture(scope="module")
def views() -> Iterator[duckdb.DuckDBPyConnection]:
    """The tables above under the names of a run's views; nobody has split, dedup or filter."""
    con = duckdb.connect()
    stage = pa.schema([pa.field("stage", pa.string())])
    schemas = {name: to_schema(columns) for name, columns in TABLES.items()}
    for name, columns in (("rejects", REJECTS), ("metrics", METRICS)):
        schemas[name] = pa.schema([*stage, *to_schema(columns)])
    for name, schema in schemas.items():
        free = pa.schema([field.with_nullable(True) for field in schema])
        con.register("rows", pa.Table.from_pylist(ROWS.get(name, []), free))
        con.execute(f'CREATE TABLE "{name}" AS SELECT * FROM rows')
        con.unregister("rows")
    yield con
    con.close()


@pytest.mark.parametrize("measurement", MEASUREMENTS, ids=lambda measurement: measurement.rate)
def test_a_rate_is_what_the_tables_say(views: duckdb.DuckDBPyConnection, measurement: Any) -> None:
    sql = RATIO.replace("{measured}", measurement.sql).format(**NUMBERS)
    [found] = run_query(views, sql).to_pylist()
    if measurement.rate not in EXPECTED:
        assert measurement.rate in ("shots_core_s", "clean_core_s") and found["n"] == 0
    else:
        assert found["y"] / found["x"] == pytest.approx(EXPECTED[measurement.rate])
