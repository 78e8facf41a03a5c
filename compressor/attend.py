"""Attention of a few queries to all tokens of a video, forward and backward, without one copy of the video.

A token's score is its product with the query plus the query's terms for its frame, its row and its column. What comes
out is the mean of the tokens by weight, and each query's whole weight on every frame, row and column, of which the
caller makes what the position adds. It is written by hand to keep nothing but the weights for the backward pass, and
to need memory for the scores of one sample at a time.

Shapes: B batch; T, H, W grid; N = T * H * W; A = T + H + W places on the axes; D channels; M queries.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

from compressor.layers import at_least_float32


def attend(queries_BMD: Tensor, terms_BMA: Tensor, values_BTHWD: Tensor) -> tuple[Tensor, Tensor]:
    """Means [B,M,D] and shares [B,M,A]. Queries are of the values' type; terms and shares are at least float32."""
    means_BMD, shares_BMA = _Attend.apply(queries_BMD, terms_BMA, values_BTHWD)  # type: ignore[no-untyped-call]
    return means_BMD, shares_BMA


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries_BMD: Tensor, terms_BMA: Tensor, values_BTHWD: Tensor) -> tuple[Tensor, Tensor]:
        samples = zip(queries_BMD, terms_BMA, values_BTHWD, strict=True)
        keep = any(ctx.needs_input_grad)
        found, kept = zip(*(_forward_one(sample, keep) for sample in samples), strict=True)
        means_BMD, shares_BMA = (torch.stack(each) for each in zip(*found, strict=True))
        ctx.save_for_backward(queries_BMD, values_BTHWD, shares_BMA, *kept)
        return means_BMD, shares_BMA

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        queries_BMD, values_BTHWD, shares_BMA, *kept = ctx.saved_tensors
        samples = zip(queries_BMD, values_BTHWD, shares_BMA, kept, *grads, strict=True)
        found = [_backward_one(sample, ctx.needs_input_grad[2]) for sample in samples]
        return tuple(None if each[0] is None else torch.stack(each) for each in zip(*found, strict=True))


def _forward_one(sample: tuple[Tensor, Tensor, Tensor], keep: bool) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
    """Mean and shares of one sample, and its weights [M,T,H,W] if they are to be kept."""
    queries_MD, terms_MA, values_THWD = sample
    weights_MTHW = attention_weights(queries_MD, terms_MA, values_THWD)
    used_MTHW = weights_MTHW.to(values_THWD.dtype)
    return (weighted_sum(used_MTHW, values_THWD), _by_place(weights_MTHW)), used_MTHW if keep else None


def _backward_one(sample: tuple[Tensor, ...], onto_values: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of one sample's queries, terms and, if asked for, values."""
    queries_MD, values_THWD, shares_MA, weights_MTHW, grad_MD, grad_MA = sample
    scores_MTHW = at_least_float32(products(grad_MD, values_THWD))
    terms_MA = _through_softmax(scores_MTHW, grad_MA, weights_MTHW, shares_MA)
    scores_MTHW = scores_MTHW.to(values_THWD.dtype)
    values = _rows(scores_MTHW, queries_MD) + _rows(weights_MTHW, grad_MD) if onto_values else None
    return weighted_sum(scores_MTHW, values_THWD), terms_MA, values


def attention_weights(queries_MD: Tensor, terms_MA: Tensor, values_THWD: Tensor) -> Tensor:
    """Weights [M,T,H,W] of one sample, at least float32."""
    scores_MTHW = at_least_float32(products(queries_MD, values_THWD))
    _add_terms(scores_MTHW, terms_MA)
    return scores_MTHW.flatten(1).softmax(1).view_as(scores_MTHW)


def _through_softmax(grad_MTHW: Tensor, grad_MA: Tensor, weights_MTHW: Tensor, shares_MA: Tensor) -> Tensor:
    """Makes gradients of weights into those of scores, in place, and sums them by place.

    The mean that a softmax takes off is summed from these very numbers, so that a query's gradients add up to zero
    but for rounding. The short way, from the means and their gradients, cost a digit in the queries' projection.
    """
    _add_terms(grad_MTHW, grad_MA)
    grad_MTHW *= weights_MTHW
    terms_MA = _by_place(grad_MTHW)
    sums_M1 = terms_MA[:, : grad_MTHW.shape[1]].sum(1, keepdim=True)
    grad_MTHW.addcmul_(weights_MTHW, sums_M1[..., None, None], value=-1)
    return terms_MA.addcmul_(shares_MA, sums_M1, value=-1)


def _add_terms(x_MTHW: Tensor, terms_MA: Tensor) -> None:
    """Adds to each token what its frame, row and column say."""
    frames_MT, rows_MH, columns_MW = terms_MA.split(x_MTHW.shape[1:], dim=1)
    x_MTHW += frames_MT[:, :, None, None]
    x_MTHW += (rows_MH[:, :, None] + columns_MW[:, None])[:, None]


def _by_place(x_MTHW: Tensor) -> Tensor:
    """Sums by frame, row and column, [M,A]."""
    plane_MHW = x_MTHW.sum(1)
    return torch.cat([x_MTHW.sum((2, 3)), plane_MHW.sum(2), plane_MHW.sum(1)], dim=1)


def products(rows_MD: Tensor, values_THWD: Tensor) -> Tensor:
    """Product of every row with every token, [M,T,H,W]."""
    return (rows_MD @ values_THWD.flatten(0, 2).T).view(-1, *values_THWD.shape[:3])


def weighted_sum(weights_MTHW: Tensor, values_THWD: Tensor) -> Tensor:
    """Sum of the tokens by weight, [M,D].

    It is also the gradient of 1 x 1 filters. As that, PyTorch hands float32 on a CPU to oneDNN, and here 95 ms were
    enough for what a matrix product, which MKL does, took 150 ms (one thread of an AMD EPYC with AVX-512). The other
    products stay with MKL: as convolutions they were faster too, but ten times less exact.
    """
    if values_THWD.dtype is not torch.float32 or values_THWD.device.type != "cpu":
        return weights_MTHW.flatten(1) @ values_THWD.flatten(0, 2)
    size = (len(weights_MTHW), values_THWD.shape[-1], 1, 1)
    filters_MD11: Tensor = conv2d_weight(values_THWD.permute(0, 3, 1, 2), size, weights_MTHW.transpose(0, 1))
    return filters_MD11[:, :, 0, 0]


def _rows(weights_MTHW: Tensor, rows_MD: Tensor) -> Tensor:
    """Sum of the rows by weight for every token, [T,H,W,D]."""
    return (weights_MTHW.flatten(1).T @ rows_MD).view(*weights_MTHW.shape[1:], -1)
