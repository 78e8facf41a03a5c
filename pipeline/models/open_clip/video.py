"""Videos and sentences to vectors by an open_clip model, which knows pictures only.

A video's vector is the mean of its frames' unit vectors, brought to unit length again: every frame counts the same,
however long the model's own vector for it is. The cosine to a sentence is then the mean of the frames' cosines to it,
divided by the length of the mean, so that of two videos with the same mean cosine the more varied one ranks higher.
CLIP4Clip (Luo et al. 2021) calls it mean pooling. The order of the frames does not count.
"""

from __future__ import annotations

import numpy as np

from pipeline.models import registry
from pipeline.models.open_clip import config as open_clip_config
from pipeline.models.open_clip.config import Options as Options
from pipeline.models.open_clip.encoder import TextEncoder, VisionEncoder
from pipeline.models.open_clip.encoder import load as load_model
from pipeline.models.protocols import Card, Frames, Vectors
from pipeline.models.spec import ModelSpec
from pipeline.stage import UserError

FRAMES = 4
"""Frames of a video when the config does not say: as many as the paper's embedder looks at (B.2)."""


def card(spec: ModelSpec) -> Card:
    own, known = _options(spec), open_clip_config.known(spec)
    if spec.variant:
        raise UserError(f"model {spec.key}: a video-text embedder has no variants; got {spec.variant!r}")
    frame_spec = open_clip_config.frame_spec(spec, known)
    return Card(frame_spec=frame_spec.to_json(), frames=FRAMES, gpus=own.gpus, replicas=own.replicas)


def lacks(spec: ModelSpec) -> list[str]:
    return open_clip_config.lacking(spec, text=True)


def load(spec: ModelSpec) -> OpenClipVideoEmbedder:
    """Raises UserError that says what is missing or wrong."""
    card(spec)
    return OpenClipVideoEmbedder(spec, _options(spec))


def _options(spec: ModelSpec) -> Options:
    own: Options = registry.options("video_text_embedder", spec)
    return own


class OpenClipVideoEmbedder:
    """See the module's text; a `VideoTextEmbedder`."""

    def __init__(self, spec: ModelSpec, options: Options) -> None:
        self.key = spec.key
        loaded = load_model(spec, options)
        self._pictures = VisionEncoder(loaded, loaded.model.visual)
        self._sentences = TextEncoder(loaded)
        self.dim = self._pictures.dim
        self.max_batch = max(1, loaded.max_batch // FRAMES)

    def embed_videos(self, frames: Frames) -> Vectors:
        """Embeddings [B, D], each of unit length, of videos uint8 [B, T, H, W, 3] RGB."""
        videos, per_video = frames.shape[:2]
        vectors = self._pictures.encode(frames.reshape(-1, *frames.shape[2:])).reshape(videos, per_video, self.dim)
        means = vectors.mean(axis=1)
        unit: Vectors = means / np.linalg.norm(means, axis=1, keepdims=True)
        return unit

    def embed_texts(self, sentences: list[str]) -> Vectors:
        """Embeddings [C, D], each of unit length. Raises UserError for one that is longer than the model reads."""
        return self._sentences.encode(sentences)
