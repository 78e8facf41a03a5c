"""3D position as a table of places, T frames, then H rows, then W columns: a token's embedding is the sum of three.

So a product with all positions of a video is a product with T + H + W rows, and the T x H x W x D grid is never made.
That holds for both ways to join three sinusoids: added up, or each in channels of its own, 0 in the others'.

Shapes: T, H, W grid; A = T + H + W; D channels.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from compressor.config import Position
from compressor.windows import Shape

BASE = 10_000.0
Block = tuple[int, int]
"""First channel, and the one after the last."""


def sinusoid(length: int, channels: int) -> Tensor:
    """Sine in even channels and cosine in odd ones, [length, channels], float64."""
    place = torch.arange(length, dtype=torch.float64)[:, None]
    pair = (torch.arange(channels) // 2).double()
    angle = place / BASE ** (2 * pair / channels)
    return torch.where(torch.arange(channels) % 2 == 0, angle.sin(), angle.cos())


@lru_cache(maxsize=64)
def places(kind: Position, grid: Shape, channels: int, like: tuple[torch.device, torch.dtype]) -> Tensor:
    """The table, [A,D], worked out in float64."""
    blocks = _blocks(kind, channels)
    with torch.inference_mode(False):  # kept, and then used where gradients are
        tables = [_within(length, channels, block) for length, block in zip(grid, blocks, strict=True)]
        return torch.cat(tables).to(*like)


def _blocks(kind: Position, channels: int) -> tuple[Block, Block, Block]:
    """Channels of time, height and width."""
    if kind is Position.SUM:
        return (0, channels), (0, channels), (0, channels)
    part = 3 * channels // 8
    return (2 * part, channels), (0, part), (part, 2 * part)


def _within(length: int, channels: int, block: Block) -> Tensor:
    """A sinusoid in one block of the channels, 0 in the others."""
    begin, end = block
    table = torch.zeros(length, channels, dtype=torch.float64)
    table[:, begin:end] = sinusoid(length, end - begin)
    return table
