"""Opening media: which names and contents open, and the true reason of those that do not."""

from __future__ import annotations

import os
from pathlib import Path

import av
import fsspec
import numpy as np
import pytest
from av.stream import Discard

from pipeline.media.open import container_name, local_path, open_bytes, open_media, uri_of, video_stream
from pipeline.stage import Rejected, Retryable
from tests import clips

AWKWARD = [
    "plain.mp4",
    "two words.mp4",
    "quo\"te's.mp4",
    "line\nbreak.mp4",
    "percent%20.mp4",
    "http:is a name.mp4",
    "concat:a|b.mp4",
    "ümläut.mp4",
    b"not\xffutf8.mp4",
    "x" * 240 + ".mp4",
]


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_names_open_by_their_uri(name: str | bytes, tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), os.fsencode(name))
    whole = clips.write_clip(tmp_path / "whole.mp4", clips.flat("gold", 3))
    os.rename(whole, path)
    uri = uri_of(path)
    assert uri.encode() and uri.isprintable(), "a table can hold it"
    assert os.fsencode(str(local_path(uri))) == path
    with open_media(uri) as container:
        assert len(list(container.decode(video_stream(container)))) == 3


def test_a_relative_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.rename(clips.write_clip(tmp_path / "a.mp4", clips.flat("gold", 3)), "file:b.mp4")
    with open_media("file:b.mp4") as container:
        assert container.streams.video


def test_uris_tell_files_from_urls() -> None:
    assert local_path("/a/b c.mp4") == "/a/b c.mp4"
    assert local_path("file:///a/%FFb.mp4") == os.fsdecode(b"/a/\xffb.mp4")
    assert local_path("s3://bucket/key.mp4") is None
    assert uri_of("file://odd") == "file://file%3A//odd", "a path that looks like a URI is escaped"


@pytest.mark.parametrize(
    "kind", ["missing", "unreadable", "no_video_stream", "not_video", "not_video:picture", "not_video:empty"]
)
def test_what_does_not_open_says_why(kind: str, broken_videos: dict[str, Path]) -> None:
    with pytest.raises(Rejected) as caught, open_media(str(broken_videos[kind])) as container:
        video_stream(container)
    assert caught.value.reason == kind.partition(":")[0]
    assert not isinstance(caught.value, Retryable)


def test_no_playlist_is_followed(tmp_path: Path) -> None:
    clips.write_clip(tmp_path / "secret.ts", clips.flat("gold", 5))
    for name, text in {
        "hls.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n",
        "concat.mp4": "ffconcat version 1.0\nfile secret.ts\n",
    }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(Rejected, match="not_video"):
            open_media(str(tmp_path / name))


def test_only_regular_files_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path / "pipe.mp4", tmp_path, Path("/dev/zero")):
        with pytest.raises(Rejected, match="not a regular file"):
            open_bytes(str(path))


def test_a_name_that_is_too_long_or_forbidden_is_missing(tmp_path: Path) -> None:
    for uri in (str(tmp_path / ("x" * 300)), str(tmp_path / "a\0b.mp4"), "ftp://host/a.mp4", "zip::s3://bucket/a.zip"):
        with pytest.raises(Rejected) as caught:
            open_bytes(uri)
        assert caught.value.reason == "missing"


def test_a_remote_file_opens_like_a_local_one(tmp_path: Path) -> None:
    data = clips.write_clip(tmp_path / "a.mp4", clips.numbered(20)).read_bytes()
    with fsspec.open("memory://videos/a.mp4", "wb") as file:
        file.write(data)
    with open_media("memory://videos/a.mp4") as container:
        frames = list(container.decode(video_stream(container)))
    assert [clips.number(frame.to_ndarray(format="rgb24")) for frame in frames] == list(range(20))
    with pytest.raises(Rejected, match="missing"):
        open_media("memory://videos/b.mp4")


def test_storage_that_fails_is_worth_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failed(Exception):
        """As botocore's: not an OSError."""

    def fail(*_: object) -> None:
        raise Failed("the bucket is busy")

    monkeypatch.setattr(fsspec, "open", fail)
    with pytest.raises(Retryable, match="the bucket is busy"):
        open_media("s3://bucket/a.mp4")


def test_the_first_of_several_video_streams_is_taken_and_others_are_off(tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=10) for _ in range(2)]
        for stream, side in zip(streams, (32, 128), strict=True):
            stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        for stream, side in zip(streams, (32, 128), strict=True):
            for _ in range(5):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((side, side, 3), np.uint8), "rgb24")))
            container.mux(stream.encode(None))
    with open_media(str(path)) as container:
        stream = video_stream(container)
        assert (stream.index, stream.width) == (0, 32), "the other one is larger"
        assert [one.discard for one in container.streams] == [Discard.default, Discard.all]


def test_cover_art_is_no_video(tmp_path: Path) -> None:
    sound = clips.audio_only(tmp_path / "sound.mp4")
    picture = clips.picture(tmp_path / "cover.jpg").read_bytes()
    path = tmp_path / "covered.mp4"
    with av.open(str(sound)) as source, av.open(str(path), "w") as container:
        audio = container.add_stream_from_template(source.streams.audio[0])
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = clips.WIDTH_PX, clips.HEIGHT_PX, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        for packet in source.demux(audio=0):
            if packet.size:
                packet.stream = audio
                container.mux(packet)
        packet = av.Packet(picture)
        packet.stream, packet.pts, packet.dts = cover, 0, 0
        container.mux(packet)
    with open_media(str(path)) as container, pytest.raises(Rejected) as caught:
        assert container.streams.video, "the test's own file is as it should be"
        video_stream(container)
    assert caught.value.reason == "no_video_stream"


@pytest.mark.parametrize(
    ("suffix", "name"),
    [
        ("mp4", "MP4 or QuickTime"),
        ("mkv", "Matroska or WebM"),
        ("avi", "AVI"),
        ("ts", "MPEG transport stream"),
        ("flv", "FLV"),
    ],
)
def test_containers_are_known_by_their_first_bytes(suffix: str, name: str, tmp_path: Path) -> None:
    encoding = clips.mpeg4() if suffix == "avi" else clips.h264()
    path = clips.write_clip(tmp_path / f"a.{suffix}", clips.flat("gold", 3), encoding)
    assert container_name(path.read_bytes()[:512]) == name
    with open_media(str(path)) as container:
        assert len(list(container.decode(video_stream(container)))) == 3
