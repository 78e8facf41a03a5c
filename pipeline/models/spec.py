"""How a config names a model."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

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
    path: str | None = field(default=None, metadata={"place": True})
    """A local folder that holds the weights. Where they lie does not change what they are: it is not in the key."""

    @property
    def key(self) -> str:
        """family:name@revision, as tables record it and as thresholds are keyed by it."""
        return f"{self.family}:{self.name}@{self.revision}"
