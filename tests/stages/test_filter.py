from __future__ import annotations

from fractions import Fraction
from typing import cast

import pytest
from pydantic import ValidationError

from pipeline.stage import Output, Rejected, ShotReject, Workspace
from pipeline.stages.filter import Filter, FilterConfig

NTSC = (1001, 30000)  # one tick is one frame of 29.97 frames a second
MS = (1, 1000)


def shot(index: int, start: int, end: int) -> dict[str, int]:
    return {"index": index, "start_pts": start, "end_pts": end, "start_frame": start, "end_frame": end}


def run(shots: list[dict[str, int]], time_base: tuple[int, int] = MS, **config: float) -> Output:
    row = {"distinct_shots": shots, "time_base_num": time_base[0], "time_base_den": time_base[1]}
    stage = Filter(FilterConfig(**config))
    output = stage.apply(row, cast(Workspace, None))
    assert stage.shots_in(row) == (stage.shots_out(output) or 0) + len(output.shot_rejects)
    return output


def kept(output: Output) -> list[int]:
    return [s["index"] for s in output.rows[0]["kept_shots"]]


@pytest.mark.parametrize(
    ("ticks", "reason"),
    [(4999, "too_short"), (5000, None), (5001, None), (119_999, None), (120_000, None), (120_001, "too_long")],
)
def test_both_ends_are_included(ticks: int, reason: str | None) -> None:
    output = run([shot(0, 0, 60_000), shot(1, 60_000, 60_000 + ticks)])
    assert kept(output) == ([0] if reason else [0, 1])
    assert [(r.shot, r.reason) for r in output.shot_rejects] == ([(1, reason)] if reason else [])


def test_a_length_that_no_float_can_hold_is_compared_exactly() -> None:
    # 0.1 + 0.2 style: 30 ticks of 1/100 s against 0.3 s, where Fraction(0.3) is below 3/10
    assert kept(run([shot(0, 0, 30)], (1, 100), min_s=0.3, max_s=0.3)) == [0]
    # 150 NTSC frames are 5.005 s, 149 are 4.97 s
    assert kept(run([shot(0, 0, 150), shot(1, 150, 299)], NTSC)) == [0]


def test_long_times_stay_exact() -> None:
    tick = Fraction(1, 1_000_000_000)
    start, five = 10**15, int(5 / tick)
    output = run([shot(0, start, start + five), shot(1, start + five, start + 2 * five - 1)], (1, 10**9))
    assert kept(output) == [0]
    assert output.shot_rejects == [ShotReject(1, "too_short", "5.000000 s, shortest kept 5.0 s")]


def test_outcomes_name_every_shot() -> None:
    output = run([shot(0, 0, 1000), shot(2, 1000, 9000), shot(5, 9000, 200_000)])
    assert output.rows[0]["filter_outcomes"] == [
        {"shot": 0, "outcome": "too_short"},
        {"shot": 2, "outcome": "kept"},
        {"shot": 5, "outcome": "too_long"},
    ]


def test_a_video_without_a_shot_left_is_rejected_with_its_shots() -> None:
    with pytest.raises(Rejected) as caught:
        run([shot(0, 0, 1000), shot(1, 1000, 2000), shot(2, 2000, 200_000)])
    error = caught.value
    assert (error.reason, error.detail) == ("no_clip_left", "of 3 distinct shots: 2 too_short, 1 too_long")
    assert [(r.shot, r.reason) for r in error.shot_rejects] == [(0, "too_short"), (1, "too_short"), (2, "too_long")]


def test_limits_that_nothing_can_meet_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"min_s 6\.0 is above max_s 5\.0"):
        FilterConfig(min_s=6.0, max_s=5.0)
    with pytest.raises(ValidationError, match="minimum"):
        FilterConfig(minimum=5.0)  # type: ignore[call-arg]
