"""The compressor in use: bfloat16, padded texts, attention maps, and what wrong inputs are told."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressor.config import (
    CompressorConfig,
    GlobalConfig,
    Injection,
    InjectionConfig,
    LocalConfig,
    Position,
    paper,
    release,
)
from compressor.hybrid import Features, HybridCompressor
from compressor.inject import Condition
from tests.compressor import naive
from tests.compressor.small import HYBRIDS, WIDTH, batch, built, small


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
