"""The config of a run: one dataclass per owner, loaded strictly from a profile and `--set` overrides."""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pipeline.engine.limits import EngineConfig
from pipeline.models import registry
from pipeline.models.spec import ModelSpec
from pipeline.plan import PLAN
from pipeline.resources import resource, resource_names
from pipeline.sources.listing import SourcesConfig
from pipeline.stage import Stage, UserError, plain
from pipeline.stages.clean import CleanConfig
from pipeline.stages.cut import CutConfig
from pipeline.stages.dedup import DedupConfig
from pipeline.stages.embed import EmbedConfig
from pipeline.stages.export import Export, ExportConfig
from pipeline.stages.filter import FilterConfig
from pipeline.stages.generate import GenerateConfig
from pipeline.stages.ingest import IngestConfig
from pipeline.stages.scan import ScanConfig
from pipeline.stages.select import SelectConfig
from pipeline.stages.split import SplitConfig

_STRICT = ConfigDict(extra="forbid")
PROFILE_SUFFIX = ".profile.yaml"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ModelsConfig:
    """The models of a run, each named once; the stages that use one are given it."""

    video_text: ModelSpec
    """Embeds videos and category sentences: embed, select."""
    frame: ModelSpec
    """Embeds frames: scan."""
    describer: ModelSpec
    """Writes caption and pairs: generate."""


ROLES: dict[str, registry.Role] = {
    "video_text": "video_text_embedder",
    "frame": "frame_embedder",
    "describer": "describer",
}
"""Role of each field of ModelsConfig."""
MODEL_OF_STAGE = {"embed": "video_text", "select": "video_text", "scan": "frame", "generate": "describer"}


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class RunConfig:
    """Everything a run is decided by."""

    models: ModelsConfig
    embed: EmbedConfig
    select: SelectConfig
    scan: ScanConfig
    generate: GenerateConfig
    sources: SourcesConfig = Field(default_factory=SourcesConfig)
    ingest: IngestConfig = Field(default_factory=IngestConfig)
    split: SplitConfig = Field(default_factory=SplitConfig)
    dedup: DedupConfig = Field(default_factory=DedupConfig)
    filter: FilterConfig = Field(default_factory=FilterConfig)
    cut: CutConfig = Field(default_factory=CutConfig)
    clean: CleanConfig = Field(default_factory=CleanConfig)
    export: ExportConfig = Field(default_factory=ExportConfig)
    engine: EngineConfig = Field(default_factory=EngineConfig)

    def stages(self) -> list[Stage]:
        """The plan's stages with their configs."""
        made: list[Stage] = []
        for stage in PLAN:
            own = getattr(self, stage.name)
            made.append(Export(own, self.recipe()) if stage is Export else stage(own))  # type: ignore[call-arg]
        return made

    def recipe(self) -> dict[str, Any]:
        """What the dataset card tells of the run: what results depend on, and no place on this machine."""
        values = {k: v for k, v in self.to_plain(places=False).items() if k not in ("engine", "sources")}
        for name, role in ROLES.items():
            if own := registry.options(role, getattr(self.models, name)):
                values["models"][name]["options"] = plain(own, places=False)
        return values

    def to_plain(self, *, places: bool = True) -> dict[str, Any]:
        """As YAML values, models only under `models`: what `parse` reads back to the same config."""
        values: dict[str, Any] = plain(self, places=places)
        for stage in MODEL_OF_STAGE:
            del values[stage]["model"]
        return values


def profile_names() -> list[str]:
    """Profiles that are shipped."""
    return [n.removesuffix(PROFILE_SUFFIX) for n in resource_names("manifests") if n.endswith(PROFILE_SUFFIX)]


