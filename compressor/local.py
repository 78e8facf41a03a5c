"""Local compression: each group of neighbouring tokens becomes one, by attention that the instruction steers.

With one query for all groups (direct injection) the scores are one matrix-vector product over the grid, so keys and
values are each read once and never copied. `embedding_bag` adds up each group's values by index.

Shapes: B batch; T, H, W grid; N = T * H * W; D channels; G groups; P tokens of a group; Q queries, 1 or G;
O channels of the LLM.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, interpolate

from compressor.config import LocalConfig
from compressor.inject import Condition, build_injector
from compressor.layers import Gated, Mlp, at_least_float32
from compressor.windows import Windows, index_of

SUMMED_APART = 4
"""Parts of a product whose sums are added last. One long sum of a large score is the worst rounding of all: in four
parts it is as exact as a dot product of each pair."""


class LocalCompressor(nn.Module):
    """Groups to tokens."""

    def __init__(self, config: LocalConfig, channels: int, out_channels: int) -> None:
        super().__init__()
        self.config = config
        self.injector = build_injector(config.injection, channels)
        linear = nn.Linear(channels, channels, bias=False)
        self.adapt_query = Gated(linear, channels) if config.adapt_query else None
        self.adapt_keys = Gated(Mlp(channels, channels), channels) if config.adapt_keys else None
        self.adapt_values = Gated(Mlp(channels, channels), channels) if config.adapt_values else None
        self.readout = Mlp(channels, out_channels)

    def forward(self, values_BTHWD: Tensor, keys_BTHWD: Tensor, condition: Condition | None) -> Tensor:
        """Tokens in the order time, height, width, [B,G,O]."""
        if self.config.attention:
            mixed_BGD = self._attend(values_BTHWD, self.weights(values_BTHWD, keys_BTHWD, condition))
        else:
            mixed_BGD = group_mean(values_BTHWD, self.windows(values_BTHWD))
        tokens_BGO: Tensor = self.readout(mixed_BGD)
        return tokens_BGO

    def windows(self, values_BTHWD: Tensor) -> Windows:
        _, t, h, w, _ = values_BTHWD.shape
        return Windows.split((t, h, w), self.config.ratio)

    def weights(self, values_BTHWD: Tensor, keys_BTHWD: Tensor, condition: Condition | None) -> Tensor:
        """Attention weights, [B,G,P] in groups or [B,Q,N] without grouping, at least float32.

        No condition: nothing is injected.
        """
        windows = self.windows(values_BTHWD)
        queries_BQD = self._queries(values_BTHWD, windows, condition)
        keys_BTHWD = self.adapt_keys(keys_BTHWD) if self.adapt_keys else keys_BTHWD
        queries_BQD = queries_BQD * queries_BQD.shape[-1] ** -0.5
        if not self.config.grouping:
            scores = queries_BQD @ keys_BTHWD.flatten(1, 3).transpose(1, 2)
        elif queries_BQD.shape[1] == 1:
            scores = shared_scores(queries_BQD, keys_BTHWD, windows)
        else:
            scores = grouped_scores(queries_BQD, keys_BTHWD, windows)
        return at_least_float32(scores).softmax(dim=-1)

    def _attend(self, values_BTHWD: Tensor, weights: Tensor) -> Tensor:
        """The values' mean by weight, [B,G,D]."""
        windows = self.windows(values_BTHWD)
        values_BTHWD = self.adapt_values(values_BTHWD) if self.adapt_values else values_BTHWD
        if self.config.grouping:
            return group_sum(values_BTHWD, weights, windows)
        mixed_BQD = weights.to(values_BTHWD.dtype) @ values_BTHWD.flatten(1, 3)
        return mixed_BQD.expand(-1, windows.count, -1)

    def _queries(self, values_BTHWD: Tensor, windows: Windows, condition: Condition | None) -> Tensor:
        inject = self.injector if condition is not None else None
        if inject is not None and not inject.reads_queries:
            direct_B1D: Tensor = inject(None, condition)
            return direct_B1D
        pool = resized if self.config.resized_query else group_mean
        queries_BGD = pool(values_BTHWD, windows)
        if self.adapt_query:
            queries_BGD = self.adapt_query(queries_BGD)
        return queries_BGD if inject is None else inject(queries_BGD, condition)


