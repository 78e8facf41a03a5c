"""Rates: how much of one thing comes of another. Each says where it is from.

`manifests/rates.yaml` holds what is assumed until something better is known; a former run's own (see `former.py`)
take the place of those of the same name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from pipeline.resources import resource

RATES_FILE = "rates.yaml"


@dataclass(frozen=True)
class Rate:
    """A rate by name."""

    name: str
    value: float
    low: float
    high: float
    unit: str
    source: str
    """Where the number is from, for people."""
    measured: bool = False
    """Measured on a former run, and not assumed."""


@dataclass(frozen=True)
class Rates:
    """The rates that an estimate may use."""

    named: Mapping[str, Rate]
    clip_lengths: tuple[float, ...] = ()
    """Lengths of a former run's clips, seconds: equally many clips lie around each. Empty when there is none."""
    not_taken: tuple[str, ...] = ()
    """What a former run has no rate for, or none that holds here, and why; for people."""

    def __call__(self, name: str) -> float:
        """The rate of this name."""
        return self.named[name].value

    def find(self, name: str) -> float | None:
        """The rate of this name, if there is one."""
        return self.named[name].value if name in self.named else None

    def is_measured(self, name: str) -> bool:
        return name in self.named and self.named[name].measured

    def moved(self, name: str, value: float) -> Rates:
        """The same with another value of one rate."""
        return replace(self, named={**self.named, name: replace(self.named[name], value=value)})

    def having(self, rates: Iterable[Rate]) -> Rates:
        """The same with these, in place of those of the same name."""
        return replace(self, named={**self.named, **{rate.name: rate for rate in rates}})


def assumed_rates() -> Rates:
    """The rates of manifests/rates.yaml; what a model computes is named `work:<role>:<model's name>`."""
    data = yaml.safe_load(resource("manifests", RATES_FILE).read_text(encoding="utf-8"))
    rates = [_rate(name, values) for name, values in data["rates"].items()]
    for role, models in data["work"].items():
        rates += [_rate(work_name(role, model), values) for model, values in models.items()]
    return Rates({rate.name: rate for rate in rates})


def work_name(role: str, model: str) -> str:
    """Name of the rate that says how much a model computes."""
    return f"work:{role}:{model}"


def _rate(name: str, values: Mapping[str, Any]) -> Rate:
    value = float(values["value"])
    low, high = float(values.get("low", value)), float(values.get("high", value))
    assert 0 <= low <= value <= high, f"{RATES_FILE}: {name}: expected 0 <= low <= value <= high"
    return Rate(name, value, low, high, " ".join(values["unit"].split()), " ".join(values["source"].split()))
