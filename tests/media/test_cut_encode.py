"""Clips by re-encode: the shot's frames at their times, upright, whatever the source's form."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.media.write import Encoding, write_video
from tests.clips import decoded, disc, flat, h264, mpeg4, numbered, time_s, uneven_times_s, vp9, write_clip
from tests.media.cutting import CLOSED_GOPS, OPEN_GOPS, cut_clips, numbers, opencv_count, scanned, x264, x265


def rgb(frame: av.VideoFrame) -> np.ndarray:
    """uint8 [H, W, 3], unrotated."""
    return frame.to_ndarray(format="rgb24")


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference of two pictures, of 255."""
    assert a.shape == b.shape
    return float(np.abs(a.astype(np.int16) - b.astype(np.int16)).mean())


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("b_frames.mp4", CLOSED_GOPS),
        ("open.mp4", OPEN_GOPS),
        ("hevc.mp4", x265("bframes=3:open-gop=1")),
        ("ten_bit.mp4", h264(ten_bit=True)),
        ("old.avi", mpeg4()),
        ("live.webm", vp9(live=True)),
        ("h264.avi", CLOSED_GOPS),
        ("raw.264", CLOSED_GOPS),
        ("refreshed.mp4", x264("bframes=0:intra-refresh=1")),
    ],
)
def test_every_source_gives_its_very_frames(tmp_path: Path, name: str, encoding: Encoding) -> None:
    video = scanned(write_clip(tmp_path / name, numbered(60), encoding))
    ranges = [(0, 7), (7, 31), (40, 60)]
    for clip, (start, end) in zip(cut_clips(video, ranges, tmp_path / "out", "exact"), ranges, strict=True):
        frames = decoded(Path(clip["path"]))
        assert numbers(clip) == list(range(start, end))
        assert [time_s(frame) for frame in frames] == video.times_s(start, end)
        assert (frames[0].format.name, frames[0].pts) == ("yuv420p", 0)
        assert clip["start_error_s"] == clip["end_error_s"] == 0.0
        assert clip["clip_frames"] == opencv_count(clip["path"])


def test_a_variable_frame_rate_is_kept(tmp_path: Path) -> None:
    times = uneven_times_s(60, (33, 50, 417))
    video = scanned(write_clip(tmp_path / "v.mp4", numbered(60), CLOSED_GOPS, times_s=times))
    (clip,) = cut_clips(video, [(7, 29)], tmp_path / "out", "exact")
    frames = decoded(Path(clip["path"]))
    assert [time_s(frame) for frame in frames] == [time - times[7] for time in times[7:29]]
    shown = [Fraction(frame.duration, 90_000) for frame in frames]
    assert shown == [after - time for time, after in pairwise(times[7:30])]
    with av.open(clip["path"]) as container:
        stream = container.streams.video[0]
        assert stream.duration is not None and stream.time_base is not None
        assert stream.duration * stream.time_base == times[29] - times[7]


def test_an_odd_clock_is_kept(tmp_path: Path) -> None:
    encoding = Encoding(options=CLOSED_GOPS.options, muxer_options={"video_track_timescale": "70000007"})
    video = scanned(write_clip(tmp_path / "v.mov", numbered(30), encoding))
    assert video.time_base == Fraction(1, 70_000_007)
    (clip,) = cut_clips(video, [(5, 25)], tmp_path / "out", "exact")
    assert numbers(clip) == list(range(5, 25))
    assert [time_s(frame) for frame in decoded(Path(clip["path"]))] == video.times_s(5, 25)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_the_picture_is_stored_upright(tmp_path: Path, turns: int) -> None:
    video = scanned(write_clip(tmp_path / "v.mp4", disc(20, (2, 1)), h264(rotation=90 * turns)))
    (clip,) = cut_clips(video, [(4, 16)], tmp_path / "out", "exact")
    frames = decoded(Path(clip["path"]))
    assert {frame.rotation for frame in frames} == {0}
    shown = (48, 64) if turns % 2 else (64, 48)
    assert (clip["clip_width"], clip["clip_height"]) == (frames[0].width, frames[0].height) == shown
    for frame, original in zip(frames, decoded(video.path)[4:16], strict=True):
        assert difference(rgb(frame), np.rot90(rgb(original), turns)) < 3


def raw(path: Path, frames: Iterable[np.ndarray]) -> Path:
    """Lossless RGB of any size."""
    write_video(path, frames, Encoding(codec="ffv1", pixel_format="bgr0"))
    return path


@pytest.mark.parametrize(
    ("width", "height", "stored"), [(65, 49, (66, 50)), (64, 49, (64, 50)), (10, 6, (10, 6)), (1, 1, (2, 2))]
)
def test_an_odd_side_grows_by_its_last_line(tmp_path: Path, width: int, height: int, stored: tuple[int, int]) -> None:
    grey = np.linspace(40, 120, height)[:, None] + np.linspace(0, 60, width)
    grey[:, -1], grey[-1] = 220, 20
    picture = grey.astype(np.uint8)[:, :, None].repeat(3, axis=2)
    video = scanned(raw(tmp_path / "v.mkv", [picture] * 12))
    (clip,) = cut_clips(video, [(0, 12)], tmp_path / "out", "exact")
    assert (clip["clip_width"], clip["clip_height"]) == stored
    found = rgb(decoded(Path(clip["path"]))[-1])
    grown = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    assert difference(found, grown) < 3


def test_the_pixel_aspect_is_kept_and_turns_with_the_picture(tmp_path: Path) -> None:
    for rotation, expected in ((0, Fraction(12, 11)), (90, Fraction(11, 12))):
        path = tmp_path / f"{rotation}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.codec_context.sample_aspect_ratio = Fraction(12, 11)
            if rotation:
                stream.set_display_rotation(rotation)
            for pixels in numbered(12):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))
        (clip,) = cut_clips(scanned(path), [(0, 12)], tmp_path / "out", "exact")
        with av.open(clip["path"]) as container:
            assert container.streams.video[0].sample_aspect_ratio == expected


def test_full_range_becomes_limited_and_looks_the_same(tmp_path: Path) -> None:
    encoding = Encoding(codec="mjpeg", pixel_format="yuvj420p", options={"qscale": "2"})
    video = scanned(write_clip(tmp_path / "v.mov", disc(12, (2, 1)), encoding))
    (clip,) = cut_clips(video, [(0, 12)], tmp_path / "out", "exact")
    for frame, original in zip(decoded(Path(clip["path"])), decoded(video.path), strict=True):
        assert (frame.format.name, int(frame.color_range)) == ("yuv420p", 1)
        assert difference(rgb(frame), rgb(original)) < 3


def test_a_size_that_changes_on_the_way_is_scaled_to_the_first(tmp_path: Path) -> None:
    parts = [
        write_clip(tmp_path / f"{width}.ts", flat("gold", 12, (width, 48)), x264("bframes=0")) for width in (64, 96)
    ]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    video = scanned(joined)
    assert {frame.width for frame in decoded(joined)} == {64, 96}
    (clip,) = cut_clips(video, [(0, 24)], tmp_path / "out", "exact")
    assert {frame.width for frame in decoded(Path(clip["path"]))} == {64}


def test_the_pictures_are_close_to_the_sources(tmp_path: Path) -> None:
    video = scanned(write_clip(tmp_path / "v.mp4", disc(30, (1, 1)), CLOSED_GOPS))
    (clip,) = cut_clips(video, [(5, 25)], tmp_path / "out", "exact")
    for frame, original in zip(decoded(Path(clip["path"])), decoded(video.path)[5:25], strict=True):
        assert difference(rgb(frame), rgb(original)) < 1.5