def shared_scores(query_B1D: Tensor, keys_BTHWD: Tensor, windows: Windows) -> Tensor:
    """Scores of each group's tokens against the one query of its sample, [B,G,P]."""
    # One product a sample: a batch of matrix-vector products takes a path several times slower on CPUs.
    samples = zip(keys_BTHWD.flatten(1, 3), query_B1D[:, 0], strict=True)
    scores_BN = torch.stack([keys_ND @ query_D for keys_ND, query_D in samples])
    return scores_BN[:, index_of(windows, scores_BN.device)]


def grouped_scores(queries_BGD: Tensor, keys_BTHWD: Tensor, windows: Windows) -> Tensor:
    """Scores of each group's tokens against the group's query, [B,G,P].

    A strip is what a row of groups covers of one frame. Its tokens meet all queries of that row, and those in a
    query's own columns are picked: a few wasted products, but keys are copied only where an axis is uneven.
    """
    t, h, w = windows.groups
    strips_BthsD = _strips(keys_BTHWD, windows)
    queries_BthDw = queries_BGD.unflatten(1, (t, 1, h, w)).transpose(-1, -2)
    by_channels = zip(strips_BthsD.chunk(SUMMED_APART, -1), queries_BthDw.chunk(SUMMED_APART, -2), strict=True)
    scores_Bthsw = torch.stack([strips @ queries for strips, queries in by_channels]).sum(0)
    scores = scores_Bthsw.view(*scores_Bthsw.shape[:4], windows.height.size, windows.width.length, w)
    columns = windows.width.index().T.to(scores.device)  # [tokens of a window, w]
    own = scores.gather(5, columns.expand(*scores.shape[:5], -1, -1))  # B, t, frame, h, row, column, w
    return own.permute(0, 1, 3, 6, 2, 4, 5).reshape(len(own), windows.count, -1)


def _strips(x_BTHWD: Tensor, windows: Windows) -> Tensor:
    """The grid as [B, t, frames of a window, h, rows of a window * W, D]; a view where the axes are even."""
    time, height = windows.time, windows.height
    if not time.even:
        x_BTHWD = x_BTHWD.index_select(1, time.index().flatten().to(x_BTHWD.device))
    if not height.even:
        x_BTHWD = x_BTHWD.index_select(2, height.index().flatten().to(x_BTHWD.device))
    t, h, _ = windows.groups
    return x_BTHWD.reshape(len(x_BTHWD), t, time.size, h, height.size * windows.width.length, -1)


def group_sum(values_BTHWD: Tensor, weights_BGP: Tensor, windows: Windows) -> Tensor:
    """Weighted sum of each group's values, [B,G,D], in one pass over them."""
    table_ND = values_BTHWD.flatten(0, 3)
    index = _batched_index(values_BTHWD, windows)
    weights = weights_BGP.flatten(0, 1).to(table_ND.dtype)
    return embedding_bag(index, table_ND, mode="sum", per_sample_weights=weights).view(*weights_BGP.shape[:2], -1)


def group_mean(values_BTHWD: Tensor, windows: Windows) -> Tensor:
    """Mean of each group's values, [B,G,D]."""
    means_GD = embedding_bag(_batched_index(values_BTHWD, windows), values_BTHWD.flatten(0, 3), mode="mean")
    return means_GD.view(len(values_BTHWD), windows.count, -1)


def _batched_index(values_BTHWD: Tensor, windows: Windows) -> Tensor:
    """Where each group's tokens lie among those of the whole batch, [B * G, P]."""
    batch, t, h, w, _ = values_BTHWD.shape
    offsets_B = torch.arange(0, batch * t * h * w, t * h * w, device=values_BTHWD.device)
    return (offsets_B[:, None, None] + index_of(windows, values_BTHWD.device)).flatten(0, 1)


def resized(values_BTHWD: Tensor, windows: Windows) -> Tensor:
    """The grid resized to that of the groups by trilinear interpolation, [B,G,D]."""
    resized_BDthw = interpolate(values_BTHWD.permute(0, 4, 1, 2, 3), size=windows.groups, mode="trilinear")
    return resized_BDthw.permute(0, 2, 3, 4, 1).flatten(1, 3)
