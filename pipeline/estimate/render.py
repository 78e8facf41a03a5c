"""An estimate as a table for people, or as JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pipeline.estimate.doubt import Doubted
from pipeline.estimate.estimate import Estimate
from pipeline.estimate.rates import Rate
from pipeline.stage import UserError

DIGITS = 2
"""Significant digits of what is not certain."""
MOST_RATES = 4
"""Rates named beside a figure; JSON has all of them."""
_STEPS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
FORMS = ("table", "json")


def check_form(form: str) -> None:
    """Raises UserError for a form that an estimate has not."""
    if form not in FORMS:
        raise UserError(f"--format {form}: an estimate is printed as {' or '.join(FORMS)}")


def as_table(estimate: Estimate) -> RenderableType:
    """Figures, what was found of the inputs, the rates and where they are from, and notes."""
    notes = [Text(f"- {note}") for note in (*_inputs(estimate), *estimate.notes)]
    return Group(_figures(estimate), *notes, _rates(estimate))


def as_json(estimate: Estimate) -> str:
    """One object; amounts are not rounded."""
    headers = estimate.headers
    return json.dumps(
        {
            "profile": estimate.profile,
            "inputs": {
                "rows": headers.rows,
                "headers_read": headers.probed,
                "readable": len(headers.videos),
                "broken": dict(sorted(headers.broken.items())),
                "ignored": dict(sorted(headers.ignored.items())),
                "without_length": sum(video.duration_s is None for video in headers.videos),
            },
            "figures": [_figure(one) for one in estimate.figures],
            "rates": [vars(rate) for rate in estimate.rates],
            "notes": list(estimate.notes),
        },
        indent=1,
    )


def _figure(one: Doubted) -> dict[str, Any]:
    return {**vars(one.figure), "low": one.low, "high": one.high, "rates": sorted(one.moved_by)}


def _inputs(estimate: Estimate) -> Iterator[str]:
    headers = estimate.headers
    rows = f"{headers.rows} source rows"
    if headers.found > headers.rows:
        rows += f" (--limit; {headers.found} were found)"
    yield f"{rows}, {headers.probed} headers read, {len(headers.videos)} of them readable video"
    if headers.broken:
        kinds = ", ".join(f"{count} {reason}" for reason, count in sorted(headers.broken.items()))
        yield f"not readable, and rejected by ingest: {kinds}"
    if headers.ignored:
        yield "ignored, not known as video: " + ", ".join(f"{n} {kind}" for kind, n in sorted(headers.ignored.items()))


def _figures(estimate: Estimate) -> Table:
    table = Table(title=f"Estimate, profile {escape(estimate.profile)}", title_justify="left")
    for name in ("", "about", "low", "high", "rests on"):
        table.add_column(name, justify="right" if name in ("about", "low", "high") else "left")
    section = estimate.figures[0].figure.section
    for one in estimate.figures:
        if one.figure.section != section:
            table.add_section()
        section = one.figure.section
        table.add_row(*_row(one))
    return table


def _row(one: Doubted) -> tuple[str, ...]:
    name, unit, value, low, high = one.figure.name, one.figure.unit, one.figure.value, one.low, one.high
    if value is None or low is None or high is None:
        return (name, "not known", "", "", "")
    if low == high:
        return (name, written(value, unit, 3), "", "", "")
    ends = (written(number, unit, DIGITS) for number in (value, low, high))
    return (name, *ends, escape(" ".join(one.rests_on[:MOST_RATES])))


def written(number: float, unit: str, digits: int) -> str:
    """A number of a unit to so many significant digits. Hours are told in minutes or seconds where they are few."""
    if unit.endswith("hours"):
        size, name = next(((s, n) for s, n in _HOURS if number >= s), _HOURS[-1])
        return f"{rounded(number / size, digits)} {name}"
    if unit == "bytes":
        text = rounded(number, digits, 1e3)
        return f"{text}B" if text[-1].isalpha() else f"{text} B"
    return rounded(number, digits) + (" s" if unit == "seconds" else "")


_HOURS = ((1.0, "h"), (1 / 60, "min"), (1 / 3600, "s"))


def rounded(number: float, digits: int, scaled_from: float = 1e4) -> str:
    """A number to so many significant digits; from `scaled_from` on in thousands, millions and so on."""
    if number:
        number = round(number, digits - 1 - math.floor(math.log10(number)))
    for step, letter in _STEPS:
        if number >= max(step, scaled_from):
            return f"{number / step:.12g} {letter}"
    return f"{number:.12g}"


def _rates(estimate: Estimate) -> Table:
    table = Table(title="Rates", title_justify="left")
    for name in ("rate", "value", "low", "high", "unit", "where from"):
        table.add_column(name, justify="right" if name in ("value", "low", "high") else "left", overflow="fold")
    for rate in sorted(estimate.rates, key=lambda rate: not rate.measured):
        table.add_row(*_rate(rate))
    return table


def _rate(rate: Rate) -> tuple[str, ...]:
    ends = ("", "") if rate.low == rate.high else (rounded(rate.low, DIGITS), rounded(rate.high, DIGITS))
    return (escape(rate.name), rounded(rate.value, 3), *ends, escape(rate.unit), escape(rate.source))
