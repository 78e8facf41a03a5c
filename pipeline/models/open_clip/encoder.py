"""An open_clip model loaded: pictures and sentences to unit vectors.

Frames travel to the device as they come, uint8; there they are turned to the model's numbers exactly as open_clip's own
preprocessing does, which leaves nothing to resize. Letters in shapes: N pictures or sentences, D numbers in a vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.models import weights
from pipeline.models.device import inference, room_for, torch_device, torch_dtype
from pipeline.models.open_clip import config as open_clip_config
from pipeline.models.open_clip.config import Known, Options
from pipeline.models.protocols import Frames, Vectors
from pipeline.models.spec import ModelSpec
from pipeline.stage import UserError

if TYPE_CHECKING:
    import torch

_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""open_clip's own names; its bf16 and fp16 keep layer norms in float32."""
_SENTENCES = 64
"""Sentences in one call of the model; a set of categories is 29. Our choice."""


@dataclass(frozen=True)
class Loaded:
    """An open_clip model on its device."""

    spec: ModelSpec
    known: Known
    model: Any
    """The whole model. A `VisionEncoder` keeps no hold of it, so that the text side's memory can go."""
    device: torch.device
    dtype: torch.dtype
    """Type that the towers take."""
    max_batch: int
    """Pictures in one call."""


def load(spec: ModelSpec, options: Options) -> Loaded:
    """Load a model, downloading it the first time. Raises UserError that says what is missing or wrong."""
    weights.require(*open_clip_config.PACKAGES, extra="models")
    known = open_clip_config.known(spec)
    device = torch_device(options.device, options.gpus)
    model = _created(spec, known, _PRECISIONS[options.dtype], device)
    max_batch = options.max_batch or (64 if device.type == "cuda" else 4)
    return Loaded(spec, known, model, device, torch_dtype(options.dtype), max_batch)


def _open_clip() -> Any:
    try:
        import open_clip
    except (ImportError, RuntimeError, OSError) as err:  # torch and torchvision of builds that do not fit each other
        raise UserError(
            f"open_clip is installed and cannot be imported: {_in_a_line(err)}. torch and torchvision must be of one "
            "build; run: pip install --force-reinstall torch torchvision"
        ) from err
    return open_clip


def _created(spec: ModelSpec, known: Known, precision: str, device: torch.device) -> Any:
    """open_clip's model with its weights, ready to infer."""
    open_clip = _open_clip()
    open_clip_config.fetch_companions(spec, known, text=False)
    place = open_clip_config.folder(spec)
    settings: dict[str, Any] = {"precision": precision, "device": device, "require_pretrained": True}
    if known.tag is None:
        source = f"local-dir:{place}"
    else:
        # A file is given and not the tag: open_clip would look for the tag's newest commit, and hide why it cannot.
        source = spec.name
        settings["pretrained"] = str(open_clip_config.checkpoint(spec, place))
        settings["force_preprocess_cfg"] = known.tag.preprocess
        # The architecture's own file says GELU; weights that were trained with QuickGELU would give wrong vectors.
        settings["force_quick_gelu"] = known.tag.quick_gelu
    try:
        model = open_clip.create_model(source, weights_only=True, **settings)
    except Exception as err:  # whatever it is, the files are to blame: they say what is built and hold what goes in
        raise UserError(f"model {spec.key}: open_clip cannot load {place}: {_in_a_line(err)}") from err
    return model.eval().requires_grad_(False)


def _in_a_line(err: Exception) -> str:
    text = " ".join(str(err).split())
    return f"{type(err).__name__}: {text[:300]}{' ...' if len(text) > 300 else ''}"


