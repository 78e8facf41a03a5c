"""The built-in describer says what was drawn: every sentence true of its own clip, and false of another."""

from __future__ import annotations

import asyncio
from functools import cache
from itertools import permutations
from typing import cast

import numpy as np
import pytest

from pipeline.models import registry
from pipeline.models.protocols import ClipFrames, Description
from pipeline.models.spec import ModelSpec
from pipeline.stage import UserError, Workspace
from pipeline.stages.clean import Clean, CleanConfig
from tests.models import observer_oracle as oracle
from tests.models.observer_oracle import Drawn, judge, sentences_of

SPEC = ModelSpec(family="builtin", name="observer", revision="1")

THERE_AND_BACK = oracle.line((0.2, 0.5), (0.8, 0.5))[::2] + oracle.line((0.8, 0.5), (0.2, 0.5))[1::2]

DRAWN: dict[str, Drawn] = {
    "disc_right": oracle.shape("white", "dark blue", 0.25, oracle.line((0.15, 0.5), (0.85, 0.5)), round_=True),
    "disc_down_left": oracle.shape("black", "yellow", 0.25, oracle.line((0.8, 0.2), (0.2, 0.8)), round_=True),
    "square_still": oracle.shape("red", "light grey", 0.3, oracle.line((0.18, 0.82), (0.18, 0.82))),
    "square_up": oracle.shape("orange", "beige", 0.2, oracle.line((0.5, 0.85), (0.5, 0.15))),
    "there_and_back": oracle.shape("cyan", "brown", 0.25, THERE_AND_BACK),
    "fade": oracle.fade(),
    "pan_left": oracle.pan(("green", "dark green", "beige"), (-5, 0)),
    "pan_down": oracle.pan(("grey", "purple"), (0, 6)),
    "mosaic": oracle.pan(tuple(name for name in oracle.NAMES if name != "grey"), (0, 0)),
    "grey": oracle.plain("grey"),
    "cut": oracle.cut(oracle.plain("yellow"), oracle.plain("purple"), 7),
}


def describe(clip: ClipFrames) -> Description:
    return asyncio.run(registry.load_describer(SPEC).describe(clip))


@cache
def description(name: str) -> Description:
    return describe(DRAWN[name].clip)


def all_sentences(text: Description) -> list[str]:
    parts = [text.caption, *(part for pair in text.pairs for part in (pair.instruction, pair.answer))]
    return [sentence for part in parts for sentence in sentences_of(part)]


@pytest.mark.parametrize("name", DRAWN)
def test_every_sentence_is_true_of_its_clip(name: str) -> None:
    false = [sentence for sentence in all_sentences(description(name)) if not judge(DRAWN[name], sentence)]
    assert false == []


@pytest.mark.parametrize(("told", "shown"), list(permutations(DRAWN, 2)))
def test_a_description_is_false_of_another_clip(told: str, shown: str) -> None:
    """Most of the caption is false of it, and so is every single pair."""
    text = description(told)
    verdicts = [judge(DRAWN[shown], sentence) for sentence in sentences_of(text.caption)]
    assert sum(verdicts) <= len(verdicts) / 2, text.caption
    for pair in text.pairs:
        assert not all(judge(DRAWN[shown], sentence) for sentence in sentences_of(pair.answer)), pair


SAID = {
    "disc_right": "The white area moves to the right and ends in the middle right.",
    "disc_down_left": "The black area moves down and to the left and ends in the lower left.",
    "square_still": "A red area lies in the lower left of the picture",
    "square_up": "The orange area moves up and ends in the upper middle.",
    "there_and_back": "The cyan area moves away from its place and comes back to it.",
    "fade": "The picture is mostly white at the beginning and mostly black at the end.",
    "pan_left": "The whole scenery slides to the left, as when a camera turns to the right.",
    "pan_down": "The whole scenery slides down, as when a camera turns up.",
    "mosaic": "The picture is of many colours",
    "grey": "The picture is almost entirely grey.",
    "cut": "Between 3.2 and 3.8 seconds nearly all of the picture changes, far more than at other times.",
}


