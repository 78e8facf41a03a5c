"""The figures of a run over views that hold known rows."""

from __future__ import annotations

from typing import Any

import duckdb
import pyarrow as pa
import pytest

from pipeline.records import REJECTS, TABLES, Column, schema, to_schema
from pipeline.stats_sql import FIGURES

Rows = list[dict[str, Any]]
SHOT = {"index": 0, "start_pts": 0, "end_pts": 1, "start_frame": 0, "end_frame": 1}


def pair(words: int) -> dict[str, Any]:
    return {"index": 0, "instruction": "What  moves\nhere?", "answer": " ".join(["word"] * words)}


def run_folder() -> dict[str, Rows]:
    """Four videos: v1 and v2 give clips, v3 is not selected, the file of v4 is unreadable."""
    videos = [("v1", "panda70m"), ("v2", "ego4d"), ("v3", "ego4d")]
    bad = {"index": 1, "instruction": "i", "answer": "a", "rules": ["short_answer", "phrase"]}
    clips = [("c1", "v1", 5.0), ("c2", "v1", 9.99), ("c3", "v2", 31.0), ("c4", "v2", 40.0)]
    return {
        "ingest": [{"source_key": f"{v}.mp4", "video_id": v, "dataset": dataset} for v, dataset in videos],
        "embed": [{"video_id": v} for v, _ in videos],
        "select": [{"video_id": "v1", "category": "cooking"}, {"video_id": "v2", "category": None}],
        "scan": [{"video_id": v} for v in ("v1", "v2")],
        "split": [{"video_id": "v1", "shots": [SHOT] * 4}, {"video_id": "v2", "shots": [SHOT] * 2}],
        "dedup": [{"video_id": v, "distinct_shots": [SHOT] * 2} for v in ("v1", "v2")],
        "filter": [{"video_id": v, "kept_shots": [SHOT] * 2} for v in ("v1", "v2")],
        "cut": [{"clip_id": c, "video_id": v, "clip_s": length} for c, v, length in clips],
        "generate": [{"clip_id": c, "caption": "one two three"} for c, _, _ in clips],
        "clean": [
            {"clip_id": "c1", "pairs": [pair(2), pair(4)], "rejected_pairs": [bad]},
            {"clip_id": "c2", "pairs": [pair(6)], "rejected_pairs": []},
            {"clip_id": "c3", "pairs": [pair(8)], "rejected_pairs": [{**bad, "rules": ["phrase"]}]},
        ],
        "export": [{"clip_id": c} for c in ("c1", "c2", "c3")],
    }


REJECTED: Rows = [
    {"stage": "ingest", "id": "v4.mp4", "reason": "unreadable", "detail": "", "attempts": 1},
    {"stage": "select", "id": "v3", "reason": "not_selected", "detail": "", "attempts": 1},
    {"stage": "dedup", "id": "v1", "shot": 2, "reason": "redundant", "detail": "", "attempts": 1},
    {"stage": "dedup", "id": "v1", "shot": 3, "reason": "redundant", "detail": "", "attempts": 1},
    {"stage": "clean", "id": "c4", "reason": "all_pairs_invalid", "detail": "", "attempts": 1},
]


@pytest.fixture
def figures() -> dict[str, Any]:
    return answer(run_folder(), REJECTED)


def answer(tables: dict[str, Rows], rejected: Rows) -> dict[str, Any]:
    """Every figure's rows, by its name."""
    connection = duckdb.connect()
    for name in TABLES:
        connection.register(name, pa.Table.from_pylist(tables.get(name, []), schema=schema(name)))
    stage = Column("stage", pa.string(), "the stage that rejected it")
    connection.register("rejects", pa.Table.from_pylist(rejected, schema=to_schema((stage, *REJECTS))))
    return {figure.name: connection.sql(figure.sql).fetchall() for figure in FIGURES}


def test_funnel_balances(figures: dict[str, Any]) -> None:
    assert figures["funnel"] == [
        ("ingest", "video", 4, 3, 1, None, 0),
        ("embed", "video", 3, 3, 0, None, 0),
        ("select", "video", 3, 2, 1, None, 0),
        ("scan", "video", 2, 2, 0, None, 0),
        ("split", "video", 2, 2, 0, 6, 0),
        ("dedup", "video", 2, 2, 0, 4, 2),
        ("filter", "video", 2, 2, 0, 4, 0),
        ("cut", "video", 2, 2, 0, 4, 0),
        ("generate", "clip", 4, 4, 0, None, 0),
        ("clean", "clip", 4, 3, 1, None, 0),
        ("export", "clip", 3, 3, 0, None, 0),
    ]


def test_funnel_names_every_stage_in_order(figures: dict[str, Any]) -> None:
    stages = [name for name in TABLES if name not in ("sources", "select_scores")]
    assert [row[0] for row in figures["funnel"]] == stages


def test_rejects(figures: dict[str, Any]) -> None:
    assert figures["rejects"] == [
        ("clean", "all_pairs_invalid", 1, 0),
        ("dedup", "redundant", 0, 2),
        ("ingest", "unreadable", 1, 0),
        ("select", "not_selected", 1, 0),
    ]


def test_sources(figures: dict[str, Any]) -> None:
    assert figures["sources"] == [
        ("ego4d", 1, 1, pytest.approx(0.3333), 1, 31.0, pytest.approx(0.009)),
        ("panda70m", 1, 2, pytest.approx(0.6667), 3, pytest.approx(7.495, abs=0.006), pytest.approx(0.004)),
        ("(all)", 2, 3, 1.0, 4, 15.33, pytest.approx(0.013)),
    ]


def test_lengths_fall_into_bins(figures: dict[str, Any]) -> None:
    assert figures["lengths"] == [(5, 10, 2, 0.6667), (30, 35, 1, 0.3333)]


def test_categories(figures: dict[str, Any]) -> None:
    assert figures["categories"] == [("(random)", "ego4d", 1, 1), ("cooking", "panda70m", 1, 2)]


def test_words(figures: dict[str, Any]) -> None:
    assert figures["words"] == [
        ("answer", 4, 5.0, 2, 5.0, 8),
        ("caption", 3, 3.0, 3, 3.0, 3),
        ("instruction", 4, 3.0, 3, 3.0, 3),
    ]


def test_rules(figures: dict[str, Any]) -> None:
    assert figures["rules"] == [("phrase", 2), ("short_answer", 1)]


def test_a_fresh_run_answers_too() -> None:
    empty = answer({}, [])
    assert [row[2] for row in empty.pop("funnel")] == [0] * 11
    assert {name: rows for name, rows in empty.items() if rows} == {}
