"""The release preset and its variants against what the authors' code gave with the same weights."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from compressor.hybrid import Features, HybridCompressor
from compressor.inject import Condition
from compressor.interchange import from_theirs, their_name
from compressor.release_form import PREFIX
from tests.compressor.drawn import drawn, drawn_parameter, sampled
from tests.compressor.make_golden import GOLDEN
from tests.compressor.release_cases import CASES, Case

TOLERANCE = 2e-5
"""Difference over the largest value of the same tensor. All but two gradients that nearly cancel keep to half of it:
those of a gate and of a bias behind it, 1.3e-5 and 1.1e-5."""


def always_zero(name: str) -> bool:
    """Whether it shifts all scores of a query alike, which a softmax does not see: its gradient is rounding alone."""
    return name.endswith(("k_proj.bias", "k_norm.bias"))


@cache
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


def built(case: Case) -> HybridCompressor:
    """Our compressor with the weights that theirs had."""
    model = HybridCompressor(case.config)
    theirs = {their_name(name): tuple(value.shape) for name, value in model.named_parameters()}
    state = {name: drawn_parameter(name.removeprefix(PREFIX), shape) for name, shape in theirs.items()}
    from_theirs(state, model)
    return model


def difference(ours: Tensor, theirs: Tensor, largest: Tensor) -> float:
    return ((ours - theirs).abs().max() / largest).item()


@pytest.mark.parametrize("name", CASES)
def test_tokens_and_gradients_are_theirs(name: str) -> None:
    case = CASES[name]
    expected = {key.removeprefix(f"{name}/"): value for key, value in golden().items() if key.startswith(f"{name}/")}
    model = built(case)
    inputs = {key: value[None].clone().requires_grad_() for key, value in case.inputs().items()}
    text = inputs.get("text")
    condition = None
    if text is not None:
        condition = Condition(tokens_BLD=text) if case.text_tokens else Condition(pooled_BD=text)
    tokens = model(Features(inputs["values"], inputs.get("keys")), condition)[0]
    (tokens * drawn("gradient", tuple(tokens.shape), 1.0)).sum().backward()

    assert difference(tokens, expected["tokens"], expected["tokens"].abs().max()) < TOLERANCE
    named = {their_name(key).removeprefix(PREFIX): value for key, value in model.named_parameters()}
    assert {f"{key}.grad" for key in [*inputs, *named]} == {key for key in expected if key.endswith(".grad")}
    for key, value in [*inputs.items(), *named.items()]:
        assert value.grad is not None
        if always_zero(key):
            weight = named[key.replace("bias", "weight")].grad
            assert weight is not None and value.grad.abs().max() < 1e-4 * weight.abs().max()
            continue
        largest = expected[f"{key}.max"]
        assert difference(sampled(value.grad), expected[f"{key}.grad"], largest) < TOLERANCE, key
        assert torch.isclose(value.grad.abs().max(), largest, rtol=TOLERANCE), key
