"""InternVideo2 stage 2 as a video-text embedder, on plain PyTorch.

After github.com/OpenGVLab/InternVideo at 3965eef, folder InternVideo2/multi_modality. Frames as its retrieval
evaluation takes them (dataset/video_utils.py, dataset/__init__.py): 4, from the middles of equal parts of the video;
stretched to 224 x 224, bicubic; scaled by ImageNet's mean and deviation. Two things differ by a little: the middle is
found by time and not by counting frames, one frame apart at most; and pictures are averaged as they shrink, as
torchvision does since 0.17, while the version that the original pins (0.14) did not average tensors. The embeddings
are those of its contrast of video and text; the matching head, which re-ranks the evaluation's best 128, is not used.

The arithmetic is its plain path's, that of its demo. Its fused path, with which it trains and evaluates, takes GELU's
tanh form: embeddings 1e-4 apart for random weights of the 1B model, where computing in bfloat16 makes 7e-3.
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from pipeline.media.frames import FrameSpec
from pipeline.models import registry, weights
from pipeline.models.device import Device, DType, room_for, torch_device, torch_dtype
from pipeline.models.internvideo2.sizes import Size, size_of
from pipeline.models.protocols import Card, Frames, Vectors
from pipeline.models.spec import ModelSpec
from pipeline.stage import UserError

if TYPE_CHECKING:
    import torch

    from pipeline.models.internvideo2.model import InternVideo2
    from pipeline.models.internvideo2.text import Tokenizer

_PACKAGES, _EXTRA = ("torch", "transformers"), "models"
_VOCABULARY = "vocab.txt"
_FOR_TEXT = f"(for the {_VOCABULARY} of the text side, whose folder is the option text_path)"
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of R, G, B from 0 to 1: ImageNet's, as the original's get_test_transform has them."""
_GPU_BATCH, _CPU_BATCH = 16, 1
"""Videos in a call when the config does not say."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Options:
    """Settings of this family, beside those of every model."""

    dtype: DType = "float32"
    """Type of numbers to compute with. The original evaluates in bfloat16; float32 is the exact one."""
    text_model: str = "google-bert/bert-large-uncased"
    """The hub's repository with the vocabulary of the text side (the weights are in the checkpoint itself)."""
    text_revision: str = "6da4b6a26a1877e173fca3225479512db81a5e5b"
    """Its commit: the one that NVIDIA's cosmos-curate pins for this very model."""
    text_path: str | None = field(default=None, metadata={"place": True})
    """A local folder with its vocab.txt; None: the model's own `path` where that has one, else the hub."""
    device: Device = field(default="auto", metadata={"place": True})
    """Where to compute. auto: on the CPU where `gpus` is 0."""
    max_batch: Annotated[int, Field(ge=1)] | None = field(default=None, metadata={"place": True})
    """Videos in a call; every call is filled up to this many, so that a video's vector does not depend on how many
    were waiting. None: 16 on a GPU (our choice: 16,400 tokens), 1 on a CPU, which the 1,025 tokens of one video keep
    busy (with more, on several cores, a video's place in the call shows in its vector's last digit)."""
    gpus: Annotated[float, Field(ge=0)] = field(default=0.0, metadata={"place": True})
    """GPUs that each process with the model reserves; a share such as 0.25 lets others onto the same one."""
    replicas: Annotated[int, Field(ge=1)] = field(default=1, metadata={"place": True})
    """Processes that load the model."""


def card(spec: ModelSpec) -> Card:
    if spec.variant:
        raise UserError(f"model {spec.key}: it has no variants; got {spec.variant!r}")
    options, size = _options(spec), size_of(spec).vision
    frame_spec = FrameSpec(width=size.image_px, height=size.image_px, resize="stretch", interpolation="bicubic")
    return Card(frame_spec=frame_spec.to_json(), frames=size.frames, gpus=options.gpus, replicas=options.replicas)


def lacks(spec: ModelSpec) -> list[str]:
    try:
        card(spec)
    except UserError as err:
        return [str(err)]
    size, options = size_of(spec), _options(spec)
    vocabulary = weights.lacking_weights(_text_spec(spec, options), [_VOCABULARY])
    return [
        *weights.lacking_packages(_PACKAGES, _EXTRA),
        *weights.lacking_weights(spec, [size.file]),
        *(type(line)(f"{line} {_FOR_TEXT}") for line in vocabulary),  # what can be downloaded stays marked so
    ]


