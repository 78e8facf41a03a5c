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

from collections.abc import Iterator
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
    """Decodes one stream. Iterate once; `seek` starts over elsewhere.

    After the iteration: `frames` decoded, `errors` (packets that did not decode; a stream cut short counts one),
    `mended` timestamps, `end_pts`.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self._container = container
        self._stream = stream
        self.time_base: Fraction = stream.time_base or Fraction(1, 1_000_000)
        self._second = max(1, round(1 / self.time_base))
        rate = stream.average_rate
        self._usual_step = max(1, round(1 / (rate * self.time_base))) if rate else 1
        self.frames = 0
        self.errors = 0
        self.mended = 0
        self.end_pts: int | None = None
        self._from_start = True

    def seek(self, pts: int) -> None:
        """Go to the last key frame at or before a time. Raises av.FFmpegError when the container cannot."""
        self._container.seek(pts, stream=self._stream)
        self._from_start = False

    def __iter__(self) -> Iterator[tuple[VideoFrame, int]]:
        """Frames with their times, strictly increasing. A frame is handed out when the next one is known.

        Raises Retryable `decode_failed` when the storage fails while reading.
        """
        before: int | None = None  # time of the frame before the held one
        held: VideoFrame | None = None
        held_pts = first_pts = 0
        offset = 0  # added to the stream's timestamps since it started anew
        for frame in self._decoded():
            pts = frame.pts
            if pts is None:
                pts = self._missing(frame, None if held is None else held_pts)
            else:
                pts += offset
            if held is None:
                held, held_pts = frame, pts
                continue
            if pts <= held_pts:
                self.mended += 1
                if pts < held_pts and (before is None or pts > before):
                    held_pts, pts = pts, held_pts
                elif held_pts - pts > self._second:
                    restart = held_pts + (frame.duration or self._usual_step)
                    offset += restart - pts
                    pts = restart
                else:
                    pts = held_pts + 1
            if before is None:
                first_pts = held_pts
            yield held, held_pts
            before, held, held_pts = held_pts, frame, pts
        if held is None:
            return
        yield held, held_pts
        average = (held_pts - first_pts) // (self.frames - 1) if self.frames > 1 and before is not None else 0
        self.end_pts = held_pts + (held.duration or average or self._usual_step)
        if self._from_start and self._cut_short(self.end_pts - first_pts):
            self.errors += 1

    def _missing(self, frame: VideoFrame, last: int | None) -> int:
        self.mended += 1
        if frame.dts is not None and (last is None or frame.dts > last):
            return frame.dts
        return 0 if last is None else last + (frame.duration or self._usual_step)

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
            self.frames += len(decoded)
            yield from decoded

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
        claimed = claimed_duration(self._container, self._stream)
        return claimed is not None and decoded_ticks * self.time_base < claimed * _CUT_SHORT_SHARE
