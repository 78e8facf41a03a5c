"""What the probe job says of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.media.probe import probe
from pipeline.stage import Rejected
from tests import clips


def info(path: Path) -> dict[str, Any]:
    (chunk,) = probe(str(path))
    assert not chunk.arrays
    return chunk.info


def test_the_header_is_told_as_it_is(tiny_videos: Path) -> None:
    path = tiny_videos / "numbered.mp4"
    assert info(path) == {
        "duration_s": 6.0,
        "fps": 10.0,
        "width": 64,
        "height": 48,
        "rotation": 0,
        "codec": "h264",
        "bytes": path.stat().st_size,
    }


def test_a_rotation_tag_is_told_and_the_size_is_the_coded_one(tiny_videos: Path) -> None:
    got = info(tiny_videos / "turned.mp4")
    assert (got["rotation"], got["width"], got["height"]) == (90, 64, 48)


def test_an_unknown_duration_is_none(tiny_videos: Path) -> None:
    got = info(tiny_videos / "live.webm")
    assert got["duration_s"] is None and got["codec"] == "vp9"


def test_a_header_without_media_is_still_a_header(tmp_path: Path) -> None:
    """Whether frames decode is for scan to find out."""
    whole = clips.write_clip(tmp_path / "a.mp4", clips.disc(60), faststart())
    got = info(clips.truncated(whole, tmp_path / "b.mp4", index_share(whole)))
    assert got["duration_s"] == 6.0 and got["rotation"] == 0


@pytest.mark.parametrize(
    "kind", ["missing", "unreadable", "no_video_stream", "not_video", "not_video:picture", "not_video:empty"]
)
def test_broken_files_have_true_reasons(kind: str, broken_videos: dict[str, Path]) -> None:
    with pytest.raises(Rejected) as caught:
        info(broken_videos[kind])
    assert caught.value.reason == kind.partition(":")[0]
    assert caught.value.detail


def faststart() -> clips.Encoding:
    """The index comes first, so that a file cut short still opens."""
    plain = clips.h264()
    return clips.Encoding(fps=plain.fps, options=plain.options, muxer_options={"movflags": "+faststart"})


def index_share(path: Path) -> float:
    """Where the media bytes of a faststart MP4 begin, as a share of the file."""
    data = path.read_bytes()
    return (data.index(b"mdat") + 8) / len(data)
