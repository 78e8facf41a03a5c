"""The `probe` job: what a container's header says, and the first picture's rotation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

from pipeline.media.open import local_path, open_bytes, open_media, video_stream
from pipeline.stage import Chunk

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_PACKETS_TO_TRY = 64
"""Packets read in search of a first picture; with none among them the header's figures stand and scan will tell."""


def probe(uri: str) -> Iterator[Chunk]:
    """One Chunk whose info is {duration_s, fps, width, height, rotation, codec, bytes}.

    duration_s (seconds) and fps are the container's claims, None when it makes none; width and height are of the
    coded picture, pixels; rotation is in degrees counter-clockwise (0, 90, 180, 270); bytes is the file's size.
    Raises Rejected `missing`, `not_video`, `no_video_stream`, `unreadable`.
    """
    with open_media(uri) as container:
        stream = video_stream(container)
        duration, rate = claimed_duration(container, stream), stream.average_rate
        first = _first_frame(container, stream)
        rotation = 0 if first is None else round(first.rotation / 90) * 90 % 360
        info = {
            "duration_s": None if duration is None else float(duration),
            "fps": None if not rate else float(rate),
            "width": stream.codec_context.width,
            "height": stream.codec_context.height,
            "rotation": rotation,
            "codec": stream.codec_context.codec.canonical_name,
            "bytes": _size(uri),
        }
    yield Chunk(arrays={}, info=info)


def claimed_duration(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """Seconds of video that the container claims; the whole container's when it says nothing of the stream."""
    if stream.duration is not None and stream.duration > 0 and stream.time_base:
        return stream.duration * stream.time_base
    if container.duration is not None and container.duration > 0:
        return Fraction(container.duration, 1_000_000)
    return None


def _first_frame(container: InputContainer, stream: VideoStream) -> VideoFrame | None:
    """The first picture that decodes; rotation is told nowhere else."""
    import av

    packets = container.demux(stream)
    for _ in range(_PACKETS_TO_TRY):
        try:
            frames = next(packets).decode()
        except (av.FFmpegError, StopIteration) as error:
            if isinstance(error, MemoryError):
                raise
            if isinstance(error, av.error.InvalidDataError):
                continue
            return None
        if frames:
            return frames[0]
    return None


def _size(uri: str) -> int:
    path = local_path(uri)
    if path is not None:
        return os.stat(path).st_size
    with open_bytes(uri) as file:
        return file.seek(0, os.SEEK_END)
