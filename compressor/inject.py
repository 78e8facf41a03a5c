"""The instruction and the ways it enters the tokens that query the video.

Shapes: B batch; N tokens that query; L text tokens; D channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.config import Injection, InjectionConfig, TextPath
from compressor.layers import CrossAttention, Gated, Mlp, norm


@dataclass(frozen=True)
class Condition:
    """A batch of instructions. direct and coarse read the pooled feature, fine reads the tokens."""

    pooled_BD: Tensor | None = None
    tokens_BLD: Tensor | None = None
    mask_BL: Tensor | None = None
    """True at tokens, False at padding; at least one token each. None: no padding. The authors' code has no mask."""


class Injector(nn.Module):
    """What all three ways share: the path that the text takes first."""

    reads_queries = True
    """False: the text replaces the queries, which then need not be made."""

    def __init__(self, config: InjectionConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.text = _text_path(config.text, channels)

    def pooled(self, condition: Condition) -> Tensor:
        """The pooled text after its path, [B,1,D]."""
        if condition.pooled_BD is None:
            raise ValueError(f"{self.config.kind} injection needs Condition.pooled_BD")
        text_B1D: Tensor = self.text(condition.pooled_BD[:, None])
        return text_B1D


class Direct(Injector):
    """One query for all groups: the text."""

    reads_queries = False

    def forward(self, queries_BND: Tensor | None, condition: Condition) -> Tensor:
        return self.pooled(condition)


class Coarse(Injector):
    """Scale and shift made of the text. The scale is written as 1 + s, so that it starts near 1."""

    def __init__(self, config: InjectionConfig, channels: int) -> None:
        super().__init__(config, channels)
        self.scale_shift = Mlp(channels, 2 * channels)
        self.coarse_norm = norm(channels)

    def forward(self, queries_BND: Tensor, condition: Condition) -> Tensor:
        scale_B1D, shift_B1D = self.scale_shift(self.pooled(condition)).chunk(2, dim=-1)
        if self.config.norm_last:
            moved_BND: Tensor = self.coarse_norm(torch.addcmul(queries_BND + shift_B1D, queries_BND, scale_B1D))
            return moved_BND
        return torch.addcmul(shift_B1D, self.coarse_norm(queries_BND), 1 + scale_B1D)


class Fine(Injector):
    """Cross attention to the text's tokens."""

    def __init__(self, config: InjectionConfig, channels: int) -> None:
        super().__init__(config, channels)
        self.attention = CrossAttention(channels, config.heads)
        self.fine_norm = norm(channels)

    def forward(self, queries_BND: Tensor, condition: Condition) -> Tensor:
        if condition.tokens_BLD is None:
            raise ValueError(f"{self.config.kind} injection needs Condition.tokens_BLD")
        text_BLD, mask_BL = self.text(condition.tokens_BLD), condition.mask_BL
        if self.config.norm_last:
            found_BND: Tensor = self.fine_norm(queries_BND + self.attention(queries_BND, text_BLD, mask_BL))
        else:
            found_BND = self.attention(self.fine_norm(queries_BND), text_BLD, mask_BL)
        return found_BND


INJECTORS: dict[Injection, type[Injector]] = {
    Injection.DIRECT: Direct,
    Injection.COARSE: Coarse,
    Injection.FINE: Fine,
}


def build_injector(config: InjectionConfig | None, channels: int) -> Injector | None:
    return None if config is None else INJECTORS[config.kind](config, channels)


def _text_path(path: TextPath, channels: int) -> nn.Module:
    if path is TextPath.PLAIN:
        return nn.Identity()
    mlp = Mlp(channels, channels)
    return mlp if path is TextPath.MLP else Gated(mlp, channels)
