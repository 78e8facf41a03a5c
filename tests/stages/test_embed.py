"""Embed: a few frames of a video become one vector; with the real sampling job on drawn clips, in process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.media.sample import sample
from pipeline.models.protocols import Card
from pipeline.models.registry import load_video_text_embedder
from pipeline.models.spec import ModelSpec
from pipeline.records import schema
from pipeline.stage import Chunk, Output, Rejected, Resources, UserError, Workspace
from pipeline.stages.embed import Embed, EmbedConfig, EmbedModel
from tests import clips

ATTRIBUTES = ModelSpec(family="builtin", name="attributes", revision="1")
SIDE, FRAMES, DIM = 128, 8, 20


class Desk:
    """A workspace that answers a guarded job from a function, and remembers what was asked."""

    def __init__(self, job: Callable[..., Iterator[Chunk]]) -> None:
        self._job = job
        self.asked: list[tuple[str, dict[str, Any], float | None]] = []

    def guarded(self, job: str, args: Mapping[str, Any], media_s: float | None) -> Iterator[Chunk]:
        self.asked.append((job, dict(args), media_s))
        return self._job(**args)


def embedded(desk: Desk, config: EmbedConfig, uri: str = "x.mp4", duration_s: float | None = 6.0) -> Output:
    """One video through prepare, infer and finish."""
    stage = Embed(config)
    row = {"uri": uri, "duration_s": duration_s}
    (chunk,) = stage.prepare(row, cast(Workspace, desk))
    answer = asyncio.run(stage.load_model().infer(Chunk(chunk.arrays)))
    return stage.finish(row, [chunk.info], [answer])


def in_parts(*sizes: int) -> Callable[..., Iterator[Chunk]]:
    """A sampling job that hands its frames on in parts of these sizes; frame i is as bright as 20 * i."""

    def job(**_: object) -> Iterator[Chunk]:
        start = 0
        for size in sizes:
            levels = np.arange(start, start + size).reshape(-1, 1, 1, 1) * 20
            start += size
            frames = np.broadcast_to(levels, (size, SIDE, SIDE, 3)).astype(np.uint8)
            yield Chunk({"frames": frames}, {"times_s": [0.0] * size, "frames_decoded": start})

    return job


def test_a_drawn_clip_becomes_a_row(tiny_videos: Path) -> None:
    output = embedded(Desk(sample), EmbedConfig(model=ATTRIBUTES), str(tiny_videos / "one_shot.mp4"))
    (row,) = output.rows
    assert set(row) == {field.name for field in schema("embed")} - {"video_id"}
    assert row["model"] == "builtin:attributes@1"
    assert row["embedding"].dtype == np.float32 and row["embedding"].shape == (DIM,)
    assert abs(float(np.linalg.norm(row["embedding"])) - 1) < 1e-6
    own = pa.schema([schema("embed").field("embedding"), schema("embed").field("model")])
    assert pa.Table.from_pylist([{**row, "embedding": row["embedding"].tolist()}], own).num_rows == 1
    assert output.frames_decoded is not None and 0 < output.frames_decoded <= 54


CATEGORY_OF = {
    "black": "A dark video.",
    "white": "A bright video.",
    "grey": "A grey video.",
    "orange": "A video in warm colours.",
    "green": "A mostly green video.",
    "blue": "A mostly blue video.",
}


@pytest.mark.parametrize("color", list(CATEGORY_OF))
def test_encoded_colours_find_their_category(color: str, tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "flat.mp4", clips.flat(color, 20))
    (row,) = embedded(Desk(sample), EmbedConfig(model=ATTRIBUTES), str(path)).rows
    sentences = list(CATEGORY_OF.values())
    scores = load_video_text_embedder(ATTRIBUTES).embed_texts(sentences) @ row["embedding"]
    assert sentences[int(scores.argmax())] == CATEGORY_OF[color]


def test_the_guarded_job_gets_the_models_picture_and_count() -> None:
    desk = Desk(in_parts(FRAMES))
    embedded(desk, EmbedConfig(model=ATTRIBUTES), uri="file:///a%0Ab.mp4", duration_s=None)
    ((job, args, media_s),) = desk.asked
    assert (job, media_s) == ("sample", None)
    assert args == {
        "uri": "file:///a%0Ab.mp4",
        "frame_spec": {"width": SIDE, "height": SIDE, "resize": "stretch", "interpolation": "area"},
        "count": FRAMES,
    }


def test_the_config_may_ask_for_another_number_of_frames() -> None:
    desk = Desk(in_parts(3))
    embedded(desk, EmbedConfig(model=ATTRIBUTES, frames=3))
    assert desk.asked[0][1]["count"] == 3


def test_parts_travel_together_and_in_order() -> None:
    (chunk,) = Embed(EmbedConfig(model=ATTRIBUTES)).prepare(
        {"uri": "x.mp4", "duration_s": 6.0}, cast(Workspace, Desk(in_parts(3, 3, 2)))
    )
    np.testing.assert_array_equal(chunk.arrays["frames"][:, 0, 0, 0], np.arange(FRAMES) * 20)
    whole, parts = (embedded(Desk(in_parts(*sizes)), EmbedConfig(model=ATTRIBUTES)) for sizes in ((8,), (3, 3, 2)))
    np.testing.assert_array_equal(whole.rows[0]["embedding"], parts.rows[0]["embedding"])
    assert parts.frames_decoded == FRAMES


def test_a_single_frame_is_embedded(tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "one_frame.mp4", clips.flat("blue", 1))
    (row,) = embedded(Desk(sample), EmbedConfig(model=ATTRIBUTES), str(path)).rows
    assert np.isfinite(row["embedding"]).all()


def test_what_the_job_rejects_is_rejected() -> None:
    def job(**_: object) -> Iterator[Chunk]:
        raise Rejected("decode_failed", "no frame decodes")

    with pytest.raises(Rejected, match="no frame decodes"):
        embedded(Desk(job), EmbedConfig(model=ATTRIBUTES))


def test_videos_of_many_callers_share_the_model() -> None:
    rng = np.random.default_rng(0)
    videos = [rng.integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8) for _ in range(5)]
    sizes: list[int] = []
    embedder = load_video_text_embedder(ATTRIBUTES)

    class Counting:
        key, dim, max_batch = embedder.key, embedder.dim, 3
        embed_texts = embedder.embed_texts

        def embed_videos(self, frames: np.ndarray) -> np.ndarray:
            sizes.append(len(frames))
            return embedder.embed_videos(frames)

    async def infer() -> list[Chunk]:
        model = EmbedModel(Counting())
        return await asyncio.gather(*(model.infer(Chunk({"frames": video})) for video in videos))

    for video, answer in zip(videos, asyncio.run(infer()), strict=True):
        np.testing.assert_array_equal(answer.arrays["embedding"], embedder.embed_videos(video[None])[0])
    assert sizes == [3, 2]


def test_the_model_and_the_config_decide_the_hash() -> None:
    base = Embed(EmbedConfig(model=ATTRIBUTES))
    assert base.depends_on() == {"model": "builtin:attributes@1"}
    assert base.own_hash() == Embed(EmbedConfig(model=ATTRIBUTES)).own_hash()
    assert base.own_hash() != Embed(EmbedConfig(model=ATTRIBUTES, frames=4)).own_hash()


def test_the_models_card_and_its_own_settings_count(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "pipeline.stages.embed"
    known = Card(frame_spec={}, frames=4, gpus=0.5, replicas=2)
    monkeypatch.setattr(f"{module}.card", lambda role, spec: known)
    monkeypatch.setattr(f"{module}.identity", lambda role, spec: {"model": spec.key, "model_options": role})
    stage = Embed(EmbedConfig(model=ATTRIBUTES))
    assert stage.resources == Resources(batch_size=16, model_gpus=0.5, model_replicas=2)
    assert stage.depends_on()["model_options"] == "video_text_embedder"


def test_an_unknown_model_is_refused_before_any_video() -> None:
    with pytest.raises(UserError, match="unknown family"):
        assert Embed(EmbedConfig(model=ModelSpec(family="nosuch", name="x"))).resources


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"frame": 4}])
def test_a_bad_config_is_refused(wrong: dict[str, object]) -> None:
    mapping = {"model": {"family": "builtin", "name": "attributes", "revision": "1"}, **wrong}
    with pytest.raises(ValidationError):
        TypeAdapter(EmbedConfig).validate_python(mapping)
