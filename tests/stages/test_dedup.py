from __future__ import annotations

from fractions import Fraction
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import ValidationError

from pipeline.models.cosine import cosines
from pipeline.stage import Output, UserError, Workspace
from pipeline.stages.dedup import Dedup, DedupConfig, Grid, find_keyframes, last_kept, threshold_for

MODEL = "builtin:visual@1"
A, B, C = 0.0, 60.0, 120.0
"""Looks, as angles of a 2-D embedding in degrees: the cosine of two is below 0.9 when they are 26 or more apart."""


def unit(angles: list[float]) -> npt.NDArray[np.float32]:
    radians = np.radians(angles)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def run(looks: list[float], shots: list[tuple[int, int]], fps: int = 10, every: int = 5, **config: Any) -> Output:
    """Dedup a video with `fps` frames a second, a grid frame `every` so many frames with the given looks, and shots
    from frame to frame (exclusive)."""
    count = shots[-1][1]
    frames = np.arange(0, count, every, dtype=np.int32)
    assert len(frames) == len(looks)
    pts = np.arange(count, dtype=np.int64) * (1000 // fps)
    row = {
        "shots": [
            {"index": i, "start_pts": a * 100, "end_pts": b * 100, "start_frame": a, "end_frame": b}
            for i, (a, b) in enumerate(shots)
        ],
        "frame_pts": pts,
        "end_pts": count * (1000 // fps),
        "grid_frames": frames,
        "grid_embeddings": unit(looks).reshape(-1),
        "embedding_dim": 2,
        "frame_model": MODEL,
        "time_base_num": 1,
        "time_base_den": 1000,
    }
    stage = Dedup(DedupConfig(**{"thresholds": {MODEL: 0.9}, **config}))
    output = stage.apply(row, cast(Workspace, None))
    assert stage.shots_in(row) == stage.shots_out(output) + len(output.shot_rejects)
    return output


def keyframes(output: Output) -> list[int]:
    return [k["frame"] for k in output.rows[0]["keyframes"]]


def outcomes(output: Output) -> list[str]:
    return [o["outcome"] for o in output.rows[0]["dedup_outcomes"]]


# --- shots -----------------------------------------------------------------------------------------------------


def test_a_shot_that_looks_like_the_one_before_is_redundant() -> None:
    # grid every 0.5 s, candidates every 2 s: frames 0, 20, 40, 60, 80
    looks = [A] * 4 + [A + 10] * 4 + [B] * 12
    output = run(looks, [(0, 20), (20, 40), (40, 100)])
    assert outcomes(output) == ["kept", "redundant", "kept"]
    assert [s["index"] for s in output.rows[0]["distinct_shots"]] == [0, 2]
    (reject,) = output.shot_rejects
    assert (reject.shot, reject.reason) == (1, "redundant")
    assert reject.detail == (
        "looks like the keyframe at frame 0: candidate frames 1, their lowest cosine 0.9848, threshold 0.9"
    )


def test_a_shot_between_two_candidates_has_no_sample() -> None:
    looks = [A] * 5 + [B] * 3 + [C] * 12
    output = run(looks, [(0, 21), (21, 39), (39, 100)])
    assert outcomes(output) == ["kept", "no_sample", "kept"]
    assert output.shot_rejects[0].detail == "no candidate frame among frames 21 to 38"
    # on the dense grid it has
    assert outcomes(run(looks, [(0, 21), (21, 39), (39, 100)], preset="dense")) == ["kept", "kept", "kept"]


def test_a_keyframe_is_judged_over_the_video_not_the_shot() -> None:
    # The second shot drifts away from the first shot's look and becomes distinct only in its middle.
    looks = [A] * 8 + [10.0] * 4 + [30.0] * 8
    assert outcomes(run(looks, [(0, 40), (40, 100)])) == ["kept", "kept"]
    assert keyframes(run(looks, [(0, 40), (40, 100)]))[:2] == [0, 60]


def test_slow_drift_is_compared_with_the_last_kept_not_the_last_seen() -> None:
    looks = [float(4 * (i // 4)) for i in range(80)]  # 4 degrees every 2 s: neighbours always look alike
    found = keyframes(run(looks, [(0, 400)]))
    assert found[:3] == [0, 140, 280]  # 28 degrees apart


# --- the tail rule ---------------------------------------------------------------------------------------------


def test_tail_is_kept_when_only_the_first_frame_was() -> None:
    output = run([A] * 20, [(0, 100)])
    assert keyframes(output) == [0, 95]
    first, last = output.rows[0]["keyframes"]
    assert first == {"frame": 0, "pts": 0, "similarity": None}
    assert last == {"frame": 95, "pts": 9500, "similarity": pytest.approx(1.0)}


def test_tail_is_kept_when_the_last_keyframe_is_an_interval_from_the_end() -> None:
    # candidates 0, 20, ... 80; the last keyframe is at 40, 6 s from the end
    assert keyframes(run([A] * 8 + [B] * 12, [(0, 100)])) == [0, 40, 95]
    # the last keyframe is the last candidate, at 8 s of 9.9 s: less than 2 s from the end
    assert keyframes(run([A] * 16 + [B] * 4, [(0, 99)])) == [0, 80]
    # ... and exactly 2 s
    assert keyframes(run([A] * 16 + [B] * 4, [(0, 100)])) == [0, 80, 95]


def test_a_video_of_one_grid_frame_has_one_keyframe() -> None:
    assert keyframes(run([A], [(0, 3)])) == [0]


def test_dense_has_no_tail() -> None:
    assert keyframes(run([A] * 20, [(0, 100)], preset="dense")) == [0]
    assert keyframes(run([A] * 7 + [B] * 13, [(0, 100)], preset="dense")) == [0, 35]


# --- candidates ------------------------------------------------------------------------------------------------


def on_grid(pts: list[int], interval_ticks: int) -> list[int]:
    """For each multiple of the interval the first frame at or after it."""
    return sorted({next(i for i, p in enumerate(pts) if p >= t) for t in range(0, pts[-1] + 1, interval_ticks)})


@pytest.mark.parametrize("seed", range(20))
def test_a_coarser_interval_equals_a_coarser_grid(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = rng.choice([7, 33, 34, 40, 900], size=400, p=[0.1, 0.3, 0.3, 0.25, 0.05])
    pts = [0, *np.cumsum(steps).tolist()]
    frames = np.array(sorted({*on_grid(pts, 250), len(pts) - 1}))  # a scan adds the last frame
    vectors = unit([0.0] * len(frames))
    grid = Grid(frames, np.array(pts, np.int64)[frames], pts[-1] + 1, Fraction(1, 1000), vectors)
    assert grid.frames[grid.candidates(None)].tolist() == frames.tolist()
    for interval_s in (0.25, 0.5, 1.0, 2.0):
        assert grid.frames[grid.candidates(interval_s)].tolist() == on_grid(pts, int(interval_s * 1000))


def test_an_interval_in_decimals_is_exact() -> None:
    # ticks of 0.1 s: the third candidate at 0.3 s is tick 3, though 3 * 0.1 in floats is above 0.3
    grid = Grid(np.arange(50), np.arange(50), 50, Fraction(1, 10), unit([0.0] * 50))
    assert grid.candidates(0.1).tolist() == list(range(50))
    assert grid.candidates(0.7).tolist() == list(range(0, 50, 7))


def test_the_interval_of_a_preset_can_be_changed() -> None:
    looks = [A, B] * 10
    assert keyframes(run(looks, [(0, 100)], preset="dense")) == list(range(0, 100, 5))
    assert keyframes(run(looks, [(0, 100)], preset="dense", candidate_interval_s=1.0)) == [0]
    assert len(keyframes(run(looks, [(0, 100)], candidate_interval_s=0.5))) == 20


# --- thresholds ------------------------------------------------------------------------------------------------


def test_thresholds_belong_to_models() -> None:
    known = DedupConfig().thresholds
    assert threshold_for("open_clip:ViT-L-14-336@openai#cls", known) == 0.93
    for other in ("open_clip:ViT-L-14-336@laion2b", "open_clip:ViT-B-32@openai"):
        with pytest.raises(UserError) as caught:
            threshold_for(other, known)
        key = other.partition("@")[0]
        assert other in str(caught.value) and f"dedup: {{thresholds: {{'{key}': 0.9}}}}" in str(caught.value)


@pytest.mark.parametrize("other", ["open_clip:ViT-L-14-336@openai", "open_clip:ViT-L-14-336@laion2b#cls"])
def test_a_threshold_is_one_outputs_and_no_others(other: str) -> None:
    with pytest.raises(UserError, match="no keep threshold"):
        threshold_for(other, DedupConfig().thresholds)


def test_a_threshold_for_every_revision_is_still_one_variants() -> None:
    thresholds = DedupConfig(thresholds={"m:a": 0.5, "m:a#b": 0.6}).thresholds
    assert [threshold_for(m, thresholds) for m in ("m:a@1", "m:a@1#b")] == [0.5, 0.6]
    with pytest.raises(UserError, match=r"thresholds: \{'m:a#c': 0.9\}"):
        threshold_for("m:a@1#c", thresholds)


def test_own_thresholds_add_to_the_known_ones_and_the_full_key_wins() -> None:
    thresholds = DedupConfig(thresholds={"m:a": 0.5, "m:a@2": 0.6, "builtin:visual": 0.7}).thresholds
    assert [threshold_for(m, thresholds) for m in ("m:a@1", "m:a@2", MODEL)] == [0.5, 0.6, 0.7]
    assert threshold_for("open_clip:ViT-L-14-336@openai#cls", thresholds) == 0.93


def test_the_threshold_decides() -> None:
    looks, shots = [A] * 8 + [20.0] * 12, [(0, 40), (40, 100)]
    assert keyframes(run(looks, shots, preset="dense")) == [0]
    assert keyframes(run(looks, shots, preset="dense", thresholds={"builtin:visual": 0.95})) == [0, 40]


@pytest.mark.parametrize(
    "wrong", [{"thresholds": {"m:a": 2.0}}, {"candidate_interval_s": 0}, {"preset": "x"}, {"y": 1}]
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        DedupConfig(**wrong)


# --- the walk --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_blocks_give_what_a_plain_loop_gives(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = rng.normal(0, rng.choice([0.02, 0.1, 1.0]), (int(rng.integers(1, 900)), 16))
    walk = np.cumsum(steps, axis=0) + 1.0
    vectors = (walk / np.linalg.norm(walk, axis=1, keepdims=True)).astype(np.float32)
    kept = [0]
    for i in range(1, len(vectors)):
        if cosines(vectors[i : i + 1], vectors[kept[-1] : kept[-1] + 1])[0, 0] < 0.9:
            kept.append(i)
    assert last_kept(vectors, 0.9)[0] == kept


def test_ten_hours_on_a_dense_grid() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(72_000, 64)).astype(np.float32)  # every frame is a keyframe: the slowest case
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pts = np.arange(len(vectors), dtype=np.int64) * 500
    grid = Grid(np.arange(len(pts)) * 15, pts, int(pts[-1]) + 500, Fraction(1, 1000), vectors)
    found = find_keyframes(grid, 0.9, DedupConfig(preset="dense"))
    assert len(found.kept) == 72_000


def test_a_cosine_depends_on_nothing_else_in_the_batch() -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(257, 511)).astype(np.float32)
    to = rng.normal(size=(29, 511)).astype(np.float32)
    whole = cosines(rows, to)
    for n in (1, 2, 3, 17, 64):
        pieces = [cosines(rows[i : i + n], to) for i in range(0, len(rows), n)]
        assert np.array_equal(np.concatenate(pieces), whole)
    assert np.array_equal(cosines(rows[::-1], to)[::-1], whole)
    assert np.array_equal(cosines(rows, to[5:6]), whole[:, 5:6])
    assert np.allclose(whole, rows.astype(np.float64) @ to.T.astype(np.float64), rtol=1e-6, atol=1e-6)
