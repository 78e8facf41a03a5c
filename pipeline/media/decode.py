"""Frames of a stream in display order, each with its exact time, past damage and bad timestamps.

Time here is in ticks of the stream's time base, the stream's own count; callers subtract the first frame's.

A decoder hands out frames in display order, but their timestamps can be missing, equal, or swapped (VC-1 in ASF
swaps those of neighbours; splices start again from zero). The order of frames is trusted, the timestamps are
mended, and every mended one is counted:
- missing: the decoding timestamp, else one frame duration after the frame before;
- a step back to between the two frames before: the two timestamps are swapped;
- a step back of more than a second: the stream starts anew, and goes on one duration after the frame before;
- any other step back, or an equal timestamp: one tick after the frame before.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

from pipeline.media.probe import claimed_duration
from pipeline.stage import Retryable

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_CUT_SHORT_SHARE = Fraction(4, 5)
"""A container that indexes nothing is cut short when under this share of its claimed length decodes. Not nearer
to 1: the claim may count sound that goes on after the last picture."""


class Decoder:
    """Decodes one stream. Iterate once; `seek` first to begin elsewhere than at the start.

    While and after iterating: `frames` decoded, `errors`, `mended` timestamps. An error is a packet that did not
    decode or was read damaged, a frame that the decoder had to patch up (what follows it is often unusable), and a
    stream cut short. After it: `end_pts`, the end of the last frame, None when no frame decoded.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self._container = container
        self._stream = stream
        self.time_base: Fraction = stream.time_base or Fraction(1, 1_000_000)
        rate = stream.average_rate
        self._usual_step = max(1, round(1 / (rate * self.time_base))) if rate else 1
        self._times = _Times(self._usual_step, second=max(1, round(1 / self.time_base)))
        self.frames = 0
        self.errors = 0
        self.end_pts: int | None = None
        self._from_start = True

    @property
    def mended(self) -> int:
        return self._times.mended

    def seek(self, pts: int) -> None:
        """Go to the last key frame at or before a time. Raises av.FFmpegError when the container cannot."""
        self._container.seek(pts, stream=self._stream)
        self._from_start = False

    def __iter__(self) -> Generator[tuple[VideoFrame, int], None, None]:
        """Frames with their times, strictly increasing. A frame is handed out when the next one is known.

        Raises Retryable `decode_failed` when the storage fails while reading.
        """
        times, held = self._times, None
        for frame in self._decoded():
            settled = times.add(frame)
            if held is not None:
                yield held, settled
            held = frame
        length = 0
        if held is not None:
            yield held, times.last
            self.end_pts = times.last + (held.duration or times.average_step() or self._usual_step)
            length = self.end_pts - times.first
        if self._from_start and self._cut_short(length):
            self.errors += 1

    def _decoded(self) -> Iterator[VideoFrame]:
        """Every frame that decodes, past packets that do not."""
        import av

        for packet in self._packets():
            try:
                decoded = self._stream.decode(packet)
            except av.FFmpegError as error:
                if isinstance(error, MemoryError):
                    raise
                self.errors += 1
                continue
            if packet is not None and packet.is_corrupt:
                self.errors += 1
            self.frames += len(decoded)
            for frame in decoded:
                self.errors += frame.is_corrupt
                yield frame

    def _packets(self) -> Iterator[Packet[VideoStream] | None]:
        """Packets up to the end or to the first that cannot be read. The last (empty, or None) flushes the decoder."""
        import av

        try:
            yield from self._container.demux(self._stream)
            return
        except av.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            self.errors += 1
        except MemoryError:
            raise
        except Exception as error:  # a remote file object raises its driver's own classes
            raise Retryable("decode_failed", f"reading failed: {type(error).__name__}: {error}") from error
        yield None

    def _cut_short(self, decoded_ticks: int) -> bool:
        """Whether the container promises more than the file holds: by its index, else by its length."""
        index, size = self._stream.index_entries, self._container.size
        if len(index) and size > 0:
            last = index[-1]
            if last.pos + last.size > size:
                return True
            if last.size:  # an index of packets, not of clusters, and all of it is there
                return False
        if self.errors:  # that is where the rest went
            return False
        claimed = claimed_duration(self._container, self._stream)
        return claimed is not None and decoded_ticks * self.time_base < claimed * _CUT_SHORT_SHARE


class _Times:
    """The timestamps of frames in display order, mended as the module's text says."""

    def __init__(self, usual_step: int, second: int) -> None:
        self._usual_step = usual_step
        self._second = second
        self._count = 0
        self._before = 0  # the time of the frame before the last one
        self._offset = 0  # added to the stream's timestamps since it started anew
        self.first = 0
        self.last = 0
        self.mended = 0

    def add(self, frame: VideoFrame) -> int:
        """Take in a frame; the time of the frame before it (meaningless for the first), which is now settled."""
        pts = frame.pts + self._offset if frame.pts is not None else self._missing(frame)
        if self._count and pts <= self.last:
            pts = self._mend(pts, frame)
        settled, self._before, self.last = self.last, self.last, pts
        if self._count < 2:
            self.first = pts if self._count == 0 else settled
        self._count += 1
        return settled

    def average_step(self) -> int:
        return (self.last - self.first) // (self._count - 1) if self._count > 1 else 0

    def _missing(self, frame: VideoFrame) -> int:
        self.mended += 1
        if frame.dts is not None and (self._count == 0 or frame.dts > self.last):
            return frame.dts
        return self.last + (frame.duration or self._usual_step) if self._count else 0

    def _mend(self, pts: int, frame: VideoFrame) -> int:
        """A time for a frame whose timestamp is not after the last one; may move the last one."""
        self.mended += 1
        if pts < self.last and (self._count == 1 or pts > self._before):
            pts, self.last = self.last, pts
            return pts
        if self.last - pts > self._second:
            restart = self.last + (frame.duration or self._usual_step)
            self._offset += restart - pts
            return restart
        return self.last + 1
