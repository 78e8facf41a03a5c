"""A worker: takes pointers to items, works on them, commits parts. The same under both engines."""

from __future__ import annotations

import time
import traceback
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.engine.attempt import Attempts, Job
from pipeline.engine.task import MapTask, ModelClient, StageFailed, Tally
from pipeline.engine.workspace import EngineWorkspace
from pipeline.stage import Row, TwoStepStage, UserError
from pipeline.store.lock import LockLost
from pipeline.store.tables import ItemResult, PartReader


class StageWorker:
    """Works on the items of one stage, batch after batch."""

    def __init__(self, task: MapTask, model: ModelClient | None) -> None:
        self._task = task
        self._reader = PartReader(task.files)
        self._work = EngineWorkspace(task.files, task.limits)
        self._attempts = Attempts(task, self._work, model)
        self._now: Row = {}
        """The item under way, for the message should a stage fail on it."""

    def process(self, pointers: pa.Table) -> Iterator[Tally]:
        """Work on a batch and yield a tally after each commit.

        Raises StageFailed naming the item, UserError, LockLost; what was finished before is committed first.
        """
        held = _Held(self._task)
        try:
            for result in self._results(self._rows(pointers)):
                held.add(result)
                if held.full():
                    yield held.commit()
        except (StageFailed, UserError):
            if held.results:
                yield held.commit()
            raise
        finally:
            self._work.drop_scratch()
        if held.results:
            yield held.commit()

    def close(self) -> None:
        self._work.close()

    def _results(self, rows: Iterator[Row]) -> Iterator[ItemResult]:
        try:
            if isinstance(self._task.stage, TwoStepStage):
                yield from self._two_steps(rows)
            else:
                for row in rows:
                    self._now = row
                    yield self._attempts.run(row)
        except (UserError, LockLost, StageFailed):
            raise
        except Exception as err:  # a defect of a stage must name its item, whatever it is
            key = self._now.get(self._task.stage.grain_in.value)
            raise _failed(self._task, f"on {key}" if key else "reading its input", err) from err

    def _two_steps(self, rows: Iterator[Row]) -> Iterator[ItemResult]:
        """Prepare the next items while the model works on those before. An item may end without a result."""
        jobs: deque[Job] = deque()
        at_once = 1 if self._task.last_pass else self._task.stage.resources.in_flight
        for row in rows:
            self._now = row
            job = Job(row)
            rejected = self._attempts.begin(job)
            if rejected is not None:
                yield rejected
                continue
            jobs.append(job)
            while jobs and (len(jobs) >= at_once or jobs[0].ready()):
                yield from self._end(jobs.popleft())
        while jobs:
            yield from self._end(jobs.popleft())

    def _end(self, job: Job) -> Iterator[ItemResult]:
        self._now = job.row
        result = self._attempts.end(job)
        if result is not None:
            yield result

    def _rows(self, pointers: pa.Table) -> Iterator[Row]:
        """The items' rows: their key and the columns that the stage reads."""
        grain = self._task.stage.grain_in.value
        for start in range(0, pointers.num_rows, READ_AHEAD):
            self._now = {}
            batch = pointers.slice(start, READ_AHEAD).to_pydict()
            rows: list[Row] = [{grain: key} for key in batch["key"]]
            for table in self._task.tables_read:
                self._reader.fill(rows, batch[f"{table}__part"], batch[f"{table}__row"], self._task.columns_of(table))
            yield from rows


READ_AHEAD = 64
"""Items whose columns a worker holds at once. Rows of long videos are megabytes."""


class _Held:
    """Results not committed yet."""

    def __init__(self, task: MapTask) -> None:
        self._task = task
        self.results: list[ItemResult] = []
        self._bytes = 0
        self._since = 0.0

    def add(self, result: ItemResult) -> None:
        if not self.results:
            self._since = time.monotonic()
        self.results.append(result)
        self._bytes += sum(_size(value) for row in (*result.rows, *result.rejects) for value in row.values())

    def full(self) -> bool:
        limits = self._task.limits
        return self._bytes >= limits.part_bytes or time.monotonic() - self._since >= limits.part_seconds

    def commit(self) -> Tally:
        """Commit what is held; nothing is held afterwards, whether that succeeds or not."""
        results, self.results, self._bytes = self.results, [], 0
        try:
            self._task.writer.commit(results)
        except (UserError, LockLost):
            raise
        except Exception as err:  # rows that do not fit the table, a disk that fails: not a dead worker
            raise _failed(self._task, "writing its rows", err) from err
        return Tally(
            items=len(results),
            rows=sum(len(r.rows) for r in results),
            rejected=Counter(reject["reason"] for r in results for reject in r.rejects),
            frames_decoded=sum((r.metrics or {}).get("frames_decoded") or 0 for r in results),
        )


def _failed(task: MapTask, where: str, err: Exception) -> StageFailed:
    """A defect of the stage as the user sees it. Call while the error is handled: its trace is kept."""
    return StageFailed(
        f"stage {task.stage.name} failed {where}: {type(err).__name__}: {err}", trace=traceback.format_exc()
    )


def _size(value: Any) -> int:
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(_size(v) for v in value)
    if isinstance(value, dict):
        return sum(_size(v) for v in value.values())
    return 8
