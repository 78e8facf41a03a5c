"""InternVideo2's vision transformer: frames to one pooled vector per video. Inference only.

Wang et al., "InternVideo2: Scaling Foundation Models for Multimodal Video Understanding" (2024), with the arithmetic of
the authors' plain code path; modules carry the names of the published checkpoints. All tokens of all frames attend to
each other. Queries and keys are normalised over all heads together, before they are split.

Letters in names of tensors: B videos, T frames of a video, H W rows and columns of a frame, C colours, P patches of a
frame, L tokens of a video (1 + T P, the class token first), Q queries, D numbers per token, N heads, K numbers per
head, M numbers of the pooled vector.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.internvideo2.sizes import VisionSize

_BLOCK_EPS, _POOL_EPS = 1e-6, 1e-5
"""What the normalisations add below the root, in the blocks and in the pooling; both the original's."""


class VisionTransformer(nn.Module):
    """Frames to a pooled vector."""

    def __init__(self, size: VisionSize) -> None:
        super().__init__()
        self.size = size
        self.patch_embed = PatchEmbedding(size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, size.width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + size.frames * size.patches, size.width))
        if size.image_positions:
            self.img_pos_embed = nn.Parameter(torch.empty(1, 1 + size.patches, size.width))
        self.blocks = nn.ModuleList([Block(size) for _ in range(size.depth)])
        self.clip_projector = AttentionPooling(size)

    def forward(self, frames_BTHWC: Tensor) -> Tensor:
        """Pooled vectors [B, M] of normalised frames, in time order."""
        patches_BTPD = self.patch_embed(frames_BTHWC)
        first_B1D = self.cls_token.expand(len(patches_BTPD), -1, -1)
        x_BLD = torch.cat([first_B1D, patches_BTPD.flatten(1, 2)], dim=1) + self.positions(patches_BTPD.shape[1])
        for block in self.blocks:
            x_BLD = block(x_BLD)
        pooled_BM: Tensor = self.clip_projector(x_BLD)
        return pooled_BM

    def positions(self, frames: int) -> Tensor:
        """The position embedding [1, L, D] of so many frames.

        As the original does it: for another number than the one trained for, each patch's embedding is interpolated
        linearly over time; a single frame is a picture.
        """
        size = self.size
        if frames == size.frames:
            return self.pos_embed
        if frames == 1 and size.image_positions:
            return self.img_pos_embed
        first_11D, rest_1TPD = self.pos_embed[:, :1], self.pos_embed[:, 1:].unflatten(1, (size.frames, size.patches))
        if frames == 1:
            return torch.cat([first_11D, rest_1TPD.mean(dim=1)], dim=1)
        series_PDT = rest_1TPD[0].permute(1, 2, 0)
        stretched_PDT = functional.interpolate(series_PDT, size=frames, mode="linear", align_corners=False)
        return torch.cat([first_11D, stretched_PDT.permute(2, 0, 1).flatten(0, 1)[None]], dim=1)


class PatchEmbedding(nn.Module):
    """Patches of single frames to tokens. The convolution has no overlap, so it is one product of matrices."""

    def __init__(self, size: VisionSize) -> None:
        super().__init__()
        self.side = size.patch_px
        self.proj = nn.Conv3d(3, size.width, kernel_size=(1, size.patch_px, size.patch_px))

    def forward(self, frames_BTHWC: Tensor) -> Tensor:
        """Tokens [B, T, P, D], patches row by row."""
        videos, frames, height, width, colours = frames_BTHWC.shape
        rows, columns = height // self.side, width // self.side
        cut = frames_BTHWC.view(videos, frames, rows, self.side, columns, self.side, colours)
        pixels_BTPX = cut.permute(0, 1, 2, 4, 6, 3, 5).reshape(
            videos, frames, rows * columns, -1
        )  # X: colour, row, column
        return functional.linear(pixels_BTPX, self.proj.weight.flatten(1), self.proj.bias)


