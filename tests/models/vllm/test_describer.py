"""The describer on a real engine of vLLM with a tiny Qwen2-VL: one engine for all tests of this file."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.models import registry
from pipeline.models.protocols import ClipFrames, Description
from pipeline.models.spec import ModelSpec
from pipeline.models.two_turns import TurnLimits, converse, parse_pairs
from pipeline.stage import Rejected, Retryable

pytest.importorskip("vllm")
from pipeline.models.vllm.conversation import ClipConversation
from pipeline.models.vllm.describer import VllmDescriber
from tests.models import encoder_counter, tiny_qwen2vl

pytestmark = pytest.mark.slow

LIMITS = TurnLimits(caption_tokens=128, qa_tokens=256, retry_factor=2)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    folder = tiny_qwen2vl.build(tmp_path_factory.mktemp("qwen2vl"))
    options = {**tiny_qwen2vl.OPTIONS, "engine_args": {"worker_extension_cls": encoder_counter.EXTENSION}}
    return ModelSpec(family="vllm", name="tiny/qwen2-vl", path=str(folder), options=options)


@pytest.fixture(scope="module")
def describer(spec: ModelSpec) -> Iterator[VllmDescriber]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in tiny_qwen2vl.ENVIRONMENT.items():
            patch.setenv(name, value)
        loaded = registry.load_describer(spec)
        assert isinstance(loaded, VllmDescriber)
        encoder_counter.start(loaded.engine)
        yield loaded
        loaded.close()
        assert loaded.engine.pids() == []


def clip(name: str, frames: int = 16, height: int = 112, width: int = 140) -> ClipFrames:
    """Noise, another for each name."""
    noise = np.random.default_rng(list(name.encode())).integers(0, 256, (frames, height, width, 3), np.uint8)
    return ClipFrames(name, noise, np.arange(frames) / 2.0, frames / 2)


def with_options(describer: VllmDescriber, **changed: Any) -> VllmDescriber:
    """Another describer on the same engine."""
    options = replace(describer._options, **changed)
    return VllmDescriber(describer.key, describer.engine, options, describer._script)


def talk(describer: VllmDescriber, about: ClipFrames) -> tuple[ClipConversation, Description]:
    """A conversation and what came of it."""
    conversation = describer.conversation(about)
    return conversation, describer.engine.submit(converse(conversation, LIMITS)).result()


def describe(describer: VllmDescriber, *clips: ClipFrames) -> list[Any]:
    """Descriptions of clips that are in flight together; exceptions as values."""

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*map(describer.describe, clips), return_exceptions=True)

    return asyncio.run(all_of_them())


def full_blocks(tokens: int, describer: VllmDescriber) -> int:
    """Tokens in whole blocks of the KV cache."""
    block: int = describer.engine.config.cache_config.block_size
    return tokens // block * block


def test_both_turns_of_many_clips_at_once(describer: VllmDescriber) -> None:
    clips = [clip(f"many {n}") for n in range(20)]
    before = encoder_counter.encoded(describer.engine)
    described = describe(describer, *clips)
    assert [type(one) for one in described] == [Description] * 20, described
    for one in described:
        assert one.caption and len(one.pairs) == 3
        assert [turn.turn for turn in one.turns if turn.finish_reason == "stop"] == ["caption", "qa"]
        assert one.turns[-1].output_tokens > 0 and one.frames_used is None
        assert one.measured.keys() == {"caption_s", "qa_s", "wait_s", "in_flight"}
        assert 1 <= one.measured["in_flight"] <= 16, "max_num_seqs"
    assert len({one.caption for one in described}) == 20
    assert encoder_counter.encoded(describer.engine) - before == 20, "the vision encoder runs once for each clip"


def test_turn_2_is_turn_1_to_the_token_and_all_its_full_blocks_come_from_the_cache(describer: VllmDescriber) -> None:
    conversation, _ = talk(describer, clip("exact"))
    (first, said), (second, _) = ((a.prompt_token_ids, a.token_ids) for _, a in conversation.answers)
    ended = said[-1] in describer._script.ends
    shared = first + (said[:-1] if ended else said)
    assert ended and second[: len(shared)] == shared
    assert second[len(shared) :] == describer._script.second
    # The very last token of an answer is never fed back, so nothing is cached for it.
    cached = conversation.answers[1][1].cached_tokens
    assert cached == full_blocks(len(first) + len(said) - 1, describer) > len(first) / 2


@pytest.mark.parametrize(
    ("lost", "runs"),
    [((), 1), (("encoder",), 1), (("prefix",), 1), (("encoder", "prefix"), 2)],
    ids=["none lost", "encoder's lost", "KV lost", "both lost"],
)
def test_either_cache_saves_the_second_run_of_the_vision_encoder(
    describer: VllmDescriber, lost: tuple[str, ...], runs: int
) -> None:
    """The KV cache, which `admission` keeps, and vLLM's small cache of what the encoder made, which nobody bounds."""
    conversation = describer.conversation(clip(f"lost {lost}"))
    engine = describer.engine
    before = encoder_counter.encoded(engine)
    engine.submit(conversation.caption(64)).result()
    for cache in lost:
        engine.submit(getattr(engine._llm, f"reset_{cache}_cache")()).result()
    engine.submit(conversation.pairs(16)).result()
    assert encoder_counter.encoded(engine) - before == runs
    assert (conversation.answers[1][1].cached_tokens > 0) == ("prefix" not in lost)


