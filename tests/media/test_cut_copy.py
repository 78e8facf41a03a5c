"""Clips by stream copy: pictures untouched, whatever the container and the structure of frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.media import cut_source
from pipeline.media.write import Encoding
from tests.clips import decoded, h264, mpeg4, numbered, write_clip
from tests.media.cutting import CLOSED_GOPS, OPEN_GOPS, cut_clips, hashes, numbers, opencv_count, scanned, x264, x265

OPEN_GOPS_HEVC = x265("bframes=3:open-gop=1")
FRAGMENTED = replace(CLOSED_GOPS, muxer_options={"movflags": "frag_keyframe+empty_moov"})

SOURCES = [
    ("mp4", CLOSED_GOPS),
    ("mp4", OPEN_GOPS),
    ("mp4", FRAGMENTED),
    ("mov", CLOSED_GOPS),
    ("mkv", CLOSED_GOPS),
    ("mkv", OPEN_GOPS),
    ("ts", OPEN_GOPS),
    ("flv", CLOSED_GOPS),
    ("mp4", OPEN_GOPS_HEVC),
    ("mkv", OPEN_GOPS_HEVC),
    ("ts", OPEN_GOPS_HEVC),
]


@pytest.mark.parametrize(("ending", "encoding"), SOURCES)
def test_a_copy_shows_the_very_pictures_of_the_source(tmp_path: Path, ending: str, encoding: Encoding) -> None:
    video = scanned(write_clip(tmp_path / f"v.{ending}", numbered(100), encoding))
    source = hashes(video.path)
    ranges = [(0, 12), (12, 40), (40, 71), (71, 100)]
    for clip, (start, end) in zip(cut_clips(video, ranges, tmp_path / "out", "copy"), ranges, strict=True):
        held = numbers(clip)
        assert hashes(clip["path"]) == source[held[0] : held[-1] + 1]
        assert held[0] == -(-start // 12) * 12, "it starts at the first key frame in the shot"
        assert end - 4 <= held[-1] < end, "at most the B-frames before the end are lost"
        assert clip["clip_frames"] == opencv_count(clip["path"])


def test_frames_that_lead_into_an_open_group_are_left_out(tmp_path: Path) -> None:
    """In decode order the frames before key frame 24 come after it, and need the group before."""
    video = scanned(write_clip(tmp_path / "v.mp4", numbered(60), OPEN_GOPS))
    before, after = cut_clips(video, [(12, 24), (24, 60)], tmp_path / "out", "copy")
    assert numbers(after) == list(range(24, 60))
    assert numbers(before) == list(range(12, 21))
    assert before["end_error_s"] == pytest.approx(0.3)


def test_a_shot_without_a_key_frame_cannot_be_copied(tmp_path: Path) -> None:
    video = scanned(write_clip(tmp_path / "v.mp4", numbered(60), CLOSED_GOPS))
    (clip,) = cut_clips(video, [(13, 24)], tmp_path / "out", "copy")
    assert clip["failed"] == "copy: no keyframe in the shot to start at"


def test_a_codec_that_is_not_copied(tmp_path: Path) -> None:
    video = scanned(write_clip(tmp_path / "v.avi", numbered(24), mpeg4()))
    (clip,) = cut_clips(video, [(0, 24)], tmp_path / "out", "copy")
    assert clip["failed"] == "copy: mpeg4 is not copied into MP4"


@pytest.mark.parametrize("ending", ["avi", "264"])
def test_packets_without_sound_times_are_encoded(tmp_path: Path, ending: str) -> None:
    """AVI counts frames in decode order, a raw stream has no times at all."""
    video = scanned(write_clip(tmp_path / f"v.{ending}", numbered(60), CLOSED_GOPS))
    (copy,) = cut_clips(video, [(12, 36)], tmp_path / "out", "copy")
    assert copy["failed"].startswith("copy: ")
    (auto,) = cut_clips(video, [(12, 36)], tmp_path / "out", "auto")
    assert (auto["method"], numbers(auto)) == ("encode", list(range(12, 36)))


def test_a_key_frame_that_refreshes_bit_by_bit_is_no_start(tmp_path: Path) -> None:
    """Intra refresh marks frames as places to start, but the picture is whole only frames later."""
    video = scanned(write_clip(tmp_path / "v.mp4", numbered(60), x264("bframes=0:intra-refresh=1")))
    (copy,) = cut_clips(video, [(20, 60)], tmp_path / "out", "copy")
    assert copy["failed"] == "copy: its first frame cannot be decoded on its own"
    (auto,) = cut_clips(video, [(20, 60)], tmp_path / "out", "auto", tolerance_s=2.0)
    assert (auto["method"], numbers(auto)) == ("encode", list(range(20, 60)))


def test_a_rotation_tag_is_kept(tmp_path: Path) -> None:
    video = scanned(write_clip(tmp_path / "v.mp4", numbered(24), h264(rotation=90)))
    (clip,) = cut_clips(video, [(0, 12)], tmp_path / "out", "copy")
    assert {frame.rotation for frame in decoded(Path(clip["path"]))} == {90}
    assert (clip["clip_width"], clip["clip_height"]) == (48, 64), "as shown"


class NewParameters:
    """A packet that brings other parameters for the decoder."""

    def __init__(self, packet: Any) -> None:
        self.pts, self.dts = packet.pts, packet.dts

    def has_sidedata(self, name: str) -> bool:
        return name == "new_extradata"


def test_a_stream_whose_parameters_change_is_copied_up_to_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = scanned(write_clip(tmp_path / "v.mp4", numbered(60), CLOSED_GOPS))
    read = cut_source.Source.read

    def changing(source: cut_source.Source) -> Any:
        packet = read(source)
        return NewParameters(packet) if packet is not None and packet.pts == video.pts[36] else packet

    monkeypatch.setattr(cut_source.Source, "read", changing)
    clips = cut_clips(video, [(0, 24), (24, 40), (48, 60)], tmp_path / "out", "copy")
    assert numbers(clips[0]) == list(range(24))
    assert {clip.get("failed") for clip in clips[1:]} == {"copy: the stream's parameters change on the way"}
