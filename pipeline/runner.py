"""Runs stages of an open session in order: what is pending, who does it, whether it balances, the marker last."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Protocol

import pyarrow as pa

from pipeline.engine.task import MapTask, Progress, StageFailed, Tally
from pipeline.plan import SOURCES
from pipeline.records import Grain, schema
from pipeline.session import Session
from pipeline.stage import GlobalStage, MapStage, Row, Stage, TwoStepStage, UserError
from pipeline.store.live import AMENDMENT, Counts, Live
from pipeline.store.lock import Epoch
from pipeline.store.retry import forget_items
from pipeline.store.tables import ItemResult, PartWriter, to_arrow
from pipeline.store.whole_set import WholeSetReader, WholeSetWriter, write_marker

CRASH_PASSES = 3
"""Times an item may take its worker or its model down before it is rejected. A worker that dies takes its batch with
it, a model all that it was asked. So what is left runs in smaller batches, the last time one by one: then the item at
fault stands alone."""
SMALLER = 16
"""How much smaller the batches of the second pass are."""


class MapEngine(Protocol):
    """What runs a map stage's items (see pipeline.engine)."""

    name: str

    def run_map(self, task: MapTask, pointers: pa.Table, progress: Progress, *, batch_size: int) -> None: ...

    def close(self) -> None: ...


class Reporter(Protocol):
    """Told what happens while stages run."""

    def stage_begins(self, name: str, items: int, pending: int) -> None: ...

    def progress(self, name: str, tally: Tally) -> None: ...

    def stage_ends(self, name: str, counts: Counts, seconds: float) -> None: ...


