"""Compressors of few channels, and videos and instructions for them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from compressor.config import CompressorConfig, average_pooling, paper, release, unconditional
from compressor.hybrid import Features, HybridCompressor
from compressor.inject import Condition

WIDTH = 48
Grid = tuple[int, int, int]
HYBRIDS = {
    "paper": paper(10),
    "release": release(10),
    "paper, unconditional": unconditional(paper(10)),
    "release, unconditional": unconditional(release(10)),
    "average pooling": average_pooling(paper(10)),
}


def small(config: CompressorConfig) -> CompressorConfig:
    """The same with few channels."""
    return replace(config, width=WIDTH, global_=config.global_ and replace(config.global_, tokens=4, heads=3))


def built(config: CompressorConfig, dtype: torch.dtype = torch.float64) -> HybridCompressor:
    """A compressor with every parameter away from where it starts."""
    torch.manual_seed(0)
    model = HybridCompressor(config).to(dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def batch(
    config: CompressorConfig, grid: Grid, dtype: torch.dtype = torch.float64
) -> tuple[Features, Condition | None]:
    """Two videos and two instructions, of five tokens and of three."""
    torch.manual_seed(1)
    values, keys = (torch.randn(2, *grid, WIDTH, dtype=dtype) for _ in range(2))
    features = Features(values, keys if config.local and config.local.own_keys else None)
    pooled, tokens = torch.randn(2, WIDTH, dtype=dtype), torch.randn(2, 5, WIDTH, dtype=dtype)
    condition = Condition(pooled, tokens, torch.tensor([[True] * 5, [True] * 3 + [False] * 2]))
    return features, condition if config.conditional else None
