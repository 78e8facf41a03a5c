"""The content score of a frame against the one before, as PySceneDetect's ContentDetector computes it.

Score = (mean |dH| + mean |dS| + mean |dV|) / 3 over a small picture whose longer side is about 256 pixels, in
OpenCV's 8-bit HSV; a cut is where it reaches a threshold. Sums of integers and the order of the divisions are the
detector's own, so the same pixels give the same float64.

Two ways to the small picture:
- `exact`: the full picture as BGR, turned upright, resized linearly by OpenCV. It is what `scenedetect.detect` sees,
  to the bit, since both use libav and OpenCV.
- `fast`: the decoded planes are resized linearly by OpenCV, and only the small picture is converted to BGR. A linear
  filter may change places with the conversion but for rounding, so scores differ by tenths. What is not planar
  8-bit YUV goes through libswscale's FAST_BILINEAR. The picture is not turned: that would hardly move a mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.media.frames import picture_view, quarter_turns

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.plane import VideoPlane

ScoreMode = Literal["fast", "exact"]
Picture = NDArray[np.uint8]

_LONGER_SIDE = 256  # scenedetect.scene_manager.DEFAULT_MIN_WIDTH
_PLANAR = frozenset(f"{name}{chroma}p" for name in ("yuv", "yuvj") for chroma in (410, 411, 420, 422, 440, 444))


def small_size(width: int, height: int) -> tuple[int, int]:
    """Width and height, pixels, of the picture that is scored (PySceneDetect 0.7: compute_downscale_factor)."""
    longer = max(width, height)
    factor = 1.0 if longer < _LONGER_SIDE else longer / float(_LONGER_SIDE)
    if factor <= 1.0:
        return width, height
    return max(1, round(width / factor)), max(1, round(height / factor))


class ContentScorer:
    """Scores the frames of one stream one after another. When the picture's size changes, later frames are scored
    at the first frame's small size."""

    def __init__(self, mode: ScoreMode) -> None:
        self._smaller: _Exact | _Fast = _Exact() if mode == "exact" else _Fast()
        empty: Picture = np.empty((0, 0, 3), np.uint8)
        self._hsv = self._last = self._difference = empty

    def score(self, frame: VideoFrame) -> float:
        """The frame's score against the frame given before it; 0.0 for the first."""
        import cv2

        bgr = self._smaller.small(frame)
        first = self._last.size == 0
        if first:
            self._hsv, self._last, self._difference = (np.empty(bgr.shape, np.uint8) for _ in range(3))
        hsv, last = self._hsv, self._last
        cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV, dst=hsv)
        self._hsv, self._last = last, hsv
        if first:
            return 0.0
        cv2.absdiff(hsv, last, dst=self._difference)
        hue, saturation, value, _ = cv2.sumElems(self._difference)
        pixels = float(hsv.shape[0] * hsv.shape[1])
        return (hue / pixels + saturation / pixels + value / pixels) / 3.0


class _Converter:
    """Any frame to a BGR picture by libswscale, keeping the scaler."""

    def __init__(self, filter_name: str) -> None:
        from av.video.format import VideoFormat
        from av.video.reformatter import Interpolation, VideoReformatter

        self._scaler = VideoReformatter()
        # A format object and a number, not names: names are looked up anew for every frame.
        self._format: Any = VideoFormat("bgr24")
        self._flags = int(Interpolation[filter_name])

    def bgr(self, frame: VideoFrame, size: tuple[int | None, int | None] = (None, None)) -> Picture:
        """The frame as uint8 [H, W, 3], scaled to (width, height) if given."""
        return picture_view(self._scaler.reformat(frame, *size, self._format, interpolation=self._flags, threads=1))


class _Exact:
    """OpenCV's way: convert all, then resize."""

    def __init__(self) -> None:
        self._converter = _Converter("BICUBIC")  # the filter of OpenCV's reader, which matters for chroma
        self._size: tuple[int, int] | None = None

    def small(self, frame: VideoFrame) -> Picture:
        import cv2

        picture = self._converter.bgr(frame)
        turns = quarter_turns(frame.rotation)
        if turns:
            picture = np.ascontiguousarray(np.rot90(picture, turns))
        height, width = picture.shape[:2]
        if self._size is None:
            self._size = small_size(width, height)
        if (width, height) == self._size:
            return picture
        small: Any = cv2.resize(picture, self._size, interpolation=cv2.INTER_LINEAR)
        return small  # type: ignore[no-any-return]


class _Fast:
    """Resize the planes, then convert what is left."""

    def __init__(self) -> None:
        self._converter = _Converter("FAST_BILINEAR")
        self._size: tuple[int, int] | None = None
        self._planes: VideoFrame | None = None
        self._targets: list[Picture] = []

    def small(self, frame: VideoFrame) -> Picture:
        import cv2

        if self._size is None:
            self._size = small_size(frame.width, frame.height)
        name = frame.format.name
        if (frame.width, frame.height) == self._size or name not in _PLANAR:
            return self._converter.bgr(frame, self._size)
        if self._planes is None:
            self._planes = self._make_planes(*self._size)
        planes = self._planes
        planes.colorspace = frame.colorspace
        planes.color_range = 2 if name.startswith("yuvj") else frame.color_range  # 2: full range
        for plane, target in zip(frame.planes, self._targets, strict=True):
            cv2.resize(_plane_view(plane), target.shape[::-1], dst=target, interpolation=cv2.INTER_LINEAR)
        return self._converter.bgr(planes)[: self._size[1]]

    def _make_planes(self, width: int, height: int) -> VideoFrame:
        """The frame that holds the small planes: 4:2:2 of even height, which libswscale converts without scaling,
        by the same arithmetic as the exact way's full picture."""
        from av.video.frame import VideoFrame

        planes = VideoFrame(width, height + height % 2, "yuv422p")
        views = [_plane_view(plane) for plane in planes.planes]
        for view in views:
            view[:] = 128  # the row that is too many
        self._targets = [view[:height] for view in views]
        return planes


def _plane_view(plane: VideoPlane) -> Picture:
    """A plane of bytes as uint8 [height, width], without a copy; writing to it writes to the frame."""
    return np.ndarray((plane.height, plane.width), np.uint8, buffer=memoryview(plane), strides=(plane.line_size, 1))
