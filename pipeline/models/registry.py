"""Which code knows a model: one literal table, imported only when a model is asked for.

Adding a family: write `pipeline/models/<family>.py` with the dataclass `Options`, with `card(spec)` and `lacks(spec)`,
which must cost nothing, and with `load(spec)`, which holds the heavy imports; add a line here.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from pipeline.models.protocols import Card, Describer, FrameEmbedder, VideoTextEmbedder
from pipeline.models.spec import ModelSpec
from pipeline.stage import UserError, digest, plain

Role = Literal["video_text_embedder", "frame_embedder", "describer"]


@dataclass(frozen=True)
class Family:
    """Where a family's functions are, as "module:name"; each takes the ModelSpec and may raise UserError."""

    card: str
    load: str
    options: str | None = None
    """The dataclass of `ModelSpec.options`; fields with metadata={"place": True} do not decide results."""
    lacks: str | None = None
    """What this machine lacks to load the model, as lines that say what to type; costs neither network nor weights."""


def _real(module: str) -> Family:
    """A family that needs weights and packages of its own: all four are there, by these names."""
    where = f"pipeline.models.{module}"
    return Family(f"{where}:card", f"{where}:load", f"{where}:Options", f"{where}:lacks")


MODELS: dict[Role, dict[str, Family]] = {
    "video_text_embedder": {
        "builtin": Family("pipeline.models.builtin.attributes:card", "pipeline.models.builtin.attributes:load"),
        "internvideo2": _real("internvideo2.embedder"),
        "open_clip": _real("open_clip.video"),
    },
    "frame_embedder": {
        "builtin": Family("pipeline.models.builtin.visual:card", "pipeline.models.builtin.visual:load"),
        "open_clip": _real("open_clip.frame"),
    },
    "describer": {
        "builtin": Family("pipeline.models.builtin.describer:card", "pipeline.models.builtin.describer:load"),
        "vllm": _real("vllm.describer"),
        "openai": _real("openai.describer"),
    },
}


def card(role: Role, spec: ModelSpec) -> Card:
    """What is known of the model without loading it; cheap, for the side that prepares frames."""
    found: Card = _found(_family(role, spec).card)(spec)
    return found


def options(role: Role, spec: ModelSpec) -> Any:
    """The family's own settings, checked. Raises UserError that names the key."""
    family = _family(role, spec)
    if family.options is None:
        if spec.options:
            raise UserError(
                f"model {spec.key}: the family {spec.family!r} takes no options; got {sorted(spec.options)}"
            )
        return None
    kind = _found(family.options)
    try:
        # As JSON, where strict means: no number from a text or a yes, but lists and mappings as YAML has them.
        return TypeAdapter(kind).validate_json(json.dumps(spec.options, default=str), strict=True)
    except ValidationError as err:
        known = [field.name for field in dataclasses.fields(kind)]
        raise UserError("\n".join(_explain(role, spec, error, known) for error in err.errors())) from err


def identity(role: Role, spec: ModelSpec) -> dict[str, str]:
    """What decides a model's results, by name, for the fingerprint of a stage that uses it."""
    own = plain(options(role, spec), places=False)
    return {"model": spec.key} if own is None else {"model": spec.key, "model_options": digest(own)}


def lacks(role: Role, spec: ModelSpec) -> list[str]:
    """What this machine lacks to load the model: one line each, with what to type. Empty when it can be loaded."""
    where = _family(role, spec).lacks
    found: list[str] = [] if where is None else _found(where)(spec)
    return found


def load_video_text_embedder(spec: ModelSpec) -> VideoTextEmbedder:
    """Load a video-text embedder; may take minutes for a real model, nothing for a built-in one."""
    model: VideoTextEmbedder = _found(_family("video_text_embedder", spec).load)(spec)
    return model


def load_frame_embedder(spec: ModelSpec) -> FrameEmbedder:
    """Load a frame embedder; may take minutes for a real model, nothing for a built-in one."""
    model: FrameEmbedder = _found(_family("frame_embedder", spec).load)(spec)
    return model


def load_describer(spec: ModelSpec) -> Describer:
    """Load a describer; may take minutes for a real model, nothing for a built-in one."""
    model: Describer = _found(_family("describer", spec).load)(spec)
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


def _found(where: str) -> Any:
    """What "module:name" names."""
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)


def _explain(role: Role, spec: ModelSpec, error: Any, known: list[str]) -> str:
    """One line for one fault of the options."""
    path = ".".join([f"{role}'s options", *map(str, error["loc"])])
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        return f"model {spec.key}: unknown key {path}; {hint}"
    return f"model {spec.key}: {path}: {error['msg'].removeprefix('Value error, ')}; got {error.get('input')!r}"
