"""Embed: one vector per video, by a video-text embedder, from a few frames found by seek.

Nothing is decided here. `select` compares the vectors with the category sentences, as often as anyone likes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from pipeline.models.batching import Batcher
from pipeline.models.protocols import Card, VideoTextEmbedder
from pipeline.models.registry import card, identity, load_video_text_embedder
from pipeline.models.spec import ModelSpec
from pipeline.records import Grain
from pipeline.stage import Chunk, Output, Resources, Row, TwoStepStage, Workspace


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class EmbedConfig:
    """Which model looks at how much of a video."""

    model: ModelSpec
    """The video-text embedder (the paper's: InternVideo2, sec. 3.2 and B.2)."""
    frames: Annotated[int, Field(ge=1, le=256)] | None = None
    """Frames, in the middles of so many equal parts of the video; None: as many as the model was made for (the paper's
    4, sec. 3.2 and B.2)."""


class Embed(TwoStepStage):
    """A video to its embedding."""

    name: ClassVar[str] = "embed"
    grain_in: ClassVar[Grain] = Grain.VIDEO
    grain_out: ClassVar[Grain] = Grain.VIDEO
    reads: ClassVar[tuple[str, ...]] = ("ingest.uri", "ingest.duration_s")

    def __init__(self, config: EmbedConfig) -> None:
        self.config = config

    @cached_property
    def _card(self) -> Card:
        """Looked up on first use: who reads a finished run need not have the model. Raises UserError."""
        return card("video_text_embedder", self.config.model)

    @property
    def resources(self) -> Resources:
        return self._card.resources(batch_size=16)

    def depends_on(self) -> Mapping[str, str]:
        return identity("video_text_embedder", self.config.model)

    def prepare(self, row: Row, work: Workspace) -> Iterator[Chunk]:
        count = self.config.frames or self._card.frames
        args = {"uri": row["uri"], "frame_spec": self._card.frame_spec, "count": count}
        parts = list(work.guarded("sample", args, row["duration_s"]))
        # A model judges all frames at once, so they travel together; they are few.
        frames = np.concatenate([part.arrays["frames"] for part in parts])
        yield Chunk(arrays={"frames": frames}, info={"frames_decoded": parts[-1].info["frames_decoded"]})

    def load_model(self) -> EmbedModel:
        return EmbedModel(load_video_text_embedder(self.config.model))

    def finish(self, row: Row, prepared: list[dict[str, Any]], inferred: list[Chunk]) -> Output:
        (sampled,), (answer,) = prepared, inferred
        columns = {"embedding": answer.arrays["embedding"], "model": self.config.model.key}
        return Output(rows=[columns], frames_decoded=sampled["frames_decoded"])


class EmbedModel:
    """A loaded video-text embedder that the videos of many callers share."""

    def __init__(self, model: VideoTextEmbedder) -> None:
        self._batcher = Batcher(model.embed_videos, model.max_batch, model.dim)

    async def infer(self, chunk: Chunk) -> Chunk:
        """`frames` uint8 [T, H, W, 3] of one video to `embedding` float32 [D]."""
        (embedding,) = await self._batcher.submit(chunk.arrays["frames"][None])
        return Chunk(arrays={"embedding": embedding})

    def close(self) -> None:
        """An embedder starts nothing that outlives its process."""
