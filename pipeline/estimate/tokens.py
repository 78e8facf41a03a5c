"""Tokens of a clip's two turns, from its length, its pictures and the prompts."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

from pipeline.estimate.asked import Asked
from pipeline.estimate.rates import Rates
from pipeline.estimate.volume import Video
from pipeline.media.budget import VideoBudget
from pipeline.media.frames import FrameSpec, spec_from_json

LENGTHS = 16
"""Lengths that stand for those of all clips."""
FRAME_SIZES = 16
"""Picture sizes that are looked at: those with the most video."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of a clip, mean."""

    video: float
    """Those that stand for its frames, once."""
    prompt: float
    """Prompts of both turns: what is computed where nothing is cached."""
    computed: float
    """What is computed where turn 2 finds turn 1 in the prefix cache."""
    output: float


NO_TOKENS = Tokens(0.0, 0.0, 0.0, 0.0)


def tokens_of_clip(videos: tuple[Video, ...], mean_s: float, want: Asked, rates: Rates) -> Tokens:
    """Both turns of a clip. A describer that reads no prompts has no tokens."""
    if not want.reads_prompts or want.describer.budget is None or not videos:
        return NO_TOKENS
    video = video_tokens(want, want.describer.budget, clip_lengths(mean_s, want, rates), videos)
    word = rates("tokens_per_word")
    caption_out = rates.find("caption_output_tokens") or rates("caption_words") * word
    pairs_out = rates.find("qa_output_tokens") or rates("pairs_words") * word
    caption = video + want.prompt_words["caption"] * word + rates("caption_turn_tokens")
    caption = rates.find("caption_prompt_tokens") or caption
    before = caption + caption_out
    added = want.prompt_words["qa"] * word + rates("qa_turn_tokens")
    qa = rates.find("qa_prompt_tokens") or before + added
    qa_computed = rates.find("qa_computed_tokens") or added + before * rates("prefix_missed")
    caption_computed = rates.find("caption_computed_tokens") or caption
    return Tokens(video, caption + qa, caption_computed + qa_computed, caption_out + pairs_out)


def video_tokens(want: Asked, budget: VideoBudget, lengths: tuple[float, ...], videos: tuple[Video, ...]) -> float:
    """Mean video tokens of clips of these lengths, cut from these videos; pixels are taken as square."""
    sizes: Counter[tuple[int, int]] = Counter()
    for video in videos:
        sizes[video.width, video.height] += max(1, round(video.seconds))
    common = sizes.most_common(FRAME_SIZES)
    total = 0.0
    for length in lengths:
        frames, spec = want.shown(length)
        bounds = spec_from_json(spec)
        shared = -(-frames.count // budget.frame_multiple)
        for (width, height), seconds in common:
            size = bounds if isinstance(bounds, FrameSpec) else bounds.resolve(width, height, Fraction(1))
            total += seconds * shared * size.width * size.height / budget.side_multiple**2
    return total / len(lengths) / sum(seconds for _, seconds in common)


def clip_lengths(mean_s: float, want: Asked, rates: Rates) -> tuple[float, ...]:
    """Lengths of clips, equally many around each, of this mean: spread as a former run's were, or as evenly as the
    shortest, the longest and the mean allow (the distribution of greatest entropy)."""
    if rates.clip_lengths:
        factor = mean_s * len(rates.clip_lengths) / sum(rates.clip_lengths)
        return tuple(min(max(length * factor, want.min_s), want.max_s) for length in rates.clip_lengths)
    return even_lengths(mean_s, want.min_s, want.max_s)


def even_lengths(mean: float, low: float, high: float) -> tuple[float, ...]:
    """LENGTHS quantiles of the distribution between low and high that has this mean and the greatest entropy: a cut
    off exponential one, its density proportional to exp(-k x)."""
    width, above = high - low, mean - low
    if width <= 0 or above <= 0 or above >= width:
        return (min(max(mean, low), high),) * LENGTHS
    most = 500.0 / width  # exp() holds this, and no mean that matters needs more
    lowest, highest = -most, most
    for _ in range(100):
        k = (lowest + highest) / 2
        lowest, highest = (k, highest) if _mean(k, width) > above else (lowest, k)
    k = (lowest + highest) / 2
    shares = ((i + 0.5) / LENGTHS for i in range(LENGTHS))
    if abs(k * width) < 1e-6:
        return tuple(low + share * width for share in shares)
    return tuple(low - math.log1p(share * math.expm1(-k * width)) / k for share in shares)


def _mean(k: float, width: float) -> float:
    """Mean of the density proportional to exp(-k x) from 0 to width."""
    return width / 2 if abs(k * width) < 1e-6 else 1 / k - width / math.expm1(k * width)
