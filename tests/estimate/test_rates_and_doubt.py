"""The assumed rates, and what their ends make of the figures."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pipeline.estimate.doubt import doubted
from pipeline.estimate.figures import Figure, reckon
from pipeline.estimate.rates import Rate, Rates, assumed_rates
from tests.estimate.inputs import header, headers, want


def test_every_assumed_rate_tells_its_unit_and_its_source() -> None:
    for rate in assumed_rates().named.values():
        assert rate.low <= rate.value <= rate.high and len(rate.unit) > 5 and len(rate.source) > 8, rate
        assert not rate.measured


def test_every_assumed_rate_is_behind_some_figure() -> None:
    """A rate that nothing uses is a number without a purpose."""
    paper = want("hicom248k")
    plans = [
        want("demo"),
        paper,
        replace(paper, frame=replace(paper.frame, on_gpu=False), quota=0, random_rest=2),
        want("hicom248k", "models.frame.options.dtype=bfloat16"),
    ]
    used: set[str] = set()
    for ask in plans:
        for seconds, fps in ((100.0, 30.0), (None, None)):
            found = headers([header(seconds, fps=fps)] * 4)
            used |= {
                name
                for one in doubted(lambda moved, found=found, ask=ask: reckon(found, ask, moved), assumed_rates())
                for name in one.moved_by
            }
    unused = {name for name in assumed_rates().named if not name.startswith("work:")} - used
    assert unused == set()
    assert "work:picture:ViT-L-14-336" in used


def book(**ends: tuple[float, float, float]) -> Rates:
    return Rates({name: Rate(name, value, low, high, "", "") for name, (value, low, high) in ends.items()})


def product(rates: Rates) -> list[Figure]:
    """One figure made with rates a and b, one with a alone, one with none, one that is not known."""
    a, b = rates("a"), rates("b")
    return [
        Figure("s", "both", "", a * b),
        Figure("s", "one", "", 10 / a),
        Figure("s", "none", "", 7.0),
        Figure("s", "unknown", "", None),
    ]


def test_a_range_adds_the_shares_of_its_rates_as_squares() -> None:
    both, one, none, unknown = doubted(product, book(a=(4, 2, 8), b=(10, 5, 20), c=(1, 0.1, 10)))
    assert both.high == pytest.approx(40 * math.exp(math.hypot(math.log(2), math.log(2))))
    assert both.low == pytest.approx(40 / math.exp(math.hypot(math.log(2), math.log(2))))
    assert (one.low, one.high) == pytest.approx((1.25, 5)), "it falls where the rate rises"
    assert (none.low, none.high) == (7, 7)
    assert (unknown.low, unknown.high) == (None, None)
    assert set(both.moved_by) == {"a", "b"} and set(one.moved_by) == {"a"} and not none.moved_by


def test_the_rates_that_decide_stand_first_and_small_ones_not_at_all() -> None:
    both, *_ = doubted(product, book(a=(4, 3.9, 4.1), b=(10, 5, 20)))
    assert both.rests_on == ["b", "a"]
    both, *_ = doubted(product, book(a=(4, 3.99, 4.01), b=(10, 10, 10)))
    assert both.rests_on == [] and set(both.moved_by) == {"a", "b"}, "what is certain is used and not in doubt"
    assert both.low < both.figure.value < both.high  # type: ignore[operator]


def test_an_end_at_nothing_makes_the_low_end_nothing() -> None:
    both, *_ = doubted(product, book(a=(4, 4, 8), b=(10, 0, 10)))
    assert both.low == 0 and both.high == pytest.approx(80)
