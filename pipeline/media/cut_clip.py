"""What is wanted of a clip, and what its written file turns out to hold when it is decoded."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from pipeline.media.decode import Decoder
from pipeline.media.frames import quarter_turns
from pipeline.media.open import open_media, video_stream
from pipeline.stage import NO_ROOM, Rejected

if TYPE_CHECKING:
    from av import FFmpegError

MUXER_OPTIONS = {"fflags": "+bitexact", "movflags": "+faststart"}
"""MP4 without creation time or version strings, its index first."""

JUMP_S = 20
"""A gap between shots longer than this, seconds, is jumped over: longer than most groups of pictures."""


class CutFailed(Exception):
    """A clip that cannot be made; the message says why, for people."""


def cut_failed(what: str, error: FFmpegError) -> CutFailed:
    """What libav said of one clip. A lack of memory or of disk space is no clip's fault and is raised as it is."""
    if isinstance(error, MemoryError):
        raise error
    if error.errno in NO_ROOM:
        raise OSError(error.errno, error.strerror) from error
    return CutFailed(f"{what}: {error.strerror}")


@dataclass(frozen=True)
class Wanted:
    """A shot to be cut to a file."""

    shot: int
    """Index of the shot, handed back with the result."""
    path: str
    """Where the clip is written."""
    start_frame: int
    """Index of its first frame among the source's decoded frames."""
    pts: Sequence[int]
    """The time of each of its frames on the stream's own clock, ticks, rising."""
    end_pts: int
    """Its exclusive end on the same clock."""


@dataclass(frozen=True)
class Written:
    """A clip's file that was written and closed, or why it was not."""

    wanted: Wanted
    origin_pts: int
    """The source's timestamp at the clip's time 0, ticks."""
    time_base: Fraction
    """Seconds a tick of the source's clock."""
    frames_decoded: int
    """Frames of the source decoded on the way to it and through it."""
    problem: str | None
    """Why the file is not to be used."""


def measure(written: Written) -> dict[str, Any]:
    """Decode a written clip and compare it with its shot.

    Returns clip_frames, clip_width, clip_height (pixels, as shown), clip_bytes, clip_sha256, and start_error_s and
    end_error_s: seconds from the shot's first frame to the clip's first, and from the clip's last to the shot's
    last. Raises CutFailed unless the clip's frames are, one for one in time, an unbroken run of the shot's.
    """
    wanted, time_base = written.wanted, written.time_base
    held = _decode(wanted.path)
    ticks = [written.origin_pts + time_s / time_base for time_s in held.times_s]
    first = bisect_left(wanted.pts, ticks[0])
    if ticks != list(wanted.pts[first : first + len(ticks)]):
        raise CutFailed(f"the {len(ticks)} frames of the file are not an unbroken run of the shot's {len(wanted.pts)}")
    return {
        "start_error_s": float((ticks[0] - wanted.pts[0]) * time_base),
        "end_error_s": float((wanted.pts[-1] - ticks[-1]) * time_base),
        "clip_frames": len(held.times_s),
        "clip_width": held.width,
        "clip_height": held.height,
        "clip_bytes": os.path.getsize(wanted.path),
        "clip_sha256": _sha256(wanted.path),
    }


@dataclass(frozen=True)
class _Held:
    """What decodes from a clip's file."""

    times_s: list[Fraction]
    width: int
    height: int


def _decode(path: str) -> _Held:
    times_s: list[Fraction] = []
    try:
        container = open_media(path)
    except Rejected as rejected:
        raise CutFailed(f"the file does not open: {rejected.detail}") from rejected
    with container:
        stream = video_stream(container)
        decoder = Decoder(container, stream)
        for frame, pts in decoder:
            if not times_s and not frame.key_frame:
                raise CutFailed("its first frame cannot be decoded on its own")
            if frame.is_corrupt:
                raise CutFailed(f"frame {len(times_s)} of the file does not decode cleanly")
            times_s.append(pts * decoder.time_base)
            size = frame.width, frame.height
            turns = quarter_turns(frame.rotation)
    if not times_s or decoder.errors:
        raise CutFailed(f"{len(times_s)} frames of the file decode, with {decoder.errors} errors")
    width, height = size[::-1] if turns % 2 else size
    return _Held(times_s, width, height)


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
