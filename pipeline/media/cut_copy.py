"""Clips by stream copy: the source's own packets in a new MP4, in one pass over the source, nothing decoded.

A clip starts at the first keyframe that shows at or after the shot's start, and ends, in decode order, before the
first packet that shows at or after the shot's end: all that is kept can be decoded, and no frame of a neighbour is
in the file, not even hidden. An open group of pictures begins with frames that need the group before it; they show
before its keyframe and are left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from pipeline.media.cut_clip import MUXER_OPTIONS, Wanted, Written, cut_failed
from pipeline.media.cut_source import Source

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

COPYABLE = frozenset({"h264", "hevc"})
"""Codecs that are copied into MP4."""


def copy_shots(source: Source, shots: Sequence[Wanted], most_lost: Fraction | None) -> Iterator[Written]:
    """Copy shots (rising in time, without overlap) to their files; yields each when its file is closed.

    A shot whose first or last frame would be off by more than `most_lost` ticks (None: any number) is given up.
    """
    codec = source.stream.codec_context.codec.canonical_name
    if codec not in COPYABLE:
        unfit = f"{codec} is not copied into MP4"
        yield from (Written(wanted, 0, source.time_base, 0, unfit) for wanted in shots)
        return
    copies = deque(_Copy(wanted, source, most_lost) for wanted in shots)
    source.approach(shots[0].pts[0])
    problem = None
    while copies and (packet := source.read()) is not None:
        pts, dts = packet.pts, packet.dts
        if pts is None or dts is None:
            problem = "the source's packets carry no times"
            break
        if packet.has_sidedata("new_extradata"):
            problem = "the stream's parameters change on the way"
            break
        while copies and dts >= copies[0].wanted.end_pts:  # no later packet shows before its own dts
            yield copies.popleft().close(None)
            if copies:
                source.approach(copies[0].wanted.pts[0])
        for copy in copies:
            if pts < copy.wanted.pts[0]:
                break
            copy.offer(packet, pts, dts)
    yield from (copy.close(problem) for copy in copies)


class _Copy:
    """One clip being copied."""

    def __init__(self, wanted: Wanted, source: Source, most_lost: Fraction | None) -> None:
        self.wanted = wanted
        self._source = source
        self._most_lost = most_lost
        self._problem: str | None = None
        self._over = False
        self._origin_pts = self._last_pts = 0
        self._output: OutputContainer | None = None

    def offer(self, packet: Packet[VideoStream], pts: int, dts: int) -> None:
        """A packet that shows at or after the shot's start, in decode order. It is changed if it is taken."""
        import av

        if self._over:
            return
        if pts >= self.wanted.end_pts:
            self._over = True
            return
        if self._output is None and not self._may_begin(packet, pts):
            return
        try:
            self._take(packet, pts, dts)
        except av.FFmpegError as error:
            self._give_up(str(cut_failed("cannot be written to MP4", error)))

    def close(self, problem: str | None) -> Written:
        """Finish the file; `problem` is why the rest of it did not come."""
        import av

        problem = problem or self._problem
        if self._output is None:
            problem = problem or "no keyframe in the shot to start at"
        else:
            try:
                self._output.close()
            except av.FFmpegError as error:
                problem = problem or str(cut_failed("cannot be written to MP4", error))
            problem = problem or self._too_much(self.wanted.pts[-1] - self._last_pts, "after the last frame copied")
        return Written(self.wanted, self._origin_pts, self._source.time_base, 0, problem)

    def _may_begin(self, packet: Packet[VideoStream], pts: int) -> bool:
        if packet.is_keyframe:
            self._problem = self._too_much(pts - self.wanted.pts[0], "before the first keyframe")
            self._over = self._problem is not None
        return packet.is_keyframe and not self._over

    def _too_much(self, lost: int, where: str) -> str | None:
        if self._most_lost is None or lost <= self._most_lost:
            return None
        return f"{float(lost * self._source.time_base):.3f} s of the shot lie {where}"

    def _take(self, packet: Packet[VideoStream], pts: int, dts: int) -> None:
        import av

        if self._output is None:
            self._origin_pts = pts
            self._output = av.open(self.wanted.path, "w", format="mp4", container_options=MUXER_OPTIONS)
            template = self._source.stream
            self._stream = self._output.add_stream_from_template(template, opaque=True)
            if template.codec_context.name == "hevc":
                self._stream.codec_tag = "hvc1"  # the tag that every player takes
        if pts >= self._origin_pts:  # else it leads into an open group of pictures
            packet.pts, packet.dts = pts - self._origin_pts, dts - self._origin_pts
            packet.stream = self._stream
            self._output.mux(packet)
            self._last_pts = max(self._last_pts, pts)

    def _give_up(self, problem: str) -> None:
        self._problem = problem
        self._over = True
