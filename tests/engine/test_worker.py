"""A worker's batch: what is committed when, and what a failure leaves behind."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from pipeline.engine.limits import EngineConfig
from pipeline.engine.local import LocalModel
from pipeline.engine.task import Answer, MapTask, StageFailed, Tally
from pipeline.engine.worker import StageWorker
from pipeline.session import Session
from pipeline.stage import Chunk, Output, Resources, Row, UserError, Workspace
from pipeline.store.lock import LockLost
from pipeline.store.tables import PartWriter
from tests.store.rows import live_rows, put_lock
from tests.tiny import (
    Apply,
    Levels,
    TinyEmbed,
    TinyIngest,
    reject_on,
    sources,
    take_uri_for_id,
    tiny_runner,
    tiny_session,
    two_chunks,
)


@contextlib.contextmanager
def worker(session: Session, count: int, **limits: Any) -> Iterator[tuple[StageWorker, pa.Table]]:
    """A worker of the last stage and its pending items, `count` of them; the stages before have run."""
    stage = session.stages[-1]
    with tiny_runner(session) as runner:
        runner.list_sources(sources(count))
        runner.run([earlier.name for earlier in session.stages[:-1]])
        epoch = runner._epoch
        live = session.live()
        live.pending(stage.name)
        writer = PartWriter(session.files, stage.name, live.nodes[stage.name].fingerprint, epoch)
        task = MapTask(stage, session.files, writer, EngineConfig(**limits))  # type: ignore[arg-type]
        pointers = live.pointers(f"SELECT key FROM pending_{stage.name}", stage.grain_in, task.tables_read)
        model = LocalModel(task) if isinstance(stage, TinyEmbed) else None
        made = StageWorker(task, model)
        try:
            yield made, pointers
        finally:
            made.close()
            if model is not None:
                model.close()


def committed(session: Session) -> list[str]:
    """Ids of the last stage's live rows."""
    return [key for key, _ in live_rows(session.live(), session.stages[-1].name)]


def tallies(session: Session, count: int, **limits: Any) -> list[Tally]:
    with worker(session, count, **limits) as (made, pointers):
        return list(made.process(pointers))


def test_a_batch_is_one_part(tmp_path: Path) -> None:
    session = tiny_session(tmp_path, TinyIngest(reject_on("v001")))
    (tally,) = tallies(session, 5)
    assert (tally.items, tally.rows, dict(tally.rejected)) == (5, 4, {"unreadable": 1})
    assert committed(session) == ["v000", "v002", "v003", "v004"]


def test_a_part_is_written_when_enough_bytes_are_held(tmp_path: Path) -> None:
    row_bytes = 300
    session = tiny_session(tmp_path, TinyIngest(sized(row_bytes)))
    counts = [tally.items for tally in tallies(session, 7, part_bytes=2 * row_bytes + 1)]
    assert len(counts) > 2 and set(counts[:-1]) <= {2, 3} and sum(counts) == 7
    assert len(committed(session)) == 7


def sized(row_bytes: int) -> Apply:
    def apply(row: Row, work: Workspace) -> Output:
        made = take_uri_for_id(row, work)
        made.rows[0].update(meta="x" * row_bytes, dataset="", identity="", codec="")
        return made

    return apply


def test_a_part_is_written_when_results_have_waited_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("pipeline.engine.worker.time", SimpleNamespace(monotonic=lambda: clock.now))

    def slow(row: Row, work: Workspace) -> Output:
        clock.now += 10.0
        return take_uri_for_id(row, work)

    session = tiny_session(tmp_path, TinyIngest(slow))
    # The first result has waited 20 s when the third is there.
    assert [tally.items for tally in tallies(session, 7, part_seconds=20.0)] == [3, 3, 1]


def failing_on(key: str, failure: Exception) -> Apply:
    def apply(row: Row, work: Workspace) -> Output:
        if row["source_key"] == key:
            raise failure
        return take_uri_for_id(row, work)

    return apply


def fail(session: Session, count: int, kind: type[Exception]) -> tuple[list[Tally], Any]:
    """Tallies before the failure, and the failure."""
    told: list[Tally] = []
    with pytest.raises(kind) as caught, worker(session, count) as (made, pointers):
        told.extend(made.process(pointers))
    return told, caught.value


def test_a_defect_names_its_item_and_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    session = tiny_session(tmp_path, TinyIngest(failing_on("v002", ValueError("three is too many"))))
    told, failure = fail(session, 5, StageFailed)
    assert str(failure) == "stage ingest failed on v002: ValueError: three is too many"
    assert "in apply" in failure.trace
    assert [tally.items for tally in told] == [2]
    assert committed(session) == ["v000", "v001"]


def test_a_users_mistake_is_told_as_it_is(tmp_path: Path) -> None:
    session = tiny_session(tmp_path, TinyIngest(failing_on("v001", UserError("measure a threshold first"))))
    _, failure = fail(session, 3, UserError)
    assert str(failure) == "measure a threshold first"
    assert committed(session) == ["v000"]


def misfit(row: Row, work: Workspace) -> Output:
    made = take_uri_for_id(row, work)
    made.rows[0]["width"] = None
    return made


