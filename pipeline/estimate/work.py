"""How much a model computes, in GFLOP (10**9 multiplications and additions, each counted)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.estimate.asked import ModelUse
from pipeline.estimate.rates import Rates, work_name
from pipeline.models.footprint import NUMBER_BYTES, PUBLISHED, footprint_of
from pipeline.models.internvideo2.sizes import VisionSize, size_of
from pipeline.stage import UserError


def gflop_of_item(use: ModelUse, rates: Rates) -> float | None:
    """For a video (video-text embedder) or a picture (frame embedder); None for a model that nothing is known of."""
    if use.builtin:
        return 0.0
    if use.spec.family == "internvideo2":
        try:
            return vision_gflop(replace(size_of(use.spec).vision, frames=use.frames))
        except UserError:
            return None
    # OpenAI's own weights want another activation, which open_clip puts into the name and which costs the same.
    found = rates.find(work_name("picture", use.spec.name.removesuffix("-quickgelu")))
    if found is None:
        return None
    return found * use.frames if use.role == "video_text_embedder" else found


_PICTURE_NUMBERS = {
    "ViT-B-32": (512, 768),
    "ViT-B-16": (512, 768),
    "ViT-L-14": (768, 1024),
    "ViT-L-14-336": (768, 1024),
    "ViT-H-14": (1024, 1280),
    "ViT-bigG-14": (1280, 1664),
}
"""Numbers of a picture's vector after the projection, and of the class token before it (variant cls): embed_dim and
vision_cfg.width of open_clip's model_configs."""


def picture_bytes(use: ModelUse) -> float | None:
    """Of a picture's vector as scan stores it, in float32; None where the model's size is not known here."""
    numbers = _PICTURE_NUMBERS.get(use.spec.name.removesuffix("-quickgelu"))
    if use.spec.family != "open_clip" or numbers is None:
        return None
    return 4.0 * numbers[use.spec.variant == "cls"]


def vision_gflop(size: VisionSize) -> float:
    """A video through a vision transformer: two operations for each weight and token, and attention's two products."""
    tokens = size.frames * size.patches + 1
    weights = size.depth * (4 * size.width**2 + 2 * size.width * size.mlp_width)
    attention = size.depth * 4 * tokens**2 * size.width
    return (2 * weights * tokens + attention) / 1e9


def gflop_of_token(use: ModelUse) -> float | None:
    """A token through a describer's language model: two operations for each weight; None for one that is not known."""
    known = PUBLISHED.get(use.spec.name)
    if known is None and use.spec.path is not None:
        known = footprint_of(Path(use.spec.path).expanduser())
    return None if known is None else 2 * known.weight_bytes / NUMBER_BYTES / 1e9
