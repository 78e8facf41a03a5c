"""Which architectures and pretrained tags open_clip knows, read from its files: importing it would import torch.

An architecture is a JSON file of the package. The table of tags is Python source, `pretrained.py`; the few forms it is
written in are read here, nothing of it is run.
"""

from __future__ import annotations

import ast
import json
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.models.weights import require
from pipeline.stage import UserError


@dataclass(frozen=True)
class Tag:
    """Where a pretrained tag's weights are and how its model wants to be used."""

    repo: str
    """Repository of the Hugging Face hub. Tags know no commit."""
    filename: str
    """The weights' file in it; empty: under one of open_clip's usual names."""
    quick_gelu: bool
    """Whether the weights were trained with QuickGELU, whatever the architecture's file says."""
    preprocess: dict[str, Any]
    """mean, std, interpolation, resize_mode."""


@cache
def architectures() -> tuple[str, ...]:
    """Names of all architectures, sorted. Raises UserError without open_clip."""
    return tuple(sorted(path.stem for path in (_package() / "model_configs").glob("*.json")))


def architecture(name: str) -> dict[str, Any]:
    """The config of one of `architectures`."""
    config: dict[str, Any] = json.loads((_package() / "model_configs" / f"{name}.json").read_text(encoding="utf-8"))
    return config


def tags(name: str) -> dict[str, Tag]:
    """An architecture's pretrained tags. `X-quickgelu` has those of X that were trained so."""
    base = name.removesuffix("-quickgelu")
    found = {tag: _tag(entry) for tag, entry in _table().get(base, {}).items()}
    return found if base == name else {tag: entry for tag, entry in found.items() if entry.quick_gelu}


def _tag(entry: dict[str, Any]) -> Tag:
    owner, repo, filename = entry["hf_hub"].split("/", 2)
    preprocess = {name: entry[name] for name in ("mean", "std", "interpolation", "resize_mode")}
    return Tag(f"{owner}/{repo}", filename, entry.get("quick_gelu", False), preprocess)


def _package() -> Path:
    require("open_clip", extra="models")
    spec = find_spec("open_clip")
    assert spec is not None and spec.submodule_search_locations, "required above"
    return Path(spec.submodule_search_locations[0])


@cache
def _table() -> dict[str, dict[str, dict[str, Any]]]:
    """Tags by architecture, each as open_clip's own mapping."""
    reader = _Reader()
    for file in ("constants.py", "pretrained.py"):
        reader.read(_package() / file)
    table: dict[str, dict[str, dict[str, Any]]] | None = reader.names.get("_PRETRAINED")
    if table is None:
        raise UserError("the installed open_clip is of an unknown version; run: pip install 'open_clip_torch>=3.3,<4'")
    return table


class _UnknownFormError(Exception):
    """Source in a form that is not read here."""


class _Reader:
    """Values of a module's plain assignments: constants, tuples, dicts, `dict(...)`, and calls of functions that only
    return a dict of these."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}
        self._makers: dict[str, ast.Dict] = {}

    def read(self, file: Path) -> None:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            match node:
                case ast.FunctionDef(name=name, body=[ast.Return(value=ast.Dict() as made)]):
                    self._makers[name] = made
                case ast.Assign(targets=[ast.Name(id=name)], value=said):
                    with suppress(_UnknownFormError):
                        self.names[name] = self._value(said, {})

    def _value(self, node: ast.expr, given: dict[str, Any]) -> Any:
        """A node's value; `given` are the parameters of the function it is in."""
        match node:
            case ast.Constant(value=constant):
                return constant
            case ast.Tuple(elts=parts):
                return tuple(self._value(part, given) for part in parts)
            case ast.Name(id=name) if name in given or name in self.names:
                return given[name] if name in given else self.names[name]
            case ast.Dict(keys=keys, values=values):
                made: dict[str, Any] = {}
                for key, value in zip(keys, values, strict=True):
                    part = self._value(value, given)
                    made |= part if key is None else {self._value(key, given): part}
                return made
            case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
                return self._call(name, {str(word.arg): self._value(word.value, given) for word in keywords})
        raise _UnknownFormError(ast.dump(node))

    def _call(self, name: str, words: dict[str, Any]) -> Any:
        if name == "dict":
            return words
        if name not in self._makers:
            raise _UnknownFormError(name)
        own = {parameter: words.pop(parameter, "") for parameter in ("url", "hf_hub")}
        return self._value(self._makers[name], {**own, "kwargs": words})
