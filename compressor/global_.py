"""Global compression: a few learned tokens, steered by the instruction, attend to the whole video.

There are 32 queries and 23,328 keys, so the projections move to the side of the queries. A score is
q . (W_k x + b_k) = (W_k' q) . x + q . b_k, and the sum of a_n (W_v x_n + b_v) is W_v (sum of a_n x_n) + b_v. Neither
keys nor values are ever made; the position is separable (`position.py`) and needs no pass over the video.

Shapes: B batch; T, H, W grid; N = T * H * W; D channels; Q tokens; E heads; K channels of a head; M = E * Q;
A = T + H + W; O channels of the LLM.
"""

from __future__ import annotations

import torch
from torch import Tensor, einsum, nn

from compressor.attend import attend, attention_weights
from compressor.config import GlobalConfig
from compressor.inject import Condition, build_injector
from compressor.layers import AttentionWeights, Mlp, at_least_float32
from compressor.position import places


class GlobalCompressor(nn.Module):
    """A video to a fixed number of tokens."""

    def __init__(self, config: GlobalConfig, channels: int, out_channels: int) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Parameter(torch.randn(config.tokens, channels) * config.token_std)
        self.injector = build_injector(config.injection, channels)
        self.attention = AttentionWeights(channels, config.heads)
        self.readout = Mlp(channels, out_channels)

    def forward(self, values_BTHWD: Tensor, condition: Condition | None) -> Tensor:
        """Tokens, [B,Q,O]."""
        queries_BQD = self._queries(len(values_BTHWD), condition)
        folded_BMD, terms_BMA = self._fold(queries_BQD, values_BTHWD)
        mixed_BMD, shares_BMA = attend(folded_BMD, terms_BMA, values_BTHWD)
        if self.config.position_on_values:
            mixed_BMD = mixed_BMD + (shares_BMA @ self._places(values_BTHWD)).to(mixed_BMD.dtype)
        found_BQD = self._unfold(mixed_BMD)
        tokens_BQO: Tensor = self.readout(queries_BQD + found_BQD if self.config.residual else found_BQD)
        return tokens_BQO

    def weights(self, values_BTHWD: Tensor, condition: Condition | None) -> Tensor:
        """Attention weights [B,E,Q,T,H,W], at least float32. No condition: nothing is injected."""
        folded_BMD, terms_BMA = self._fold(self._queries(len(values_BTHWD), condition), values_BTHWD)
        samples = zip(folded_BMD, terms_BMA, values_BTHWD, strict=True)
        weights_BMTHW = torch.stack([attention_weights(*sample) for sample in samples])
        grid = values_BTHWD.shape[1:4]
        return weights_BMTHW.view(len(weights_BMTHW), self.config.heads, self.config.tokens, *grid)

    def _queries(self, batch: int, condition: Condition | None) -> Tensor:
        tokens_BQD = self.tokens.expand(batch, -1, -1)
        return self.injector(tokens_BQD, condition) if self.injector and condition else tokens_BQD

    def _fold(self, queries_BQD: Tensor, values_BTHWD: Tensor) -> tuple[Tensor, Tensor]:
        """Queries to be multiplied with the values [B,M,D], and what each adds to a score by place [B,M,A]."""
        key, split = self.attention.key, (self.config.heads, -1)
        q_BQEK = self.attention.query(queries_BQD).unflatten(-1, split)
        q_BQEK = q_BQEK * q_BQEK.shape[-1] ** -0.5
        folded_BMD = einsum("bqek,ekd->beqd", q_BQEK, key.weight.unflatten(0, split)).flatten(1, 2)
        bias_BM = einsum("bqek,ek->beq", q_BQEK, key.bias.unflatten(0, split)).flatten(1, 2)
        places_AD = self._places(values_BTHWD)
        frame_A = torch.arange(len(places_AD), device=places_AD.device) < values_BTHWD.shape[1]
        terms_BMA = at_least_float32(folded_BMD) @ places_AD.T + bias_BM[..., None] * frame_A
        return folded_BMD.to(values_BTHWD.dtype), terms_BMA

    def _unfold(self, mixed_BMD: Tensor) -> Tensor:
        """What the queries found, [B,Q,D]: means of tokens, projected to values."""
        value, split = self.attention.value, (self.config.heads, -1)
        mixed_BEQD = mixed_BMD.unflatten(1, split)
        found_BQEK = einsum("beqd,ekd->bqek", mixed_BEQD, value.weight.unflatten(0, split))
        found_BQD: Tensor = self.attention.out(found_BQEK.flatten(2) + value.bias)
        return found_BQD

    def _places(self, values_BTHWD: Tensor) -> Tensor:
        """The positions' table [A,D], at least float32."""
        _, t, h, w, channels = values_BTHWD.shape
        exact = torch.promote_types(values_BTHWD.dtype, torch.float32)
        return places(self.config.position, (t, h, w), channels, (values_BTHWD.device, exact))
