"""Pictures as a model wants them: upright, RGB, at the model's input size, scaled once from the decoded frame."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

Resize = Literal["stretch", "shortest_side_center_crop", "pad"]
Interpolation = Literal["area", "bicubic", "bilinear"]
MAX_SIDE = 4096
"""Longest side of a picture for a model, pixels. Our choice: what strangers made must not cost gigabytes."""


@dataclass(frozen=True)
class FrameSpec:
    """How a model wants its pictures. As JSON: `to_json` and `from_json`."""

    width: int
    """Input width, pixels."""
    height: int
    """Input height, pixels."""
    resize: Resize = "shortest_side_center_crop"
    """stretch: ignore the shape. shortest_side_center_crop: fill, cut the rest off (CLIP). pad: fit, black borders."""
    interpolation: Interpolation = "bicubic"
    """libswscale's filter; all average over the pixels that a smaller one covers."""

    def __post_init__(self) -> None:
        if not (0 < self.width <= MAX_SIDE and 0 < self.height <= MAX_SIDE):
            raise ValueError(f"frame size {self.width}x{self.height}: expected 1 to {MAX_SIDE} pixels a side")
        if self.resize not in get_args(Resize) or self.interpolation not in get_args(Interpolation):
            raise ValueError(f"unknown resize {self.resize!r} or interpolation {self.interpolation!r}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> FrameSpec:
        return cls(**value)

    @property
    def nbytes(self) -> int:
        """Bytes of one picture."""
        return self.width * self.height * 3


@dataclass(frozen=True)
class PixelBounds:
    """A size that follows from the picture's own shape, as Qwen2-VL wants it. As JSON: `to_json`, `spec_from_json`."""

    min_pixels: int
    """Fewest pixels: a smaller picture is enlarged."""
    max_pixels: float
    """Most pixels, never passed."""
    side_multiple: int
    """Width and height are multiples of this, pixels."""

    def __post_init__(self) -> None:
        if not self.side_multiple**2 <= self.min_pixels <= self.max_pixels:
            raise ValueError(f"{self}: expected side_multiple squared <= min_pixels <= max_pixels")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def resolve(self, width: int, height: int, pixel_aspect: Fraction) -> FrameSpec:
        """The size for upright pictures of so many pixels, each `pixel_aspect` times as wide as high: by the rule of
        `smart_resize` in Qwen's package qwen-vl-utils. Very long pictures, which that refuses, are squeezed."""
        shown_w, shown_h = float(width * pixel_aspect), float(height)
        shown_w, shown_h = max(shown_w, shown_h / _LONGEST), max(shown_h, shown_w / _LONGEST)
        sides = [max(1, round(side / self.side_multiple)) for side in (shown_w, shown_h)]
        area = shown_w * shown_h
        if self._pixels(sides) > self.max_pixels:
            shrink = math.sqrt(area / self.max_pixels)
            sides = [max(1, math.floor(side / shrink / self.side_multiple)) for side in (shown_w, shown_h)]
        elif self._pixels(sides) < self.min_pixels:
            grow = math.sqrt(self.min_pixels / area)
            sides = [math.ceil(side * grow / self.side_multiple) for side in (shown_w, shown_h)]
        while self._pixels(sides) > self.max_pixels:  # rounded up past it: then the longer side gives way
            sides[sides.index(max(sides))] -= 1
        wide, high = (min(side, MAX_SIDE // self.side_multiple) * self.side_multiple for side in sides)
        return FrameSpec(width=wide, height=high, resize="stretch")

    def _pixels(self, sides: list[int]) -> int:
        """Pixels of a picture whose sides are so many multiples."""
        return sides[0] * sides[1] * self.side_multiple**2


_LONGEST = 200
"""Times that one side of a picture may be as long as the other before it is squeezed (qwen-vl-utils: MAX_RATIO)."""


def spec_from_json(value: dict[str, Any]) -> FrameSpec | PixelBounds:
    """A fixed size, or bounds that the picture's own shape decides within."""
    return PixelBounds(**value) if "max_pixels" in value else FrameSpec.from_json(value)


def quarter_turns(rotation: int) -> int:
    """Counter-clockwise quarter turns (0 to 3) that a player makes for a rotation tag in degrees."""
    return round(rotation / 90) % 4


def scaled_size(spec: FrameSpec, width: int, height: int, pixel_aspect: Fraction) -> tuple[int, int]:
    """Size in pixels to scale an upright picture to, before it is cropped or padded to the spec's size.

    For the crop the shorter side fits exactly and the longer one is rounded down, as torchvision does. A picture
    more than 32 times longer than the crop is squeezed: nothing sensible is in it, and it must not cost gigabytes.
    """
    if spec.resize == "stretch":
        return spec.width, spec.height
    shown_w, shown_h = width * pixel_aspect, Fraction(height)
    by_width, by_height = spec.width / shown_w, spec.height / shown_h
    if spec.resize == "pad":
        scale = min(by_width, by_height)
        return max(1, round(shown_w * scale)), max(1, round(shown_h * scale))
    longest = 32 * max(spec.width, spec.height)
    if by_width >= by_height:
        return spec.width, min(longest, max(spec.height, int(shown_h * by_width)))
    return min(longest, max(spec.width, int(shown_w * by_height))), spec.height


def picture_view(frame: VideoFrame) -> NDArray[np.uint8]:
    """The bytes of a packed 3-byte frame (rgb24, bgr24) as uint8 [height, width, 3], without a copy.

    The view keeps the frame's memory alive; its rows may have a gap between them."""
    plane = frame.planes[0]
    return np.ndarray(
        (frame.height, frame.width, 3),
        np.uint8,
        buffer=memoryview(plane),
        strides=(plane.line_size, 3, 1),
    )


class FrameSizer:
    """Makes a model's pictures from one stream's frames; keeps its scaler, so use one per stream and spec.

    All are of one size. Where the picture's own shape decides it, that is the first frame's.
    """

    def __init__(self, spec: FrameSpec | PixelBounds, pixel_aspect: Fraction | None) -> None:
        from av.video.reformatter import VideoReformatter

        self._spec = spec
        self._pixel_aspect = pixel_aspect if pixel_aspect is not None and pixel_aspect > 0 else Fraction(1)
        self._scaler = VideoReformatter()

    def picture(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """The frame as a player shows it, uint8 RGB [height, width, 3]. Colours are the stream's own: no tone mapping
        of HDR."""
        turns = quarter_turns(frame.rotation)
        on_its_side = (frame.height, frame.width, 1 / self._pixel_aspect)
        upright = on_its_side if turns % 2 else (frame.width, frame.height, self._pixel_aspect)
        if isinstance(self._spec, PixelBounds):
            self._spec = self._spec.resolve(*upright)
        width, height = scaled_size(self._spec, *upright)
        if turns % 2:
            width, height = height, width
        # Threads would cost more than they save on one small picture.
        flags = _flags(self._spec.interpolation)
        scaled = self._scaler.reformat(frame, width, height, "rgb24", interpolation=flags, threads=1)
        return _fit(self._spec, np.rot90(picture_view(scaled), turns))


def _flags(interpolation: Interpolation) -> int:
    """libswscale's flags for a filter."""
    from av.video.reformatter import Interpolation as Flags

    filters = {"area": Flags.AREA, "bicubic": Flags.BICUBIC, "bilinear": Flags.BILINEAR}
    return int(filters[interpolation] | Flags.ACCURATE_RND)


def _fit(spec: FrameSpec, upright: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Crop or pad a scaled picture to the spec's size."""
    height, width = upright.shape[:2]
    top, left = round((height - spec.height) / 2), round((width - spec.width) / 2)
    if height >= spec.height and width >= spec.width:
        return np.ascontiguousarray(upright[top : top + spec.height, left : left + spec.width])
    out = np.zeros((spec.height, spec.width, 3), np.uint8)
    out[-top : height - top, -left : width - left] = upright
    return out
