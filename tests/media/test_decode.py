"""Frames in display order with exact times, past damage and bad timestamps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.media.decode import Decoder, _Times
from pipeline.media.open import open_media, video_stream
from pipeline.stage import Retryable
from tests import clips


@dataclass
class Result:
    numbers: list[int]
    """The index that each frame carries."""
    pts: list[int]
    decoder: Decoder

    @property
    def times_s(self) -> list[Fraction]:
        return [(pts - self.pts[0]) * self.decoder.time_base for pts in self.pts]

    @property
    def length_s(self) -> Fraction:
        assert self.decoder.end_pts is not None
        return (self.decoder.end_pts - self.pts[0]) * self.decoder.time_base


def decode(path: Path | str) -> Result:
    with open_media(str(path)) as container:
        decoder = Decoder(container, video_stream(container))
        pairs = [(clips.number(frame.to_ndarray(format="rgb24")), pts) for frame, pts in decoder]
    assert all(a < b for (_, a), (_, b) in pairwise(pairs)), "times rise"
    return Result([number for number, _ in pairs], [pts for _, pts in pairs], decoder)


def test_frames_come_in_display_order_with_exact_times(tiny_videos: Path) -> None:
    got = decode(tiny_videos / "numbered.mp4")  # has B-frames
    assert got.numbers == list(range(60))
    assert got.times_s == [Fraction(i, 10) for i in range(60)]
    assert got.length_s == 6
    assert (got.decoder.frames, got.decoder.errors, got.decoder.mended) == (60, 0, 0)


def test_a_variable_frame_rate_is_exact(tiny_videos: Path) -> None:
    got = decode(tiny_videos / "uneven.mp4")
    assert got.times_s == clips.uneven_times_s(60)
    assert got.numbers == list(range(60))


def test_a_start_that_is_not_zero_stays_the_streams_own(tmp_path: Path) -> None:
    times = [Fraction(7, 2) + Fraction(i, 10) for i in range(20)]
    got = decode(clips.write_clip(tmp_path / "late.ts", clips.numbered(20), times_s=times))
    assert got.pts[0] * got.decoder.time_base >= Fraction(7, 2)
    assert got.times_s == [Fraction(i, 10) for i in range(20)]


def test_a_stream_without_timestamps_gets_even_ones(tmp_path: Path) -> None:
    """A bare H.264 stream says its rate and nothing else."""
    got = decode(clips.write_clip(tmp_path / "bare.h264", clips.numbered(30), clips.h264(b_frames=2)))
    assert got.numbers == list(range(30))
    steps = {b - a for a, b in pairwise(got.times_s)}
    assert steps == {Fraction(1, 10)}
    assert got.length_s == 3


def test_one_frame_has_a_length(tmp_path: Path) -> None:
    got = decode(clips.write_clip(tmp_path / "one.mp4", clips.numbered(1)))
    assert got.pts == [0] and got.length_s == Fraction(1, 10)


def test_damage_in_the_middle_costs_what_it_hit(tmp_path: Path) -> None:
    whole = clips.write_clip(tmp_path / "a.ts", clips.numbered(100), clips.h264(gop=10))
    got = decode(clips.overwritten(whole, tmp_path / "b.ts"))
    assert got.decoder.errors > 0
    assert 50 < got.decoder.frames < 100
    assert got.numbers[:30] == list(range(30)) and got.numbers[-1] == 99


def test_a_file_cut_short_is_kept_to_its_last_frame_and_counts_one(tmp_path: Path) -> None:
    fast = clips.Encoding(fps=10, options=clips.h264().options, muxer_options={"movflags": "+faststart"})
    cut = {
        "index first": clips.truncated(
            clips.write_clip(tmp_path / "a.mp4", clips.numbered(100), fast), tmp_path / "b.mp4", 0.7
        ),
        "no index": clips.truncated(
            clips.write_clip(tmp_path / "a.webm", clips.numbered(100), clips.vp9()), tmp_path / "b.webm"
        ),
    }
    for kind, path in cut.items():
        got = decode(path)
        assert 1 <= got.decoder.errors <= 2, kind  # two: the last packet is there in part
        assert 20 < got.decoder.frames < 95 and got.numbers == list(range(got.decoder.frames)), kind


@pytest.mark.parametrize("name", ["numbered.mp4", "live.webm", "mpeg4.avi", "ten_bit.mp4", "turned.mp4", "short.mp4"])
def test_a_sound_file_has_no_errors(name: str, tiny_videos: Path) -> None:
    got = decode(tiny_videos / name)
    assert got.decoder.errors == 0


def test_no_frame_at_all_is_no_time_at_all(tmp_path: Path) -> None:
    fast = clips.Encoding(options=clips.h264().options, muxer_options={"movflags": "+faststart"})
    whole = clips.write_clip(tmp_path / "a.mp4", clips.numbered(30), fast)
    got = decode(
        clips.truncated(whole, tmp_path / "b.mp4", (whole.read_bytes().index(b"mdat") + 8) / whole.stat().st_size)
    )
    assert got.pts == [] and got.decoder.end_pts is None
    assert got.decoder.errors >= 1


def test_storage_that_fails_midway_is_worth_another_try(tiny_videos: Path) -> None:
    class Failed(Exception):
        """As botocore's: not an OSError."""

    with open_media(str(tiny_videos / "numbered.mp4")) as container:
        stream = video_stream(container)
        frames = iter(Decoder(_Breaking(container, Failed("the network went away")), stream))  # type: ignore[arg-type]
        with pytest.raises(Retryable, match="the network went away") as caught:
            list(frames)
    assert caught.value.reason == "decode_failed"


class _Breaking:
    """A container whose storage fails after ten packets."""

    def __init__(self, container: Any, error: Exception) -> None:
        self._container, self._error = container, error

    def demux(self, stream: Any) -> Any:
        for index, packet in enumerate(self._container.demux(stream)):
            if index == 10:
                raise self._error
            yield packet


@dataclass
class Stamp:
    """What the mending looks at."""

    pts: int | None
    dts: int | None = None
    duration: int = 40


def mended(pts: Sequence[int | None], dts: Sequence[int | None] = ()) -> tuple[list[int], int]:
    times = _Times(usual_step=40, second=1000)
    settled = [times.add(Stamp(one, dts[i] if dts else None)) for i, one in enumerate(pts)]  # type: ignore[arg-type]
    return [*settled[1:], times.last], times.mended


@pytest.mark.parametrize(
    ("pts", "expected", "count"),
    [
        ([0, 40, 80], [0, 40, 80], 0),
        ([120, 200, 160, 280, 240], [120, 160, 200, 240, 280], 2),  # neighbours swapped: VC-1 in ASF
        ([40, 0, 80], [0, 40, 80], 1),
        ([600, 700, 450, 900], [600, 700, 701, 900], 1),  # one stray
        ([0, 40, 40, 80], [0, 40, 41, 80], 1),  # equal
        ([5000, 5040, 0, 40, 80], [5000, 5040, 5080, 5120, 5160], 1),  # a splice starts again from zero
        ([0, None, 80, None], [0, 40, 80, 120], 2),
        ([None, None, None], [0, 40, 80], 3),
    ],
)
def test_bad_timestamps_are_mended(pts: list[int | None], expected: list[int], count: int) -> None:
    assert mended(pts) == (expected, count)


def test_a_missing_timestamp_is_the_decoding_one_where_that_rises() -> None:
    assert mended([None, None, None], [10, 60, 50])[0] == [10, 60, 100]
