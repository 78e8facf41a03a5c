"""Figures for people: few digits, familiar units."""

from __future__ import annotations

import pytest

from pipeline.estimate.render import check_form, written
from pipeline.stage import UserError


@pytest.mark.parametrize(
    ("number", "unit", "digits", "text"),
    [
        (53_500, "videos", 3, "53.5 k"),
        (9_870, "videos", 2, "9900"),
        (9_960, "videos", 2, "10 k"),
        (38, "videos", 3, "38"),
        (0, "tokens", 3, "0"),
        (7.034e9, "tokens", 2, "7 G"),
        (1234.5, "GPU hours", 2, "1200 h"),
        (12_345, "core hours", 2, "12 k h"),
        (0.5, "hours", 2, "30 min"),
        (0.001, "hours", 2, "3.6 s"),
        (1e-7, "hours", 2, "0.00036 s"),
        (0, "GPU hours", 3, "0 s"),
        (25.67, "seconds", 2, "26 s"),
        (999, "bytes", 2, "1 kB"),
        (540, "bytes", 2, "540 B"),
        (3.46e12, "bytes", 2, "3.5 TB"),
    ],
)
def test_numbers_are_written_to_the_digits_that_mean_something(
    number: float, unit: str, digits: int, text: str
) -> None:
    assert written(number, unit, digits) == text


def test_only_known_forms() -> None:
    check_form("json")
    with pytest.raises(UserError, match="--format csv: an estimate is printed as table or json"):
        check_form("csv")