class VisionEncoder:
    """Pictures to unit vectors, in calls of one size: the same picture gives the same vector in any batch."""

    def __init__(self, loaded: Loaded, tower: Callable[[torch.Tensor], Any]) -> None:
        """`tower` takes pictures [N, 3, H, W] as the model wants them and gives vectors [N, D], first where it gives
        more than one thing."""
        import torch

        preprocess = loaded.model.visual.preprocess_cfg
        spec = open_clip_config.frame_spec(loaded.spec, loaded.known)
        assert open_clip_config.height_and_width(preprocess["size"]) == (spec.height, spec.width), (preprocess, spec)
        self._key, self._device, self._dtype = loaded.spec.key, loaded.device, loaded.dtype
        self._batch_shape = (loaded.max_batch, spec.height, spec.width, 3)
        self._mean, self._std = (
            torch.tensor(preprocess[name], device=loaded.device).reshape(1, 3, 1, 1) for name in ("mean", "std")
        )
        self._tower = tower
        # The first call is as large as all others: what does not fit shows here.
        self.dim: int = self._call(np.zeros((1, *self._batch_shape[1:]), np.uint8)).shape[-1]

    def encode(self, frames: Frames) -> Vectors:
        """Vectors float32 [N, D], each of unit length, of pictures uint8 [N, H, W, 3] RGB."""
        size, *shape = self._batch_shape
        assert frames.dtype == np.uint8 and list(frames.shape[1:]) == shape, (frames.dtype, frames.shape, shape)
        vectors = np.empty((len(frames), self.dim), np.float32)
        for start in range(0, len(frames), size):
            part = frames[start : start + size]
            vectors[start : start + size] = self._call(part)[: len(part)].cpu().numpy()
        return vectors

    def _call(self, frames: Frames) -> torch.Tensor:
        """Vectors of up to `max_batch` pictures, filled up with black ones. Raises UserError when they do not fit."""
        import torch

        plain = frames if frames.flags.writeable and min(frames.strides) > 0 else frames.copy()  # torch takes no others
        with inference(), room_for(self._key, f"{self._batch_shape[0]} pictures"):
            batch_NHWC = torch.zeros(self._batch_shape, dtype=torch.uint8, device=self._device)
            batch_NHWC[: len(frames)] = torch.from_numpy(plain).to(self._device)
            batch_NCHW = batch_NHWC.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
            batch_NCHW.div_(255).sub_(self._mean).div_(self._std)
            vectors = self._tower(batch_NCHW.to(self._dtype))
            if isinstance(vectors, tuple):
                vectors = vectors[0]
            unit: torch.Tensor = torch.nn.functional.normalize(vectors.float(), dim=-1)
            return unit


class TextEncoder:
    """Sentences to unit vectors, in the space of the pictures."""

    def __init__(self, loaded: Loaded) -> None:
        known, spec = loaded.known, loaded.spec
        open_clip_config.fetch_companions(spec, known, text=True)
        source = spec.name if known.tag else f"local-dir:{open_clip_config.folder(spec)}"
        try:
            self._tokenizer = _open_clip().get_tokenizer(source)
        except Exception as err:  # whatever it is, the tokenizer's files are to blame
            raise UserError(f"model {spec.key}: open_clip cannot load its tokenizer: {_in_a_line(err)}") from err
        self._loaded = loaded

    def encode(self, sentences: list[str]) -> Vectors:
        """Vectors float32 [N, D], each of unit length. Raises UserError for a sentence that is longer than the model
        reads."""
        import torch

        for sentence in sentences:
            self._require_short(sentence)
        parts = [np.empty((0, self._loaded.known.model["embed_dim"]), np.float32)]
        for start in range(0, len(sentences), _SENTENCES):
            with inference():
                tokens = self._tokenizer(sentences[start : start + _SENTENCES]).to(self._loaded.device)
                vectors = self._loaded.model.encode_text(tokens)
                parts.append(torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy())
        return np.concatenate(parts)

    def _require_short(self, sentence: str) -> None:
        most = self._tokenizer.context_length
        count = _tokens(self._tokenizer, sentence)
        if count > most:
            raise UserError(
                f"category {sentence!r}: {count} tokens, and {self._loaded.spec.key} reads {most}; the rest would be "
                "cut off. Shorten it"
            )


def _tokens(tokenizer: Any, sentence: str) -> int:
    """Tokens of a sentence with the marks around it, uncut."""
    if hasattr(tokenizer, "encode"):  # open_clip's own
        return len(tokenizer.encode(sentence)) + 2
    return len(tokenizer.tokenizer(tokenizer.clean_fn(sentence))["input_ids"])