class Runner:
    """Runs stages. The engine is made when the first item needs it: a finished run starts no Ray."""

    def __init__(
        self, session: Session, epoch: Epoch, make_engine: Callable[[], MapEngine], reporter: Reporter
    ) -> None:
        self._session = session
        self._epoch = epoch
        self._make_engine = make_engine
        self._engine: MapEngine | None = None
        self._reporter = reporter
        self.live: Live = session.live()

    def close(self) -> None:
        """Stop the engine."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def list_sources(self, rows: Sequence[Row]) -> None:
        """Commit the listed source rows as the run's input; what is not among them leaves the views.

        A row that is not what it was (its file moved, its manifest was mended) is ingested again.
        """
        digest = hashlib.sha256()
        for row in rows:
            digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
        fingerprint = digest.hexdigest()[:32]
        marker = self.live.marker(SOURCES)
        if marker is not None and marker["input_fingerprint"] == fingerprint:
            return
        changed = self._changed(rows)
        for stage in self._session.stages:
            if stage.grain_in is Grain.SOURCE:
                forget_items(self.live, stage.name, changed, self._epoch)
        writer = WholeSetWriter(self._session.files, self.live.nodes[SOURCES], fingerprint, self._epoch)
        for row in rows:
            writer.row(SOURCES, row)
        writer.finish()
        self.live.refresh(SOURCES)

    def _changed(self, rows: Sequence[Row]) -> list[str]:
        """Keys of the rows that were listed before, with other values."""
        key, *others = schema(SOURCES).names
        new, old = (f"({', '.join(f'{side}.{name}' for name in others)})" for side in ("new", "old"))
        self.live.con.register("listed", to_arrow(rows, schema(SOURCES), SOURCES))
        changed = self.live.con.execute(
            f"SELECT {key} FROM listed new JOIN {self.live.scan_sql(SOURCES)} old USING ({key}) "
            f"WHERE {new} IS DISTINCT FROM {old}"
        ).fetchall()
        self.live.con.unregister("listed")
        return [row_key for (row_key,) in changed]

    def run(self, names: Iterable[str]) -> dict[str, Counts]:
        """Run stages that follow each other, by name and in order. Raises StageFailed, UserError."""
        stages = [self._session.stage(name) for name in names]
        if stages:
            self._require_upstream(stages[0].name)
        return {stage.name: self._run_stage(stage) for stage in stages}

    def _run_stage(self, stage: Stage, *, partial: bool = False) -> Counts:
        started = time.monotonic()
        pending = self.live.pending(stage.name)
        items = self.live.counts(stage.name).items_in
        self._reporter.stage_begins(stage.name, items, pending)
        if isinstance(stage, GlobalStage):
            self._run_whole_set(stage)
        else:
            assert isinstance(stage, (MapStage, TwoStepStage))
            self._run_map(stage)
        counts = self._balanced(stage)
        if not isinstance(stage, GlobalStage) and not partial:
            self._mark(stage, counts)
        self._reporter.stage_ends(stage.name, counts, time.monotonic() - started)
        return counts

    def run_committed(self, name: str) -> Counts:
        """Run a map stage over what its upstream has committed so far, before the upstream's marker is there."""
        return self._run_stage(self._session.stage(name), partial=True)

    def _require_upstream(self, name: str) -> None:
        """All stages before this one are done, with this config and these inputs. Raises UserError for the first."""
        root = self._session.files.root
        if self.live.marker(SOURCES) is None:
            raise UserError(f"{root}: no inputs are listed. Name them: hicom ingest {root} INPUT...")
        stages = [node for node in self.live.nodes if node != SOURCES]
        for above in stages[: stages.index(name)]:
            marker = self.live.marker(above)
            if marker is None:
                problem = "has not run with this config"
            elif marker["input_fingerprint"] != self.live.input_fingerprint(above):
                problem = "has not run since its own input changed"
            else:
                continue
            raise UserError(
                f"{name} needs {above}, which {problem}. Run `hicom {above} {root}` first, "
                f"or all in order with `hicom run --out {root}`."
            )

    def _run_map(self, stage: MapStage | TwoStepStage) -> None:
        whole = stage.resources.batch_size
        for earlier, batch_size in enumerate((whole, max(1, whole // SMALLER), 1)):
            task = self._task(stage, earlier)
            if not self._pass(task, batch_size):
                break
        else:
            if task.one_more_pass:
                task = self._task(stage, CRASH_PASSES)
                self._pass(task, 1)
        self._reject_deadly(task)
        self._reject_duplicates(task)

    def _pass(self, task: MapTask, batch_size: int) -> bool:
        """Work once on what is pending; whether anything was."""
        stage, name = task.stage, task.stage.name
        pending = self.live.pending(name)
        if not pending:
            return False
        pointers = self.live.pointers(f"SELECT key FROM pending_{name}", stage.grain_in, task.tables_read)
        assert pointers.num_rows == pending, f"{name}: {pending} items, but {pointers.num_rows} have their columns"
        if self._engine is None:
            self._engine = self._make_engine()
        self._engine.run_map(task, pointers, lambda tally: self._reporter.progress(name, tally), batch_size=batch_size)
        self.live.refresh(name)
        return True

    def _task(self, stage: MapStage | TwoStepStage, earlier_passes: int) -> MapTask:
        fingerprint = self.live.nodes[stage.name].fingerprint
        last_pass = earlier_passes >= CRASH_PASSES - 1
        works = not last_pass or self.live.counts(stage.name).rows_out > 0
        return MapTask(
            stage,
            self._session.files,
            PartWriter(self._session.files, stage.name, fingerprint, self._epoch),
            self._session.config.engine,
            last_pass=last_pass,
            earlier_passes=earlier_passes,
            model_works=works,
            one_more_pass=isinstance(stage, TwoStepStage) and earlier_passes < CRASH_PASSES and not works,
        )

    def _reject_deadly(self, task: MapTask) -> None:
        """Items that took their worker down in every pass."""
        name = task.stage.name
        if not self.live.pending(name):
            return
        detail = f"its worker process died in each of {CRASH_PASSES} attempts, the last alone"
        results = [
            ItemResult(key, [], [_reject(key, "worker_crashed", detail, CRASH_PASSES)])
            for key in self.live.keys(f"SELECT key FROM pending_{name} ORDER BY key")
        ]
        task.writer.commit(results)
        self._reporter.progress(name, Tally(items=len(results)))
        self.live.refresh(name)

    def _reject_duplicates(self, task: MapTask) -> None:
        """Two inputs with one output id: the input first by key keeps it, the others become duplicate_id."""
        name = task.stage.name
        if task.stage.grain_in is task.stage.grain_out:
            return
        self.live.load(name)
        twice = self.live.con.execute(f"""
            SELECT in_key, out_key, first FROM
              (SELECT in_key, out_key, min(in_key) OVER (PARTITION BY out_key) AS first FROM live_{name})
            WHERE in_key <> first ORDER BY in_key
        """).fetchall()
        results = [
            ItemResult(key, [], [_reject(key, "duplicate_id", f"{out} is also the id of {first}, which is kept", 1)])
            for key, out, first in twice
        ]
        if results:
            task.writer.commit(results, AMENDMENT)
            self.live.refresh(name)

    def _run_whole_set(self, stage: GlobalStage) -> None:
        fingerprint = self.live.input_fingerprint(stage.name)
        marker = self.live.marker(stage.name)
        files = self._session.files
        unchanged = marker is not None and marker["input_fingerprint"] == fingerprint
        if marker is not None and unchanged and all(files.size(path) is not None for path in marker["files"]):
            return
        node = self.live.nodes[stage.name]
        writer = WholeSetWriter(files, node, fingerprint, self._epoch)
        stage.run(WholeSetReader(self.live, node), writer)
        writer.finish()
        self._reporter.progress(stage.name, Tally(writer.rows, writer.rows, writer.rejected))
        self.live.refresh(stage.name)

    def _balanced(self, stage: Stage) -> Counts:
        """Nothing disappears: every item in is out or rejected. Raises StageFailed with the ids that are not."""
        name = stage.name
        counts = self.live.counts(name)
        if counts.missing or counts.both:
            missing = list(self.live.keys(f"SELECT key FROM pending_{name} ORDER BY key LIMIT 10"))
            raise StageFailed(
                f"stage {name} does not balance: of {counts.items_in} items {counts.missing} have no outcome and "
                f"{counts.both} have two; without one: {', '.join(missing) or 'none'}"
            )
        return counts

    def _mark(self, stage: Stage, counts: Counts) -> None:
        marker = {
            "stage": stage.name,
            "fingerprint": self.live.nodes[stage.name].fingerprint,
            "input_fingerprint": self.live.input_fingerprint(stage.name),
            **asdict(counts),
        }
        if self.live.marker(stage.name) != marker:
            write_marker(self._session.files, self._epoch, marker)


def _reject(key: str, reason: str, detail: str, attempts: int) -> Row:
    return {"id": key, "shot": None, "reason": reason, "detail": detail, "attempts": attempts}
