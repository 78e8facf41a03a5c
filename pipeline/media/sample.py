"""The `sample` job: pictures at evenly spaced moments of a video, or of a part of it.

Moments are sought, so that a long video costs a few groups of pictures. When its length is unknown or turns out to
be a lie, or seeking fails, the video is decoded once from the start, and pictures are kept at a stride that doubles
whenever too many have gathered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.media.decode import Decoder
from pipeline.media.frames import FrameSizer, FrameSpec, PixelBounds, spec_from_json
from pipeline.media.open import open_media, video_stream
from pipeline.media.probe import claimed_duration
from pipeline.stage import Chunk, Rejected

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame

_READ_ON_S = 2
"""A moment less than this ahead, seconds, is reached by decoding on, when there is no index to say what is cheaper."""
_SEEK_BACK_S = (0, 2, 10, 30)
"""How much before a moment to seek, seconds, one after another while the first frame there is too late."""
_CHUNK_BYTES = 8 << 20
"""Pictures handed on at once, bytes."""


@dataclass(frozen=True)
class Sampled:
    """One moment's picture."""

    pts: int
    """Time of the frame, ticks from the video's first frame."""
    picture: NDArray[np.uint8]
    """RGB [H, W, 3]."""


def sample(uri: str, count: int, frame_spec: dict[str, Any], window: dict[str, int] | None = None) -> Iterator[Chunk]:
    """`count` pictures, in the middles of `count` equal parts: at each middle, what a player would show.

    `frame_spec`: a FrameSpec or PixelBounds as JSON. `window`: only this part of the video: {start_pts, end_pts
    (exclusive), time_base_num, time_base_den}, in ticks from the video's first frame.

    Yields Chunks. arrays: frames, uint8 [n, H, W, 3] RGB, in order; a video of fewer frames gives some of them
    twice. info: times_s, the frames' times in seconds from the video's first frame; frames_decoded so far.
    Raises Rejected `decode_failed` when no frame decodes, and what `open_media` and `video_stream` raise.
    """
    sampler = _Sampler(uri, spec_from_json(frame_spec), window)
    found = sampler.by_seeking(count) or sampler.from_start(count)
    if not found:
        raise Rejected("decode_failed", f"no frame decodes{' in this part' if window else ''}")
    at_once = max(1, _CHUNK_BYTES // found[0].picture.nbytes)
    for start in range(0, len(found), at_once):
        part = found[start : start + at_once]
        yield Chunk(
            arrays={"frames": np.stack([one.picture for one in part])},
            info={
                "times_s": [float(one.pts * sampler.time_base) for one in part],
                "frames_decoded": sampler.frames_decoded,
            },
        )


class _Sampler:
    """Finds the moments of one video."""

    def __init__(self, uri: str, spec: FrameSpec | PixelBounds, window: dict[str, int] | None) -> None:
        self._uri = uri
        self._spec = spec
        self._window = window
        self.frames_decoded = 0
        self.time_base = Fraction(1)

    def by_seeking(self, count: int) -> list[Sampled]:
        """The moments, or nothing when they cannot be trusted."""
        import av

        with open_media(self._uri) as container:
            reader = _Reader(container, self._spec)
            self.time_base = reader.time_base
            try:
                return self._seek_all(reader, count)
            except av.FFmpegError as error:
                if isinstance(error, MemoryError):
                    raise
                return []
            finally:
                self.frames_decoded += reader.frames_decoded

    def _seek_all(self, reader: _Reader, count: int) -> list[Sampled]:
        bounds = self._bounds(reader.claimed_ticks)
        if bounds is None or not reader.start():
            return []
        found: list[Sampled] = []
        for moment in _moments(*bounds, count):
            one = reader.at(moment)
            # Farther away than the next moment would be: the claimed length or the index is wrong.
            if one is None or abs(one.pts - moment) > max((bounds[1] - bounds[0]) // count, reader.ticks(1)):
                return []
            found.append(one)
        return found

    def from_start(self, count: int) -> list[Sampled]:
        """The nearest of the kept frames for each moment: at most a quarter of the moments' distance away."""
        with open_media(self._uri) as container:
            reader = _Reader(container, self._spec)
            self.time_base = reader.time_base
            start, stop = self._bounds(None) or (0, None)
            kept, end = reader.strided(start, stop, most=4 * count)
            self.frames_decoded += reader.frames_decoded
        if not kept:
            return []
        times = np.array([one.pts for one in kept])
        moments = _moments(start, stop if stop is not None else end, count)
        return [kept[int(np.abs(times - moment).argmin())] for moment in moments]

    def _bounds(self, claimed_ticks: int | None) -> tuple[int, int] | None:
        """Start and end of the wanted part, ticks from the first frame; None when the end is unknown."""
        if self._window is None:
            return None if claimed_ticks is None else (0, claimed_ticks)
        window_base = Fraction(self._window["time_base_num"], self._window["time_base_den"])
        start, end = (int(self._window[name] * window_base / self.time_base) for name in ("start_pts", "end_pts"))
        return start, end


def _moments(start: int, end: int, count: int) -> list[int]:
    """Middles of `count` equal parts, ticks."""
    return [start + (2 * i + 1) * (end - start) // (2 * count) for i in range(count)]


class _Reader:
    """Reads one open container forward, and jumps."""

    def __init__(self, container: InputContainer, spec: FrameSpec | PixelBounds) -> None:
        self._container = container
        self._stream = video_stream(container)
        self._sizer = FrameSizer(spec, self._stream.sample_aspect_ratio)
        self._begin()
        self._earlier = 0
        self._first_pts = 0
        self.time_base = self._decoder.time_base
        claimed = claimed_duration(container, self._stream)
        self.claimed_ticks = None if claimed is None else int(claimed / self.time_base)

    @property
    def frames_decoded(self) -> int:
        return self._earlier + self._decoder.frames

    def ticks(self, seconds: int) -> int:
        return int(seconds / self.time_base)

    def _begin(self) -> None:
        self._decoder = Decoder(self._container, self._stream)
        self._frames = iter(self._decoder)
        self._shown: tuple[VideoFrame, int] | None = None
        self._coming: tuple[VideoFrame, int] | None = None

    def start(self) -> bool:
        """Decode the first frame: all times count from it. False when there is none."""
        self._coming = next(self._frames, None)
        if self._coming is None:
            return False
        self._first_pts = self._coming[1]
        return True

    def at(self, moment: int) -> Sampled | None:
        """The frame shown at a moment, ticks from the first frame; later moments only. None past a damaged end."""
        wanted = self._first_pts + moment
        if self._worth_a_jump(wanted):
            self._jump(wanted)
        while self._coming is not None and (self._coming[1] <= wanted or self._shown is None):
            self._shown, self._coming = self._coming, next(self._frames, None)
        return None if self._shown is None else self._sampled(*self._shown)

    def _jump(self, wanted: int) -> None:
        """Go to where decoding reaches a time. Some containers (MPEG-TS) seek to no key frame: then from earlier."""
        for back_s in _SEEK_BACK_S:
            self._earlier += self._decoder.frames
            self._frames.close()
            self._begin()
            self._decoder.seek(wanted - self.ticks(back_s))
            self._coming = next(self._frames, None)
            if self._coming is not None and self._coming[1] <= wanted:
                return

    def _worth_a_jump(self, wanted: int) -> bool:
        """Whether a key frame lies between here and there."""
        reached = self._coming or self._shown
        if reached is None:
            return False
        index = self._stream.index_entries
        if len(index) and index[-1].size:  # of packets, not of clusters
            place = index.search_timestamp(wanted)
            return place >= 0 and index[place].timestamp > reached[1]
        return wanted - reached[1] > self.ticks(_READ_ON_S)

    def strided(self, start: int, stop: int | None, most: int) -> tuple[list[Sampled], int]:
        """At most `most` pictures at an even stride over the frames from `start` to before `stop` (ticks from the
        first frame; None: the end), and the end of what was decoded."""
        kept: list[Sampled] = []
        stride, seen, pts = 1, 0, 0
        if self.start():
            while self._coming is not None:
                frame, stream_pts = self._coming
                pts = stream_pts - self._first_pts
                if stop is not None and pts >= stop:
                    break
                if pts >= start:
                    if seen % stride == 0:
                        kept.append(self._sampled(frame, stream_pts))
                    seen += 1
                    if len(kept) == most:
                        kept, stride = kept[::2], stride * 2
                self._coming = next(self._frames, None)
        end = self._decoder.end_pts
        return kept, pts if end is None else end - self._first_pts

    def _sampled(self, frame: VideoFrame, stream_pts: int) -> Sampled:
        return Sampled(stream_pts - self._first_pts, self._sizer.picture(frame))
