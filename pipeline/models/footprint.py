"""What a language model of the Qwen2-VL kind takes of GPU memory, before it is loaded.

Its weights are shared out over the GPUs of a tensor parallel group. So are the keys and values of every token that it
remembers, two numbers for each layer, key-value head and dimension of a head: what is left beside the weights bounds
how many tokens of how many clips can be there at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUMBER_BYTES = 2
"""Bytes of a key or value: bfloat16, as published, and vLLM keeps them in the type of the weights."""


@dataclass(frozen=True)
class Footprint:
    """Sizes that decide what GPUs a model needs."""

    weight_bytes: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    def weight_bytes_each(self, gpus: int) -> int:
        """Bytes of weights on each of so many GPUs."""
        return -(-self.weight_bytes // gpus)

    def token_bytes_each(self, gpus: int) -> int:
        """Bytes that a remembered token takes on each of so many GPUs; with more GPUs than heads, heads are there
        twice."""
        return 2 * self.layers * -(-self.kv_heads // gpus) * self.head_dim * NUMBER_BYTES


PUBLISHED: dict[str, Footprint] = {
    "Qwen/Qwen2-VL-2B-Instruct": Footprint(4_417_971_200, 28, 12, 2, 128),
    "Qwen/Qwen2-VL-7B-Instruct": Footprint(16_582_751_232, 28, 28, 4, 128),
    "Qwen/Qwen2-VL-72B-Instruct": Footprint(146_811_120_640, 80, 64, 8, 128),
}
"""Of models whose weights are not here yet. Layers and heads: Qwen2's report (arXiv 2407.10671), Tab. 1. Bytes: two for
each parameter of the architecture as transformers builds it (2,208,985,600, 8,291,375,616 and 73,405,560,320); the
2B's published files hold 4,418,050,768 bytes, their headers among them."""


def footprint_of(folder: Path) -> Footprint | None:
    """The sizes of the model in a folder; None where it is not of this kind, or not in safetensors."""
    weight_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        text = config.get("text_config", config)  # older files have all keys at the top
        layers, heads, kv_heads = (
            int(text[key]) for key in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        )
        head_dim = int(text.get("head_dim") or text["hidden_size"] // heads)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # whatever else the file holds
        return None
    return Footprint(weight_bytes, layers, heads, kv_heads, head_dim) if weight_bytes else None
