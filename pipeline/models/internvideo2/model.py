"""InternVideo2 stage 2 put together: the vision and the text side, and their projections to the shared space.

Letters in names of tensors as in `vision` and `text`; V numbers of an embedding.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.models.internvideo2.checkpoint import fill
from pipeline.models.internvideo2.sizes import Size
from pipeline.models.internvideo2.text import TextEncoder
from pipeline.models.internvideo2.vision import VisionTransformer


class InternVideo2(nn.Module):
    """Modules carry the names of the published checkpoints."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.vision_encoder = VisionTransformer(size.vision)
        self.text_encoder = TextEncoder(size.text)
        self.vision_proj = nn.Linear(size.vision.pool_width, size.embedding)
        self.text_proj = nn.Linear(size.text.width, size.embedding)

    @property
    def device(self) -> torch.device:
        return self.vision_proj.weight.device

    def videos(self, frames_BTHWC: Tensor) -> Tensor:
        """Embeddings [B, V], of any length, of normalised frames."""
        pooled_BM = self.vision_encoder(frames_BTHWC.to(self.vision_proj.weight.dtype))
        embeddings_BV: Tensor = self.vision_proj(pooled_BM)
        return embeddings_BV

    def texts(self, pieces_CS: Tensor, mask_CS: Tensor) -> Tensor:
        """Embeddings [C, V], of any length."""
        embeddings_CV: Tensor = self.text_proj(self.text_encoder(pieces_CS, mask_CS))
        return embeddings_CV


def load_model(size: Size, checkpoint: Path, dtype: torch.dtype) -> InternVideo2:
    """A model with a checkpoint's weights, on the CPU. Raises UserError for a file that does not fit."""
    with torch.device("meta"):  # no memory yet: the checkpoint's tensors become the parameters
        model = InternVideo2(size)
    fill(model, checkpoint, size, dtype)
    model.text_encoder.fill_buffers()
    return model.eval().requires_grad_(False)
