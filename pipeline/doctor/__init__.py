"""Checks of what a run will need: of the machine, and of a profile's models on it."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.doctor.check import Check
from pipeline.stage import UserError


def checks(profile: str | None = None, sets: Sequence[str] = (), *, offline: bool = False) -> list[Check]:
    """All checks of the machine, and those of a profile with `--set` texts on top. Raises UserError for these two."""
    import pipeline.doctor.machine as machine

    if profile is None:
        if sets:
            raise UserError("--set changes a profile's values: add --profile NAME")
        return machine.checks()
    import pipeline.doctor.models as models
    from pipeline.config import load_profile, parse, parse_overrides
    from pipeline.readiness import go_offline

    config = parse(load_profile(profile), parse_overrides(sets))  # what is wrong with it is told at once
    if offline:
        go_offline()
    return [*machine.checks(), *models.checks(config)]
