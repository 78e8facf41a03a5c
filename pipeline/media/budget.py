"""How many frames of a clip a model is shown, and how large: more frames of a long clip, each of fewer pixels.

The rules and their numbers are Qwen2-VL's own for video (Qwen's package qwen-vl-utils, `vision_process.py`:
`smart_nframes` and `fetch_video`), with one more: when the model's context has no room for so many, a clip gets
fewer frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.media.frames import PixelBounds
from pipeline.stage import UserError

QWEN_TOKEN_PIXELS = 28 * 28
"""Pixels of one video token of Qwen2-VL: patches of 14, merged 2 by 2."""


@dataclass(frozen=True)
class FrameCount:
    """Frames that a clip is shown with."""

    count: int
    lowered_from: int | None = None
    """What the settings ask for, where the context has no room for so many."""


@dataclass(frozen=True, kw_only=True)
class VideoBudget:
    """Frames and pixels that a clip may have. A default without another source is that of qwen-vl-utils 0.0.14."""

    fps: float = 2.0
    """Frames for each second of the clip."""
    min_frames: int = 4
    """Fewest frames, however short the clip."""
    max_frames: int = 768
    """Most frames, however long the clip."""
    frame_multiple: int = 2
    """Frames are counted in multiples of this: so many share their tokens."""
    min_pixels: int = 128 * QWEN_TOKEN_PIXELS
    """Fewest pixels of a frame: a smaller picture is enlarged."""
    max_pixels: int = 768 * QWEN_TOKEN_PIXELS
    """Most pixels of a frame."""
    total_pixels: int = 24576 * QWEN_TOKEN_PIXELS
    """Pixels that all tokens of a clip cover together (VIDEO_TOTAL_PIXELS of qwen-vl-utils 0.0.8, which fits Qwen2-VL's
    context of 32,768 tokens; 0.0.14 takes 90% of 128,000 tokens). Many frames get fewer pixels each, down to 1.05
    times `min_pixels`."""
    side_multiple: int = 28
    """Width and height of a frame are multiples of this, pixels: one token is so wide and so high."""
    max_tokens: int | None = None
    """Video tokens that the model's context has room for; None: it has room for whatever these settings ask."""

    def __post_init__(self) -> None:
        """Raises UserError for settings that no clip fits."""
        if self.fps <= 0 or not 0 < self._fewest <= self.max_frames:
            raise UserError(
                f"fps {self.fps:g}, min_frames {self.min_frames}, max_frames {self.max_frames}: expected fps above 0, "
                f"and 0 < min_frames <= max_frames in multiples of {self.frame_multiple}"
            )
        if not self.side_multiple**2 <= self.min_pixels <= self.max_pixels:
            raise UserError(
                f"min_pixels {self.min_pixels}, max_pixels {self.max_pixels}: expected "
                f"{self.side_multiple**2} <= min_pixels <= max_pixels"
            )
        if not self._fits(self._fewest):
            fewest = self._fewest
            raise UserError(
                f"the model's context has room for {self.max_tokens} video tokens, but {fewest} frames of "
                f"{self.pixel_limit(fewest):.0f} pixels need {self.tokens(fewest)}: raise the context length, or lower "
                "max_pixels, total_pixels or min_frames"
            )

    def frames(self, duration_s: float) -> FrameCount:
        """Frames for a clip of so many seconds."""
        asked = min(max(duration_s * self.fps, self._fewest), self.max_frames)
        return self.fitting(int(asked) // self.frame_multiple * self.frame_multiple)

    def fitting(self, count: int) -> FrameCount:
        """So many frames, or as many as the context has room for."""
        fits = count
        while not self._fits(fits) and fits > self._fewest:
            fits = max(self._fewest, (fits - 1) // self.frame_multiple * self.frame_multiple)
        return FrameCount(fits, lowered_from=count if fits < count else None)

    def pixel_limit(self, count: int) -> float:
        """Most pixels of each of so many frames."""
        share = self.total_pixels / count * self.frame_multiple
        return min(self.max_pixels, max(share, int(self.min_pixels * 1.05)))

    def tokens(self, count: int) -> int:
        """Most video tokens that so many frames can become, whatever their shape."""
        return -(-count // self.frame_multiple) * int(self.pixel_limit(count) / self.side_multiple**2)

    def frame_spec(self, count: int) -> dict[str, Any]:
        """How large each of so many frames is: a `media.frames.PixelBounds` as JSON, for the `sample` job."""
        return PixelBounds(self.min_pixels, self.pixel_limit(count), self.side_multiple).to_json()

    @property
    def _fewest(self) -> int:
        return -(-self.min_frames // self.frame_multiple) * self.frame_multiple

    def _fits(self, count: int) -> bool:
        return self.max_tokens is None or self.tokens(count) <= self.max_tokens
