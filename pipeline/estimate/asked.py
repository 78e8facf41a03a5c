"""What a config asks of each video and clip, as the figures that an estimate needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.config import RunConfig
from pipeline.media.budget import FrameCount, VideoBudget
from pipeline.models import registry
from pipeline.models.prompts import load_prompt
from pipeline.models.registry import Role
from pipeline.models.spec import ModelSpec
from pipeline.stages.generate import Generate
from pipeline.stages.select import load_categories

Precision = Literal["fp32", "16bit"]
BUILTIN = "builtin"


@dataclass(frozen=True)
class ModelUse:
    """A model as far as its cost goes."""

    role: Role
    spec: ModelSpec
    builtin: bool
    """A small program of ours: what it computes is part of the stage's core seconds."""
    endpoint: bool
    """It runs on a server that is not part of the run."""
    on_gpu: bool
    precision: Precision
    frames: int
    """Frames of an item that it sees at once. A describer with a budget sees as many as `Asked.shown` says."""
    budget: VideoBudget | None


@dataclass(frozen=True)
class Asked:
    """What a config asks."""

    categories: int
    quota: int
    random_rest: int
    exclusive: bool
    min_s: float
    max_s: float
    grid_interval_s: float
    embed_frames: int
    has_clip_files: bool
    copies_clips: bool
    """Whether the export holds the clips' bytes once more."""
    video_text: ModelUse
    frame: ModelUse
    describer: ModelUse
    shown: Callable[[float], tuple[FrameCount, dict[str, Any]]]
    """Of a clip's length in seconds: how many frames the describer is shown, and how large (see `Generate.shown`)."""
    reads_prompts: bool
    prompt_words: dict[str, int]
    """Words of each turn's prompt."""


def asked(config: RunConfig) -> Asked:
    """The figures of a config. Raises UserError for a model or a table of categories that is not known."""
    describer = registry.card("describer", config.models.describer)
    video_text = _use("video_text_embedder", config.models.video_text, config.embed.frames)
    return Asked(
        categories=len(load_categories(config.select.categories)),
        quota=config.select.quota,
        random_rest=config.select.random_rest,
        exclusive=config.select.assignment == "exclusive",
        min_s=config.filter.min_s,
        max_s=config.filter.max_s,
        grid_interval_s=config.scan.grid_interval_s,
        embed_frames=video_text.frames,
        has_clip_files=config.cut.mode != "virtual",
        copies_clips=config.export.embed_video_bytes,
        video_text=video_text,
        frame=_use("frame_embedder", config.models.frame),
        describer=_use("describer", config.models.describer, config.generate.frames),
        shown=Generate(config.generate).shown,
        reads_prompts=describer.reads_prompts,
        prompt_words={name: len(load_prompt(name).text.split()) for name in ("caption", "qa")},
    )


def _use(role: Role, spec: ModelSpec, frames: int | None = None) -> ModelUse:
    """`frames`: what the config sets in place of the model's own number."""
    card, options = registry.card(role, spec), registry.options(role, spec)
    endpoint = role == "describer" and hasattr(options, "base_url")
    return ModelUse(
        role=role,
        spec=spec,
        builtin=spec.family == BUILTIN,
        endpoint=endpoint,
        on_gpu=card.gpus > 0,
        precision="fp32" if getattr(options, "dtype", "") == "float32" else "16bit",
        frames=frames or card.frames,
        budget=card.budget,
    )
