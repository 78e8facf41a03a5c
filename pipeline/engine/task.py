"""One map stage's work, as it is sent to workers, and what they send back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.engine.limits import EngineConfig
from pipeline.stage import Chunk, MapStage, TwoStepStage
from pipeline.store.files import Files
from pipeline.store.tables import PartWriter


@dataclass(frozen=True)
class MapTask:
    """A stage with everything a worker needs to run it anywhere."""

    stage: MapStage | TwoStepStage
    files: Files
    writer: PartWriter
    limits: EngineConfig

    @property
    def tables_read(self) -> list[str]:
        """Tables whose columns the stage reads, in the order of first mention."""
        return list(dict.fromkeys(column.partition(".")[0] for column in self.stage.reads))

    def columns_of(self, table: str) -> list[str]:
        return [column.partition(".")[2] for column in self.stage.reads if column.partition(".")[0] == table]


@dataclass
class Tally:
    """Counts of one committed part. What the driver learns of the work: no row comes back to it."""

    items: int = 0
    rows: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    frames_decoded: int = 0


class StageFailed(RuntimeError):
    """A stage cannot go on: a defect, or an engine that is gone. Exit code 1; `trace` goes to the log."""

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message, trace)
        self.message = message
        self.trace = trace

    def __str__(self) -> str:
        return self.message


class Answer(Protocol):
    """A model's answer to come."""

    def done(self) -> bool: ...

    def result(self) -> Chunk:
        """Wait for it. Raises what the model raised; Retryable("engine_error") when its process died."""
        ...


class ModelClient(Protocol):
    """How a worker reaches the model of its stage."""

    def submit(self, chunk: Chunk) -> Answer: ...


Progress = Callable[[Tally], None]
"""Told of every committed part while a stage runs."""
