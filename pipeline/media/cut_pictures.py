"""Decoded frames as H.264 wants them: upright, yuv420p, sides even.

The picture is stored as a player shows the source: a rotation tag is carried out on the pixels. A side of an odd
number of pixels grows by one, its last row or column repeated, because yuv420p has no odd ones. Ten bits become
eight and full range becomes limited. The matrix stays the source's (BT.709 where that was RGB), and so do the other
colour tags: HDR is not tone mapped.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.media.frames import quarter_turns

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame
    from av.video.plane import VideoPlane


class Pictures:
    """Makes the pictures of one clip, all of the size and turn of its first frame."""

    def __init__(self, first: VideoFrame) -> None:
        from av.video.reformatter import VideoReformatter

        self._width, self._height = first.width, first.height
        self._turns = quarter_turns(first.rotation)
        self._scaler = VideoReformatter()

    def describe(self, context: VideoCodecContext, first: VideoFrame, pixel_aspect: Fraction | None) -> None:
        """Tell an encoder the size, pixel shape and colours of the pictures."""
        scaled = self._scaled(first)
        width, height = self._width + self._width % 2, self._height + self._height % 2
        sideways = self._turns % 2 == 1
        context.width, context.height = (height, width) if sideways else (width, height)
        context.pix_fmt = "yuv420p"
        if pixel_aspect:
            context.sample_aspect_ratio = 1 / pixel_aspect if sideways else pixel_aspect
        context.colorspace, context.color_range = scaled.colorspace, scaled.color_range
        context.color_trc, context.color_primaries = scaled.color_trc, scaled.color_primaries

    def picture(self, frame: VideoFrame) -> VideoFrame:
        """The picture of a frame, without a time."""
        from av.video.frame import PictureType

        picture = self._scaled(frame)
        if self._turns or self._width % 2 or self._height % 2:
            picture = self._upright(picture)
        picture.pict_type = PictureType.NONE  # the encoder is not to repeat the source's choice
        return picture

    def _scaled(self, frame: VideoFrame) -> VideoFrame:
        from av.video.reformatter import ColorRange, Colorspace, Interpolation

        return self._scaler.reformat(
            frame,
            self._width,
            self._height,
            "yuv420p",
            dst_colorspace=Colorspace.ITU709 if frame.format.is_rgb else None,
            dst_color_range=ColorRange.MPEG,
            interpolation=int(Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT),
            threads=1,
        )

    def _upright(self, picture: VideoFrame) -> VideoFrame:
        from av.video.frame import VideoFrame

        # Of an odd side the chroma planes hold the larger half already.
        luma = np.pad(_pixels(picture.planes[0]), ((0, self._height % 2), (0, self._width % 2)), mode="edge")
        planes = [luma, _pixels(picture.planes[1]), _pixels(picture.planes[2])]
        turned: list[npt.NDArray[Any]] = [np.rot90(plane, self._turns) for plane in planes]
        packed = np.concatenate([plane.reshape(-1) for plane in turned])
        return VideoFrame.from_ndarray(packed.reshape(-1, turned[0].shape[1]), format="yuv420p")


def _pixels(plane: VideoPlane) -> npt.NDArray[np.uint8]:
    """A plane's pixels, uint8 [height, width], without a copy."""
    return np.ndarray((plane.height, plane.width), np.uint8, memoryview(plane), strides=(plane.line_size, 1))
