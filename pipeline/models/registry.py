"""Which code knows a model: one literal table, imported only when a model is asked for.

Adding a family: write `pipeline/models/<family>.py` with `card(spec)`, which must cost nothing, and `load(spec)`,
which holds the heavy imports; add a line here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from pipeline.models.protocols import Card, Describer, FrameEmbedder, VideoTextEmbedder
from pipeline.models.spec import ModelSpec
from pipeline.stage import UserError

Role = Literal["video_text_embedder", "frame_embedder", "describer"]


@dataclass(frozen=True)
class Family:
    """Where a family's two functions are, as "module:function"; each takes the ModelSpec and may raise UserError."""

    card: str
    load: str


MODELS: dict[Role, dict[str, Family]] = {
    "video_text_embedder": {
        "builtin": Family("pipeline.models.builtin_attributes:card", "pipeline.models.builtin_attributes:load"),
    },
    "frame_embedder": {
        "builtin": Family("pipeline.models.builtin_visual:card", "pipeline.models.builtin_visual:load"),
    },
    "describer": {
        "builtin": Family("pipeline.models.builtin_describer:card", "pipeline.models.builtin_describer:load"),
    },
}


def card(role: Role, spec: ModelSpec) -> Card:
    """What is known of the model without loading it; cheap, for the side that prepares frames."""
    found: Card = _function(_family(role, spec).card)(spec)
    return found


def load_video_text_embedder(spec: ModelSpec) -> VideoTextEmbedder:
    """Load a video-text embedder; may take minutes for a real model, nothing for a built-in one."""
    model: VideoTextEmbedder = _function(_family("video_text_embedder", spec).load)(spec)
    return model


def load_frame_embedder(spec: ModelSpec) -> FrameEmbedder:
    """Load a frame embedder; may take minutes for a real model, nothing for a built-in one."""
    model: FrameEmbedder = _function(_family("frame_embedder", spec).load)(spec)
    return model


def load_describer(spec: ModelSpec) -> Describer:
    """Load a describer; may take minutes for a real model, nothing for a built-in one."""
    model: Describer = _function(_family("describer", spec).load)(spec)
    return model


def require_builtin(spec: ModelSpec, name: str, revision: str) -> None:
    """Check that a spec of the built-in family asks for this very name and revision. Raises UserError.

    A built-in model's revision is raised with its results, so that a key always means the same vectors.
    """
    if (spec.name, spec.revision) != (name, revision):
        raise UserError(
            f"model {spec.key}: this role's built-in model is builtin:{name}@{revision}; "
            f'write {{family: builtin, name: {name}, revision: "{revision}"}}'
        )


def _family(role: Role, spec: ModelSpec) -> Family:
    families = MODELS[role]
    if spec.family not in families:
        raise UserError(f"model {spec.key}: unknown family {spec.family!r} for a {role}; known: {', '.join(families)}")
    return families[spec.family]


def _function(where: str) -> Callable[[ModelSpec], Any]:
    module, _, name = where.partition(":")
    function: Callable[[ModelSpec], Any] = getattr(import_module(module), name)
    return function
