"""The `scan` job: one decode gives every frame's time and content score, and pictures on a dense time grid."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.media.decode import Decoder
from pipeline.media.frames import FrameSizer, FrameSpec
from pipeline.media.open import open_media, video_stream
from pipeline.media.score import ContentScorer, ScoreMode
from pipeline.stage import Chunk, Rejected

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_FRAMES_PER_CHUNK = 1 << 16
"""Times and scores are handed on at least this often: memory must not grow with the video."""


def scan(
    uri: str,
    score: ScoreMode,
    grid_interval_s: float,
    frame_spec: dict[str, Any],
    chunk_bytes: int,
) -> Iterator[Chunk]:
    """Decode a video once.

    Grid: for k = 0, 1, 2 ... the first frame at or after k * grid_interval_s seconds from the first frame (a frame
    that serves several points counts once), and always the very last frame.

    Yields Chunks. arrays: frames, uint8 [n, H, W, 3] RGB, the chunk's grid frames as `frame_spec` (a FrameSpec as
    JSON) wants them; at most `chunk_bytes` of them or one; n may be 0. info: frame_pts (int64, ticks from the first
    frame), frame_scores (float64), grid_frames (int32, frame indices). The last Chunk's info also holds
    time_base_num, time_base_den (seconds a tick), first_pts (the stream's own), end_pts (end of the last frame,
    ticks from the first), frames_decoded, decode_errors, mended_times.

    Raises Rejected `decode_failed` when no frame decodes, and what `open_media` and `video_stream` raise.
    """
    spec = FrameSpec.from_json(frame_spec)
    with open_media(uri) as container:
        stream = video_stream(container)
        decoder = Decoder(container, stream)
        scorer = ContentScorer(score)
        part = _Part(spec, FrameSizer(spec, stream.sample_aspect_ratio), chunk_bytes)
        grid = Grid(grid_interval_s, decoder.time_base)
        first_pts: int | None = None
        index, on_grid = -1, True
        frame: VideoFrame | None = None
        for index, (frame, stream_pts) in enumerate(decoder):
            if first_pts is None:
                first_pts = stream_pts
            pts = stream_pts - first_pts
            on_grid = grid.takes(pts)
            part.add(pts, scorer.score(frame))
            if on_grid:
                part.add_picture(index, frame)
            if part.full:
                yield part.take()
        if frame is None or first_pts is None or decoder.end_pts is None:
            raise Rejected("decode_failed", f"no frame decodes ({decoder.errors} errors; a file cut short is one)")
        if not on_grid:
            part.add_picture(index, frame)
        yield part.take(
            time_base_num=decoder.time_base.numerator,
            time_base_den=decoder.time_base.denominator,
            first_pts=first_pts,
            end_pts=decoder.end_pts - first_pts,
            frames_decoded=decoder.frames,
            decode_errors=decoder.errors,
            mended_times=decoder.mended,
        )


class Grid:
    """Decides exactly which frames are on a time grid."""

    def __init__(self, interval_s: float, time_base: Fraction) -> None:
        # The decimal that was written, not the binary float nearest to it: 0.1 s is a tenth.
        self._interval = Fraction(str(interval_s)) / time_base
        self._next = 0

    def takes(self, pts: int) -> bool:
        """Whether the frame at `pts` (ticks from the first frame; call in order) is the first at or after a point."""
        if pts < self._next:
            return False
        self._next = math.ceil(self._interval * (math.floor(pts / self._interval) + 1))
        return True


class _Part:
    """What has been gathered since the last chunk."""

    def __init__(self, spec: FrameSpec, sizer: FrameSizer, chunk_bytes: int) -> None:
        self._shape = (spec.height, spec.width, 3)
        self._sizer = sizer
        self._most = max(1, chunk_bytes // spec.nbytes)
        self._clear()

    def _clear(self) -> None:
        self._pts: list[int] = []
        self._scores: list[float] = []
        self._grid: list[int] = []
        self._pictures: list[NDArray[np.uint8]] = []

    @property
    def full(self) -> bool:
        return len(self._pictures) >= self._most or len(self._pts) >= _FRAMES_PER_CHUNK

    def add(self, pts: int, score: float) -> None:
        self._pts.append(pts)
        self._scores.append(score)

    def add_picture(self, index: int, frame: VideoFrame) -> None:
        self._grid.append(index)
        self._pictures.append(self._sizer.picture(frame))

    def take(self, **more: int) -> Chunk:
        """The gathered as a Chunk; starts anew."""
        pictures = np.stack(self._pictures) if self._pictures else np.empty((0, *self._shape), np.uint8)
        info: dict[str, Any] = {
            "frame_pts": np.array(self._pts, np.int64),
            "frame_scores": np.array(self._scores, np.float64),
            "grid_frames": np.array(self._grid, np.int32),
            **more,
        }
        self._clear()
        return Chunk(arrays={"frames": pictures}, info=info)