def load(spec: ModelSpec) -> InternVideo2Embedder:
    """Raises UserError that says what is missing or wrong."""
    card(spec)
    options, size = _options(spec), size_of(spec)
    weights.require(*_PACKAGES, extra=_EXTRA)
    device = torch_device(options.device, options.gpus)
    vocabulary = _vocabulary(spec, options)
    checkpoint = _checkpoint(weights.folder(spec, [size.file]), size)

    from pipeline.models.internvideo2.model import load_model
    from pipeline.models.internvideo2.text import Tokenizer

    tokenizer = Tokenizer(vocabulary, size.text)
    model = load_model(size, checkpoint, torch_dtype(options.dtype)).to(device)
    usual = _GPU_BATCH if device.type == "cuda" else _CPU_BATCH
    embedder = InternVideo2Embedder(spec.key, model, tokenizer, options.max_batch or usual)
    if device.type == "cuda":  # a call as large as all others: what does not fit shows here
        side = size.vision.image_px
        embedder.embed_videos(np.zeros((1, size.vision.frames, side, side, 3), np.uint8))
    return embedder


class InternVideo2Embedder:
    """See the module's text; a `VideoTextEmbedder`."""

    def __init__(self, key: str, model: InternVideo2, tokenizer: Tokenizer, max_batch: int) -> None:
        self.key = key
        self.dim = model.size.embedding
        self.max_batch = max_batch
        self._model = model
        self._tokenizer = tokenizer

    def embed_videos(self, frames: Frames) -> Vectors:
        """Embeddings [B, D], each of unit length, of videos uint8 [B, T, H, W, 3] RGB, H = W = 224, T frames in time
        order. For another T than the model's 4 its position embedding is interpolated, as the original does. Raises
        UserError when the GPU has no room for them."""
        side = self._model.size.vision.image_px
        assert frames.dtype == np.uint8 and frames.shape[2:] == (side, side, 3), (frames.dtype, frames.shape)
        vectors = [np.empty((0, self.dim), np.float32)]
        for start in range(0, len(frames), self.max_batch):
            part = frames[start : start + self.max_batch]
            filled = np.zeros((self.max_batch, *frames.shape[1:]), np.uint8)
            filled[: len(part)] = part
            vectors.append(self._embed(filled)[: len(part)])
        return np.concatenate(vectors)

    def _embed(self, frames: Frames) -> Vectors:
        import torch

        with torch.inference_mode(), room_for(self.key, f"{len(frames)} videos of {frames.shape[1]} frames"):
            frames_BTHWC = torch.from_numpy(frames).to(self._model.device).to(torch.float32) / 255
            mean_C, deviation_C = (torch.tensor(of, device=frames_BTHWC.device) for of in (_MEAN, _DEVIATION))
            return _unit(self._model.videos((frames_BTHWC - mean_C) / deviation_C))

    def embed_texts(self, sentences: list[str]) -> Vectors:
        """Embeddings [C, D], each of unit length. Raises UserError for a sentence without a word or with too many."""
        import torch

        pieces_CS, mask_CS = (of.to(self._model.device) for of in self._tokenizer(sentences))
        vectors = [np.empty((0, self.dim), np.float32)]
        with torch.inference_mode():
            for i in range(len(sentences)):  # one by one: the same vectors in any company
                vectors.append(_unit(self._model.texts(pieces_CS[i : i + 1], mask_CS[i : i + 1])))
        return np.concatenate(vectors)


def _unit(vectors_BD: torch.Tensor) -> Vectors:
    """Vectors scaled to unit length, on the CPU."""
    from torch.nn import functional

    unit: Vectors = functional.normalize(vectors_BD.float(), dim=-1).cpu().numpy()
    return unit


def _options(spec: ModelSpec) -> Options:
    options: Options = registry.options("video_text_embedder", spec)
    return options


def _text_spec(spec: ModelSpec, options: Options) -> ModelSpec:
    """Where the text side's vocabulary is."""
    path = options.text_path
    if path is None and spec.path is not None and (Path(spec.path).expanduser() / _VOCABULARY).is_file():
        path = spec.path
    return ModelSpec(family="bert", name=options.text_model, revision=options.text_revision, path=path)


def _vocabulary(spec: ModelSpec, options: Options) -> Path:
    try:
        return weights.folder(_text_spec(spec, options), [_VOCABULARY]) / _VOCABULARY
    except UserError as err:
        raise UserError(f"{err} {_FOR_TEXT}") from err


def _checkpoint(folder: Path, size: Size) -> Path:
    """The checkpoint's file in the model's folder."""
    (name,), _ = weights.present(weights.files_in(folder), [size.file])
    return folder / name
