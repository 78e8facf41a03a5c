"""One map stage's work, as it is sent to workers, and what they send back."""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.engine.limits import EngineConfig
from pipeline.stage import Chunk, MapStage, ModelDied, TwoStepStage
from pipeline.store.files import Files
from pipeline.store.tables import PartWriter

MODEL_DEATHS = 3
"""Times in a row that a model may die without one answer in between before its stage is given up: a model that dies
whatever it is asked would otherwise cost a load for every few items, and a large one loads for many minutes."""


@dataclass(frozen=True)
class MapTask:
    """A stage with everything a worker needs to run it anywhere."""

    stage: MapStage | TwoStepStage
    files: Files
    writer: PartWriter
    limits: EngineConfig
    last_pass: bool = False
    """Whether these items lost their worker or their model in every pass before. Now a model has one item at a time, so
    that its death has one to blame; until now an item whose model died under it was left for the next pass."""
    earlier_passes: int = 0
    """Passes before this one."""
    model_works: bool = True
    """Whether the stage has a row, so that a model that dies on an item alone does so because of the item."""
    one_more_pass: bool = False
    """Whether the stage had no row before its last pass. An item that the model dies on before it answered any is then
    left for one more: only after the others it is known which of the two is to blame."""

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


class ModelHung(ModelDied):
    """A model did not answer in time, and was ended for it."""


class Silence:
    """How long a model that is asked has answered nobody. Told by the thread that holds it; any may ask."""

    def __init__(self) -> None:
        self._open = 0
        self._since = 0.0

    def breaks(self) -> None:
        """It gave a sign of life."""
        self._since = time.monotonic()

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """While it works on a call."""
        if self._open == 0:
            self.breaks()
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
            self.breaks()

    def seconds(self) -> float:
        return time.monotonic() - self._since if self._open else 0.0


class Patience:
    """Counts a model's deaths, as one of its callers meets them."""

    def __init__(self, task: MapTask) -> None:
        self._stage = task.stage.name
        # In the last pass each item may be one that kills; then it is rejected, and does not count.
        self._bounded = not task.last_pass
        self._in_a_row = 0

    def answered(self) -> None:
        self._in_a_row = 0

    def died(self, words: str) -> None:
        """Raises StageFailed when that was once too often."""
        self._in_a_row += 1
        if self._bounded and self._in_a_row > MODEL_DEATHS:
            raise gave_up(self._stage, self._in_a_row, words)


def gave_up(stage: str, deaths: int, words: str) -> StageFailed:
    """A model that dies whatever it is asked, in words."""
    return StageFailed(f"stage {stage}: its model died {deaths} times without one answer; the last time: {words}")


def not_loaded_again(stage: str, died: str, why: str) -> StageFailed:
    """A model that worked, died and cannot be loaded again, in words. What keeps it from loading now (a server that is
    gone) is not the user's mistake, or else it had not been loaded before."""
    return StageFailed(f"stage {stage}: its model died ({died}) and cannot be loaded again: {why}")


class Answer(Protocol):
    """A model's answer to come."""

    def done(self) -> bool: ...

    def result(self) -> Chunk:
        """Wait for it. Raises what the model raised; ModelDied when the model went with the call open, ModelHung when
        it has answered nobody for longer than the limit; the same each time it is asked. The next call finds the
        model loaded again."""
        ...


class OnceAnswer(ABC):
    """An answer that is waited for once and stays what it was: an item may ask after another had to wait for it."""

    _answer: Chunk | None = None
    _error: Exception | None = None

    @abstractmethod
    def _wait(self) -> Chunk: ...

    def result(self) -> Chunk:
        if self._error is not None:
            raise self._error
        if self._answer is None:
            try:
                self._answer = self._wait()
            except Exception as err:
                self._error = err
                raise
        return self._answer


class ModelClient(Protocol):
    """How a worker reaches the model of its stage."""

    def submit(self, chunk: Chunk) -> Answer:
        """Ask it. Waits for a model that is being loaded again. Raises UserError or StageFailed when it cannot be."""
        ...


Progress = Callable[[Tally], None]
"""Told of every committed part while a stage runs."""
