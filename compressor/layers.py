"""The small layers that the compressor is made of.

Shapes: B batch; N tokens; L text tokens; D channels; E heads; K channels of a head.
"""

from __future__ import annotations

from torch import Tensor, float32, nn, promote_types, zeros
from torch.nn.functional import scaled_dot_product_attention

EPS = 1e-6
WEIGHT_STD = 0.02


def norm(channels: int) -> nn.LayerNorm:
    return nn.LayerNorm(channels, eps=EPS)


def initialise(module: nn.Module) -> None:
    """Weights of linear layers from a normal distribution cut at two units, biases 0; for `nn.Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=WEIGHT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def at_least_float32(x: Tensor) -> Tensor:
    """For sums and exponentials, which bfloat16 is too coarse for."""
    return x.to(promote_types(x.dtype, float32))


class Mlp(nn.Sequential):
    """Linear, GELU, linear."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(nn.Linear(channels, out_channels), nn.GELU(), nn.Linear(out_channels, out_channels))


class Gated(nn.Module):
    """(1 - a) * x + a * LN(branch(x)): nothing at first, since the learned scalar `a` starts at 0."""

    def __init__(self, branch: nn.Module, channels: int) -> None:
        super().__init__()
        self.branch = branch
        self.norm = norm(channels)
        self.alpha = nn.Parameter(zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        adapted: Tensor = self.norm(self.branch(x))
        return x + self.alpha * (adapted - x)


class AttentionWeights(nn.Module):
    """The four projections of multi-head attention; who owns them decides how to multiply."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))


class CrossAttention(AttentionWeights):
    """Attention from a few tokens to a few text tokens, multiplied the usual way."""

    def forward(self, x_BND: Tensor, text_BLD: Tensor, mask_BL: Tensor | None) -> Tensor:
        q_BENK = self._split(self.query(x_BND))
        k_BELK, v_BELK = self._split(self.key(text_BLD)), self._split(self.value(text_BLD))
        mask = None if mask_BL is None else mask_BL[:, None, None, :]
        found_BENK = scaled_dot_product_attention(q_BENK, k_BELK, v_BELK, attn_mask=mask)
        mixed: Tensor = self.out(found_BENK.transpose(1, 2).flatten(2))
        return mixed

    def _split(self, x_BND: Tensor) -> Tensor:
        return x_BND.view(*x_BND.shape[:2], self.heads, -1).transpose(1, 2)
