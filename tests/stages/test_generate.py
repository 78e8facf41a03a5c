"""Generate: frames of a clip become a caption and pairs; what a describer may do wrong; with the real sampling job."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.media.budget import VideoBudget
from pipeline.media.sample import sample
from pipeline.models import prompts, registry
from pipeline.models.protocols import Card, ClipFrames, Description, Pair, Turn
from pipeline.models.spec import ModelSpec
from pipeline.records import schema
from pipeline.stage import Chunk, Output, Rejected, Retryable, UserError, Workspace
from pipeline.stages.generate import Generate, GenerateConfig, GenerateModel
from tests import clips
from tests.models import faulty_describer

OBSERVER = ModelSpec(family="builtin", name="observer", revision="1")
SIDE, FRAMES = 128, 16
WHOLE = {"clip_id": "c1", "clip_uri": "clips/c1.mp4", "clip_s": 6.0, "uri": "source.mp4", "duration_s": 60.0} | {
    "start_pts": 100,
    "end_pts": 160,
    "clip_time_base_num": 1,
    "clip_time_base_den": 10,
}
VIRTUAL = WHOLE | {"clip_uri": None}

TURN = Turn(turn="caption", prompt_tokens=10, cached_tokens=4, output_tokens=7, finish_reason="stop")
SAID = Description(
    caption="A brown dog walks along a grey sofa.",
    pairs=[Pair(f"Describe dog {n}.", f"Dog {n} walks along the sofa.") for n in range(3)],
    turns=[TURN, replace(TURN, turn="qa", cached_tokens=8)],
)


class Desk:
    """A workspace that answers a guarded job from a function, and remembers what was asked."""

    def __init__(self, job: Callable[..., Iterator[Chunk]]) -> None:
        self._job = job
        self.asked: list[tuple[str, dict[str, Any], float | None]] = []

    def guarded(self, job: str, args: Mapping[str, Any], media_s: float | None) -> Iterator[Chunk]:
        self.asked.append((job, dict(args), media_s))
        return self._job(**args)

    def locate(self, relative: str) -> str:
        return f"/run/{relative}"


def job_of(*times_s: list[float]) -> Callable[..., Iterator[Chunk]]:
    """A sampling job that hands on frames of these times, in parts; each frame is as bright as ten times its time."""

    def job(**_: object) -> Iterator[Chunk]:
        for part in times_s:
            levels = np.array(part).reshape(-1, 1, 1, 1) * 10
            frames = np.broadcast_to(levels, (len(part), SIDE, SIDE, 3)).astype(np.uint8)
            yield Chunk({"frames": frames}, {"times_s": part, "frames_decoded": 40})

    return job


def prepared(row: dict[str, Any], job: Callable[..., Iterator[Chunk]], **config: Any) -> tuple[Chunk, Desk]:
    desk = Desk(job)
    (chunk,) = Generate(GenerateConfig(model=OBSERVER, **config)).prepare(row, cast(Workspace, desk))
    return chunk, desk


def finished(said: Description, lowered_from: int | None = None) -> Output:
    info = {"frames_used": 16, "frames_lowered_from": lowered_from, "frames_decoded": 40}
    return Generate(GenerateConfig(model=OBSERVER)).finish(WHOLE, [info], [Chunk({}, asdict(said))])


def test_a_clips_file_is_sampled_whole() -> None:
    chunk, desk = prepared(WHOLE, job_of([0.5, 1.5], [2.5]))
    (asked,) = desk.asked
    spec = registry.card("describer", OBSERVER).frame_spec
    assert asked == ("sample", {"uri": "/run/clips/c1.mp4", "count": FRAMES, "frame_spec": spec}, 6.0)
    assert chunk.arrays["frames"][:, 0, 0, 0].tolist() == [5, 15, 25]
    assert chunk.arrays["times_s"].tolist() == [0.5, 1.5, 2.5]
    assert chunk.info == {
        "clip_id": "c1",
        "duration_s": 6.0,
        "frames_used": 3,
        "frames_lowered_from": None,
        "frames_decoded": 40,
    }


def test_a_virtual_clip_is_sampled_from_its_range_of_the_source() -> None:
    chunk, desk = prepared(VIRTUAL, job_of([10.5, 11.5]))
    ((_, args, media_s),) = desk.asked
    assert args["uri"] == "source.mp4" and media_s == 60.0
    assert args["window"] == {"start_pts": 100, "end_pts": 160, "time_base_num": 1, "time_base_den": 10}
    assert chunk.arrays["times_s"].tolist() == [0.5, 1.5]


def test_a_frame_given_twice_is_seen_once() -> None:
    chunk, _ = prepared(WHOLE, job_of([0.0, 0.0, 0.1], [0.1]))
    assert chunk.arrays["times_s"].tolist() == [0.0, 0.1]
    assert len(chunk.arrays["frames"]) == chunk.info["frames_used"] == 2


def test_the_number_of_frames_is_a_setting() -> None:
    _, desk = prepared(WHOLE, job_of([0.0]), frames=5)
    assert desk.asked[0][1]["count"] == 5


def test_frames_that_come_in_parts_are_copied_once() -> None:
    """Into the one array that travels on."""
    chunk, _ = prepared(WHOLE, job_of([0.0, 1.0], [2.0], [3.0]), frames=4)
    frames = chunk.arrays["frames"]
    assert frames.flags.c_contiguous and frames.base is not None and frames.base.nbytes == frames.nbytes


BUDGET = VideoBudget(fps=2.0, max_pixels=150 * 784, total_pixels=1000 * 784, max_tokens=900)


def budgeted(monkeypatch: pytest.MonkeyPatch, budget: VideoBudget, **more: Any) -> None:
    """The describer's frames follow from the clip's length."""
    known = Card(frame_spec={}, frames=1, budget=budget, **more)
    monkeypatch.setattr("pipeline.stages.generate.card", lambda role, spec: known)


@pytest.mark.parametrize(
    ("clip_s", "frames", "count", "lowered_from"),
    [(3.0, None, 6, None), (6.2, None, 12, None), (60.0, None, 12, 120), (60.0, 8, 8, None), (60.0, 40, 12, 40)],
)
def test_a_budget_gives_a_clip_frames_by_its_length_and_the_contexts_room(
    clip_s: float, frames: int | None, count: int, lowered_from: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgeted(monkeypatch, BUDGET)
    chunk, desk = prepared(WHOLE | {"clip_s": clip_s}, job_of([float(n) for n in range(count)]), frames=frames)
    assert desk.asked[0][1]["count"] == count
    assert desk.asked[0][1]["frame_spec"] == BUDGET.frame_spec(count)
    assert (chunk.info["frames_used"], chunk.info["frames_lowered_from"]) == (count, lowered_from)


def test_the_describer_gets_the_frames_and_the_clips_length(monkeypatch: pytest.MonkeyPatch) -> None:
    budgeted(monkeypatch, BUDGET)
    seen: list[ClipFrames] = []

    class Listening:
        key = "fake:listening@"

        async def describe(self, clip: ClipFrames) -> Description:
            seen.append(clip)
            return SAID

    chunk, _ = prepared(WHOLE | {"clip_s": 60.0}, job_of([float(n) for n in range(12)]))
    asyncio.run(GenerateModel(Listening()).infer(chunk))
    assert (len(seen[0].frames), seen[0].duration_s) == (12, 60.0)


@pytest.mark.parametrize(
    ("sampled_from", "used", "expected"),
    [(None, None, (16, None)), (40, None, (16, 40)), (None, 8, (8, 16)), (40, 8, (8, 40)), (None, 16, (16, None))],
)
def test_a_row_tells_the_frames_seen_and_those_asked_for(
    sampled_from: int | None, used: int | None, expected: tuple[int, int | None]
) -> None:
    (row,) = finished(replace(SAID, frames_used=used), lowered_from=sampled_from).rows
    assert (row["frames_used"], row["frames_lowered_from"]) == expected


def test_a_drawn_clip_within_a_budget_is_sampled_to_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budgeted(monkeypatch, BUDGET)
    uri = str(clips.write_clip(tmp_path / "clip.mp4", clips.shots(("sky", 60))))
    desk = Desk(sample)
    desk.locate = lambda relative: uri  # type: ignore[method-assign]
    (chunk,) = Generate(GenerateConfig(model=OBSERVER)).prepare(WHOLE, cast(Workspace, desk))
    count, height, width, _ = chunk.arrays["frames"].shape
    assert count == 12 and height % 28 == width % 28 == 0
    assert BUDGET.min_pixels <= height * width <= BUDGET.pixel_limit(12)


@pytest.mark.parametrize("virtual", [False, True])
def test_a_drawn_clip_becomes_a_row_that_says_what_was_drawn(tmp_path: Path, virtual: bool) -> None:
    parts = [("red", 30), ("sky", 60), ("black", 30)] if virtual else [("sky", 60)]
    uri = str(clips.write_clip(tmp_path / "clip.mp4", clips.shots(*parts), keyframes=(30, 90) if virtual else ()))
    row = (VIRTUAL if virtual else WHOLE) | {"start_pts": 30, "end_pts": 90, "uri": uri}
    stage, desk = Generate(GenerateConfig(model=OBSERVER)), Desk(sample)
    desk.locate = lambda relative: uri  # type: ignore[method-assign]
    (chunk,) = stage.prepare(row, cast(Workspace, desk))
    assert chunk.arrays["times_s"].min() >= 0 and chunk.arrays["times_s"].max() < 6
    output = stage.finish(row, [chunk.info], [asyncio.run(stage.load_model().infer(chunk))])
    (made,) = output.rows
    assert made["caption"].startswith("The picture is almost entirely light blue.")
    assert [pair["index"] for pair in made["raw_pairs"]] == [0, 1, 2]
    assert (made["describer"], made["frames_used"]) == ("builtin:observer@1", 16)
    table = pa.Table.from_pylist([{"clip_id": "c1", **made}], schema("generate"))
    assert table.num_rows == 1 and set(made) == {field.name for field in schema("generate")} - {"clip_id"}


def test_what_a_describer_says_is_stored() -> None:
    output = finished(SAID)
    (row,) = output.rows
    assert row["caption"] == SAID.caption
    assert row["raw_pairs"][1] == {
        "index": 1,
        "instruction": "Describe dog 1.",
        "answer": "Dog 1 walks along the sofa.",
    }
    assert row["turns"][1] == {**asdict(TURN), "turn": "qa", "cached_tokens": 8}
    assert output.frames_decoded == 40


def ended(reason: str) -> Description:
    return replace(SAID, turns=[TURN, replace(TURN, turn="qa", finish_reason=reason)])


@pytest.mark.parametrize(
    ("said", "reason", "detail"),
    [
        (replace(SAID, pairs=SAID.pairs[:2]), "bad_output", "2 instruction-answer pairs, expected 3"),
        (replace(SAID, pairs=[]), "bad_output", "0 instruction-answer pairs"),
        (replace(SAID, pairs=[*SAID.pairs, SAID.pairs[0]]), "bad_output", "4 instruction-answer pairs"),
        (ended("length"), "truncated", "the qa turn was cut off after 7 tokens"),
        (replace(SAID, caption=" \n"), "refused", "the caption is empty"),
        (replace(SAID, caption="I\u2019m sorry, I can't help with that."), "refused", "the caption is a refusal"),
        (replace(SAID, caption="I cannot describe this video."), "refused", "is a refusal"),
        (ended("content_filter"), "refused", "the qa turn was stopped by the engine's content filter"),
    ],
)
def test_what_is_not_a_caption_with_three_pairs_is_rejected(said: Description, reason: str, detail: str) -> None:
    with pytest.raises(Rejected) as caught:
        finished(said)
    assert not isinstance(caught.value, Retryable)
    assert caught.value.reason == reason and detail in caught.value.detail


def test_an_answer_that_was_asked_for_again_does_not_count() -> None:
    asked_twice = [replace(TURN, finish_reason="length"), TURN, replace(TURN, turn="qa", finish_reason="length")]
    said = replace(SAID, turns=[*asked_twice, replace(TURN, turn="qa")])
    (row,) = finished(said).rows
    assert [turn["finish_reason"] for turn in row["turns"]] == ["length", "stop", "length", "stop"], "all are recorded"
    with pytest.raises(Rejected, match="qa turn was cut off"):
        finished(replace(SAID, turns=asked_twice))


def test_a_describers_measurements_go_to_metrics_and_not_into_the_row() -> None:
    output = finished(replace(SAID, measured={"caption_s": 1.5}))
    assert output.measured == {"caption_s": 1.5}
    assert output.rows[0].keys() == {field.name for field in schema("generate")} - {"clip_id"}


def test_the_model_is_ended_when_it_can_be() -> None:
    ended_ones: list[str] = []

    class Engine(SlowDescriber):
        def close(self) -> None:
            ended_ones.append(self.key)

    GenerateModel(Engine(wait_for=1)).close()
    GenerateModel(SlowDescriber(wait_for=1)).close()
    assert ended_ones == ["fake:slow@"]


def test_a_turn_that_the_engine_broke_off_may_be_tried_again() -> None:
    with pytest.raises(Retryable, match="engine_error"):
        finished(ended("abort"))


def test_a_caption_about_an_apology_is_no_refusal() -> None:
    caption = 'A man holds a card that says "I\'m sorry" and bows.'
    assert finished(replace(SAID, caption=caption)).rows[0]["caption"] == caption


def test_text_that_utf8_cannot_hold_is_marked_and_left_to_clean() -> None:
    pairs = [Pair("Describe the \ud83d sign.", "It is red."), *SAID.pairs[1:]]
    (row,) = finished(replace(SAID, pairs=pairs)).rows
    assert row["raw_pairs"][0]["instruction"] == "Describe the \ufffd sign."
    pa.Table.from_pylist([{"clip_id": "c1", **row}], schema("generate"))


@pytest.mark.parametrize("fault", faulty_describer.FAULTS)
def test_a_faulty_describer_ends_in_the_reason_of_its_fault(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.MODELS["describer"], "faulty", faulty_describer.FAMILY)
    stage = Generate(GenerateConfig(model=ModelSpec(family="faulty", name=fault)))
    (chunk,) = stage.prepare(WHOLE, cast(Workspace, Desk(job_of([0.5, 1.5]))))
    with pytest.raises(Rejected) as caught:
        stage.finish(WHOLE, [chunk.info], [asyncio.run(stage.load_model().infer(chunk))])
    assert caught.value.reason == fault
    assert isinstance(caught.value, Retryable) == (fault == "engine_error")


class SlowDescriber:
    """Answers when all the clips it waits for are there: proves that they are in flight at once."""

    key = "fake:slow@"

    def __init__(self, wait_for: int) -> None:
        self._wait_for = wait_for
        self.seen: list[str] = []

    async def describe(self, clip: ClipFrames) -> Description:
        self.seen.append(clip.clip_id)
        while len(self.seen) < self._wait_for:
            await asyncio.sleep(0.001)
        return replace(SAID, caption=f"Clip {clip.clip_id} has {len(clip.frames)} frames.")


def test_many_clips_are_in_flight_at_once() -> None:
    model = GenerateModel(SlowDescriber(wait_for=8))

    async def together() -> list[Chunk]:
        asked = [prepared(WHOLE | {"clip_id": f"c{n}"}, job_of([0.0, 1.0]))[0] for n in range(8)]
        return await asyncio.wait_for(asyncio.gather(*map(model.infer, asked)), timeout=20)

    answers = asyncio.run(together())
    assert [answer.info["caption"] for answer in answers] == [f"Clip c{n} has 2 frames." for n in range(8)]


def test_prompts_count_only_for_a_model_that_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Generate(GenerateConfig(model=OBSERVER))
    assert before.depends_on() == {"model": "builtin:observer@1"}
    monkeypatch.setattr(prompts, "load_prompt", lambda name: pytest.fail("the built-in describer reads no prompts"))
    assert Generate(GenerateConfig(model=OBSERVER)).own_hash() == before.own_hash()


def test_a_row_holds_the_hashes_of_the_prompts_that_were_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert finished(SAID).rows[0]["prompt_hashes"] is None, "the built-in describer reads none"
    budgeted(monkeypatch, BUDGET, reads_prompts=True)
    read = json.loads(finished(SAID).rows[0]["prompt_hashes"])
    assert read == {name: prompts.load_prompt(name).sha256 for name in prompts.PROMPT_NAMES}


def test_the_models_own_settings_count(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"model": "fake", "model_options": "abc"}
    monkeypatch.setattr("pipeline.stages.generate.identity", lambda role, spec: options)
    assert Generate(GenerateConfig(model=OBSERVER)).depends_on() == options


def test_what_the_card_asks_of_the_machine_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    budgeted(monkeypatch, BUDGET, cpus=2.0, gpus=4.0, replicas=3, in_flight=16, environment=("API_KEY",))
    needs = Generate(GenerateConfig(model=OBSERVER)).resources
    assert (needs.model_cpus, needs.model_gpus, needs.model_replicas, needs.in_flight) == (2.0, 4.0, 3, 16)
    assert needs.model_environment == ("API_KEY",)


def test_the_prompts_hashes_count_for_a_model_that_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Card(frame_spec={}, frames=32, reads_prompts=True)
    monkeypatch.setattr("pipeline.stages.generate.card", lambda role, spec: reader)
    first = Generate(GenerateConfig(model=OBSERVER))
    assert first.depends_on() == {"model": "builtin:observer@1", **prompts.prompt_hashes()}
    hash_before = first.own_hash()
    monkeypatch.setattr("pipeline.stages.generate.prompt_hashes", lambda: {"prompt.caption": "other", "prompt.qa": "x"})
    assert Generate(GenerateConfig(model=OBSERVER)).own_hash() != hash_before


def test_the_config_decides_the_hash() -> None:
    hashes = {Generate(GenerateConfig(model=OBSERVER, frames=n)).own_hash() for n in (None, 8, 16)}
    assert len(hashes) == 3


def test_a_wrong_config_is_an_error() -> None:
    for values in ({"frames": 0}, {"pairs": 4}):
        with pytest.raises(ValidationError):
            TypeAdapter(GenerateConfig).validate_python({"model": asdict(OBSERVER), **values})
    with pytest.raises(UserError, match="nobody"):
        Generate(GenerateConfig(model=ModelSpec(family="nobody", name="x"))).depends_on()
