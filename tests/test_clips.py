"""The helpers themselves: what they promise about a file is what a decoder finds in it."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests import clips


def test_frames_carry_their_number_through_the_encoder(tiny_videos: Path) -> None:
    frames = clips.decoded(tiny_videos / "numbered.mp4")
    assert [clips.number(frame.to_ndarray(format="rgb24")) for frame in frames] == list(range(60))
    assert [index for index, frame in enumerate(frames) if frame.key_frame] == [0, 10, 20, 30, 40, 50]
    assert any(frame.pict_type == av.video.frame.PictureType.B for frame in frames)


def test_cuts_lie_where_they_were_asked_for(tiny_videos: Path) -> None:
    frames = clips.decoded(tiny_videos / "cuts.mp4")
    means = np.array([frame.to_ndarray(format="rgb24").mean() for frame in frames])
    assert (np.flatnonzero(np.abs(np.diff(means)) > 20) + 1).tolist() == [60, 120]
    assert {0, 60, 120} <= {index for index, frame in enumerate(frames) if frame.key_frame}


def test_uneven_times_are_exact(tiny_videos: Path) -> None:
    frames = clips.decoded(tiny_videos / "uneven.mp4")
    assert [clips.time_s(frame) for frame in frames] == clips.uneven_times_s(60)
    assert clips.uneven_times_s(4) == [0, Fraction(1, 20), Fraction(1, 5), Fraction(1, 4)]


def test_rotation_tag_and_ten_bit(tiny_videos: Path) -> None:
    assert clips.decoded(tiny_videos / "turned.mp4")[0].rotation == 90
    assert clips.decoded(tiny_videos / "ten_bit.mp4")[0].format.name == "yuv420p10le"


def test_live_webm_states_no_duration(tiny_videos: Path) -> None:
    with av.open(str(tiny_videos / "live.webm")) as container:
        assert container.duration is None
        assert sum(1 for _ in container.decode(video=0)) == 60


def test_disc_moves_right(tiny_videos: Path) -> None:
    frames = clips.decoded(tiny_videos / "one_shot.mp4")
    red = [frame.to_ndarray(format="rgb24")[:, :, 0].astype(float) for frame in (frames[0], frames[-1])]
    columns = [np.average(np.arange(clips.WIDTH_PX), weights=picture.sum(axis=0)) for picture in red]
    assert columns[1] > columns[0] + 5


def test_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    for encoding, name in ((clips.h264(b_frames=2), "a.mp4"), (clips.vp9(), "a.webm"), (clips.mpeg4(), "a.avi")):
        digests = {
            hashlib.sha256(clips.write_clip(tmp_path / name, clips.disc(30), encoding).read_bytes()).hexdigest()
            for _ in range(2)
        }
        assert len(digests) == 1, name


def test_broken_files_are_broken(broken_videos: dict[str, Path], tmp_path: Path) -> None:
    for reason in ("unreadable", "not_video", "not_video:empty"):
        with pytest.raises(av.FFmpegError):
            av.open(str(broken_videos[reason]))
    with av.open(str(broken_videos["no_video_stream"])) as container:
        assert not container.streams.video and container.streams.audio
    with av.open(str(broken_videos["not_video:picture"])) as container:
        assert container.format.name in ("image2", "jpeg_pipe")
    assert not broken_videos["missing"].exists()


def test_damage_in_the_middle_costs_some_frames_only(tmp_path: Path) -> None:
    whole = clips.write_clip(tmp_path / "whole.ts", clips.noise(40), clips.h264(gop=5))
    damaged = clips.overwritten(whole, tmp_path / "damaged.ts")
    assert damaged.stat().st_size == whole.stat().st_size
    good = bad = 0
    with av.open(str(damaged)) as container:
        for packet in container.demux(video=0):
            try:
                for frame in packet.decode():
                    good, bad = good + (not frame.is_corrupt), bad + frame.is_corrupt
            except av.FFmpegError:
                bad += 1
    assert 10 < good < 40 and bad > 0


def test_write_video_refuses_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no frame"):
        clips.write_clip(tmp_path / "none.mp4", [])
