"""What the three roles of models can do, and what is known of a model before it is loaded.

A model is two things. Its `Card` costs nothing and is read where frames are prepared, on machines without the
weights. The loaded model may take minutes and lives in one place, an actor.

Letters in shapes: B videos or pictures in a call, T frames of one video, H W rows and columns at the model's
input size, D numbers in an embedding, C sentences. Frames are uint8 RGB.

Embedders are plain and synchronous: `batching.Batcher` makes many callers share a call and keeps the event loop
free. A describer is async itself, since an engine such as vLLM batches on its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.media.budget import VideoBudget
from pipeline.stage import Resources

Frames = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Card:
    """What is known of a model without loading it."""

    frame_spec: dict[str, Any]
    """How it wants pictures: a `media.frames.FrameSpec` as plain JSON values."""
    frames: int
    """Frames of an item it judges at once; 1 for a frame embedder, which sees every picture alone."""
    reads_prompts: bool = False
    """Whether `prompts/` decides its results (describers)."""
    budget: VideoBudget | None = None
    """For a describer whose frames and their size follow from a clip's length; `frame_spec` and `frames` are then
    not looked at."""
    cpus: float = 0.2
    """Cores that a process with the loaded model reserves."""
    gpus: float = 0.0
    """GPUs that a process with the loaded model reserves, all in one node."""
    replicas: int = 1
    """Processes that load the model."""
    in_flight: int = 4
    """Items of one worker that may wait for the model at once."""
    environment: tuple[str, ...] = ()
    """Environment variables of the command that a process with the loaded model must see too, wherever it runs, such
    as the one that holds a key."""

    def resources(self, *, batch_size: int) -> Resources:
        """What a stage that uses the model asks of the machine."""
        return Resources(
            batch_size=batch_size,
            model_cpus=self.cpus,
            model_gpus=self.gpus,
            model_replicas=self.replicas,
            in_flight=self.in_flight,
            model_environment=self.environment,
        )


class FrameEmbedder(Protocol):
    """Pictures to vectors. The same picture gives the same vector in any batch."""

    @property
    def key(self) -> str: ...

    @property
    def dim(self) -> int:
        """D."""
        ...

    @property
    def max_batch(self) -> int:
        """Pictures a call may hold."""
        ...

    def embed(self, frames: Frames) -> Vectors:
        """Embeddings [B, D], each of unit length, of pictures [B, H, W, 3]."""
        ...


class VideoTextEmbedder(Protocol):
    """Videos and sentences to vectors in one space, where the cosine says how well they fit."""

    @property
    def key(self) -> str: ...

    @property
    def dim(self) -> int:
        """D."""
        ...

    @property
    def max_batch(self) -> int:
        """Videos a call may hold."""
        ...

    def embed_videos(self, frames: Frames) -> Vectors:
        """Embeddings [B, D], each of unit length, of videos [B, T, H, W, 3], frames in time order."""
        ...

    def embed_texts(self, sentences: list[str]) -> Vectors:
        """Embeddings [C, D], each of unit length. Raises UserError for a sentence that the model cannot judge."""
        ...


@dataclass(frozen=True)
class ClipFrames:
    """A clip as a describer sees it."""

    clip_id: str
    frames: Frames
    """uint8 [T, H, W, 3] RGB, in time order."""
    times_s: npt.NDArray[np.float64]
    """Time of each frame, seconds from the clip's first frame, [T]."""
    duration_s: float
    """Length of the clip, seconds."""


@dataclass(frozen=True)
class Pair:
    """An instruction about the clip and its answer."""

    instruction: str
    answer: str


@dataclass(frozen=True)
class Turn:
    """What one turn of the conversation cost; fields as in `records.TURN`."""

    turn: str
    """caption or qa."""
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens served from the prefix cache."""
    output_tokens: int
    finish_reason: str


@dataclass(frozen=True)
class Description:
    """What a describer made of a clip."""

    caption: str
    pairs: list[Pair]
    turns: list[Turn]
    """Every turn that was asked, in order; a turn that was asked again is there twice."""
    frames_used: int | None = None
    """Frames that the model saw, where the describer left some out; None: all it was given."""
    measured: dict[str, float] = field(default_factory=dict)
    """Measurements by name, such as caption_s; they go to metrics/ and never into tables."""


class Describer(Protocol):
    """Clips to a caption and instruction-answer pairs, in two turns of one conversation."""

    @property
    def key(self) -> str: ...

    async def describe(self, clip: ClipFrames) -> Description:
        """Both turns of one clip; entered many times at once.

        Raises Rejected("bad_output" | "refused" | "truncated" | "engine_error"), Retryable("engine_error" | "timeout")
        when another attempt may help, or ModelDied when no call will be answered any more.
        """
        ...
