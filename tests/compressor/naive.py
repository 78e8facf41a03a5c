"""The compressor written the plain way: the reference of the tests, and what the benchmark compares with.

It takes the weights of a `HybridCompressor` and does what the authors' code does, one step after another: samples in a
loop, groups as copies, the text repeated for every query, (1 - a) * x + a * f(x) also where there is no adapter and a
is 0, a resized query also where the text replaces it, keys and values projected for every token with the position
added to each. Where the paper differs from the authors' code, it does what the paper says in the same style.

Shapes: T, H, W grid; N = T * H * W; D channels; G groups; P tokens of a group; L text tokens; Q queries.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.config import Injection, InjectionConfig, Position, TextPath
from compressor.global_ import GlobalCompressor
from compressor.hybrid import Features, HybridCompressor
from compressor.inject import Coarse, Condition, Fine, Injector
from compressor.layers import AttentionWeights, Gated
from compressor.local import LocalCompressor


def forward(model: HybridCompressor, features: Features, condition: Condition | None) -> Tensor:
    """What `model` gives, [B,N,O]."""
    rows = []
    for i in range(len(features.values_BTHWD)):
        values_THWD = features.values_BTHWD[i]
        keys_THWD = values_THWD if features.keys_BTHWD is None else features.keys_BTHWD[i]
        one = None if condition is None else sample(condition, i)
        parts = []
        if model.local:
            parts.append(local(model.local, values_THWD, keys_THWD, one))
        if model.global_:
            parts.append(global_(model.global_, values_THWD, one))
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def sample(condition: Condition, i: int) -> Condition:
    """One instruction, without a batch axis, and without its padding."""
    tokens_LD = None if condition.tokens_BLD is None else condition.tokens_BLD[i]
    if tokens_LD is not None and condition.mask_BL is not None:
        tokens_LD = tokens_LD[condition.mask_BL[i]]
    return Condition(None if condition.pooled_BD is None else condition.pooled_BD[i], tokens_LD)


def local(part: LocalCompressor, values_THWD: Tensor, keys_THWD: Tensor, condition: Condition | None) -> Tensor:
    config = part.config
    ratio = (1, *config.ratio[1:]) if len(values_THWD) == 1 else config.ratio
    counts = tuple(math.ceil(n / a) for n, a in zip(values_THWD.shape, ratio, strict=False))
    if not config.attention:
        mean_GO: Tensor = part.readout(divide(values_THWD, ratio).mean(1))
        return mean_GO
    keys_THWD, found_THWD = gated(keys_THWD, part.adapt_keys), gated(values_THWD, part.adapt_values)
    if config.resized_query:
        resized = functional.interpolate(values_THWD.permute(3, 0, 1, 2)[None], size=counts, mode="trilinear")
        queries_GD = resized[0].permute(1, 2, 3, 0).flatten(0, 2)
    else:
        queries_GD = divide(values_THWD, ratio).mean(1)
    queries_GD = inject(part.injector, gated(queries_GD, part.adapt_query), condition)
    if config.grouping:
        keys_GPD, found_GPD = divide(keys_THWD, ratio), divide(found_THWD, ratio)
    else:
        keys_GPD, found_GPD = (x.flatten(0, 2).expand(len(queries_GD), -1, -1) for x in (keys_THWD, found_THWD))
    weights_G1P = torch.softmax(queries_GD[:, None] @ keys_GPD.transpose(1, 2) / math.sqrt(keys_GPD.shape[-1]), dim=-1)
    mixed_GO: Tensor = part.readout((weights_G1P @ found_GPD)[:, 0])
    return mixed_GO


def gated(x: Tensor, adapter: Gated | None) -> Tensor:
    if adapter is None:
        return (1 - 0) * x + 0 * x
    adapted: Tensor = adapter.norm(adapter.branch(x))
    return (1 - adapter.alpha) * x + adapter.alpha * adapted


def divide(x_THWD: Tensor, ratio: tuple[int, ...]) -> Tensor:
    """Copies of the groups, [G,P,D]."""
    x = windowed(x_THWD, ratio[0])  # t2 t1 H W D
    x = windowed(x.permute(2, 0, 1, 3, 4), ratio[1])  # h2 h1 t2 t1 W D
    x = windowed(x.permute(4, 0, 1, 2, 3, 5), ratio[2])  # w2 w1 h2 h1 t2 t1 D
    return x.permute(5, 3, 1, 4, 2, 0, 6).flatten(3, 5).flatten(0, 2)


def windowed(x: Tensor, ratio: int) -> Tensor:
    """The first axis as [place in the window, window]."""
    length = len(x)
    count = math.ceil(length / ratio)
    if length % ratio == 0:
        return x.reshape(count, ratio, *x.shape[1:]).transpose(0, 1)
    size = math.ceil(length / count)
    whole, end, found = length % count or count, 0, []
    for i in range(count):
        begin = end if i < whole else end - 1
        end = begin + size
        found.append(x[begin:end])
    return torch.stack(found, dim=1)


def inject(injector: Injector | None, queries_QD: Tensor, condition: Condition | None) -> Tensor:
    if injector is None:
        return queries_QD
    config, text = injector.config, condition
    assert text is not None
    if isinstance(injector, Fine):
        assert text.tokens_BLD is not None
        return inject_fine(injector, queries_QD, text_path(config, injector.text, text.tokens_BLD))
    assert text.pooled_BD is not None
    text_QD = text_path(config, injector.text, text.pooled_BD.repeat(len(queries_QD), 1))
    if config.kind is Injection.DIRECT:
        return text_QD
    assert isinstance(injector, Coarse)
    scale_QD, shift_QD = torch.chunk(injector.scale_shift(text_QD), 2, dim=-1)
    if config.norm_last:
        coarse_QD: Tensor = injector.coarse_norm(queries_QD * (1 + scale_QD) + shift_QD)
        return coarse_QD
    first_QD: Tensor = injector.coarse_norm(queries_QD)
    return first_QD * (1 + scale_QD) + shift_QD


def inject_fine(injector: Fine, queries_QD: Tensor, text_LD: Tensor) -> Tensor:
    if injector.config.norm_last:
        last_QD: Tensor = injector.fine_norm(queries_QD + attend(injector.attention, queries_QD, text_LD, text_LD))
        return last_QD
    return attend(injector.attention, injector.fine_norm(queries_QD), text_LD, text_LD)


def text_path(config: InjectionConfig, path: nn.Module, text: Tensor) -> Tensor:
    if config.text is TextPath.MLP:
        changed: Tensor = path(text)
        return changed
    return gated(text, path if isinstance(path, Gated) else None)


def global_(part: GlobalCompressor, values_THWD: Tensor, condition: Condition | None) -> Tensor:
    *grid, channels = values_THWD.shape
    position_THWD = position(part.config.position, tuple(grid), channels).to(values_THWD)
    keys_ND = (values_THWD + position_THWD).flatten(0, 2)
    values_ND = keys_ND if part.config.position_on_values else values_THWD.flatten(0, 2)
    queries_QD = inject(part.injector, part.tokens, condition)
    found_QD = attend(part.attention, queries_QD, keys_ND, values_ND)
    tokens_QO: Tensor = part.readout(queries_QD + found_QD if part.config.residual else found_QD)
    return tokens_QO


def attend(weights: AttentionWeights, queries_QD: Tensor, keys_ND: Tensor, values_ND: Tensor) -> Tensor:
    """Multi-head attention with every projection made, softmax in float32."""
    projected = zip((weights.query, weights.key, weights.value), (queries_QD, keys_ND, values_ND), strict=True)
    q, k, v = (layer(x).unflatten(-1, (weights.heads, -1)).transpose(0, 1) for layer, x in projected)
    scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    shares = torch.softmax(scores, dim=-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
    found: Tensor = weights.out((shares @ v).transpose(0, 1).flatten(1))
    return found


@lru_cache(maxsize=8)
def position(kind: Position, grid: tuple[int, ...], channels: int) -> Tensor:
    """The position embedding of every token, [T,H,W,D], float64; kept, as the authors' code does."""
    t, h, w = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    if kind is Position.SUM:
        joined = wave(t, channels) + wave(h, channels) + wave(w, channels)
    else:
        shares = (3 * channels // 8, 3 * channels // 8, 2 * channels // 8)
        joined = torch.cat([wave(axis, share) for axis, share in zip((h, w, t), shares, strict=True)], dim=-1)
    return joined


def wave(place_THW: Tensor, channels: int) -> Tensor:
    found = place_THW.new_zeros(*place_THW.shape, channels)
    for channel in range(0, channels, 2):
        angle = place_THW / 10000 ** (channel / channels)
        found[..., channel] = angle.sin()
        found[..., channel + 1] = angle.cos()
    return found
