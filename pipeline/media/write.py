"""Frames drawn by a program become a video file. Used by the demo and by tests; clips are cut in `cut.py`.

The same frames and the same encoding give the same bytes on the same machine with the same PyAV: one encoder
thread, no creation time, no random ids.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

_TICKS_PER_S = 90_000
"""Time base of files whose frame times are given one by one; fine enough for any camera's clock."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How frames are encoded."""

    fps: int = 10
    """Frames a second; with explicit times, only how long the last frame lasts."""
    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    options: Mapping[str, str] = field(default_factory=dict)
    """Private options of the encoder, as libav names them."""
    muxer_options: Mapping[str, str] = field(default_factory=dict)
    rotation: int = 0
    """Degrees counter-clockwise that a player is asked to turn the picture."""


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    encoding: Encoding = Encoding(),
    times_s: Sequence[Fraction] | None = None,
    keyframes: Collection[int] = (),
) -> int:
    """Encode uint8 [H, W, 3] RGB frames, all of one size, to a file; the name's ending picks the container.

    `times_s` gives each frame's time in seconds for a variable frame rate; without it frames are 1/fps apart.
    `keyframes` are the indices of frames that must be coded on their own, beside those that the encoder chooses.
    Returns the number of frames written. Raises ValueError when no frame came.
    """
    import av
    from av.video.stream import VideoStream

    time_base = Fraction(1, encoding.fps) if times_s is None else Fraction(1, _TICKS_PER_S)
    count = 0
    with av.open(str(path), "w", options={"fflags": "+bitexact", **encoding.muxer_options}) as container:
        stream = container.add_stream(encoding.codec, rate=encoding.fps, options=_one_thread(encoding))
        assert isinstance(stream, VideoStream), f"{encoding.codec} does not encode pictures"
        stream.pix_fmt = encoding.pixel_format
        stream.codec_context.time_base = time_base
        stream.codec_context.thread_count = 1
        if encoding.rotation:
            stream.set_display_rotation(encoding.rotation)
        for index, pixels in enumerate(frames):
            if index == 0:
                stream.height, stream.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.time_base = time_base
            frame.pts, frame.duration = _timing(index, encoding.fps, times_s)
            if index in keyframes:
                frame.pict_type = av.video.frame.PictureType.I
            container.mux(stream.encode(frame))
            count += 1
        if count == 0:
            raise ValueError(f"{path}: no frame to write")
        container.mux(stream.encode(None))
    return count


def _timing(index: int, fps: int, times_s: Sequence[Fraction] | None) -> tuple[int, int]:
    """Time and duration of a frame, in ticks of the file's time base."""
    if times_s is None:
        return index, 1
    here = round(times_s[index] * _TICKS_PER_S)
    if index + 1 < len(times_s):
        return here, round(times_s[index + 1] * _TICKS_PER_S) - here
    return here, _TICKS_PER_S // fps


def _one_thread(encoding: Encoding) -> dict[str, str]:
    """The encoder's options; x264 is told to give the same bytes on every processor."""
    if encoding.codec != "libx264":
        return dict(encoding.options)
    fixed = "threads=1:sliced-threads=0:cpu-independent=1"
    given = encoding.options.get("x264-params")
    return {**encoding.options, "x264-params": f"{fixed}:{given}" if given else fixed}