def test_rows_that_do_not_fit_their_table_are_a_defect(tmp_path: Path) -> None:
    """Not a dead worker: the items must not end as worker_crashed."""
    session = tiny_session(tmp_path, TinyIngest(misfit))
    _, failure = fail(session, 3, StageFailed)
    assert str(failure).startswith("stage ingest failed writing its rows: ValueError: ingest.width:")
    assert committed(session) == []


def test_an_input_that_cannot_be_read_is_not_blamed_on_an_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.engine.worker.READ_AHEAD", 2)
    session = tiny_session(tmp_path, TinyIngest(batch_size=2), TinyEmbed())
    with worker(session, 6) as (made, pointers):
        last = pointers["ingest__part"][-1].as_py()
        Path(session.files.url(last)).write_bytes(b"not Parquet")
        with pytest.raises(StageFailed, match="stage embed failed reading its input: ArrowInvalid"):
            list(made.process(pointers))


def test_nothing_is_written_after_the_lock_is_lost(tmp_path: Path) -> None:
    session = tiny_session(tmp_path, TinyIngest())
    with worker(session, 3) as (made, pointers):
        put_lock(session.files, 99)
        with pytest.raises(LockLost):
            list(made.process(pointers))
    assert committed(session) == []


def test_scratch_files_go_after_each_batch(tmp_path: Path) -> None:
    """A cluster ends its workers without asking them to clean up."""
    folders = []

    def scribble(row: Row, work: Workspace) -> Output:
        folders.append(work.scratch_dir())
        Path(folders[-1], "draft").write_text("x")
        return take_uri_for_id(row, work)

    with worker(tiny_session(tmp_path, TinyIngest(scribble)), 2) as (made, pointers):
        for _ in range(2):
            list(made.process(pointers))
            assert not os.path.exists(folders[-1])
    assert folders[0] == folders[1] != folders[2]


def test_rows_come_with_the_columns_that_the_stage_reads(tmp_path: Path) -> None:
    seen: list[Row] = []

    def look(row: Row, work: Workspace) -> Iterator[Chunk]:
        seen.append(dict(row))
        return two_chunks(row, work)

    session = tiny_session(tmp_path, TinyIngest(), TinyEmbed(look))
    tallies(session, 70)  # more than are read at once
    seen.sort(key=lambda row: str(row["video_id"]))  # they come in the order of the parts
    assert seen == [{"video_id": f"v{i:03d}", "uri": f"v{i:03d}"} for i in range(70)]


class Counted:
    """A model client that answers at once, and counts the items whose answers nobody has taken yet."""

    def __init__(self) -> None:
        self.open: set[int] = set()
        self.most_open = 0

    def submit(self, chunk: Chunk) -> Answer:
        level = int(chunk.arrays["frames"][0, 0]) % 100
        self.open.add(level)
        self.most_open = max(self.most_open, len(self.open))
        return Taken(self, chunk, level)


class Taken:
    def __init__(self, model: Counted, chunk: Chunk, level: int) -> None:
        self._model, self._chunk, self._level = model, chunk, level

    def done(self) -> bool:
        return False

    def result(self) -> Chunk:
        self._model.open.discard(self._level)
        return Chunk({"levels": self._chunk.arrays["frames"][:, 0]})


@pytest.mark.parametrize("in_flight", [1, 3])
def test_so_many_items_wait_for_the_model_and_no_more(tmp_path: Path, in_flight: int) -> None:
    stage = TinyEmbed(needs=Resources(in_flight=in_flight))
    session = tiny_session(tmp_path, TinyIngest(), stage)
    model = Counted()
    with worker(session, 10) as (made, pointers):
        made._attempts._model = model
        list(made.process(pointers))
    assert model.most_open == in_flight
    assert len(committed(session)) == 10


def test_a_defect_of_the_model_names_the_item_that_met_it(tmp_path: Path) -> None:
    class Picky(Levels):
        async def infer(self, chunk: Chunk) -> Chunk:
            level = int(chunk.arrays["frames"][0, 0])
            if level == 2:
                raise ZeroDivisionError("two")
            return Chunk({"levels": chunk.arrays["frames"][:, 0]})

    session = tiny_session(tmp_path, TinyIngest(), TinyEmbed(load_with=Picky))
    _, failure = fail(session, 6, StageFailed)
    assert str(failure) == "stage embed failed on v002: ZeroDivisionError: two"
    assert committed(session) == ["v000", "v001"]


def test_a_commit_that_fails_is_told_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is one message, though a defect was about to be told."""
    session = tiny_session(tmp_path, TinyIngest(failing_on("v001", ValueError("a defect"))))

    def full(*_: object) -> None:
        raise UserError("no room")

    with worker(session, 2) as (made, pointers):
        monkeypatch.setattr(type(session.files), "put", full)
        with pytest.raises(UserError, match="no room"):
            list(made.process(pointers))


def test_pointers_may_be_empty(tmp_path: Path) -> None:
    session = tiny_session(tmp_path, TinyIngest())
    with worker(session, 2) as (made, pointers):
        assert list(made.process(pointers.slice(0, 0))) == []
