"""A check: what was found and, when it fails, what to do."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One check's outcome."""

    name: str
    ok: bool
    found: str


class Lacking(Exception):
    """What the machine lacks, and what to do."""


def check(name: str, look: Callable[[], str]) -> Check:
    """Look, and take whatever goes wrong for the finding."""
    try:
        return Check(name, True, look())
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, "not installed; run: pip install hicom-248k-builder")
    except Lacking as err:
        return Check(name, False, str(err))
    except Exception as err:  # whatever is wrong with the machine is the finding
        return Check(name, False, f"{type(err).__name__}: {err}")
