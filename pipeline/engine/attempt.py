"""One item through one stage: attempts, rejects, balance, measurements. Knows no engine and no other item."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipeline.engine.task import Answer, MapTask, ModelClient, ModelHung, gave_up
from pipeline.stage import Chunk, MapStage, ModelDied, Output, Rejected, Retryable, Row, TwoStepStage, Workspace
from pipeline.store.tables import ItemResult

SUSPECTS = 8
"""Items that a model may die on, each alone, before it has answered any: with more it is the model, not the items. Each
costs a load, which may take many minutes."""


@dataclass
class Job:
    """An item under way."""

    row: Row
    attempts: int = 0
    started: float = 0.0
    prepared: list[dict[str, Any]] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    bytes_moved: int = 0

    def restart(self) -> None:
        self.attempts += 1
        self.started = time.monotonic()
        self.prepared, self.answers, self.bytes_moved = [], [], 0

    def ready(self) -> bool:
        return all(answer.done() for answer in self.answers)


class Attempts:
    """Tries items of a stage as often as the limits allow, and packs the outcome as an ItemResult."""

    def __init__(self, task: MapTask, work: Workspace, model: ModelClient | None) -> None:
        self._task = task
        self._stage = task.stage
        self._work = work
        self._model = model
        self._host = socket.gethostname()
        self._in_flight: deque[tuple[int, Answer]] = deque()
        self._model_works = task.model_works
        self._suspects = 0
        """Items that the model died on, each alone, while it had answered none."""

    def run(self, row: Row) -> ItemResult:
        """A whole item of a one-step stage."""
        stage = self._stage
        assert isinstance(stage, MapStage)
        job = Job(row)
        return self._settle(job, lambda: stage.apply(row, self._work))

    def begin(self, job: Job) -> ItemResult | None:
        """First step: prepare, and hand every chunk to the model. A result only when the item is rejected here."""
        stage, model = self._stage, self._model
        assert isinstance(stage, TwoStepStage) and model is not None
        while True:
            job.restart()
            try:
                for chunk in stage.prepare(job.row, self._work):
                    self._make_room(chunk.nbytes)
                    answer = model.submit(chunk)
                    self._in_flight.append((chunk.nbytes, answer))
                    job.answers.append(answer)
                    job.prepared.append(chunk.info)
                    job.bytes_moved += chunk.nbytes
                return None
            except Rejected as err:
                if not self._again(job, err):
                    return self._rejected(job, err)

    def end(self, job: Job) -> ItemResult | None:
        """Second step: wait for the answers and finish; from the start again when that may help. Nothing for an item
        that is left for a later pass, because the model died under it and others, or has answered none yet."""
        stage = self._stage
        assert isinstance(stage, TwoStepStage)
        while True:
            try:
                inferred: list[Chunk] = [answer.result() for answer in job.answers]
                self._model_works = True
                return self._done(job, stage.finish(job.row, job.prepared, inferred))
            except Rejected as err:
                if not self._again(job, err):
                    return self._rejected(job, err)
            except ModelDied as err:
                if self._leaves(err):
                    return None
                if job.attempts >= self._task.limits.attempts:
                    return self._blamed(job, err)
            rejected = self.begin(job)
            if rejected is not None:
                return rejected

    def _leaves(self, err: ModelDied) -> bool:
        """Whether the item is left for a later pass. Raises StageFailed for a model that died on many, each alone, and
        never worked."""
        task = self._task
        if not task.last_pass or self._model_works or not task.one_more_pass:
            return not task.last_pass
        self._suspects += 1
        if self._suspects > SUSPECTS:
            raise gave_up(self._stage.name, self._suspects, str(err))
        return True

    def _blamed(self, job: Job, err: ModelDied) -> ItemResult:
        """The model had nothing but this item, each time it died. Raises StageFailed for a model that never worked."""
        if not self._model_works:
            raise gave_up(self._stage.name, job.attempts, str(err))
        detail = f"the model died each of {job.attempts} times that it had this item alone; the last time: {err}"
        job.attempts += self._task.earlier_passes
        return self._rejected(job, Rejected("timeout" if isinstance(err, ModelHung) else "engine_error", detail))

    def _make_room(self, nbytes: int) -> None:
        """Back-pressure: wait for the oldest answers until the frames in flight fit."""
        flight = self._in_flight
        while flight:
            answer = flight[0][1]
            done = answer.done()
            if not done and sum(n for n, _ in flight) + nbytes <= self._task.limits.in_flight_bytes:
                return
            flight.popleft()
            if not done:
                with contextlib.suppress(Exception):  # its own item meets the same error when it ends
                    answer.result()

    def _settle(self, job: Job, work: Callable[[], Output]) -> ItemResult:
        while True:
            job.restart()
            try:
                return self._done(job, work())
            except Rejected as err:
                if not self._again(job, err):
                    return self._rejected(job, err)

    def _again(self, job: Job, err: Rejected) -> bool:
        return isinstance(err, Retryable) and job.attempts < self._task.limits.attempts

    def _done(self, job: Job, output: Output) -> ItemResult:
        key = self._key(job)
        rows = [{self._stage.grain_in.value: key, **row} for row in output.rows]
        rejects = [
            {"id": key, "shot": r.shot, "reason": r.reason, "detail": r.detail, "attempts": job.attempts}
            for r in output.shot_rejects
        ]
        self._check_shots(job, self._shots_out(output), len(rejects))
        assert rows, f"{self._stage.name}: {key} left without a row; a stage must reject such an item whole"
        return ItemResult(key, rows, rejects, self._metrics(job, output))

    def _rejected(self, job: Job, err: Rejected) -> ItemResult:
        key = self._key(job)
        reasons = [(None, err.reason, err.detail), *((r.shot, r.reason, r.detail) for r in err.shot_rejects)]
        if err.shot_rejects:
            self._check_shots(job, 0, len(err.shot_rejects))
        rejects = [
            {"id": key, "shot": shot, "reason": reason, "detail": detail, "attempts": job.attempts}
            for shot, reason, detail in reasons
        ]
        return ItemResult(key, [], rejects, self._metrics(job, Output([])))

    def _shots_out(self, output: Output) -> int | None:
        return self._stage.shots_out(output) if isinstance(self._stage, MapStage) else None

    def _check_shots(self, job: Job, shots_out: int | None, rejected: int) -> None:
        stage = self._stage
        shots_in = stage.shots_in(job.row) if isinstance(stage, MapStage) else None
        if shots_in is not None and shots_out is not None:
            assert shots_in == shots_out + rejected, (
                f"{stage.name}: {self._key(job)}: {shots_in} shots came in, {shots_out} left, {rejected} were rejected"
            )

    def _metrics(self, job: Job, output: Output) -> Row:
        return {
            "id": self._key(job),
            "seconds": time.monotonic() - job.started,
            "attempts": job.attempts,
            "host": self._host,
            "finished_at": datetime.now(UTC),
            "frames_decoded": output.frames_decoded,
            "bytes_moved": job.bytes_moved,
            "measured": json.dumps(output.measured, sort_keys=True) if output.measured else None,
        }

    def _key(self, job: Job) -> str:
        return str(job.row[self._stage.grain_in.value])
