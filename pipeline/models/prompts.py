"""Prompts as data: a Markdown file with a YAML header, asked for by name and known by the hash of all its bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml

from pipeline.resources import resource

PAIRS_PER_CLIP = 3
"""Instruction-answer pairs that turn 2 makes of a clip (paper, sec. 3.2)."""

PROMPT_NAMES = ("caption", "qa")
"""The prompts of the two turns, in order."""

_HEADER_KEYS = {"name", "purpose", "inputs", "output"}


@dataclass(frozen=True)
class Prompt:
    """A prompt file."""

    name: str
    purpose: str
    inputs: Mapping[str, str]
    """What has to be filled in: name of the input to its meaning. In text and schema it stands as $name."""
    output: Mapping[str, Any]
    """JSON schema of the answer, its inputs not filled in yet; see `schema`."""
    text: str
    """What the model is told, its inputs not filled in yet; see `render`."""
    sha256: str
    """Hash of the whole file, header included: a changed schema is a changed prompt."""

    def render(self, **inputs: Any) -> str:
        """The text with every input filled in. Raises ValueError unless exactly the inputs of the header are given."""
        self._check(inputs)
        return Template(self.text).substitute(inputs)

    def schema(self, **inputs: Any) -> dict[str, Any]:
        """The JSON schema of the answer with every input filled in, as its own type. Raises ValueError like render."""
        self._check(inputs)
        filled: dict[str, Any] = _fill(self.output, inputs)
        return filled

    def _check(self, inputs: Mapping[str, Any]) -> None:
        if inputs.keys() != self.inputs.keys():
            raise ValueError(f"prompt {self.name!r} takes the inputs {sorted(self.inputs)}, not {sorted(inputs)}")


def load_prompt(name: str) -> Prompt:
    """The prompt `name`, from the file `prompts/<name>.md`. Raises LookupError, or ValueError for a malformed file."""
    return read_prompt(resource("prompts", f"{name}.md"))


def prompt_hashes() -> dict[str, str]:
    """Hash of each prompt of the two turns, for the fingerprint of a stage whose model reads them."""
    return {f"prompt.{name}": load_prompt(name).sha256 for name in PROMPT_NAMES}


def read_prompt(path: Path) -> Prompt:
    """Read a prompt file. Raises ValueError naming the file when header, inputs and text do not fit together."""
    data = path.read_bytes()
    parts = data.decode("utf-8").split("---\n", 2)
    if len(parts) != 3 or parts[0]:
        raise ValueError(f"{path}: expected a header between two lines of ---, then the text")
    header = yaml.safe_load(parts[1])
    if not isinstance(header, dict) or header.keys() != _HEADER_KEYS:
        raise ValueError(f"{path}: the header must have exactly the keys {sorted(_HEADER_KEYS)}")
    if header["name"] != path.stem:
        raise ValueError(f"{path}: the header's name is {header['name']!r}, expected {path.stem!r}")
    text = parts[2].strip()
    template = Template(text)
    if not template.is_valid() or not set(template.get_identifiers()) <= header["inputs"].keys():
        raise ValueError(f"{path}: the text uses an input that the header does not list, or a bare $ (write $$)")
    try:
        _fill(header["output"], header["inputs"])
    except KeyError as error:
        raise ValueError(f"{path}: the output schema uses the input {error}, which the header does not list") from None
    return Prompt(**header, text=text, sha256=hashlib.sha256(data).hexdigest())


def _fill(value: Any, inputs: Mapping[str, Any]) -> Any:
    """Replace every string "$name" within a JSON value by the input of that name."""
    if isinstance(value, Mapping):
        return {key: _fill(item, inputs) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, inputs) for item in value]
    if isinstance(value, str) and value.startswith("$"):
        return inputs[value[1:]]
    return value
