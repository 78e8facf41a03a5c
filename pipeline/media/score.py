"""The content score of a frame against the one before, as PySceneDetect's ContentDetector computes it.

Score = (mean |dH| + mean |dS| + mean |dV|) / 3 over a small picture whose longer side is about 256 pixels, in
OpenCV's 8-bit HSV; a cut is where it reaches a threshold. Sums of integers and the order of the divisions are the
detector's own, so the same pixels give the same float64.

Two ways to the small picture:
- `fast`: libswscale FAST_BILINEAR straight from the decoded planes. On the unrotated picture: turning it would
  hardly change a mean.
- `exact`: the full picture as BGR, turned upright, resized linearly by OpenCV: what `scenedetect.detect` sees,
  to the bit, when both use the same libav and OpenCV.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.media.frames import picture_view, quarter_turns

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

ScoreMode = Literal["fast", "exact"]

_LONGER_SIDE = 256  # scenedetect.scene_manager.DEFAULT_MIN_WIDTH


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
        from av.video.format import VideoFormat
        from av.video.reformatter import Interpolation, VideoReformatter

        empty: NDArray[np.uint8] = np.empty((0, 0, 3), np.uint8)

        self._exact = mode == "exact"
        self._scaler = VideoReformatter()
        # Numbers and a format object, not names: names are looked up anew for every frame.
        self._bgr: Any = VideoFormat("bgr24")
        self._flags = int(Interpolation.BICUBIC if self._exact else Interpolation.FAST_BILINEAR)
        self._size: tuple[int, int] | None = None
        self._hsv = self._last = self._difference = empty

    def score(self, frame: VideoFrame) -> float:
        """The frame's score against the frame given before it; 0.0 for the first."""
        import cv2

        bgr = self._small_exact(frame) if self._exact else self._small_fast(frame)
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

    def _small_fast(self, frame: VideoFrame) -> NDArray[np.uint8]:
        if self._size is None:
            self._size = small_size(frame.width, frame.height)
        width, height = self._size
        return picture_view(
            self._scaler.reformat(frame, width, height, self._bgr, interpolation=self._flags, threads=1)
        )

    def _small_exact(self, frame: VideoFrame) -> NDArray[np.uint8]:
        import cv2

        full = self._scaler.reformat(frame, format=self._bgr, interpolation=self._flags, threads=1)
        picture = picture_view(full)
        turns = quarter_turns(frame.rotation)
        if turns:
            picture = np.ascontiguousarray(np.rot90(picture, turns))
        if self._size is None:
            self._size = small_size(picture.shape[1], picture.shape[0])
        if picture.shape[1::-1] == self._size:
            return picture
        small: Any = cv2.resize(picture, self._size, interpolation=cv2.INTER_LINEAR)
        return small  # type: ignore[no-any-return]  (OpenCV's stubs do not say that the type of pixel stays)
