"""Fixtures of all tests. Real videos are used where they lie beside the checkout; all else is drawn on the spot."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.store.files import open_files
from tests import clips

BUCKET = "videos"
CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_videos() -> Path:
    """The folder of real test videos: $HICOM_TEST_VIDEOS, or ../shared/videos beside the checkout; else skips."""
    folder = Path(os.environ.get("HICOM_TEST_VIDEOS", CHECKOUT.parent / "shared" / "videos"))
    if not (folder / "MANIFEST.csv").is_file():
        pytest.skip(f"no test videos in {folder}; set HICOM_TEST_VIDEOS to a folder that has them")
    return folder


@pytest.fixture(scope="session")
def tiny_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny readable videos. Read only: tests share it.

    cuts.mp4 (6 + 6 + 6 s, cuts at frames 60 and 120), one_shot.mp4 (a disc, 5.4 s), numbered.mp4 (6 s, frames carry
    their index, GOP 10, B-frames), short.mp4 (2 s), uneven.mp4 (variable frame rate, 6 s), turned.mp4 (rotation 90,
    6 s), ten_bit.mp4 (6 s), live.webm (VP9 without a duration, 6 s), mpeg4.avi (6 s).
    """
    folder = tmp_path_factory.mktemp("tiny_videos")
    clips.write_clip(folder / "cuts.mp4", clips.shots(("maroon", 60), ("sky", 60), ("black", 60)), keyframes=(60, 120))
    clips.write_clip(folder / "one_shot.mp4", clips.disc(54))
    clips.write_clip(folder / "numbered.mp4", clips.numbered(60), clips.h264(gop=10, b_frames=2))
    clips.write_clip(folder / "short.mp4", clips.flat("gold", 20))
    clips.write_clip(folder / "uneven.mp4", clips.numbered(60), times_s=clips.uneven_times_s(60))
    clips.write_clip(folder / "turned.mp4", clips.disc(60, (0, 1)), clips.h264(rotation=90))
    clips.write_clip(folder / "ten_bit.mp4", clips.disc(60), clips.h264(ten_bit=True))
    clips.write_clip(folder / "live.webm", clips.disc(60), clips.vp9(live=True))
    clips.write_clip(folder / "mpeg4.avi", clips.disc(60), clips.mpeg4())
    return folder


@pytest.fixture(scope="session")
def broken_videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files that are no good, by the reason that ingest must reject each for. Read only: tests share them."""
    folder = tmp_path_factory.mktemp("broken_videos")
    whole = clips.write_clip(folder / "whole.mp4", clips.disc(60))
    return {
        "missing": folder / "nothing_here.mp4",
        "unreadable": clips.truncated(whole, folder / "cut_off.mp4"),
        "no_video_stream": clips.audio_only(folder / "sound.mp4"),
        "not_video": clips.text(folder / "notes.mp4"),
        "not_video:picture": clips.picture(folder / "picture.mp4"),
        "not_video:empty": clips.empty(folder / "empty.mp4"),
    }


@pytest.fixture(scope="session")
def wheel_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of a wheel of this checkout, as pip would lay it out. Read only: tests share it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """URL of an empty bucket. Endpoint and credentials are given as a user gives them: by the environment."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        open_files(f"s3://{BUCKET}").fs.mkdir(BUCKET)  # type: ignore[attr-defined]
        yield f"s3://{BUCKET}"
    server.stop()