class Block(nn.Module):
    """Attention and a two-layer network, each added to its input after a scale per number."""

    def __init__(self, size: VisionSize) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(size.width, eps=_BLOCK_EPS)
        self.attn = SelfAttention(size)
        self.ls1 = LayerScale(size.width)
        self.norm2 = nn.RMSNorm(size.width, eps=_BLOCK_EPS)
        self.mlp = Mlp(size)
        self.ls2 = LayerScale(size.width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        x_BLD = x_BLD + self.ls1(self.attn(self.norm1(x_BLD)))
        x_BLD = x_BLD + self.ls2(self.mlp(self.norm2(x_BLD)))
        return x_BLD


class SelfAttention(nn.Module):
    """All tokens of a video attend to each other."""

    def __init__(self, size: VisionSize) -> None:
        super().__init__()
        self.heads = size.heads
        self.qkv = nn.Linear(size.width, 3 * size.width, bias=False)
        self.q_norm = nn.RMSNorm(size.width, eps=_BLOCK_EPS)
        self.k_norm = nn.RMSNorm(size.width, eps=_BLOCK_EPS)
        self.proj = nn.Linear(size.width, size.width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        q_BLD, k_BLD, v_BLD = self.qkv(x_BLD).chunk(3, dim=-1)
        attended_BLD: Tensor = self.proj(attend(self.q_norm(q_BLD), self.k_norm(k_BLD), v_BLD, self.heads))
        return attended_BLD


class Mlp(nn.Module):
    def __init__(self, size: VisionSize) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size.width, size.mlp_width)
        self.fc2 = nn.Linear(size.mlp_width, size.width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        out_BLD: Tensor = self.fc2(functional.gelu(self.fc1(x_BLD)))
        return out_BLD


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(width))

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.gamma * x_BLD


class AttentionPooling(nn.Module):
    """One vector per video: the tokens' mean asks all tokens. The query, keys and values have a norm each."""

    def __init__(self, size: VisionSize) -> None:
        super().__init__()
        self.norm1_q = nn.LayerNorm(size.width, eps=_POOL_EPS)
        self.norm1_k = nn.LayerNorm(size.width, eps=_POOL_EPS)
        self.norm1_v = nn.LayerNorm(size.width, eps=_POOL_EPS)
        self.cross_attn = CrossAttention(size)

    def forward(self, x_BLD: Tensor) -> Tensor:
        mean_B1D = x_BLD.mean(dim=1, keepdim=True)
        pooled_B1M = self.cross_attn(self.norm1_q(mean_B1D), self.norm1_k(x_BLD), self.norm1_v(x_BLD))
        pooled_BM: Tensor = pooled_B1M.squeeze(1)
        return pooled_BM


class CrossAttention(nn.Module):
    """Attention of queries over other tokens. The checkpoints keep the biases of q, k and v apart."""

    def __init__(self, size: VisionSize) -> None:
        super().__init__()
        self.heads = size.pool_heads
        self.q = nn.Linear(size.width, size.width, bias=False)
        self.k = nn.Linear(size.width, size.width, bias=False)
        self.v = nn.Linear(size.width, size.width, bias=False)
        self.q_bias = nn.Parameter(torch.empty(size.width))
        self.k_bias = nn.Parameter(torch.empty(size.width))
        self.v_bias = nn.Parameter(torch.empty(size.width))
        self.proj = nn.Linear(size.width, size.pool_width)

    def forward(self, query_BQD: Tensor, key_BLD: Tensor, value_BLD: Tensor) -> Tensor:
        q_BQD = functional.linear(query_BQD, self.q.weight, self.q_bias)
        k_BLD = functional.linear(key_BLD, self.k.weight, self.k_bias)
        v_BLD = functional.linear(value_BLD, self.v.weight, self.v_bias)
        out_BQM: Tensor = self.proj(attend(q_BQD, k_BLD, v_BLD, self.heads))
        return out_BQM


def attend(q_BQD: Tensor, k_BLD: Tensor, v_BLD: Tensor, heads: int) -> Tensor:
    """Attention of each head apart, heads side by side in D: [B, Q, D]."""
    q_BNQK, k_BNLK, v_BNLK = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q_BQD, k_BLD, v_BLD))
    out_BNQK = functional.scaled_dot_product_attention(q_BNQK, k_BNLK, v_BNLK)
    return out_BNQK.transpose(1, 2).flatten(2)
