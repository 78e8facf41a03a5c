"""Scan: the one full decode of a video. Content scores of all frames, and embeddings of the frames on a time grid.

Nothing is decided here: neither depends on a threshold, so `split` and `dedup` can move theirs afterwards without
decoding again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from pipeline.media.score import ScoreMode
from pipeline.models.batching import Batcher
from pipeline.models.protocols import Card, FrameEmbedder
from pipeline.models.registry import card, identity, load_frame_embedder
from pipeline.models.spec import ModelSpec
from pipeline.records import Grain
from pipeline.stage import Chunk, Output, Rejected, Resources, Row, TwoStepStage, Workspace

CHUNK_BYTES = 4 * 2**20
"""Frames that travel to the model at once, bytes: 341 at 64 x 64 pixels, 12 at 336 x 336."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ScanConfig:
    """What is measured while a video is decoded."""

    model: ModelSpec
    """The frame embedder (the paper's: CLIP, sec. 3.2)."""
    score: ScoreMode = "fast"
    """`exact` scales frames as PySceneDetect does and finds its very cuts; `fast` costs less and moves a few
    scores a little."""
    grid_interval_s: Annotated[float, Field(gt=0)] = 0.5
    """Seconds between embedded frames. Our choice: the paper says "densely sampled" (sec. 3.2) and no number. 0.5 gives
    the shortest clip that is kept (5 s) ten samples, and it divides ShareGPT4Video's 2 s, so that its candidates are
    among the frames of this grid."""
    max_decode_error_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Reject a video when errors / (errors + decoded frames) is above this. Our choice."""


class Scan(TwoStepStage):
    """A video to its frames' times, scores and grid embeddings."""

    name: ClassVar[str] = "scan"
    grain_in: ClassVar[Grain] = Grain.VIDEO
    grain_out: ClassVar[Grain] = Grain.VIDEO
    reads: ClassVar[tuple[str, ...]] = ("ingest.uri", "ingest.duration_s")

    def __init__(self, config: ScanConfig) -> None:
        self.config = config

    @cached_property
    def _card(self) -> Card:
        """Looked up on first use: who reads a finished run need not have the model. Raises UserError."""
        return card("frame_embedder", self.config.model)

    @property
    def resources(self) -> Resources:
        return self._card.resources(batch_size=4)

    def depends_on(self) -> Mapping[str, str]:
        return identity("frame_embedder", self.config.model)

    def prepare(self, row: Row, work: Workspace) -> Iterator[Chunk]:
        args = {
            "uri": row["uri"],
            "score": self.config.score,
            "grid_interval_s": self.config.grid_interval_s,
            "frame_spec": self._card.frame_spec,
            "chunk_bytes": CHUNK_BYTES,
        }
        return work.guarded("scan", args, row["duration_s"])

    def load_model(self) -> ScanModel:
        return ScanModel(load_frame_embedder(self.config.model))

    def finish(self, row: Row, prepared: list[dict[str, Any]], inferred: list[Chunk]) -> Output:
        totals = prepared[-1]  # only the last chunk knows them
        _check_errors(totals["decode_errors"], totals["frames_decoded"], self.config.max_decode_error_share)
        embeddings = np.concatenate([answer.arrays["embeddings"] for answer in inferred])
        joined = {name: np.concatenate([info[name] for info in prepared]) for name in _PER_FRAME}
        assert len(joined["grid_frames"]) == len(embeddings), (len(joined["grid_frames"]), len(embeddings))
        columns = {
            "frame_model": self.config.model.key,
            **{name: int(totals[name]) for name in _TOTALS},
            **joined,
            "grid_embeddings": embeddings.reshape(-1),
            "embedding_dim": embeddings.shape[1],
        }
        return Output(rows=[columns], frames_decoded=columns["frames_decoded"])


def _check_errors(errors: int, frames: int, most: float) -> None:
    share = errors / (errors + frames)
    if share > most:
        raise Rejected(
            "decode_failed",
            f"{errors} errors beside {frames} decoded frames: a share of {share:.3f}, above the limit of {most:g} "
            "(scan.max_decode_error_share)",
        )


_PER_FRAME = ("frame_pts", "frame_scores", "grid_frames")
"""Columns that every chunk brings a stretch of."""
_TOTALS = ("time_base_num", "time_base_den", "first_pts", "end_pts", "frames_decoded", "decode_errors")
"""Columns that come with the last chunk."""


class ScanModel:
    """A loaded frame embedder that the frames of many callers share."""

    def __init__(self, model: FrameEmbedder) -> None:
        self._batcher = Batcher(model.embed, model.max_batch, model.dim)

    async def infer(self, chunk: Chunk) -> Chunk:
        """`frames` uint8 [N, H, W, 3], N from 0, to `embeddings` float32 [N, D]."""
        return Chunk(arrays={"embeddings": await self._batcher.submit(chunk.arrays["frames"])})

    def close(self) -> None:
        """An embedder starts nothing that outlives its process."""
