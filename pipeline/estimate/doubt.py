"""How far off a figure may be, and which rates decide it: each rate is moved to its ends while the others stay.

Rates err each for itself, so their shares of the doubt are added as squares. That is less than if all erred to one
side at once, which they hardly do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipeline.estimate.figures import Figure
from pipeline.estimate.rates import Rate, Rates

_NUDGE = 1.01
"""A rate without ends is moved by 1%, to see which figures are made with it."""
_NAMED = 0.02
"""A rate that moves a figure by less than this share is not named beside it."""


@dataclass
class Doubted:
    """A figure with its range."""

    figure: Figure
    moved_by: dict[str, float] = field(default_factory=dict)
    """Rates that it is made with: how far their ends move it, as a logarithm; 0 for a rate without ends."""
    _up: float = 0.0
    _down: float = 0.0

    @property
    def low(self) -> float | None:
        return None if self.figure.value is None else self.figure.value * math.exp(-math.sqrt(self._down))

    @property
    def high(self) -> float | None:
        return None if self.figure.value is None else self.figure.value * math.exp(math.sqrt(self._up))

    @property
    def rests_on(self) -> list[str]:
        """The rates that decide it, the most important first."""
        named = [name for name, moved in self.moved_by.items() if moved >= _NAMED]
        return sorted(named, key=lambda name: -self.moved_by[name])

    def move(self, rate: Rate, others: Sequence[float | None]) -> None:
        """Take notice of what the figure is with the rate at its ends, or nudged where it has none."""
        base = self.figure.value
        ways = [_way(base, other) for other in others]
        if any(ways):
            certain = rate.low == rate.high
            self.moved_by[rate.name] = 0.0 if certain else max(abs(way) for way in ways)
            self._up += 0.0 if certain else max(0.0, *ways) ** 2
            self._down += 0.0 if certain else min(0.0, *ways) ** 2


def _way(base: float | None, other: float | None) -> float:
    if not base or other is None:
        return 0.0
    return math.log(other / base) if other else -math.inf


def doubted(reckon: Callable[[Rates], list[Figure]], rates: Rates) -> list[Doubted]:
    """The figures of these rates with their ranges."""
    found = [Doubted(figure) for figure in reckon(rates)]
    for rate in rates.named.values():
        ends = (rate.low, rate.high) if rate.low < rate.high else (rate.value * _NUDGE,)
        moved = [reckon(rates.moved(rate.name, end)) for end in ends]
        for figure, *others in zip(found, *moved, strict=True):
            figure.move(rate, [other.value for other in others])
    return found
