"""Pictures as a model wants them: upright, RGB, at the model's input size, scaled once from the decoded frame."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

Resize = Literal["stretch", "shortest_side_center_crop", "pad"]
Interpolation = Literal["area", "bicubic"]


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
    """libswscale's filter; both average over the pixels that a smaller one covers."""

    def __post_init__(self) -> None:
        if not (0 < self.width <= 4096 and 0 < self.height <= 4096):
            raise ValueError(f"frame size {self.width}x{self.height}: expected 1 to 4096 pixels a side")
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
    """Makes a model's pictures from one stream's frames; keeps its scaler, so use one per stream and spec."""

    def __init__(self, spec: FrameSpec, pixel_aspect: Fraction | None) -> None:
        from av.video.reformatter import Interpolation as Flags
        from av.video.reformatter import VideoReformatter

        self._spec = spec
        self._pixel_aspect = pixel_aspect if pixel_aspect is not None and pixel_aspect > 0 else Fraction(1)
        self._scaler = VideoReformatter()
        filters = {"area": Flags.AREA, "bicubic": Flags.BICUBIC}
        self._flags = int(filters[spec.interpolation] | Flags.ACCURATE_RND)

    def picture(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """The frame as a player shows it, uint8 RGB [spec.height, spec.width, 3]. Colours are the stream's own:
        no tone mapping of HDR."""
        turns = quarter_turns(frame.rotation)
        width, height = self._upright_target(frame, turns)
        if turns % 2:
            width, height = height, width
        # Threads would cost more than they save on one small picture.
        scaled = self._scaler.reformat(frame, width, height, "rgb24", interpolation=self._flags, threads=1)
        return self._fit(np.rot90(picture_view(scaled), turns))

    def _upright_target(self, frame: VideoFrame, turns: int) -> tuple[int, int]:
        if turns % 2:
            return scaled_size(self._spec, frame.height, frame.width, 1 / self._pixel_aspect)
        return scaled_size(self._spec, frame.width, frame.height, self._pixel_aspect)

    def _fit(self, upright: NDArray[np.uint8]) -> NDArray[np.uint8]:
        spec, (height, width) = self._spec, upright.shape[:2]
        top, left = round((height - spec.height) / 2), round((width - spec.width) / 2)
        if height >= spec.height and width >= spec.width:
            return np.ascontiguousarray(upright[top : top + spec.height, left : left + spec.width])
        out = np.zeros((spec.height, spec.width, 3), np.uint8)
        out[-top : height - top, -left : width - left] = upright
        return out
