"""Checks of what a profile's models need of this machine."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.config import MODEL_OF_STAGE, ROLES, RunConfig
from pipeline.doctor.check import Check, Lacking, check
from pipeline.doctor.memory import fit
from pipeline.gpus import NoAnswer, visible_gpus
from pipeline.models import registry
from pipeline.models.spec import ModelSpec
from pipeline.readiness import lacking_gpus, unfit_settings
from pipeline.stage import UserError

_STAGES = (*MODEL_OF_STAGE, "dedup")
"""Stages that models decide."""


def checks(config: RunConfig) -> list[Check]:
    """All checks of the models, in the order of a run's needs."""
    return [
        *(found for name in ROLES for found in _model(name, getattr(config.models, name))),
        *(Check("settings", False, line) for line in unfit_settings(config, _STAGES)),
        *_gpus(config),
        *_describer(config.models.describer),
    ]


def _model(name: str, spec: ModelSpec) -> Iterator[Check]:
    """Packages, weights and whatever else the model's family asks for: a line for each thing that is not here."""
    title = f"models.{name}"
    try:
        lines = registry.lacks(ROLES[name], spec)
        if not lines:
            registry.card(ROLES[name], spec)  # knows what of the spec does not fit
    except UserError as err:
        lines = [str(err)]
    yield from (Check(title, False, line) for line in lines)
    if not lines:
        yield Check(title, True, f"{spec.key} is here")


def _gpus(config: RunConfig) -> Iterator[Check]:
    try:
        lines = lacking_gpus(config, list(MODEL_OF_STAGE))
        there = visible_gpus()
    except (NoAnswer, UserError) as err:
        yield Check("gpus", False, str(err))
        return
    yield from (Check("gpus", False, line) for line in lines)
    sizes = [f"{gpu.name}, {gpu.total_bytes / 2**30:.0f} GiB" if gpu.total_bytes else gpu.name for gpu in there]
    kinds = [f"{sizes.count(size)} x {size}" for size in dict.fromkeys(sizes)]
    if not lines:
        yield Check("gpus", True, "; ".join(kinds) or "none, and no model reserves one")


def _describer(spec: ModelSpec) -> list[Check]:
    """Whether an engine's model fits the GPUs, or an endpoint answers."""
    if spec.family == "vllm":
        return [check("gpu memory", lambda: fit(spec))]
    if spec.family == "openai" and not registry.lacks("describer", spec):
        return [check("endpoint", lambda: _answers(spec))]
    return []


def _answers(spec: ModelSpec) -> str:
    try:
        registry.load_describer(spec)  # asks it something small, and keeps no connection
    except UserError as err:
        raise Lacking(str(err)) from err
    return f"{spec.options['base_url']} answers and serves {spec.name}"
