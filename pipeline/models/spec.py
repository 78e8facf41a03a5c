"""How a config names a model."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ModelSpec:
    """A model by family, name and pinned revision, in YAML a mapping with these keys."""

    family: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    """Which code loads it: a key of `registry.MODELS`."""
    name: Annotated[str, Field(min_length=1)]
    """The name within the family, such as a hub's repository name."""
    revision: str = ""
    """The exact weights: a hub's commit, a pretrained tag, a built-in's revision. Empty when the family has none
    (an endpoint)."""
    variant: Annotated[str, Field(pattern=r"^[a-z0-9_]*$")] = ""
    """Which of the model's outputs, where it has several; empty for the usual one."""
    path: str | None = field(default=None, metadata={"place": True})
    """A local folder that holds the weights. Where they lie does not change what they are: it is not in the key."""
    options: dict[str, Any] = field(default_factory=dict, metadata={"place": True})
    """The family's own settings, checked by the dataclass that `registry.MODELS` names for it. Those that decide
    results enter fingerprints through `registry.identity`."""

    @property
    def key(self) -> str:
        """family:name@revision, and #variant where there is one: as tables record it and thresholds are keyed by it."""
        return f"{self.family}:{self.name}@{self.revision}" + (f"#{self.variant}" if self.variant else "")
