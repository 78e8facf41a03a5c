"""What the tests of cutting share: videos as `scan` sees them, the job's answers, and what a clip's file holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2

from pipeline.media.cut import CutMode, cut
from pipeline.media.decode import Decoder
from pipeline.media.open import open_media, video_stream
from pipeline.media.write import Encoding
from tests.clips import decoded, number

QUALITY = {"crf": 18, "preset": "veryfast"}


def x264(params: str) -> Encoding:
    """H.264 with a key frame every 12 frames and further parameters of x264."""
    return Encoding(options={"preset": "veryfast", "x264-params": f"keyint=12:min-keyint=12:scenecut=0:{params}"})


def x265(params: str) -> Encoding:
    """HEVC with a key frame every 12 frames and further parameters of x265."""
    fixed = "keyint=12:min-keyint=12:scenecut=0:log-level=none"
    return Encoding(codec="libx265", options={"x265-params": f"{fixed}:{params}"})


CLOSED_GOPS = x264("bframes=2")
OPEN_GOPS = x264("bframes=3:b-pyramid=normal:open-gop=1")


@dataclass(frozen=True)
class Scanned:
    """A video as `scan` sees it."""

    path: Path
    pts: list[int]
    end_pts: int
    time_base: Fraction

    def shot(self, index: int, start: int, end: int) -> dict[str, Any]:
        """Frames [start, end) as a shot of the job."""
        times = [*self.pts, self.end_pts]
        durations = [after - pts for pts, after in zip(times[start:end], times[start + 1 : end + 1], strict=True)]
        return {"shot": index, "start_frame": start, "start_pts": times[start], "durations": durations}

    def times_s(self, start: int, end: int) -> list[Fraction]:
        """Times of frames [start, end), seconds from the first of them."""
        return [(pts - self.pts[start]) * self.time_base for pts in self.pts[start:end]]


def scanned(path: Path) -> Scanned:
    with open_media(str(path)) as container:
        decoder = Decoder(container, video_stream(container))
        pts = [pts for _, pts in decoder]
        assert decoder.end_pts is not None
        return Scanned(path, pts, decoder.end_pts, decoder.time_base)


def cut_clips(
    video: Scanned, ranges: Iterable[tuple[int, int]], out: Path, mode: CutMode, tolerance_s: float = 0.1
) -> list[dict[str, Any]]:
    """What the job says of frames [start, end) of a video, in the order of the ranges."""
    out.mkdir(exist_ok=True)
    shots = [video.shot(index, start, end) for index, (start, end) in enumerate(ranges)]
    infos = [chunk.info for chunk in cut(str(video.path), shots, mode, tolerance_s, QUALITY, str(out))]
    infos.sort(key=lambda info: int(info["shot"]))
    assert [info["shot"] for info in infos] == list(range(len(shots)))
    return infos


def numbers(clip: dict[str, Any]) -> list[int]:
    """The numbers that a clip's frames carry (see clips.numbered)."""
    return [number(frame.to_ndarray(format="rgb24")) for frame in decoded(Path(clip["path"]))]


def hashes(path: str | Path) -> list[str]:
    """A hash of each decoded frame's samples."""
    return [hashlib.md5(frame.to_ndarray().tobytes()).hexdigest() for frame in decoded(Path(path))]


def opencv_count(path: str | Path) -> int:
    """Frames that OpenCV reads, which is also what it says beforehand."""
    capture = cv2.VideoCapture(str(path))
    count = 0
    while capture.read()[0]:
        count += 1
    assert count == int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    return count
