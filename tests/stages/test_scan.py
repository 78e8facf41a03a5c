"""Scan: what the guarded decode streams becomes one row; on drawn chunks, and on a real decode of drawn clips."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.media.scan import scan
from pipeline.models.protocols import Card
from pipeline.models.registry import load_frame_embedder
from pipeline.models.spec import ModelSpec
from pipeline.records import schema
from pipeline.stage import Chunk, Rejected, Resources, Row, UserError, Workspace
from pipeline.stages.scan import Scan, ScanConfig, ScanModel
from tests import clips

VISUAL = ModelSpec(family="builtin", name="visual", revision="1")
SIDE, DIM = 64, 176


class Desk:
    """A workspace that answers a guarded job from a function, and remembers what was asked."""

    def __init__(self, job: Callable[..., Iterator[Chunk]]) -> None:
        self._job = job
        self.asked: list[tuple[str, dict[str, Any], float | None]] = []

    def guarded(self, job: str, args: Mapping[str, Any], media_s: float | None) -> Iterator[Chunk]:
        self.asked.append((job, dict(args), media_s))
        return self._job(**args)


def scanned(desk: Desk, config: ScanConfig, uri: str = "x.mp4", duration_s: float | None = 3.5) -> Row:
    """One video through prepare, infer and finish."""
    stage = Scan(config)
    model = stage.load_model()
    row = {"uri": uri, "duration_s": duration_s}
    chunks = list(stage.prepare(row, cast(Workspace, desk)))

    async def infer() -> list[Chunk]:
        return await asyncio.gather(*(model.infer(Chunk(chunk.arrays)) for chunk in chunks))

    output = stage.finish(row, [chunk.info for chunk in chunks], asyncio.run(infer()))
    (made,) = output.rows
    assert output.shot_rejects == [] and output.frames_decoded == made["frames_decoded"]
    return made


def fits_table(row: Row) -> bool:
    """Whether a row has just the table's own columns, of the table's types."""
    own = pa.schema([field for field in schema("scan") if field.name != "video_id"])
    plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in row.items()}
    return set(plain) == set(own.names) and pa.Table.from_pylist([plain], own).num_rows == 1


def drawn_chunks(*sizes: tuple[int, int], errors: int = 0) -> list[Chunk]:
    """Chunks of (frames, grid frames) each, the grid frames the first of each chunk, ten ticks a frame."""
    rng, chunks, start = np.random.default_rng(0), [], 0
    for frames, on_grid in sizes:
        info = {
            "frame_pts": np.arange(start, start + frames, dtype=np.int64) * 10,
            "frame_scores": rng.uniform(0, 50, frames),
            "grid_frames": np.arange(start, start + on_grid, dtype=np.int32),
        }
        chunks.append(Chunk({"frames": rng.integers(0, 256, (on_grid, SIDE, SIDE, 3), dtype=np.uint8)}, info))
        start += frames
    chunks[-1].info.update(time_base_num=1, time_base_den=90_000, first_pts=1260, end_pts=start * 10)
    chunks[-1].info.update(frames_decoded=start, decode_errors=errors, mended_times=1)
    return chunks


def test_chunks_are_joined_in_order() -> None:
    chunks = drawn_chunks((5, 2), (7, 0), (4, 3), errors=1)
    row = scanned(Desk(lambda **_: iter(chunks)), ScanConfig(model=VISUAL))
    assert fits_table(row)
    np.testing.assert_array_equal(row["frame_pts"], np.arange(16) * 10)
    np.testing.assert_array_equal(row["grid_frames"], [0, 1, 12, 13, 14])
    np.testing.assert_array_equal(row["frame_scores"], np.concatenate([c.info["frame_scores"] for c in chunks]))
    assert (row["frame_model"], row["embedding_dim"]) == ("builtin:visual@1", DIM)
    pictures = np.concatenate([chunk.arrays["frames"] for chunk in chunks])
    np.testing.assert_array_equal(row["grid_embeddings"].reshape(5, DIM), load_frame_embedder(VISUAL).embed(pictures))
    totals = ("time_base_num", "time_base_den", "first_pts", "end_pts", "frames_decoded", "decode_errors")
    assert [row[name] for name in totals] == [1, 90_000, 1260, 160, 16, 1]
    dtypes = {name: row[name].dtype for name in ("frame_pts", "frame_scores", "grid_frames", "grid_embeddings")}
    assert list(dtypes.values()) == [np.int64, np.float64, np.int32, np.float32]


def test_the_guarded_job_gets_the_config_and_the_models_picture() -> None:
    desk = Desk(lambda **_: iter(drawn_chunks((1, 1))))
    config = ScanConfig(model=VISUAL, score="exact", grid_interval_s=2.0)
    scanned(desk, config, uri="file:///a%0Ab.mp4", duration_s=None)
    ((job, args, media_s),) = desk.asked
    assert (job, media_s) == ("scan", None)
    assert args.pop("frame_spec") == {"width": SIDE, "height": SIDE, "resize": "stretch", "interpolation": "area"}
    assert args.pop("chunk_bytes") > 0
    assert args == {"uri": "file:///a%0Ab.mp4", "score": "exact", "grid_interval_s": 2.0}


def test_a_drawn_clip_is_scanned(tiny_videos: Path) -> None:
    row = scanned(Desk(scan), ScanConfig(model=VISUAL, grid_interval_s=1.0), str(tiny_videos / "cuts.mp4"))
    assert fits_table(row)
    assert len(row["frame_pts"]) == len(row["frame_scores"]) == row["frames_decoded"] == 180
    np.testing.assert_array_equal(row["grid_frames"], [*range(0, 180, 10), 179])  # every second, and the last frame
    assert set(np.flatnonzero(row["frame_scores"] > 27)) == {60, 120}
    vectors = row["grid_embeddings"].reshape(-1, row["embedding_dim"])
    shot = np.array(row["grid_frames"]) // 60
    same = shot[:, None] == shot[None, :]
    cosines = vectors @ vectors.T
    assert cosines[same].min() > 0.98 and cosines[~same].max() < 0.7


def test_a_grid_of_half_a_second_holds_the_candidates_of_two(tiny_videos: Path) -> None:
    uri = str(tiny_videos / "uneven.mp4")
    dense, coarse = (scanned(Desk(scan), ScanConfig(model=VISUAL, grid_interval_s=s), uri) for s in (0.5, 2.0))
    at = np.flatnonzero(np.isin(dense["grid_frames"], coarse["grid_frames"]))
    np.testing.assert_array_equal(dense["grid_frames"][at], coarse["grid_frames"])
    embeddings = [row["grid_embeddings"].reshape(-1, DIM) for row in (dense, coarse)]
    np.testing.assert_array_equal(embeddings[0][at], embeddings[1])


def test_more_errors_than_the_configured_share_are_rejected(tmp_path: Path) -> None:
    whole = clips.write_clip(tmp_path / "whole.mp4", clips.noise(60))
    damaged = str(clips.overwritten(whole, tmp_path / "damaged.mp4"))
    row = scanned(Desk(scan), ScanConfig(model=VISUAL, max_decode_error_share=1.0), damaged)
    assert row["decode_errors"] > 0
    share = row["decode_errors"] / (row["decode_errors"] + row["frames_decoded"])
    scanned(Desk(scan), ScanConfig(model=VISUAL, max_decode_error_share=share), damaged)
    with pytest.raises(Rejected) as rejected:
        scanned(Desk(scan), ScanConfig(model=VISUAL, max_decode_error_share=share * 0.99), damaged)
    assert rejected.value.reason == "decode_failed" and "max_decode_error_share" in rejected.value.detail


def test_videos_of_many_callers_share_the_model() -> None:
    rng = np.random.default_rng(1)
    videos = [rng.integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8) for n in (3, 0, 1, 5)]
    sizes: list[int] = []
    embedder = load_frame_embedder(VISUAL)

    class Counting:
        key, dim, max_batch = embedder.key, embedder.dim, 4

        def embed(self, frames: np.ndarray) -> np.ndarray:
            sizes.append(len(frames))
            return embedder.embed(frames)

    async def infer() -> list[Chunk]:
        model = ScanModel(Counting())
        return await asyncio.gather(*(model.infer(Chunk({"frames": video})) for video in videos))

    for video, answer in zip(videos, asyncio.run(infer()), strict=True):
        np.testing.assert_array_equal(answer.arrays["embeddings"], embedder.embed(video))
    assert sizes == [4, 4, 1]


def test_the_model_and_the_config_decide_the_hash() -> None:
    base = Scan(ScanConfig(model=VISUAL))
    assert base.depends_on() == {"model": "builtin:visual@1"}
    assert base.own_hash() == Scan(ScanConfig(model=VISUAL)).own_hash()
    assert base.own_hash() != Scan(ScanConfig(model=VISUAL, grid_interval_s=1.0)).own_hash()


def test_the_models_card_and_its_own_settings_count(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "pipeline.stages.scan"
    known = Card(frame_spec={}, frames=4, gpus=0.5, replicas=2)
    monkeypatch.setattr(f"{module}.card", lambda role, spec: known)
    monkeypatch.setattr(f"{module}.identity", lambda role, spec: {"model": spec.key, "model_options": role})
    stage = Scan(ScanConfig(model=VISUAL))
    assert stage.resources == Resources(batch_size=4, model_gpus=0.5, model_replicas=2)
    assert stage.depends_on()["model_options"] == "frame_embedder"


def test_an_unknown_model_is_refused_before_any_video() -> None:
    with pytest.raises(UserError, match="unknown family"):
        assert Scan(ScanConfig(model=ModelSpec(family="nosuch", name="x"))).resources


@pytest.mark.parametrize(
    "wrong", [{"grid_interval_s": 0}, {"score": "rough"}, {"max_decode_error_share": 1.5}, {"grid_interval": 1}]
)
def test_a_bad_config_is_refused(wrong: dict[str, object]) -> None:
    mapping = {"model": {"family": "builtin", "name": "visual", "revision": "1"}, **wrong}
    with pytest.raises(ValidationError):
        TypeAdapter(ScanConfig).validate_python(mapping)
