from __future__ import annotations

import time
from fractions import Fraction
from typing import Any, cast

import numpy as np
import pytest
from pydantic import ValidationError
from scenedetect import AdaptiveDetector, ContentDetector
from scenedetect.detector import SceneDetector

from pipeline.stage import Workspace
from pipeline.stages.split import Clock, Pts, Scores, Split, SplitConfig, adaptive_cuts, content_cuts

TIME_BASES = [Fraction(1, 1000), Fraction(1001, 30000), Fraction(1, 90000)]


def make_clock(rng: np.random.Generator, count: int, time_base: Fraction, steady: bool) -> Clock:
    per_frame = max(1, round(Fraction(1, 30) / time_base))
    steps = np.full(count, per_frame) if steady else rng.integers(1, 3 * per_frame + 1, count)
    ends = np.cumsum(steps)
    pts: Pts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    return Clock(pts=pts, end_pts=int(ends[-1]), time_base=time_base)


def make_scores(rng: np.random.Generator, count: int, busy: float) -> Scores:
    """Mostly quiet, with runs of high scores so that the flash filter has something to merge."""
    scores = rng.uniform(0, 20, count)
    for start in np.flatnonzero(rng.random(count) < busy):
        run = int(rng.integers(1, 12))
        scores[start : start + run] = rng.uniform(20, 90, len(scores[start : start + run]))
    scores[0] = 0.0
    return scores


def detected(detector: SceneDetector, scores: Scores, clock: Clock) -> list[int]:
    """The cuts that PySceneDetect's detector finds when each frame has the given score and is fed to it."""
    feed = iter(scores.tolist())
    cast(Any, detector)._calculate_frame_score = lambda *_: next(feed)
    times = clock.timecodes(range(len(scores)))
    cuts = [cut for t in times for cut in detector.process_frame(t, np.empty(0))]
    cuts += detector.post_process(times[-1])
    return [int(np.searchsorted(clock.pts, cut.pts)) for cut in sorted(set(cuts))]


@pytest.mark.parametrize("steady", [True, False], ids=["constant", "variable"])
@pytest.mark.parametrize("min_frames", [0, 1, 5, 15, 40])
def test_content_equals_pyscenedetect_fed_every_frame(min_frames: int, steady: bool) -> None:
    found = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        clock = make_clock(rng, int(rng.integers(1, 400)), TIME_BASES[seed % 3], steady)
        scores = make_scores(rng, len(clock.pts), busy=[0.01, 0.05, 0.3][seed % 3])
        config = SplitConfig(threshold=45.0, min_scene_len_frames=min_frames)
        cuts = content_cuts(scores, clock, config)
        assert cuts == detected(ContentDetector(threshold=45.0, min_scene_len=min_frames), scores, clock), seed
        found += len(cuts)
    assert found > 30


@pytest.mark.parametrize("steady", [True, False], ids=["constant", "variable"])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_adaptive_equals_pyscenedetect(width: int, steady: bool) -> None:
    found = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        clock = make_clock(rng, int(rng.integers(1, 400)), TIME_BASES[seed % 3], steady)
        scores = make_scores(rng, len(clock.pts), busy=0.03)
        scores[rng.random(len(scores)) < 0.3] = 0.0  # still pictures: neighbours whose mean is nothing
        config = SplitConfig(detector="adaptive", adaptive_threshold=2.0, window_width=width, min_content_val=15.0)
        reference = AdaptiveDetector(adaptive_threshold=2.0, window_width=width, min_content_val=15.0)
        cuts = adaptive_cuts(scores, clock, config)
        assert cuts == detected(reference, scores, clock), seed
        found += len(cuts)
    assert found > 50


def split(scores: list[float], ticks: int = 40, **config: Any) -> list[dict[str, int]]:
    row = {
        "frame_pts": np.arange(len(scores), dtype=np.int64) * ticks,
        "frame_scores": np.array(scores),
        "end_pts": len(scores) * ticks,
        "time_base_num": 1,
        "time_base_den": 1000,
    }
    (out,) = Split(SplitConfig(**config)).apply(row, cast(Workspace, None)).rows
    shots: list[dict[str, int]] = out["shots"]
    return shots


def test_shots_follow_each_other_from_the_first_frame_to_the_end() -> None:
    scores = [0.0] * 100
    scores[30] = scores[60] = 50.0
    assert split(scores) == [
        {"index": 0, "start_pts": 0, "end_pts": 1200, "start_frame": 0, "end_frame": 30},
        {"index": 1, "start_pts": 1200, "end_pts": 2400, "start_frame": 30, "end_frame": 60},
        {"index": 2, "start_pts": 2400, "end_pts": 4000, "start_frame": 60, "end_frame": 100},
    ]


@pytest.mark.parametrize("detector", ["content", "adaptive"])
@pytest.mark.parametrize("count", [1, 2, 300])
def test_no_cut_is_one_shot(detector: str, count: int) -> None:
    assert split([0.0] * count, detector=detector) == [
        {"index": 0, "start_pts": 0, "end_pts": 40 * count, "start_frame": 0, "end_frame": count}
    ]


def test_the_threshold_is_inclusive_and_moves_the_cuts() -> None:
    scores = [0.0] * 100
    scores[40] = 45.0
    assert len(split(scores)) == 2
    assert len(split(scores, threshold=45.001)) == 1


def test_a_minimum_length_in_frames_is_a_time_at_the_mean_rate() -> None:
    # 25 frames a second on the whole, but the frames around the second cut come every 5 ms: 20 of them are 0.1 s,
    # which is no more than 2 or 3 frames at the mean rate
    pts = np.concatenate([np.arange(50) * 40, 2000 + np.arange(50) * 5, 2250 + np.arange(44) * 40]).astype(np.int64)
    clock = Clock(pts=pts, end_pts=int(pts[-1]) + 40, time_base=Fraction(1, 1000))
    scores = np.zeros(len(pts))
    scores[50] = scores[70] = 60.0
    assert content_cuts(scores, clock, SplitConfig()) == [50]
    assert content_cuts(scores, clock, SplitConfig(min_scene_len_frames=2)) == [50, 70]


def test_a_million_frames_take_little_time() -> None:
    rng = np.random.default_rng(1)
    clock = make_clock(rng, 1_000_000, Fraction(1, 90000), steady=True)
    scores = rng.uniform(0, 40, len(clock.pts))
    scores[300::300] = 80.0
    began = time.perf_counter()
    cuts = content_cuts(scores, clock, SplitConfig())
    assert cuts == list(range(300, 1_000_000, 300))
    assert len(adaptive_cuts(scores, clock, SplitConfig(detector="adaptive"))) > 3000
    assert time.perf_counter() - began < 20  # about 0.5 s; feeding each frame takes over 5 s


@pytest.mark.parametrize(
    "wrong", [{"threshold": 0}, {"window_width": 0}, {"min_scene_len_frames": -1}, {"detector": "hash"}, {"thresh": 3}]
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        SplitConfig(**wrong)


def test_broken_input_is_caught() -> None:
    with pytest.raises(AssertionError, match="rise"):
        Clock(pts=np.array([0, 40, 40]), end_pts=80, time_base=Fraction(1, 1000))
    with pytest.raises(AssertionError, match="end_pts"):
        Clock(pts=np.array([0, 40]), end_pts=40, time_base=Fraction(1, 1000))
    with pytest.raises(AssertionError, match="finite"):
        split([0.0, float("nan")])
