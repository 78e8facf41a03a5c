"""The Ray engine: the same results, and deaths and defects told apart. One Ray serves all tests."""

from __future__ import annotations

import glob
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

from pipeline.engine.local import LocalEngine
from pipeline.engine.ray_data import RayEngine
from pipeline.engine.task import StageFailed
from pipeline.runner import MapEngine
from pipeline.session import Session
from pipeline.stage import Chunk, Model, Output, Rejected, Resources, Row, UserError, Workspace
from tests.store.rows import live_rejects, live_rows
from tests.tiny import (
    Kept,
    Levels,
    Notes,
    TinyEmbed,
    TinyIngest,
    reject_on,
    sources,
    take_uri_for_id,
    tiny_runner,
    tiny_session,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    made = RayEngine()
    yield made
    made.close()


def run(session: Session, engine: MapEngine, count: int, notes: Notes | None = None) -> None:
    """All stages over so many sources. The engine stays up."""
    with tiny_runner(session, lambda: Kept(engine), notes) as runner:
        runner.list_sources(sources(count))
        runner.run([stage.name for stage in session.stages])


def rows(session: Session, name: str) -> list[tuple[object, ...]]:
    live = session.live()
    live.load(name)
    return sorted(live.con.sql(f"SELECT * FROM {live.scan_sql(name)}").fetchall(), key=repr)


def slow_small() -> Resources:
    return Resources(num_cpus=0.4, batch_size=3, in_flight=2)


def test_both_engines_come_to_the_same(tmp_path: Path, engine: RayEngine) -> None:
    sessions = []
    for name, one in (("ray", engine), ("local", LocalEngine())):
        stages = (TinyIngest(reject_on("v003"), batch_size=3), TinyEmbed(needs=slow_small()))
        sessions.append(tiny_session(tmp_path / name, *stages))
        notes = Notes()
        run(sessions[-1], one, 10, notes)
        assert sum(tally.items for tally in notes.tallies) == 10 + 9
        assert sum(tally.frames_decoded for tally in notes.tallies) == 4 * 9
        assert sum(tally.rejected["unreadable"] for tally in notes.tallies) == 1
    ray_run, local_run = sessions
    for stage in ("ingest", "embed"):
        assert rows(ray_run, stage) == rows(local_run, stage)
        assert live_rejects(ray_run.live(), stage) == live_rejects(local_run.live(), stage)


def test_a_dead_worker_costs_its_item_only(tmp_path: Path, engine: RayEngine) -> None:
    def deadly(row: Row, work: Workspace) -> Output:
        if row["source_key"] == "v002":
            os._exit(1)
        return take_uri_for_id(row, work)

    session = tiny_session(tmp_path, TinyIngest(deadly, batch_size=4))
    run(session, engine, 6)
    assert live_rejects(session.live(), "ingest") == [("v002", None, "worker_crashed")]
    assert len(live_rows(session.live(), "ingest")) == 5


def fail(tmp_path: Path, engine: RayEngine, stage: TinyIngest, kind: type[Exception]) -> tuple[Session, str]:
    session = tiny_session(tmp_path, stage)
    with pytest.raises(kind) as caught:
        run(session, engine, 4)
    assert "\x1b[" not in str(caught.value) and "ray::" not in str(caught.value)
    return session, str(caught.value)


def test_a_defect_names_its_item(tmp_path: Path, engine: RayEngine) -> None:
    def defect(row: Row, work: Workspace) -> Output:
        if row["source_key"] == "v002":
            raise ZeroDivisionError("two")
        return take_uri_for_id(row, work)

    session, told = fail(tmp_path, engine, TinyIngest(defect), StageFailed)
    assert told == "stage ingest failed on v002: ZeroDivisionError: two"
    assert len(live_rows(session.live(), "ingest")) == 2, "what was finished before is committed"


def test_a_users_mistake_is_told_as_it_is(tmp_path: Path, engine: RayEngine) -> None:
    def mistake(row: Row, work: Workspace) -> Output:
        raise UserError("no threshold for this model")

    assert fail(tmp_path, engine, TinyIngest(mistake), UserError)[1] == "no threshold for this model"


def test_rows_that_do_not_fit_are_no_dead_worker(tmp_path: Path, engine: RayEngine) -> None:
    def misfit(row: Row, work: Workspace) -> Output:
        made = take_uri_for_id(row, work)
        del made.rows[0]["codec"]
        return made

    session, told = fail(tmp_path, engine, TinyIngest(misfit), StageFailed)
    assert told.startswith("stage ingest failed writing its rows: ValueError: ingest.codec: a row lacks this column")
    assert live_rejects(session.live(), "ingest") == []


class Unknown(TinyIngest):
    """A stage that a worker cannot load, as where a package is missing there."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return import_module, ("no_such_package",)


def test_a_worker_that_cannot_start_is_no_dead_worker(tmp_path: Path, engine: RayEngine) -> None:
    session, told = fail(tmp_path, engine, Unknown(), StageFailed)
    assert told.startswith("stage ingest: Ray's workers failed: ") and "no_such_package" in told
    assert live_rejects(session.live(), "ingest") == []


def embed(tmp_path: Path, engine: RayEngine, load: type[Model], count: int = 4) -> Session:
    session = tiny_session(tmp_path, TinyIngest(), TinyEmbed(load_with=load, needs=slow_small()))
    run(session, engine, count)
    return session


class Missing(Levels):
    def __init__(self) -> None:
        raise UserError("no weights at /models/x")


class Broken(Levels):
    def __init__(self) -> None:
        raise RuntimeError("CUDA out of memory")


class Picky(Levels):
    async def infer(self, chunk: Chunk) -> Chunk:
        level = int(chunk.arrays["frames"][0, 0]) % 100
        if level == 1:
            raise Rejected("refused", "no words")
        if level == 2:
            raise ZeroDivisionError("two")
        return await super().infer(chunk)


def test_a_model_that_does_not_load_is_told_in_its_own_words(tmp_path: Path, engine: RayEngine) -> None:
    with pytest.raises(UserError, match=r"^no weights at /models/x$"):
        embed(tmp_path / "a", engine, Missing)
    with pytest.raises(StageFailed, match=r"^stage embed: its model did not load: RuntimeError: CUDA out of memory$"):
        embed(tmp_path / "b", engine, Broken)


def test_a_models_rejection_and_its_defect_are_told_apart(tmp_path: Path, engine: RayEngine) -> None:
    session = embed(tmp_path / "a", engine, Picky, count=2)
    assert live_rejects(session.live(), "embed") == [("v001", None, "refused")]
    with pytest.raises(StageFailed) as caught:
        embed(tmp_path / "b", engine, Picky, count=4)
    assert str(caught.value) == "stage embed failed on v002: ZeroDivisionError: two"
    assert "infer" in caught.value.trace


def test_workers_leave_no_scratch_folder(tmp_path: Path, engine: RayEngine) -> None:
    before = set(glob.glob(f"{tempfile.gettempdir()}/hicom-*"))

    def scribble(row: Row, work: Workspace) -> Output:
        Path(work.scratch_dir(), "draft").write_text("x")
        return take_uri_for_id(row, work)

    run(tiny_session(tmp_path, TinyIngest(scribble)), engine, 3)
    left = set(glob.glob(f"{tempfile.gettempdir()}/hicom-*")) - before
    assert [path for path in left if os.path.exists(f"{path}/draft")] == []


def test_a_ray_that_was_there_before_is_left_running(engine: RayEngine) -> None:
    second = RayEngine()
    assert second.describe() == engine.describe()
    second.close()
    assert "1 nodes" in engine.describe()


def test_no_cluster_at_the_address_is_the_users_mistake() -> None:
    # In a process of its own: this one is connected.
    code = """
from pipeline.engine.ray_data import RayEngine
try:
    RayEngine("127.0.0.1:1")
except Exception as err:
    print(type(err).__name__, err)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.startswith("UserError no Ray cluster at 127.0.0.1:1"), done
