"""The sample job: pictures at moments of a video, by seeking where that can be trusted."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.media.probe import claimed_duration
from pipeline.media.sample import sample
from pipeline.stage import Rejected
from tests import clips

SPEC = {"width": 64, "height": 48, "resize": "stretch", "interpolation": "area"}


def run(path: Path | str, count: int, window: dict[str, int] | None = None) -> tuple[list[int], list[float], int]:
    """The index that each picture carries, their times, and how many frames were decoded for them."""
    chunks = list(sample(str(path), count, SPEC, window))
    pictures = np.concatenate([chunk.arrays["frames"] for chunk in chunks])
    times = [time for chunk in chunks for time in chunk.info["times_s"]]
    assert pictures.shape == (count, 48, 64, 3) and pictures.dtype == np.uint8 and len(times) == count
    return [clips.number(picture) for picture in pictures], times, chunks[-1].info["frames_decoded"]


def middles(frames: int, count: int) -> list[int]:
    return [(2 * i + 1) * frames // (2 * count) for i in range(count)]


@pytest.mark.parametrize("count", [1, 4, 7, 60])
def test_pictures_are_from_the_middles_of_equal_parts(count: int, tiny_videos: Path) -> None:
    numbers, times, _ = run(tiny_videos / "numbered.mp4", count)
    assert numbers == middles(60, count)
    assert times == [number / 10 for number in numbers]


def test_times_count_and_not_frames(tiny_videos: Path) -> None:
    numbers, times, _ = run(tiny_videos / "uneven.mp4", 4)
    shown = clips.uneven_times_s(60)
    length = shown[-1] + Fraction(1, 10)
    moments = [(2 * i + 1) * length / 8 for i in range(4)]
    assert numbers == [max(i for i, time in enumerate(shown) if time <= moment) for moment in moments]
    assert times == [float(shown[number]) for number in numbers]


@pytest.mark.parametrize("suffix", ["mp4", "webm", "avi", "ts", "mkv"])
def test_a_long_video_is_not_decoded_whole(suffix: str, tmp_path: Path) -> None:
    encodings = {"webm": clips.vp9(gop=10), "avi": clips.mpeg4(gop=10)}
    path = clips.write_clip(
        tmp_path / f"long.{suffix}", clips.numbered(1000), encodings.get(suffix, clips.h264(gop=10, b_frames=2))
    )
    numbers, _, decoded = run(path, 4)
    assert np.abs(np.array(numbers) - middles(1000, 4)).max() <= 1
    assert decoded < 100


def test_close_moments_are_reached_by_decoding_on(tiny_videos: Path) -> None:
    numbers, _, decoded = run(tiny_videos / "numbered.mp4", 30)
    assert numbers == middles(60, 30)
    assert decoded <= 70, "not a group of pictures for each of them"


def test_part_of_a_video(tiny_videos: Path) -> None:
    window = {"start_pts": 2000, "end_pts": 4000, "time_base_num": 1, "time_base_den": 1000}
    numbers, times, _ = run(tiny_videos / "numbered.mp4", 4, window)
    assert numbers == [22, 27, 32, 37] and times == [2.2, 2.7, 3.2, 3.7]
    numbers, _, _ = run(tiny_videos / "live.webm", 4, window)
    assert len(numbers) == 4


def test_part_of_a_video_that_starts_late(tmp_path: Path) -> None:
    path = clips.write_clip(
        tmp_path / "a.ts", clips.numbered(60), times_s=[Fraction(9) + Fraction(i, 10) for i in range(60)]
    )
    window = {"start_pts": 2, "end_pts": 4, "time_base_num": 1, "time_base_den": 1}
    assert run(path, 4, window)[0] == [22, 27, 32, 37]


def test_an_unknown_length_is_decoded_from_the_start(tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "live.webm", clips.numbered(200), clips.vp9(live=True))
    numbers, _, decoded = run(path, 4)
    assert decoded == 200
    assert np.abs(np.array(numbers) - middles(200, 4)).max() <= 200 / 16 + 1


def test_a_lying_length_is_found_out(tiny_videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.media.sample.claimed_duration", lambda *args: 1000 * (claimed_duration(*args) or 1))
    numbers, _, _ = run(tiny_videos / "numbered.mp4", 4)
    assert np.abs(np.array(numbers) - middles(60, 4)).max() <= 5


def test_a_video_cut_short_gives_what_is_left(tmp_path: Path) -> None:
    fast = clips.Encoding(options=clips.h264().options, muxer_options={"movflags": "+faststart"})
    path = clips.truncated(clips.write_clip(tmp_path / "a.mp4", clips.numbered(100), fast), tmp_path / "b.mp4", 0.6)
    numbers, _, _ = run(path, 4)
    assert numbers == sorted(numbers) and 20 < numbers[-1] < 90


def test_fewer_frames_than_asked_for_come_again(tmp_path: Path) -> None:
    numbers, times, _ = run(clips.write_clip(tmp_path / "a.mp4", clips.numbered(2)), 4)
    assert numbers == [0, 0, 1, 1] and times == [0.0, 0.0, 0.1, 0.1]
    assert run(clips.write_clip(tmp_path / "b.mp4", clips.numbered(1)), 4)[0] == [0, 0, 0, 0]


def test_nothing_to_sample_is_a_rejection(tmp_path: Path, tiny_videos: Path) -> None:
    fast = clips.Encoding(options=clips.h264().options, muxer_options={"movflags": "+faststart"})
    whole = clips.write_clip(tmp_path / "a.mp4", clips.numbered(30), fast)
    share = (whole.read_bytes().index(b"mdat") + 8) / whole.stat().st_size
    beyond: dict[str, Any] = {"start_pts": 100, "end_pts": 200, "time_base_num": 1, "time_base_den": 1}
    for path, window in (
        (clips.truncated(whole, tmp_path / "b.mp4", share), None),
        (tiny_videos / "short.mp4", beyond),
    ):
        with pytest.raises(Rejected) as caught:
            run(path, 4, window)
        assert caught.value.reason == "decode_failed"


def test_many_pictures_come_in_several_chunks(tiny_videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.media.sample._CHUNK_BYTES", 3 * 64 * 48 * 3)
    chunks = list(sample(str(tiny_videos / "numbered.mp4"), 8, SPEC))
    assert [len(chunk.arrays["frames"]) for chunk in chunks] == [3, 3, 2]


def test_pictures_within_bounds_are_as_large_as_the_videos_shape_says(tiny_videos: Path) -> None:
    bounds = {"min_pixels": 30 * 28 * 28, "max_pixels": 40 * 28 * 28, "side_multiple": 28}
    (chunk,) = sample(str(tiny_videos / "numbered.mp4"), 3, bounds)
    count, height, width, _ = chunk.arrays["frames"].shape
    assert count == 3 and height % 28 == width % 28 == 0
    assert bounds["min_pixels"] <= height * width <= bounds["max_pixels"]
    assert [clips.number(picture) for picture in chunk.arrays["frames"]] == middles(60, 3)
