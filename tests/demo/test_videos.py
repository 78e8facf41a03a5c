"""The demo's videos are what their table says, and bind where the demo needs them to."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import yaml

from pipeline.demo.paint import COLORS
from pipeline.demo.videos import BROKEN, HEIGHT_PX, VIDEOS, WIDTH_PX, Video, write_demo_videos
from pipeline.models.builtin import attributes as builtin_attributes
from pipeline.models.builtin import visual as builtin_visual
from pipeline.models.spec import ModelSpec
from pipeline.records import REASONS
from pipeline.resources import resource
from tests import clips

BY_NAME = {video.name: video for video in VIDEOS}
NAMES = pytest.mark.parametrize("name", BY_NAME)


class Decoded:
    """A video file's frames, uint8 [N, H, W, 3] RGB, with what the container says of them."""

    def __init__(self, path: Path) -> None:
        frames = clips.decoded(path)
        self.times_s = [clips.time_s(frame) for frame in frames]
        self.key_frames = {index for index, frame in enumerate(frames) if frame.key_frame}
        self.rotation = frames[0].rotation
        self.frames = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])

    def scores(self) -> np.ndarray:
        """Mean difference of hue, saturation and value from the frame before; 0 for the first."""
        hsv = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2HSV) for frame in self.frames]).astype(np.int16)
        return np.concatenate([[0.0], np.abs(np.diff(hsv, axis=0)).mean(axis=(1, 2, 3))])

    def small(self, side: int, count: int) -> np.ndarray:
        """`count` frames spread evenly, `side` pixels wide and high."""
        chosen = self.frames[[int((i + 0.5) * len(self.frames) / count) for i in range(count)]]
        return np.stack([cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA) for frame in chosen])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert write_demo_videos(folder) == sorted(folder.iterdir())
    return folder


@pytest.fixture(scope="module")
def decoded(folder: Path) -> Mapping[str, Decoded]:
    return {name: Decoded(folder / name) for name in BY_NAME}


@NAMES
def test_times_cuts_and_rotation_are_the_tables(name: str, decoded: Mapping[str, Decoded]) -> None:
    video, file = BY_NAME[name], decoded[name]
    assert file.times_s == video.times_s()
    assert file.rotation == video.rotation
    scores, cuts = file.scores(), video.cut_frames()
    assert len(cuts) == len(video.shots) - 1
    assert [float(scores[cut]) for cut in cuts if scores[cut] < 50] == []
    assert np.delete(scores, cuts).max() < 20
    assert set(cuts) <= file.key_frames or not video.intra_at_cuts


def test_some_clips_can_be_copied_and_some_cannot(decoded: Mapping[str, Decoded]) -> None:
    begins_inside = {name for name, video in BY_NAME.items() if set(video.cut_frames()) - decoded[name].key_frames}
    assert 0 < len(begins_inside) < sum(len(video.shots) > 1 for video in VIDEOS)


@NAMES
def test_colours_are_the_tables(name: str, decoded: Mapping[str, Decoded]) -> None:
    """Every pixel lies between the shot's two colours, as far as the encoder lets it."""
    video = BY_NAME[name]
    for shot, start in zip(video.shots, [0, *video.cut_frames()], strict=True):
        ends = np.array([COLORS[color] for color in shot.colors])
        mean = decoded[name].frames[start].reshape(-1, 3).mean(axis=0)
        assert (mean > ends.min(axis=0) - 12).all() and (mean < ends.max(axis=0) + 12).all()


def _disc_center(video: Video, frame: np.ndarray) -> np.ndarray:
    """Middle of the pixels nearer to the disc's colour: to the right, down."""
    back, front = (np.array(COLORS[color], float) for color in video.shots[0].colors)
    share = (frame - back) @ (front - back) / ((front - back) @ (front - back))
    rows, columns = np.nonzero(share > 0.5)
    return np.array([columns.mean(), rows.mean()])


@pytest.mark.parametrize("name", ["red_disc.mp4", "blue_night.mp4", "phone_clock.mp4"])
def test_a_disc_moves_as_the_table_says(name: str, decoded: Mapping[str, Decoded]) -> None:
    video, file = BY_NAME[name], decoded[name]
    last = (video.cut_frames() or [len(file.frames)])[0] - 1
    moved = _disc_center(video, file.frames[last]) - _disc_center(video, file.frames[0])
    expected = np.array(video.shots[0].drift) * float(file.times_s[last])
    assert np.abs(moved - expected).max() <= 2


@NAMES
def test_discs_stay_within_the_picture(name: str) -> None:
    radius = HEIGHT_PX // 6
    for shot in BY_NAME[name].shots:
        if shot.look != "disc":
            continue
        for second in (0, shot.seconds):
            right, down = (at + speed * second for at, speed in zip(shot.start, shot.drift, strict=True))
            assert abs(right) <= WIDTH_PX // 2 - radius and abs(down) <= HEIGHT_PX // 2 - radius


def test_outcomes_are_possible() -> None:
    for video in VIDEOS:
        for shot in video.shots:
            assert shot.outcome in {"kept", *REASONS}
            assert (shot.outcome == "too_short") == (shot.seconds < 5), video.name
    assert {shot.outcome for video in VIDEOS for shot in video.shots} == {"kept", "redundant", "too_short"}


def test_redundant_shots_and_no_others_look_like_the_one_before(decoded: Mapping[str, Decoded]) -> None:
    embedder = builtin_visual.load(ModelSpec(family="builtin", name="visual", revision="1"))
    for video in VIDEOS:
        starts = [0, *video.cut_frames()]
        small = [cv2.resize(decoded[video.name].frames[i], (64, 64), interpolation=cv2.INTER_AREA) for i in starts]
        vectors = embedder.embed(np.stack(small))
        cosines = [float(before @ here) for before, here in pairwise(vectors)]
        for shot, cosine in zip(video.shots[1:], cosines, strict=True):
            assert cosine > 0.97 if shot.outcome == "redundant" else cosine < 0.8, (video.name, cosine)


def test_what_the_demo_must_show_wins_a_category(decoded: Mapping[str, Decoded]) -> None:
    """One video a category, best match first: the repeated, the interrupted and the too short video are among them."""
    embedder = builtin_attributes.load(ModelSpec(family="builtin", name="attributes", revision="1"))
    sentences = yaml.safe_load(resource("manifests", "categories-demo.yaml").read_text(encoding="utf-8"))["categories"]
    videos = np.stack([np.rot90(d.small(128, 8), d.rotation // 90, (1, 2)) for d in decoded.values()])
    scores = embedder.embed_videos(videos) @ embedder.embed_texts(sentences).T
    winners: dict[int, str] = {}
    for position in np.argsort(-scores, axis=None):
        video, category = divmod(int(position), len(sentences))
        name = list(decoded)[video]
        if category not in winners and name not in winners.values():
            winners[category] = name
    assert {"again.mp4", "interrupted.mp4", "blink.mp4"} <= set(winners.values())
    assert len(winners) == len(sentences) < len(VIDEOS) - 3, "some videos must be left over"


def test_broken_files_are_broken(folder: Path) -> None:
    assert set(BROKEN.values()) <= REASONS.keys()
    for name in BROKEN:
        with pytest.raises(av.FFmpegError):
            av.open(str(folder / name))


def test_the_same_bytes_every_time(folder: Path, tmp_path: Path) -> None:
    again = write_demo_videos(tmp_path)
    assert {path.name: path.read_bytes() for path in again} == {p.name: p.read_bytes() for p in folder.iterdir()}
    assert sum(path.stat().st_size for path in again) < 1_000_000