@pytest.mark.parametrize("name", DRAWN)
def test_the_caption_says_what_the_clip_was_drawn_for(name: str) -> None:
    assert SAID[name] in description(name).caption
    assert [other for other in DRAWN if SAID[name] in description(other).caption] == [name]


@pytest.mark.parametrize("name", DRAWN)
def test_the_shape_is_what_is_asked_about_first(name: str) -> None:
    asked = {
        "disc_right": "How does the white area that starts in the middle left of the picture move?",
        "square_still": "Describe the red area in the lower left of the picture over the clip.",
        "fade": "How does the light in the whole picture change over the clip?",
        "pan_down": "How does the scenery, which is a mix of grey and purple, slide through the picture?",
    }
    if name in asked:
        assert description(name).pairs[0].instruction == asked[name]


@pytest.mark.parametrize("name", DRAWN)
def test_pairs_pass_every_rule_of_clean(name: str) -> None:
    text = description(name)
    raw = [{"index": n, "instruction": pair.instruction, "answer": pair.answer} for n, pair in enumerate(text.pairs)]
    row = Clean(CleanConfig()).apply({"raw_pairs": raw, "caption": text.caption}, cast(Workspace, None)).rows[0]
    assert (len(row["pairs"]), row["rejected_pairs"]) == (3, [])
    assert all(len(sentences_of(pair.answer)) >= 2 for pair in text.pairs)


def test_the_same_clip_gives_the_same_words_also_when_many_are_in_flight() -> None:
    names = ["fade", "disc_right", "pan_left", "fade", "disc_right", "pan_left"]

    async def together() -> list[Description]:
        model = registry.load_describer(SPEC)
        return await asyncio.gather(*(model.describe(DRAWN[name].clip) for name in names))

    assert asyncio.run(together()) == [description(name) for name in names]


def test_usage_counts_words_and_no_prompt() -> None:
    text = description("disc_right")
    assert [(turn.turn, turn.prompt_tokens, turn.cached_tokens, turn.finish_reason) for turn in text.turns] == [
        ("caption", 0, 0, "stop"),
        ("qa", 0, 0, "stop"),
    ]
    assert text.turns[0].output_tokens == len(text.caption.split())
    words = sum(len(pair.instruction.split()) + len(pair.answer.split()) for pair in text.pairs)
    assert text.turns[1].output_tokens == words


@pytest.mark.parametrize("count", [1, 2])
def test_a_clip_of_one_or_two_frames_is_described(count: int) -> None:
    drawn = DRAWN["square_still"]
    clip = ClipFrames("short", drawn.clip.frames[:count], drawn.clip.times_s[:count], 0.1)
    text = describe(clip)
    assert len(text.pairs) == 3
    assert all(judge(drawn, sentence) for sentence in all_sentences(text))
    assert ("stays" in text.caption) == (count > 1)


def test_a_pattern_that_repeats_is_not_taken_for_a_slide() -> None:
    stripes = (np.arange(128)[None, :, None] // 8 % 2 * 200 + 20) * np.ones((128, 1, 3))
    frames = np.stack([np.roll(stripes, 8 * t, axis=1) for t in range(16)]).astype(np.uint8)
    assert "slides" not in describe(ClipFrames("stripes", frames, oracle.TIMES_S, 8.0)).caption


def test_one_moving_thing_is_not_taken_for_a_slide() -> None:
    assert not any("slides" in description(name).caption for name in DRAWN if "pan" not in name)


def test_noise_is_described_without_a_claim_of_motion() -> None:
    frames = np.random.default_rng(1).integers(0, 256, (16, 128, 128, 3), dtype=np.uint8)
    text = describe(ClipFrames("noise", frames, oracle.TIMES_S, 8.0))
    assert not any(word in text.caption for word in ("moves", "slides", "starts", "grows"))
    assert "full of structure" in text.caption


def test_what_is_known_before_loading() -> None:
    card = registry.card("describer", SPEC)
    assert (card.frames, card.reads_prompts) == (16, False)
    assert (card.frame_spec["width"], card.frame_spec["height"]) == (oracle.SIDE, oracle.SIDE)
    assert registry.load_describer(SPEC).key == "builtin:observer@1"


def test_another_builtin_name_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="observer"):
        registry.card("describer", ModelSpec(family="builtin", name="poet", revision="1"))
