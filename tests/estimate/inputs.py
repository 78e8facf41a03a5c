"""Headers, configs and rates for the tests of the estimate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pipeline.config import RunConfig, load_profile, parse, parse_overrides
from pipeline.estimate.asked import Asked, asked
from pipeline.estimate.headers import Header, Headers
from pipeline.estimate.rates import Rates, assumed_rates


def config(profile: str = "demo", *sets: str) -> RunConfig:
    """A shipped profile with settings on top."""
    return parse(load_profile(profile), parse_overrides(sets))


def want(profile: str = "demo", *sets: str) -> Asked:
    """What it asks."""
    return asked(config(profile, *sets))


def header(seconds: float | None = 100.0, *, fps: float | None = 30.0, width: int = 1000, height: int = 500) -> Header:
    """A readable video of 1 MB a second (of 100 MB where it states no length)."""
    return Header(seconds, fps, width, height, int((seconds or 100.0) * 1_000_000))


def headers(videos: Iterable[Header], *, rows: int | None = None, broken: int = 0) -> Headers:
    """All of the inputs, or a sample of so many rows."""
    found = tuple(videos)
    probed = len(found) + broken
    total = probed if rows is None else rows
    return Headers(total, total, probed, found, Counter({"missing": broken} if broken else {}), Counter())


def rates(**values: float) -> Rates:
    """The assumed rates, some with other values."""
    book = assumed_rates()
    for name, value in values.items():
        book = book.moved(name, value)
    return book
