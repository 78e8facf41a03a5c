"""Tokens of a clip, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.estimate.tokens import LENGTHS, NO_TOKENS, clip_lengths, even_lengths, tokens_of_clip, video_tokens
from pipeline.estimate.volume import Video
from pipeline.media.budget import FrameCount, VideoBudget
from tests.estimate.inputs import rates, want

WIDE = Video(100.0, 30.0, 560, 280, 1)
"""20 x 10 tokens a frame."""
BUDGET = VideoBudget(max_pixels=560 * 280)


def in_budget(budget: VideoBudget, lengths: tuple[float, ...], videos: tuple[Video, ...]) -> float:
    """Video tokens where the budget says how many frames there are."""

    def shown(clip_s: float) -> tuple[FrameCount, dict[str, Any]]:
        return budget.frames(clip_s), budget.frame_spec(budget.frames(clip_s).count)

    return video_tokens(replace(want("demo"), shown=shown), budget, lengths, videos)


def test_video_tokens_are_those_of_the_frames_that_the_budget_allows() -> None:
    assert in_budget(BUDGET, (10.0,), (WIDE,)) == 10 * 200, "20 frames, two share their tokens"
    assert in_budget(BUDGET, (10.0, 20.0), (WIDE,)) == 15 * 200
    assert in_budget(replace(BUDGET, fps=1.0), (10.0,), (WIDE,)) == 5 * 200


def test_pictures_count_by_the_length_of_their_videos() -> None:
    square = Video(300.0, 30.0, 280, 280, 1)  # 100 tokens, below the fewest of 128: enlarged to 12 x 12
    assert in_budget(BUDGET, (10.0,), (WIDE, square)) == 10 * (200 + 3 * 144) / 4


def test_frames_that_generate_is_told_to_take_overrule_the_budget() -> None:
    usual = tokens_of_clip((WIDE,), 20.0, want("hicom248k"), rates())
    told = tokens_of_clip((WIDE,), 20.0, want("hicom248k", "generate.frames=8"), rates())
    assert told.video == 4 * 200, "8 frames, two share their tokens"
    assert told.video < usual.video and told.prompt < usual.prompt


@pytest.mark.parametrize("mean", [5.0, 6.0, 25.67, 62.5, 100.0, 120.0])
def test_lengths_have_the_mean_that_is_asked_for(mean: float) -> None:
    lengths = even_lengths(mean, 5.0, 120.0)
    assert len(lengths) == LENGTHS and list(lengths) == sorted(lengths)
    assert all(5.0 <= length <= 120.0 for length in lengths)
    assert sum(lengths) / LENGTHS == pytest.approx(mean, rel=0.03)


def test_lengths_are_even_where_the_mean_is_the_middle() -> None:
    lengths = even_lengths(50.0, 0.0, 100.0)
    assert lengths == pytest.approx([100 * (i + 0.5) / LENGTHS for i in range(LENGTHS)])


def test_lengths_of_a_former_run_are_stretched_to_the_mean() -> None:
    book = replace(rates(), clip_lengths=(10.0, 30.0))
    assert clip_lengths(40.0, want(), book) == (20.0, 60.0)
    assert clip_lengths(100.0, want(), book) == (50.0, 120.0), "the longest that filter keeps"


def test_a_describer_without_prompts_has_no_tokens() -> None:
    assert tokens_of_clip((WIDE,), 20.0, want("demo"), rates()) == NO_TOKENS


def test_turn_two_repeats_turn_one_unless_it_is_cached() -> None:
    ask = replace(want("hicom248k"), prompt_words={"caption": 100, "qa": 50})
    simple = {"tokens_per_word": 1, "caption_words": 200, "pairs_words": 300, "prefix_missed": 0}
    book = rates(**simple, caption_turn_tokens=20, qa_turn_tokens=10)
    tokens = tokens_of_clip((WIDE,), 20.0, ask, book)
    first = tokens.video + 100 + 20
    assert tokens.output == 500
    assert tokens.prompt == pytest.approx(first + (first + 200 + 50 + 10))
    assert tokens.computed == pytest.approx(first + 50 + 10)
    missed = tokens_of_clip((WIDE,), 20.0, ask, book.moved("prefix_missed", 1.0))
    assert missed.computed == pytest.approx(tokens.prompt), "a cache that keeps nothing is none"
