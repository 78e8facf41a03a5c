"""A source's video packets in decode order, in one pass for all its shots."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING

from pipeline.media.cut_clip import JUMP_S
from pipeline.media.open import open_media, video_stream
from pipeline.stage import Retryable

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

MOST_REORDERED = 32
"""Packets without a decoding time that are held until one has it; H.264 and HEVC reorder at most 16 frames."""


class Source:
    """Reads packets as far as they can be read, and jumps over gaps between shots."""

    container: InputContainer
    stream: VideoStream
    time_base: Fraction
    """Seconds a tick of the stream's clock."""
    _packets: Iterator[Packet[VideoStream]]
    _ready: deque[Packet[VideoStream]]
    """Packets read and not handed out."""
    _dts: int
    """Of the packet handed out last."""
    _usual_step: int
    """Ticks from frame to frame."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._may_jump = True
        self._open()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.container.close()

    def read(self) -> Packet[VideoStream] | None:
        """The next packet; None at the end, or where the file cannot be read on.

        Raises Retryable `decode_failed` when the storage fails while reading.
        """
        if not self._ready:
            self._read_on()
        if not self._ready:
            return None
        packet = self._ready.popleft()
        self._dts = packet.dts if packet.dts is not None else self._dts
        return packet

    def _read_on(self) -> None:
        """Read until a packet says when it is decoded, and count back from it for those before that do not: Matroska
        keeps no such times, and libav knows them only once it has seen how far frames are reordered."""
        while (packet := self._next()) is not None:
            self._ready.append(packet)
            if packet.dts is not None:
                for steps, silent in enumerate(reversed(list(self._ready)[:-1]), 1):
                    silent.dts = packet.dts - steps * self._usual_step
                return
            if len(self._ready) > MOST_REORDERED:
                return

    def _next(self) -> Packet[VideoStream] | None:
        import av

        try:
            packet = next(self._packets)
        except StopIteration:
            return None
        except av.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            return None
        except MemoryError:
            raise
        except Exception as error:  # a remote file object raises its driver's own classes
            raise Retryable("decode_failed", f"reading failed: {type(error).__name__}: {error}") from error
        if packet.size == 0 and packet.dts is None:  # the empty one that flushes a decoder
            return None
        return packet

    def approach(self, pts: int) -> None:
        """Before reading on towards a moment: if it is far ahead, jump to a keyframe that shows at or before it."""
        import av

        if not self._may_jump or (pts - self._dts) * self.time_base <= JUMP_S:
            return
        try:
            self.container.seek(pts, stream=self.stream)
        except av.FFmpegError:
            self._restart()
            return
        self._packets = self.container.demux(self.stream)
        self._ready.clear()
        self._read_on()
        landed = self._ready[0] if self._ready else None
        if landed is None or landed.pts is None or landed.pts > pts:
            self._restart()

    def _restart(self) -> None:
        """Go back to the beginning, and read all of it this time."""
        self.container.close()
        self._may_jump = False
        self._open()

    def _open(self) -> None:
        self.container = open_media(self._uri)
        self.stream = video_stream(self.container)
        self.time_base = self.stream.time_base or Fraction(1, 1_000_000)
        self._packets = self.container.demux(self.stream)
        self._ready = deque()
        rate = self.stream.average_rate
        self._usual_step = max(1, round(1 / (rate * self.time_base))) if rate else 1
        self._dts = self.stream.start_time or 0
