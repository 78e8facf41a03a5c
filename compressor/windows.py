"""Which tokens of a grid belong to which group.

An axis of n tokens and ratio a has g = ceil(n / a) windows of ceil(n / g) tokens. When that is more than n tokens, the
last windows each begin one token early. So all windows of an axis have one size, and no token is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod

import torch
from torch import Tensor

Shape = tuple[int, int, int]
"""Time, height, width."""


@dataclass(frozen=True)
class Axis:
    """The windows of one axis."""

    length: int
    starts: tuple[int, ...]
    size: int

    @classmethod
    def split(cls, length: int, ratio: int) -> Axis:
        count = ceil(length / ratio)
        size = ceil(length / count)
        apart = count - (count * size - length)  # windows that begin where the one before them ends
        starts = tuple(i * size - max(0, i + 1 - apart) for i in range(count))
        return cls(length, starts, size)

    @property
    def even(self) -> bool:
        """Whether no token is in two windows."""
        return len(self.starts) * self.size == self.length

    def index(self) -> Tensor:
        """Positions of each window's tokens, [windows, size]."""
        return torch.tensor(self.starts)[:, None] + torch.arange(self.size)


@dataclass(frozen=True)
class Windows:
    """The groups of a grid, G of them with P tokens each, in the order time, height, width."""

    time: Axis
    height: Axis
    width: Axis

    @classmethod
    def split(cls, grid: Shape, ratio: Shape) -> Windows:
        return cls(*(Axis.split(n, a) for n, a in zip(grid, ratio, strict=True)))

    @property
    def groups(self) -> Shape:
        return len(self.time.starts), len(self.height.starts), len(self.width.starts)

    @property
    def count(self) -> int:
        return prod(self.groups)

    @property
    def sizes(self) -> Shape:
        return self.time.size, self.height.size, self.width.size


@lru_cache(maxsize=128)
def index_of(windows: Windows, device: torch.device) -> Tensor:
    """Flat positions of each group's tokens in the grid, [groups, tokens of a group]."""
    with torch.inference_mode(False):  # kept, and then used where gradients are
        t, h, w = (axis.index() for axis in (windows.time, windows.height, windows.width))
        rows = t[:, None, :, None] * windows.height.length + h[None, :, None, :]
        flat = rows[:, :, None, :, :, None] * windows.width.length + w[None, None, :, None, None, :]
        return flat.reshape(windows.count, prod(windows.sizes)).to(device)
