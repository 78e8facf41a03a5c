"""What an engine may take: attempts, sizes of parts, deadlines and memory. None of it changes a result."""

from __future__ import annotations

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from pipeline.media.guard import MEMORY_MB, Deadline


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class EngineConfig:
    """Limits of every worker. All are our choice; none enters a fingerprint."""

    attempts: int = Field(default=2, ge=1)
    """Times an item is tried before it is rejected, when another attempt may help."""
    part_bytes: int = Field(default=16 << 20, ge=1)
    """A worker commits when the results it holds reach this many bytes (before compression)."""
    part_seconds: float = Field(default=20.0, gt=0)
    """A worker commits when its oldest uncommitted result is this old: what a kill can lose."""
    in_flight_bytes: int = Field(default=32 << 20, ge=1)
    """Bytes of frames of one worker that may wait for a model at once; one item with more goes alone. With Ray, less
    where all workers' share of the shared memory is less."""
    infer_timeout_s: float = Field(default=3600.0, gt=0)
    """Seconds for which a model that is asked may answer nobody before it is ended and loaded again. The last resort
    for a model that hangs: it may be loading. A call that waits for many others may wait longer."""
    decode_memory_mb: int = Field(default=MEMORY_MB, ge=64)
    """Memory the guarded decoder process may take beyond what it starts with, MiB."""
    deadline_base_s: float = Field(default=Deadline.base_s, gt=0)
    """Seconds every guarded job gets."""
    deadline_per_media_s: float = Field(default=Deadline.per_media_s, ge=0)
    """Further seconds a guarded job gets for each second of media."""
    unknown_media_s: float = Field(default=Deadline.unknown_media_s, ge=0)
    """Length assumed for the deadline when the container states none, seconds."""
    max_workers: int = Field(default=0, ge=0)
    """Most workers of one stage; 0: as many as the cluster's cores hold."""
