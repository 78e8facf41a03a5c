"""Reading InternVideo2's checkpoints: only tensors are unpickled, and every name in a file is accounted for."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.models.internvideo2.sizes import SIZE_FILE, Size
from pipeline.stage import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_WRAPPERS = ("model", "module")
"""Under which key a file may keep its tensors: as plain training writes it, as DeepSpeed does. The first wins."""
_SHOWN = 12
"""Names that an error lists of each kind."""
_WORDS = r"(weight|bias)"


def unused(size: Size) -> dict[str, str]:
    """What a stage-2 checkpoint holds beside what the embeddings need: a pattern of names, and what it is for."""
    fusion = "|".join(str(size.text.layers + i) for i in range(size.text.fusion_layers))
    layer = rf"text_encoder\.bert\.encoder\.layer\.({fusion})"
    self_attention = rf"(self\.(query|key|value)|output\.(dense|LayerNorm))\.{_WORDS}"
    table = {
        rf"vision_encoder\.clip_decoder\.\d+\.(head|norm)\.{_WORDS}": "decoders to the training's teacher",
        rf"vision_encoder\.final_clip_decoder\.(head|norm)\.{_WORDS}": "decoder of the pooled vector to the teacher",
        r"vision_encoder\.clip_(img_)?pos_embed": "positions for those decoders",
        rf"{layer}\.attention\.{self_attention}": "fusion layers",
        rf"{layer}\.(intermediate\.dense|output\.(dense|LayerNorm))\.{_WORDS}": "fusion layers",
        rf"{layer}\.crossattention\.{self_attention}": "fusion layers' attention to the video",
        r"text_encoder\.bert\.embeddings\.position_ids": "a constant: 0, 1, 2 ...",
        rf"text_encoder\.cls\.predictions\.(bias|decoder\.{_WORDS}|transform\.(dense|LayerNorm)\.{_WORDS})": (
            "masked language modelling"
        ),
        rf"itm_head\.{_WORDS}": "matching of a text and a video, by the fusion layers",
        r"temp": "temperature of the training's contrast",
    }
    if not size.vision.image_positions:  # the 6B model was trained with sound
        table |= {
            r"audio_encoder\..+": "sound",
            rf"(audio_proj|av_fusion|a(v?)tm_head)\.{_WORDS}": "sound",
            rf"av_concat_(vision|audio)_proj\.[01]\.{_WORDS}": "sound and video to the fusion layers",
        }
    return table


@dataclass(frozen=True)
class Account:
    """The names of a checkpoint, each in one list, and those that are not there."""

    used: list[str]
    unused: dict[str, list[str]]
    """By what they are for."""
    missing: list[str]
    unknown: list[str]
    misshapen: list[str]
    """Names with the shape that came and the one expected."""

    @property
    def complaints(self) -> list[str]:
        kinds = {"missing": self.missing, "unknown": self.unknown, "of another shape": self.misshapen}
        return [f"{len(names)} {kind}: {_some(names)}" for kind, names in kinds.items() if names]


Shapes = Mapping[str, tuple[int, ...]]


def account(found: Shapes, expected: Shapes, size: Size) -> Account:
    """Every name of a checkpoint against those that the model needs."""
    patterns = {re.compile(pattern): purpose for pattern, purpose in unused(size).items()}
    left: dict[str, list[str]] = {purpose: [] for purpose in patterns.values()}
    unknown: list[str] = []
    for name in found:
        if name not in expected:
            purpose = next((purpose for pattern, purpose in patterns.items() if pattern.fullmatch(name)), None)
            (unknown if purpose is None else left[purpose]).append(name)
    used = [name for name in expected if name in found]
    return Account(
        used=used,
        unused={purpose: names for purpose, names in left.items() if names},
        missing=[name for name in expected if name not in found],
        unknown=unknown,
        misshapen=[
            f"{name} {list(found[name])}, expected {list(expected[name])}"
            for name in used
            if found[name] != expected[name]
        ],
    )


def fill(model: nn.Module, file: Path, size: Size, dtype: torch.dtype) -> Account:
    """Give a model that was made without memory the checkpoint's tensors, as `dtype`. Raises UserError."""
    tensors = read(file)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = account({name: tuple(tensor.shape) for name, tensor in tensors.items()}, expected, size)
    if found.complaints:
        raise UserError(
            f"{file}: not the InternVideo2 stage-2 checkpoint that was expected; of its tensors "
            f"{'; '.join(found.complaints)}. A model of another size is described by {SIZE_FILE} beside its weights"
        )
    model.load_state_dict({name: tensors[name].to(dtype) for name in expected}, strict=True, assign=True)
    return found


def read(file: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors by name, left on disk until they are used. Raises UserError for anything but tensors."""
    import torch

    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (OSError, MemoryError):
        raise
    except Exception as err:  # whatever bytes that are no checkpoint make of the unpickler
        reason = next(iter(str(err).splitlines()), "") or type(err).__name__
        raise UserError(
            f"{file}: not a checkpoint that holds tensors only; nothing else in it was run. {reason}"
        ) from err
    inner = next((loaded[key] for key in _WRAPPERS if isinstance(loaded, dict) and key in loaded), loaded)
    if not isinstance(inner, dict) or not inner or not all(isinstance(t, torch.Tensor) for t in inner.values()):
        raise UserError(f"{file}: expected tensors by name, at the top or under {' or '.join(map(repr, _WRAPPERS))}")
    return inner


def _some(names: Iterable[str]) -> str:
    """The first few of many names."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
