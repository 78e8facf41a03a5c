"""The whole compressor against the plain way: every injection, branch and grouping, forward and backward."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from compressor.config import (
    CompressorConfig,
    GlobalConfig,
    Injection,
    InjectionConfig,
    LocalConfig,
    Position,
    TextPath,
    paper,
    release,
)
from compressor.hybrid import Features, HybridCompressor
from compressor.inject import Condition
from tests.compressor import naive
from tests.compressor.small import HYBRIDS, WIDTH, batch, built, small

GRIDS = [(1, 6, 6), (4, 6, 9), (5, 7, 4), (2, 3, 10)]
RATIO = (4, 3, 3)


def injections(*kinds: Injection) -> list[InjectionConfig | None]:
    forms = product(kinds, TextPath, (False, True))
    return [None, *(InjectionConfig(kind=kind, text=text, norm_last=last, heads=3) for kind, text, last in forms)]


def local_configs() -> list[LocalConfig]:
    found = [LocalConfig(ratio=RATIO, attention=False)]
    for injection, grouping in product(injections(*Injection), (True, False)):
        found.append(LocalConfig(ratio=RATIO, injection=injection, grouping=grouping))
    coarse = InjectionConfig(kind=Injection.COARSE)
    for own, resized in product((False, True), (False, True)):
        found.append(LocalConfig(ratio=RATIO, own_keys=own, resized_query=resized, injection=coarse))
    found.append(replace(found[-1], adapt_query=True, adapt_keys=True, adapt_values=True))
    return found


def global_configs() -> list[GlobalConfig]:
    found = [GlobalConfig(tokens=4, heads=3, injection=one) for one in injections(Injection.COARSE, Injection.FINE)]
    for kind, on_values, residual in product(Position, (False, True), (False, True)):
        found.append(GlobalConfig(tokens=4, heads=3, position=kind, position_on_values=on_values, residual=residual))
    return found


BRANCHES = [
    *(CompressorConfig(width=WIDTH, out_width=10, local=local, global_=None) for local in local_configs()),
    *(CompressorConfig(width=WIDTH, out_width=10, local=None, global_=global_) for global_ in global_configs()),
]


def leaves(model: HybridCompressor, features: Features, condition: Condition | None) -> list[Tensor]:
    """Everything that a gradient may flow to."""
    given = [features.values_BTHWD, features.keys_BTHWD]
    text = [] if condition is None else [condition.pooled_BD, condition.tokens_BLD]
    return [*model.parameters(), *(x.requires_grad_() for x in (*given, *text) if x is not None)]


def assert_as_naive(config: CompressorConfig, grid: tuple[int, int, int]) -> None:
    model = built(config)
    features, condition = batch(config, grid)
    inputs = leaves(model, features, condition)
    ours, plain = model(features, condition), naive.forward(model, features, condition)
    assert ours.shape == (2, config.token_count(*grid), config.out_width)
    assert torch.allclose(ours, plain, rtol=0, atol=1e-10 * plain.abs().max().item())
    direction = torch.randn_like(plain)
    for mine, theirs in zip(
        torch.autograd.grad((ours * direction).sum(), inputs, allow_unused=True),
        torch.autograd.grad((plain * direction).sum(), inputs, allow_unused=True),
        strict=True,
    ):
        theirs = torch.zeros(1).double() if theirs is None else theirs
        mine = torch.zeros_like(theirs) if mine is None else mine
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-9 * max(theirs.abs().max().item(), 1e-3))


@pytest.mark.parametrize("config", BRANCHES)
def test_every_branch_is_as_the_plain_way(config: CompressorConfig) -> None:
    for grid in GRIDS:
        assert_as_naive(config, grid)


@pytest.mark.parametrize("name", HYBRIDS)
def test_the_presets_are_as_the_plain_way(name: str) -> None:
    for grid in GRIDS:
        assert_as_naive(small(HYBRIDS[name]), grid)


@pytest.mark.parametrize("ratio", [(1, 1, 1), (2, 5, 3), (8, 2, 7), (100, 100, 100)])
def test_any_ratio(ratio: tuple[int, int, int]) -> None:
    config = small(release(10))
    assert config.local
    for grid in GRIDS:
        assert_as_naive(replace(config, local=replace(config.local, ratio=ratio)), grid)


@pytest.mark.parametrize("name", HYBRIDS)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    """Distributed training waits for all of them."""
    model = built(small(HYBRIDS[name]))
    model(*batch(model.config, (4, 6, 9))).sum().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_batch_is_its_samples(name: str) -> None:
    model = built(small(HYBRIDS[name]), torch.float32)
    features, condition = batch(model.config, (5, 7, 4), torch.float32)
    together = model(features, condition)
    for i in range(2):
        keys = features.keys_BTHWD
        one = Features(features.values_BTHWD[i : i + 1], None if keys is None else keys[i : i + 1])
        text = None if condition is None else Condition(condition.pooled_BD[i : i + 1])
        assert torch.allclose(model(one, text)[0], together[i], atol=1e-5)


@pytest.mark.parametrize("grid", [(1, 27, 27), (32, 27, 27)])
def test_full_grids_in_float32(grid: tuple[int, int, int]) -> None:
    for config in (small(paper(10)), small(release(10))):
        model = built(config, torch.float32)
        features, condition = batch(config, grid, torch.float32)
        ours, plain = model(features, condition), naive.forward(model, features, condition)
        assert ours.shape[1] == config.token_count(*grid)
        assert (ours - plain).abs().max() < 1e-5 * plain.abs().max()