def test_an_engine_that_lost_the_prepared_frames_is_given_them_again(describer: VllmDescriber) -> None:
    """vLLM believes that its engine holds them, and sends no more than their name; such a request fails."""
    conversation, engine = describer.conversation(clip("drifted")), describer.engine
    engine.submit(conversation.caption(64)).result()
    engine.submit(engine._llm.engine_core.reset_mm_cache_async()).result()
    engine.submit(engine._llm.reset_prefix_cache()).result()
    reply = engine.submit(conversation.pairs(256)).result()
    assert reply.turn.finish_reason == "stop" and reply.turn.cached_tokens == 0


def test_prompts_that_fill_many_steps_at_once_are_all_answered(describer: VllmDescriber) -> None:
    """vLLM's CPU build dies when it works on such a prompt in parts."""
    clips = [clip(f"large {n}", height=280, width=280) for n in range(16)]
    assert {type(said) for said in describe(describer, *clips)} <= {Description, Rejected}


@pytest.mark.parametrize(("frames", "pairs"), [(1, 1), (2, 1), (7, 4), (16, 8)])
def test_frames_are_neither_resized_nor_chosen_again(describer: VllmDescriber, frames: int, pairs: int) -> None:
    """A video token is two frames of 28 x 28 pixels. 700 x 28 is longer than what any rule would leave as it is."""
    for height, width in ((112, 140), (28, 700), (252, 28)):
        conversation = describer.conversation(clip(f"size {frames} {width}", frames, height, width))
        describer.engine.submit(conversation.caption(1)).result()
        [(_, answer)] = conversation.answers
        assert answer.prompt_token_ids.count(_video_token(describer)) == pairs * (height // 28) * (width // 28)


def _video_token(describer: VllmDescriber) -> int:
    token: int = describer.engine.tokenizer().convert_tokens_to_ids(tiny_qwen2vl.VIDEO)
    return token


def test_the_answer_depends_on_the_frames(describer: VllmDescriber) -> None:
    one, other = clip("same name"), replace(clip("another"), clip_id="same name", frames=clip("another", 14).frames)
    said = [describe(describer, c)[0].caption for c in (one, other)]
    assert said[0] != said[1]


def test_the_same_seed_says_the_same_again(describer: VllmDescriber) -> None:
    clips = [clip(f"seed {n}") for n in range(4)]
    together, alone = describe(describer, *clips), [describe(describer, one)[0] for one in clips]
    assert [(d.caption, d.pairs) for d in together] == [(d.caption, d.pairs) for d in alone]
    other = describe(with_options(describer, seed=1), *clips)
    assert not {d.caption for d in other} & {d.caption for d in together}


def test_the_second_answer_obeys_the_schema(describer: VllmDescriber) -> None:
    for n in range(8):
        conversation, _ = talk(describer, clip(f"schema {n}"))
        text = conversation.answers[-1][1].text
        parse_pairs(text)
        assert re.sub(r'"(?:[^"\\]|\\.)*"', "_", text) == "{_: [" + ", ".join(["{_: _, _: _}"] * 3) + "]}"
        assert json.loads(text).keys() == {"pairs"}


def test_an_answer_that_is_cut_off_is_asked_again_with_more_room(describer: VllmDescriber) -> None:
    short = with_options(describer, caption_tokens=1, qa_tokens=2, retry_factor=256)
    [described] = describe(short, clip("cut off"))
    ends = [(turn.turn, turn.output_tokens > 2, turn.finish_reason) for turn in described.turns]
    assert ends == [
        ("caption", False, "length"),
        ("caption", True, "stop"),
        ("qa", False, "length"),
        ("qa", True, "stop"),
    ]
    assert described.turns[1].cached_tokens > 0, "the frames are still in the cache"


def test_an_answer_that_is_cut_off_twice_is_a_reject(describer: VllmDescriber) -> None:
    [said] = describe(with_options(describer, caption_tokens=1, retry_factor=2), clip("cut off"))
    assert isinstance(said, Rejected) and said.reason == "truncated"
    [said] = describe(with_options(describer, qa_tokens=2, retry_factor=2), clip("cut off"))
    assert isinstance(said, Rejected) and said.reason == "bad_output" and "cut off after 4 tokens" in said.detail


def test_frames_that_the_context_has_no_room_for_are_left_out_evenly(describer: VllmDescriber) -> None:
    large = clip("long", frames=80, height=280, width=280)  # 40 times 100 tokens
    seen = describer._fitting(large)
    room = 4096 - describer._script.tokens - describer._options.answer_tokens
    assert len(seen.frames) == room // 100 * 2
    assert (seen.times_s[0], seen.times_s[-1]) == (0.0, 39.5) and set(np.diff(seen.times_s)) == {0.5, 1.0}
    [described] = describe(describer, large)
    assert described.frames_used == len(seen.frames) < 80
    assert max(turn.prompt_tokens + turn.output_tokens for turn in described.turns) <= 4096


def test_a_clip_that_does_not_fit_with_two_frames_is_rejected_with_the_numbers(describer: VllmDescriber) -> None:
    [said] = describe(describer, clip("vast", frames=2, height=1400, width=1400))
    assert isinstance(said, Rejected) and not isinstance(said, Retryable)
    assert said.reason == "engine_error" and "two frames of 1400 x 1400 become 2500" in said.detail


def test_a_clip_past_its_deadline_may_try_again_and_leaves_the_engine(describer: VllmDescriber) -> None:
    hurried = with_options(describer, deadline_s=0.02)
    [said] = describe(hurried, clip("late"))
    assert isinstance(said, Retryable) and (said.reason, said.detail) == (
        "timeout",
        "no answer within 0.02 s in flight",
    )
    give_up = time.monotonic() + 10
    while describer.engine._llm.get_num_unfinished_requests() and time.monotonic() < give_up:
        time.sleep(0.02)
    assert describer.engine._llm.get_num_unfinished_requests() == 0
    assert hurried._admission.held.clips == 0


def test_a_caller_who_goes_away_takes_its_request_along(describer: VllmDescriber) -> None:
    async def goes_away() -> None:
        task = asyncio.create_task(describer.describe(clip("gone")))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(goes_away())
    give_up = time.monotonic() + 10
    while describer._admission.held.clips and time.monotonic() < give_up:
        time.sleep(0.02)
    assert describer._admission.held.clips == 0
    assert describer.engine._llm.get_num_unfinished_requests() == 0


def test_a_request_that_the_engine_never_takes_is_rejected_with_its_words(describer: VllmDescriber) -> None:
    conversation = describer.conversation(clip("wrong"))
    too_long = {"prompt_token_ids": [1] * 5000}
    work = describer.engine.generate(too_long, conversation._sampling("caption", 1, 0), priority=0)
    with pytest.raises(Rejected, match="5000") as caught:
        describer.engine.submit(work).result()
    assert caught.value.reason == "engine_error" and not isinstance(caught.value, Retryable)


def test_more_clips_than_the_kv_cache_holds_wait_their_turn(describer: VllmDescriber) -> None:
    few = with_options(describer)
    clips = [clip(f"waits {n}") for n in range(8)]
    few._admission.limit = replace(few._admission.limit, kv_tokens=3 * few._load(clips[0]).kv_tokens)
    described = describe(few, *clips)
    assert max(d.measured["in_flight"] for d in described) == 3
    assert sorted(d.measured["wait_s"] > 0.001 for d in described) == [False] * 3 + [True] * 5
