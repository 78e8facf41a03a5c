"""How many frames, how large: the numbers of qwen-vl-utils, and what a small context does to them.

FRAMES and SIZES were computed by qwen-vl-utils 0.0.14 with `total_pixels` at its default of 0.0.8: `smart_nframes` for
a video of 30 frames a second, the limit in `fetch_video`, `smart_resize` with that limit.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest

from pipeline.media.budget import FrameCount, VideoBudget
from pipeline.media.frames import PixelBounds
from pipeline.stage import UserError

ONE = Fraction(1)
FRAMES = {
    0.5: (4, 602112),
    2.0: (4, 602112),
    5.0: (10, 602112),
    7.3: (14, 602112),
    25.67: (50, 602112),
    60.0: (120, 321126.4),
    120.0: (240, 160563.2),
    400.0: (768, 105369),
    3600.0: (768, 105369),
}
"""Clip's length, seconds: frames, most pixels of each."""
SIZES = {
    4: [(1920, 1080, 1008, 560), (640, 360, 644, 364), (240, 320, 280, 392), (64, 64, 336, 336), (4000, 25, 4004, 28)],
    120: [(1920, 1080, 728, 420), (1080, 1920, 420, 728), (2570, 257, 1792, 168), (64, 64, 336, 336)],
    240: [(1920, 1080, 532, 280), (640, 360, 532, 280), (2540, 508, 896, 168), (320, 240, 392, 280)],
}
"""Frames of a clip: width and height of a picture, and of what the model sees."""


def resolved(budget: VideoBudget, count: int, width: int, height: int, aspect: Fraction = ONE) -> tuple[int, int]:
    spec = PixelBounds(**budget.frame_spec(count)).resolve(width, height, aspect)
    assert (spec.resize, spec.interpolation) == ("stretch", "bicubic")
    return spec.width, spec.height


@pytest.mark.parametrize(("duration_s", "expected"), FRAMES.items())
def test_frames_and_their_pixels_are_qwens(duration_s: float, expected: tuple[int, float]) -> None:
    budget = VideoBudget()
    count = budget.frames(duration_s)
    assert (count, budget.pixel_limit(count.count)) == (FrameCount(expected[0]), expected[1])


@pytest.mark.parametrize("count", SIZES)
def test_sizes_are_qwens(count: int) -> None:
    for width, height, *expected in SIZES[count]:
        assert list(resolved(VideoBudget(), count, width, height)) == expected


def test_sizes_are_those_of_the_models_own_processor() -> None:
    qwen = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    budget, sides = VideoBudget(), (90, 240, 333, 480, 1080, 1921, 2160)
    for width, height, count in itertools.product(sides, sides, (4, 64, 98, 240, 500)):
        bounds = budget.frame_spec(count)
        rows, columns = qwen.smart_resize(height, width, 28, bounds["min_pixels"], bounds["max_pixels"])
        if rows * columns <= bounds["max_pixels"]:
            assert resolved(budget, count, width, height) == (columns, rows), (width, height, count)


def test_no_shape_passes_the_limit() -> None:
    """Where Qwen's own rule does: it rounds the sides of an enlarged picture up."""
    budget, sides = VideoBudget(), (1, 9, 20, 64, 500, 1000, 4000)
    for width, height, count in itertools.product(sides, sides, (4, 240, 768)):
        wide, high = resolved(budget, count, width, height)
        assert wide % 28 == high % 28 == 0 and 0 < wide * high <= budget.pixel_limit(count), (width, height, count)
        assert count / 2 * wide * high / 784 <= budget.tokens(count)


def test_the_shown_shape_counts_and_not_the_coded_one() -> None:
    budget = VideoBudget()
    assert resolved(budget, 240, 720, 576, Fraction(64, 45)) == resolved(budget, 240, 1024, 576)


def test_a_context_with_room_changes_nothing() -> None:
    """24576 tokens are all that `total_pixels` allows a clip of up to 120 s."""
    roomy, lengths = VideoBudget(max_tokens=24576), [s for s in FRAMES if s <= 120]
    assert [roomy.frames(s) for s in lengths] == [VideoBudget().frames(s) for s in lengths]


@pytest.mark.parametrize("room", [1536, 2000, 5000, 20_000])
def test_a_small_context_gets_as_many_frames_as_fit(room: int) -> None:
    count = VideoBudget(max_tokens=room).frames(120.0)
    assert count.lowered_from == 240 and count.count % 2 == 0
    assert VideoBudget().tokens(count.count) <= room < VideoBudget().tokens(count.count + 2)


def test_a_given_number_of_frames_is_lowered_too() -> None:
    budget = VideoBudget(max_tokens=768 * 10)
    assert budget.fitting(7) == FrameCount(7)
    assert budget.fitting(32) == FrameCount(20, lowered_from=32)
    assert budget.fitting(21) == FrameCount(20, lowered_from=21)


def test_settings_that_no_clip_fits_are_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"room for 1535 video tokens, but 4 frames .* need 1536: raise the context"):
        VideoBudget(max_tokens=1535)
    for wrong in ({"fps": 0.0}, {"min_frames": 0}, {"min_frames": 9, "max_frames": 9}):
        with pytest.raises(UserError, match="fps"):
            VideoBudget(**wrong)  # type: ignore[arg-type]
    for pixels in ({"min_pixels": 783}, {"min_pixels": 2000, "max_pixels": 1000}):
        with pytest.raises(UserError, match="min_pixels"):
            VideoBudget(**pixels)


def test_other_multiples_count_their_own_tokens() -> None:
    budget = VideoBudget(frame_multiple=4, side_multiple=32, min_pixels=1024, max_pixels=64 * 1024, fps=1.0)
    assert budget.frames(11.0) == FrameCount(8)
    assert budget.tokens(8) == 2 * 64
    assert math.prod(resolved(budget, 8, 1000, 1000)) == 64 * 1024
