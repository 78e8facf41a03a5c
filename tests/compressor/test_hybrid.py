"""The whole compressor against the plain way: every injection, branch and grouping, forward and backward."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.config import (
    CompressorConfig,
    GlobalConfig,
    Injection,
    InjectionConfig,
    LocalConfig,
    Position,
    TextPath,
    average_pooling,
    paper,
    release,
    unconditional,
)
from compressor.hybrid import Features, HybridCompressor
from compressor.inject import Condition
from tests.compressor import naive

WIDTH = 48
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


def batch(config: CompressorConfig, grid: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> Any:
    """Two videos and two instructions, of five tokens and of three."""
    torch.manual_seed(1)
    values, keys = (torch.randn(2, *grid, WIDTH, dtype=dtype) for _ in range(2))
    features = Features(values, keys if config.local and config.local.own_keys else None)
    pooled, tokens = torch.randn(2, WIDTH, dtype=dtype), torch.randn(2, 5, WIDTH, dtype=dtype)
    condition = Condition(pooled, tokens, torch.tensor([[True] * 5, [True] * 3 + [False] * 2]))
    return features, condition if config.conditional else None


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


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", HYBRIDS)
def test_bfloat16_is_no_worse_than_the_plain_way(name: str, autocast: bool) -> None:
    exact = built(small(HYBRIDS[name]))
    features, condition = batch(exact.config, (5, 7, 4))
    truth = exact(features, condition)
    model = exact.to(torch.float32 if autocast else torch.bfloat16)
    features, condition = batch(exact.config, (5, 7, 4), torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, plain = model(features, condition), naive.forward(model, features, condition)
    ours.float().sum().backward()
    errors = [((found - truth).abs().max() / truth.abs().max()).item() for found in (ours, plain)]
    assert ours.dtype is torch.bfloat16
    assert errors[0] < max(0.02, 1.5 * errors[1])
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_padding_of_a_text_changes_nothing() -> None:
    fine = InjectionConfig(kind=Injection.FINE, heads=3)
    config = CompressorConfig(
        width=WIDTH, out_width=10, local=LocalConfig(injection=fine), global_=GlobalConfig(heads=3, injection=fine)
    )
    model = built(config)
    features, condition = batch(config, (4, 6, 9))
    padded = model(features, condition)
    condition.tokens_BLD[1, 3:] = 1e6
    assert torch.equal(model(features, condition), padded)
    shorter = Condition(tokens_BLD=condition.tokens_BLD[1:, :3])
    assert torch.allclose(model(Features(features.values_BTHWD[1:]), shorter)[0], padded[1])


def test_the_text_steers_where_it_looks() -> None:
    model = built(small(paper(10)))
    features, condition = batch(model.config, (4, 6, 9))
    with_text, without = model.attention_maps(features, condition), model.attention_maps(features)
    for found in (with_text, without):
        assert found.local_BTHW is not None and found.global_BEQTHW is not None
        assert found.local_BTHW.shape == (2, 4, 6, 9) and found.global_BEQTHW.shape == (2, 3, 4, 4, 6, 9)
        assert torch.allclose(found.local_BTHW.sum((1, 2, 3)), torch.full((2,), 6.0).double())
        assert torch.allclose(found.global_BEQTHW.sum((3, 4, 5)), torch.ones(2, 3, 4).double())
    assert not torch.allclose(with_text.local_BTHW, without.local_BTHW, atol=1e-3)
    assert not torch.allclose(with_text.global_BEQTHW, without.global_BEQTHW, atol=1e-3)


@pytest.mark.parametrize("grouping", [True, False])
def test_tokens_are_made_by_the_maps(grouping: bool) -> None:
    """The maps are what the forward pass uses, not another account of it."""
    coarse = InjectionConfig(kind=Injection.COARSE)
    config = CompressorConfig(
        width=WIDTH, out_width=WIDTH, local=LocalConfig(injection=coarse, grouping=grouping), global_=None
    )
    model = built(config)
    assert model.local
    model.local.register_module("readout", nn.Identity())
    features, condition = batch(config, (4, 3, 3))  # one group
    map_BTHW = model.attention_maps(features, condition).local_BTHW
    assert map_BTHW is not None
    assert torch.allclose(
        model(features, condition)[:, 0], torch.einsum("bthw,bthwd->bd", map_BTHW, features.values_BTHWD)
    )


def test_global_maps_are_those_of_plain_attention() -> None:
    config = CompressorConfig(width=WIDTH, out_width=10, local=None, global_=GlobalConfig(tokens=4, heads=3))
    model = built(config)
    features, _ = batch(config, (4, 6, 9))
    assert model.global_
    attention, values = model.global_.attention, features.values_BTHWD[0]
    keys = attention.key(values + naive.position(Position.SPLIT, (4, 6, 9), WIDTH)).flatten(0, 2).unflatten(-1, (3, -1))
    queries = attention.query(model.global_.tokens).unflatten(-1, (3, -1))
    scores = torch.einsum("qek,nek->eqn", queries, keys) * 16**-0.5
    found = model.attention_maps(features).global_BEQTHW
    assert found is not None
    assert torch.allclose(found[0].flatten(2), scores.softmax(-1))


@pytest.mark.parametrize(
    ("features", "condition", "message"),
    [
        (Features(torch.ones(4, 6, 9, WIDTH)), Condition(torch.ones(4, WIDTH)), r"values must be \[B,T,H,W,48\]"),
        (Features(torch.ones(1, 0, 6, 9, WIDTH)), None, "values must be"),
        (Features(torch.ones(1, 4, 6, 9, 7)), None, "values must be"),
        (Features(*[torch.ones(1, 4, 6, 9, WIDTH)] * 2), None, "keys must not be given"),
        (Features(torch.ones(1, 4, 6, 9, WIDTH)), None, "give it the instruction"),
        (Features(torch.ones(1, 4, 6, 9, WIDTH)), Condition(torch.ones(2, WIDTH)), "the text must be"),
        (
            Features(torch.ones(1, 4, 6, 9, WIDTH)),
            Condition(tokens_BLD=torch.ones(1, 3, WIDTH)),
            "needs Condition.pooled",
        ),
    ],
)
def test_wrong_inputs_say_what_was_expected(features: Features, condition: Condition | None, message: str) -> None:
    model = HybridCompressor(small(paper(10)))
    with pytest.raises(ValueError, match=message):
        model(features, condition)


def test_own_keys_are_asked_for() -> None:
    with pytest.raises(ValueError, match="keys must be given"):
        HybridCompressor(small(release(10)))(Features(torch.ones(1, 4, 6, 9, WIDTH)), Condition(torch.ones(1, WIDTH)))
