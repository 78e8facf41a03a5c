"""The hand-written attention: its gradients, and float32 products by another library."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compressor.attend import attend, attention_weights, weighted_sum

GRID = (3, 2, 4)


def inputs(dtype: torch.dtype, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, 5, 8), (batch, 5, sum(GRID)), (batch, *GRID, 8))
    queries, terms, values = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    return queries, terms, values


def plain(queries: Tensor, terms: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The same by autograd."""
    frames, rows, columns = terms.split(GRID, dim=-1)
    scores = torch.einsum("bmd,bthwd->bmthw", queries, values)
    scores = scores + frames[..., None, None] + rows[:, :, None, :, None] + columns[:, :, None, None]
    weights = scores.flatten(2).softmax(-1).unflatten(2, GRID)
    means = torch.einsum("bmthw,bthwd->bmd", weights, values)
    return means, torch.cat([weights.sum((3, 4)), weights.sum((2, 4)), weights.sum((2, 3))], dim=-1)


def test_gradients_are_those_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(attend, [x.requires_grad_() for x in inputs(torch.float64)])


@pytest.mark.parametrize("frozen", [False, True])
def test_it_is_what_autograd_makes_of_the_plain_form(frozen: bool) -> None:
    ours, theirs = ([x.requires_grad_() for x in inputs(torch.float64)] for _ in range(2))
    if frozen:  # as values are, under a frozen encoder
        ours[2].requires_grad_(False)
        theirs[2].requires_grad_(False)
    for way, args in ((attend, ours), (plain, theirs)):
        means, shares = way(*args)
        (means.square().sum() + (shares * torch.arange(shares.shape[-1])).sum()).backward()
    for mine, other in zip(ours, theirs, strict=True):
        if mine.requires_grad:
            assert torch.allclose(mine.grad, other.grad, atol=1e-12)
    assert (ours[2].grad is None) == frozen


def test_weights_of_a_query_add_up_to_one() -> None:
    queries, terms, values = inputs(torch.float32, batch=1)
    weights = attention_weights(queries[0], terms[0], values[0])
    assert weights.shape == (5, *GRID)
    assert torch.allclose(weights.sum((1, 2, 3)), torch.ones(5))


@pytest.mark.parametrize("frames", [1, 3, 40])
def test_a_sum_by_convolution_is_a_matrix_product(frames: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(6, frames, 5, 4, generator=generator)
    values = torch.randn(frames, 5, 4, 32, generator=generator)
    expected = weights.double().flatten(1) @ values.double().flatten(0, 2)
    assert torch.allclose(weighted_sum(weights, values).double(), expected, atol=1e-4)
