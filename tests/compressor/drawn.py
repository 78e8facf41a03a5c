"""Tensors that any machine draws alike, by name: NumPy promises that this generator's stream will not change."""

from __future__ import annotations

from functools import lru_cache
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

ALPHA = 0.3
"""Value of the gates, which start at 0 and would then hide what is behind them."""


@lru_cache(maxsize=64)
def drawn(name: str, shape: tuple[int, ...], std: float) -> Tensor:
    """Normal numbers, float32; not to be written to."""
    numbers = np.random.RandomState(crc32(name.encode())).standard_normal(shape) * std
    return torch.from_numpy(numbers.astype(np.float32))


def drawn_parameter(name: str, shape: tuple[int, ...]) -> Tensor:
    """A parameter of the authors' code, by its name there: gates open, norms about 1, the rest small."""
    if name.endswith("_alpha"):
        return torch.full(shape, ALPHA)
    value = drawn(name, shape, 0.03)
    return value + 1 if name.endswith("norm.weight") else value


def sampled(tensor: Tensor, count: int = 64) -> Tensor:
    """So many entries of a tensor, evenly spread over it."""
    flat = tensor.detach().flatten()
    return flat[torch.linspace(0, len(flat) - 1, min(count, len(flat))).long()].clone()
