"""Content scores beside PySceneDetect's own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
import pytest
from scenedetect import ContentDetector, SceneManager, StatsManager, open_video
from scenedetect.scene_manager import compute_downscale_factor

from pipeline.media.score import ContentScorer, ScoreMode, small_size
from tests import clips


def ours(mode: ScoreMode, frames: Iterable[av.VideoFrame]) -> list[float]:
    scorer = ContentScorer(mode)
    return [scorer.score(frame) for frame in frames]


def theirs(path: Path) -> list[float]:
    """PySceneDetect's content_val of every frame but the first."""
    stats = StatsManager()
    manager = SceneManager(stats)
    manager.add_detector(ContentDetector())
    manager.detect_scenes(open_video(str(path)))
    return [metrics["content_val"] for _, metrics in sorted(stats._frame_metrics.items(), key=lambda one: one[0].pts)]


@pytest.mark.parametrize(
    ("width", "height"),
    [(1280, 720), (720, 1280), (1920, 1080), (256, 256), (257, 145), (255, 10), (10, 6), (404, 720), (4096, 4), (1, 1)],
)
def test_the_small_size_is_pyscenedetects(width: int, height: int) -> None:
    factor = compute_downscale_factor(max(width, height))
    expected = (max(1, round(width / factor)), max(1, round(height / factor))) if factor > 1.0 else (width, height)
    assert small_size(width, height) == expected


@pytest.mark.parametrize("name", ["cuts.mp4", "numbered.mp4", "uneven.mp4", "turned.mp4", "ten_bit.mp4", "mpeg4.avi"])
def test_exact_scores_are_pyscenedetects_to_the_bit(name: str, tiny_videos: Path) -> None:
    scores = ours("exact", clips.decoded(tiny_videos / name))
    assert scores[0] == 0.0
    assert scores[1:] == theirs(tiny_videos / name)


def large(count: int, width: int = 640, height: int = 362) -> Iterable[np.ndarray]:
    """Smooth moving colours, with a cut in the middle."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    for i in range(count):
        phase = i / 5 + (3 if i >= count // 2 else 0)
        waves = [np.sin(x / 60 + phase), np.cos(y / 40 - phase), np.sin((x + y) / 90 + 2 * phase)]
        yield np.stack([127 + 120 * wave for wave in waves], axis=2).astype(np.uint8)


@pytest.mark.parametrize("rotation", [0, 90])
@pytest.mark.parametrize("size", [(640, 362), (362, 640), (642, 270)])
def test_scaled_scores(size: tuple[int, int], rotation: int, tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "large.mp4", large(12, *size), clips.h264(rotation=rotation))
    frames, reference = clips.decoded(path), theirs(path)
    assert ours("exact", frames)[1:] == reference
    assert max(reference) > 20
    assert np.abs(np.array(ours("fast", frames)[1:]) - reference).max() < 0.6


@pytest.mark.parametrize(
    "pixels", ["yuv420p10le", "yuv444p", "yuv422p", "yuvj420p", "nv12", "gray", "gbrp", "rgba64le", "yuv410p"]
)
@pytest.mark.parametrize("size", [(640, 362), (333, 111), (10, 6), (3, 1), (1, 700)])
def test_any_kind_of_pixel_is_scored_nearly_alike(pixels: str, size: tuple[int, int]) -> None:
    frames = [av.VideoFrame.from_ndarray(one, "rgb24").reformat(format=pixels, threads=1) for one in large(4, *size)]
    fast, exact = ours("fast", frames), ours("exact", frames)
    assert len(fast) == 4 and fast[0] == 0.0
    assert np.abs(np.array(fast) - exact).max() < 2.5


def test_grey_stays_grey() -> None:
    """A conversion that is off by one in one channel gives grey a hue, and the score noise."""
    rng = np.random.default_rng(0)
    grey = [
        np.repeat(rng.integers(0, 256, (90, 160, 1), np.uint8), 3, axis=2).repeat(4, 0).repeat(4, 1) for _ in range(3)
    ]
    frames = [av.VideoFrame.from_ndarray(one, "rgb24").reformat(format="yuv420p") for one in grey]
    assert np.abs(np.array(ours("fast", frames)) - ours("exact", frames)).max() < 0.6


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_a_change_of_size_goes_on_at_the_first_small_size(mode: ScoreMode) -> None:
    same = next(iter(large(1)))
    frames = [
        av.VideoFrame.from_ndarray(same, "rgb24").reformat(width, height, "yuv420p")
        for width, height in ((640, 362), (320, 180), (1280, 724), (640, 362))
    ]
    scores = ours(mode, frames)
    assert scores[0] == 0.0 and max(scores) < 3, "it is one picture all along"


def test_equal_frames_score_nothing_and_a_cut_scores_a_lot(tiny_videos: Path) -> None:
    scores = ours("fast", clips.decoded(tiny_videos / "cuts.mp4"))
    assert [i for i, score in enumerate(scores) if score > 27] == [60, 120]
    assert max(scores[1:60]) < 1
