"""Pictures to vectors by an open_clip model's image side; the frame embedder of `scan`.

Two outputs, by the spec's `variant`:

- the usual one: what open_clip's `encode_image` gives, in the space shared with text;
- `cls`: the class token as it leaves the last layer, before the layer norm and the projection that follow. By it
  ShareGPT4Video compares frames: their published code takes transformers' `hidden_states[-1][:, 0]` of openai's
  ViT-L/14-336, and their threshold of 0.93 is one for these vectors. (Their code hands frames over as OpenCV reads
  them, blue first; here they are red first, as the model was trained.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.models import registry
from pipeline.models.open_clip import config as open_clip_config
from pipeline.models.open_clip.config import Options as Options
from pipeline.models.open_clip.encoder import VisionEncoder
from pipeline.models.open_clip.encoder import load as load_model
from pipeline.models.protocols import Card, Frames, Vectors
from pipeline.models.spec import ModelSpec
from pipeline.stage import UserError

if TYPE_CHECKING:
    import torch

VARIANTS = ("", "cls")


def card(spec: ModelSpec) -> Card:
    own, known = _options(spec), open_clip_config.known(spec)
    if spec.variant not in VARIANTS:
        raise UserError(f"model {spec.key}: unknown variant {spec.variant!r}; known: cls, or none for the usual output")
    if spec.variant == "cls" and not open_clip_config.has_class_token(known):
        raise UserError(
            f"model {spec.key}: it has no variant cls, since its vision tower has no class token that we know"
        )
    frame_spec = open_clip_config.frame_spec(spec, known)
    return Card(frame_spec=frame_spec.to_json(), frames=1, gpus=own.gpus, replicas=own.replicas)


def lacks(spec: ModelSpec) -> list[str]:
    return open_clip_config.lacking(spec, text=False)


def load(spec: ModelSpec) -> OpenClipFrameEmbedder:
    """Raises UserError that says what is missing or wrong."""
    card(spec)
    return OpenClipFrameEmbedder(spec, _options(spec))


def _options(spec: ModelSpec) -> Options:
    own: Options = registry.options("frame_embedder", spec)
    return own


class OpenClipFrameEmbedder:
    """See the module's text; a `FrameEmbedder`."""

    def __init__(self, spec: ModelSpec, options: Options) -> None:
        self.key = spec.key
        loaded = load_model(spec, options)
        visual = loaded.model.visual
        self._encoder = VisionEncoder(loaded, _class_token_of(visual) if spec.variant == "cls" else visual)
        self.dim = self._encoder.dim
        self.max_batch = loaded.max_batch

    def embed(self, frames: Frames) -> Vectors:
        """Embeddings [B, D] of pictures uint8 [B, H, W, 3] RGB, each of unit length."""
        return self._encoder.encode(frames)


def _class_token_of(visual: Any) -> Any:
    """The class token of the last layer, of pictures [B, 3, H, W]."""

    def class_token(pictures: torch.Tensor) -> torch.Tensor:
        layers = visual.forward_intermediates(
            pictures, indices=1, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
        )
        token: torch.Tensor = layers["image_intermediates_prefix"][-1][:, 0]
        return token

    return class_token