def load_profile(name: str) -> dict[str, Any]:
    """A shipped profile by name, or a YAML file by path. Raises UserError."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else None
    if path is None:
        if name not in profile_names():
            raise UserError(
                f"no profile {name!r}; there are: {', '.join(profile_names())}; or give a path ending in .yaml"
            )
        path = resource("manifests", name + PROFILE_SUFFIX)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise UserError(f"profile {name}: cannot read {path}: {err.strerror}") from err
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise UserError(f"profile {name}: {path} is not YAML: {err}") from err
    if not isinstance(values, dict):
        raise UserError(f"profile {name}: {path} must hold a mapping, got {type(values).__name__}")
    return values


def parse_overrides(texts: Sequence[str]) -> dict[str, Any]:
    """`a.b=c` texts as {"a.b": value}, the value read as YAML, or as text when it is none. Raises UserError."""
    overrides: dict[str, Any] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals or not path or "." not in path:
            raise UserError(f"--set {text}: expected section.key=value, such as --set split.threshold=30")
        try:
            overrides[path.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:  # such as a pattern that begins with {id}
            overrides[path.strip()] = value
    return overrides


def parse(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> RunConfig:
    """Values of a profile or run.yaml with overrides on top, checked. Raises UserError naming the key."""
    tree: dict[str, Any] = _copy(values)
    for path, value in overrides.items():
        _put(tree, path, value)
    models = tree.get("models")
    for stage, role in MODEL_OF_STAGE.items():
        section = {} if tree.get(stage) is None else tree[stage]
        if not isinstance(section, dict):
            raise UserError(f"config: {stage} must be a mapping, got {section!r}")
        if "model" in section:
            raise UserError(f"config: {stage}.model is not set by itself; set models.{role}")
        if isinstance(models, dict) and role in models:
            tree[stage] = {**section, "model": models[role]}
    try:
        # As JSON, where strict means: no number from a text or a yes, but lists and mappings as YAML has them.
        config = TypeAdapter(RunConfig).validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as err:
        raise UserError("\n".join(_explain(error) for error in err.errors() if not _is_copy(error["loc"]))) from err
    _check_grid(config)
    for name, role in ROLES.items():
        registry.options(role, getattr(config.models, name))
    return config


def _check_grid(config: RunConfig) -> None:
    """Candidates are taken from the grid that scan stored, so their interval must be whole grid intervals."""
    interval_s, grid_s = config.dedup.interval_s, config.scan.grid_interval_s
    if interval_s is not None and Fraction(str(interval_s)) % Fraction(str(grid_s)) != 0:
        raise UserError(
            f"config: dedup takes a candidate every {interval_s:g} s, but scan.grid_interval_s is {grid_s:g} s; "
            "the one must be a whole multiple of the other"
        )


def differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Paths whose values differ between two plain configs, with both values."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*before, *after}):
        old, new, path = before.get(key), after.get(key), f"{prefix}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found |= differences(old, new, path + ".")
        elif old != new:
            found[path] = (old, new)
    return found


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"--set {path}: {parent} is a value, not a section")
        node = child
    node[last] = value


def _copy(value: Any) -> Any:
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _is_copy(location: Sequence[Any]) -> bool:
    """A fault of a model, which is told once under `models`, met again where a stage is given the model."""
    return location[0] in MODEL_OF_STAGE and location[1:2] == ("model",)


def _explain(error: Any) -> str:
    """One line for one validation error, with the nearest key when one is unknown."""
    location = [str(part) for part in error["loc"]]
    path = ".".join(location)
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known) or 'none'}"
        return f"config: unknown key {path}; {hint}"
    if error["type"] in ("missing", "missing_argument"):
        return f"config: {path} is missing"
    return f"config: {path}: {error['msg'].removeprefix('Value error, ')}; got {error.get('input')!r}"


def _known_keys(location: Sequence[str]) -> list[str]:
    """Keys of the config dataclass at a path."""
    owner: Any = RunConfig
    for name in location:
        types = {f.name: f.type for f in dataclasses.fields(owner)}
        owner = _resolve(owner, types.get(name))
        if owner is None:
            return []
    return [f.name for f in dataclasses.fields(owner) if f.name != "model"]


def _resolve(owner: Any, kind: Any) -> Any:
    if isinstance(kind, str):
        kind = vars(sys.modules[owner.__module__]).get(kind)
    return kind if dataclasses.is_dataclass(kind) else None
