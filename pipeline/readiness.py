"""What stages will need and this machine lacks, told before the first item is worked on and not hours later."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator

from pipeline.config import MODEL_OF_STAGE, ROLES, RunConfig
from pipeline.gpus import NoAnswer, visible_gpus
from pipeline.models import registry
from pipeline.models.protocols import Card
from pipeline.models.weights import ToDownload
from pipeline.stage import UserError
from pipeline.stages.dedup import threshold_for
from pipeline.stages.select import load_categories

OFFLINE = "HF_HUB_OFFLINE"
"""The environment variable by which the hub's client, and every library above it, asks no network."""
IN_DRIVER = ("select",)
"""Stages that load their model in this very process, wherever the others run, and reserve no GPU for it."""


def go_offline() -> None:
    """No model is downloaded from now on, by this process or one that it starts."""
    os.environ[OFFLINE] = "1"


def is_offline() -> bool:
    return os.environ.get(OFFLINE, "").upper() in ("1", "ON", "YES", "TRUE")  # as the hub's client reads it


def require_ready(config: RunConfig, stages: Collection[str], *, elsewhere: bool, reserved: bool) -> None:
    """Raises UserError with a line for each thing that these stages, which have work left, cannot do without.

    `elsewhere`: models run on a cluster's nodes, which may have what this machine has not. `reserved`: what runs them
    waits until it has the GPUs that a model asks for.
    """
    here = [name for name in stages if not elsewhere or name in IN_DRIVER]
    lines = [*lacking_models(config, here), *unfit_settings(config, stages)]
    if reserved:
        lines += lacking_gpus(config, [name for name in here if name not in IN_DRIVER])
    if lines:
        raise UserError("this run cannot be finished as it is:\n" + "\n".join(f"  {line}" for line in lines))


def lacking_models(config: RunConfig, stages: Collection[str]) -> list[str]:
    """What this machine lacks to load the models of these stages. What a run downloads by itself is not among it."""
    lines = [line for name in _fields(stages) for line in registry.lacks(ROLES[name], getattr(config.models, name))]
    return list(dict.fromkeys(line for line in lines if is_offline() or not isinstance(line, ToDownload)))


def lacking_gpus(config: RunConfig, stages: Collection[str]) -> list[str]:
    """The models of these stages that reserve more GPUs than this machine has: each would be waited for in vain."""
    cards = {name: registry.card(ROLES[name], getattr(config.models, name)) for name in _fields(stages)}
    if not any(card.gpus for card in cards.values()):
        return []
    try:
        there = len(visible_gpus())
    except NoAnswer as err:
        return [f"this machine's GPUs cannot be counted: {err}"]
    return [_too_few(config, name, card, there) for name, card in cards.items() if card.gpus * card.replicas > there]


def _too_few(config: RunConfig, name: str, card: Card, there: int) -> str:
    times = f" for each of {card.replicas} processes" if card.replicas > 1 else ""
    key = "tensor_parallel_size" if getattr(config.models, name).family == "vllm" else "gpus"
    cpu = "; 0: on the CPU" if key == "gpus" else ""
    return (
        f"models.{name} reserves {card.gpus:g} GPUs{times}, and this machine has {there}: --set "
        f"models.{name}.options.{key}=... with less (or replicas{cpu}), or name a cluster with --address"
    )


def unfit_settings(config: RunConfig, stages: Collection[str]) -> list[str]:
    """Settings that are sound each by itself and do not go together, as the stages would say hours later."""
    return [str(err) for err in _complaints(config, stages)]


def _complaints(config: RunConfig, stages: Collection[str]) -> Iterator[UserError]:
    if "dedup" in stages:
        try:
            threshold_for(config.models.frame.key, config.dedup.thresholds)
        except UserError as err:
            yield err
    video_text = config.models.video_text
    if "select" in stages and video_text.family == "builtin":  # it costs nothing to load, and knows few words
        try:
            registry.load_video_text_embedder(video_text).embed_texts(load_categories(config.select.categories))
        except UserError as err:
            yield err


def _fields(stages: Collection[str]) -> list[str]:
    """Names of ModelsConfig's fields whose models these stages load."""
    return list(dict.fromkeys(MODEL_OF_STAGE[name] for name in stages if name in MODEL_OF_STAGE))
