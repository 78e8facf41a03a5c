"""How large an InternVideo2 stage-2 model is: the published ones by name, any other by a file beside its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pipeline.models.spec import ModelSpec
from pipeline.stage import UserError

SIZE_FILE = "internvideo2.json"
"""The sizes of a model that is not a published one, as JSON beside its weights: a `Size`."""

Count = Annotated[int, Field(ge=1)]
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class VisionSize:
    """The vision transformer."""

    width: Count
    """Numbers per token."""
    depth: Count
    """Blocks."""
    heads: Count
    mlp_width: Count
    pool_heads: Count
    """Heads of the attention pooling."""
    pool_width: Count
    """Numbers that the pooling gives for a video."""
    image_px: Count
    """Width and height of a frame, pixels."""
    patch_px: Count
    """Width and height of a patch, pixels; a patch covers one frame."""
    frames: Annotated[int, Field(ge=2)]
    """Frames that the position embedding was trained for."""
    image_positions: bool
    """Whether single pictures have a position embedding of their own."""

    @property
    def patches(self) -> int:
        """Patches of a frame."""
        return (self.image_px // self.patch_px) ** 2


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TextSize:
    """The BERT whose lower layers read text. Its upper ones fuse text with video, and no embedding needs them."""

    width: Count
    layers: Count
    """Layers below the fusion layers."""
    fusion_layers: Count
    heads: Count
    mlp_width: Count
    vocabulary: Count
    """Word pieces."""
    positions: Count
    """Word pieces that a text may have at most."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Size:
    """A stage-2 model."""

    file: Annotated[str, Field(min_length=1)]
    """The checkpoint's name in the model's folder; alternatives are separated by |."""
    vision: VisionSize
    text: TextSize
    embedding: Count
    """Numbers of an embedding."""

    def __post_init__(self) -> None:
        vision, text = self.vision, self.text
        divided = {
            "vision.width by vision.heads": vision.width % vision.heads,
            "vision.width by vision.pool_heads": vision.width % vision.pool_heads,
            "vision.image_px by vision.patch_px": vision.image_px % vision.patch_px,
            "text.width by text.heads": text.width % text.heads,
        }
        uneven = [what for what, rest in divided.items() if rest]
        if uneven:
            raise ValueError(f"cannot divide {', '.join(uneven)} without a rest")


_BERT_LARGE = TextSize(
    width=1024, layers=19, fusion_layers=5, heads=16, mlp_width=4096, vocabulary=30522, positions=512
)
"""InternVideo2/multi_modality/configs: config_bert_large.json, and fusion_layer in model.py."""

PUBLISHED: dict[str, Size] = {
    "OpenGVLab/InternVideo2-Stage2_1B-224p-f4": Size(
        file="InternVideo2-stage2_1b-224p-f4.pt",
        vision=VisionSize(
            width=1408, depth=40, heads=16, mlp_width=6144, pool_heads=16, pool_width=768,
            image_px=224, patch_px=14, frames=4, image_positions=True,
        ),
        text=_BERT_LARGE,
        embedding=512,
    ),
    "OpenGVLab/InternVideo2-Stage2_6B-224p-f4": Size(
        file="internvideo2-s2_6b-224p-f4.pt|internvideo2-s2_6b-224p-f4_with_audio_encoder.pt",
        vision=VisionSize(
            width=3200, depth=48, heads=25, mlp_width=12800, pool_heads=16, pool_width=768,
            image_px=224, patch_px=14, frames=4, image_positions=False,
        ),
        text=_BERT_LARGE,
        embedding=768,
    ),
}  # fmt: skip
"""By the hub's repository. Sizes: github.com/OpenGVLab/InternVideo, InternVideo2/multi_modality, at 3965eef:
models/backbones/internvideo2/internvideo2.py and scripts/pretraining/stage2/{1B,6B}/config.py."""


def size_of(spec: ModelSpec) -> Size:
    """The model's sizes. Raises UserError for a model that is neither published nor described beside its weights."""
    if spec.name in PUBLISHED:
        return PUBLISHED[spec.name]
    if spec.path is None:
        raise UserError(
            f"model {spec.key}: the published ones are {', '.join(PUBLISHED)}; for another one set its `path` to a "
            f"folder with its weights, a {SIZE_FILE} that says how large it is, and a vocab.txt"
        )
    file = Path(spec.path).expanduser() / SIZE_FILE
    try:
        return TypeAdapter(Size).validate_json(file.read_bytes(), strict=True)
    except FileNotFoundError:
        raise UserError(
            f"model {spec.key}: not a published one ({', '.join(PUBLISHED)}), and its folder has no {SIZE_FILE} that "
            "says how large it is"
        ) from None
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise UserError(f"model {spec.key}: {file}: {where}: {first['msg']}") from err
