"""The whole compressor: local tokens, then global ones.

Shapes: B batch; T, H, W grid; D channels; L text tokens; N tokens out; O channels of the LLM; E heads; Q global tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.config import CompressorConfig
from compressor.global_ import GlobalCompressor
from compressor.inject import Condition
from compressor.layers import initialise
from compressor.local import LocalCompressor
from compressor.windows import index_of


@dataclass(frozen=True)
class Features:
    """A batch of videos of one grid; an image is a video of one frame."""

    values_BTHWD: Tensor
    keys_BTHWD: Tensor | None = None
    """For configs with local.own_keys."""


@dataclass(frozen=True)
class AttentionMaps:
    """Where a compressor looks, float32."""

    local_BTHW: Tensor | None
    """Weight of each token in its group; of one in two groups, the sum. Without grouping, the mean over the queries."""
    global_BEQTHW: Tensor | None
    """Weight of each token, by head and global token; sums to 1 over the video."""


class HybridCompressor(nn.Module):
    """Features and an instruction to tokens for the LLM."""

    def __init__(self, config: CompressorConfig) -> None:
        super().__init__()
        self.config = config
        local, global_ = config.local, config.global_
        self.local = LocalCompressor(local, config.width, config.out_width) if local else None
        self.global_ = GlobalCompressor(global_, config.width, config.out_width) if global_ else None
        self.apply(initialise)

    def forward(self, features: Features, condition: Condition | None = None) -> Tensor:
        """Tokens [B,N,O]; a config with injection needs the condition."""
        self._check(features, condition)
        if self.config.conditional and condition is None:
            raise ValueError("this compressor is conditional: give it the instruction as a Condition")
        values_BTHWD = features.values_BTHWD
        parts = []
        if self.local:
            parts.append(self.local(values_BTHWD, self._keys(features), condition))
        if self.global_:
            parts.append(self.global_(values_BTHWD, condition))
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def attention_maps(self, features: Features, condition: Condition | None = None) -> AttentionMaps:
        """Where it looks with this instruction or, without one, before any is injected."""
        self._check(features, condition)
        local_BTHW = global_BEQTHW = None
        if self.local and self.local.config.attention:
            local_BTHW = self._local_map(features, condition)
        if self.global_:
            global_BEQTHW = self.global_.weights(features.values_BTHWD, condition)
        return AttentionMaps(local_BTHW, global_BEQTHW)

    def _local_map(self, features: Features, condition: Condition | None) -> Tensor:
        assert self.local is not None
        values_BTHWD = features.values_BTHWD
        weights = self.local.weights(values_BTHWD, self._keys(features), condition)
        grid = values_BTHWD.shape[:4]
        if not self.local.config.grouping:
            return weights.mean(1).view(grid)
        index_GP = index_of(self.local.windows(values_BTHWD), weights.device)
        flat_BN = weights.new_zeros(grid[0], grid[1:].numel())
        return flat_BN.index_add_(1, index_GP.flatten(), weights.flatten(1)).view(grid)

    def _keys(self, features: Features) -> Tensor:
        keys = features.keys_BTHWD
        return features.values_BTHWD if keys is None else keys

    def _check(self, features: Features, condition: Condition | None) -> None:
        """Shapes, at the public border."""
        values, keys = features.values_BTHWD, features.keys_BTHWD
        if values.ndim != 5 or values.shape[-1] != self.config.width or 0 in values.shape:
            raise ValueError(f"values must be [B,T,H,W,{self.config.width}], not {list(values.shape)}")
        wanted = self.local is not None and self.local.config.own_keys
        if wanted != (keys is not None):
            raise ValueError(f"local.own_keys is {wanted}: keys must {'' if wanted else 'not '}be given")
        if keys is not None and keys.shape != values.shape:
            raise ValueError(f"keys must have the values' shape {list(values.shape)}, not {list(keys.shape)}")
        text = [] if condition is None else [condition.pooled_BD, condition.tokens_BLD]
        for given, form in zip(text, ("[B,D]", "[B,L,D]"), strict=False):
            if given is not None and (given.shape[0], given.shape[-1]) != (values.shape[0], self.config.width):
                raise ValueError(
                    f"the text must be {form} = {values.shape[0]}, ..., {self.config.width}: {given.shape}"
                )
