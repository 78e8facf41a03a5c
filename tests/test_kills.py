"""Processes killed for good (SIGKILL) at any moment: the same command goes on, and nothing is lost or done twice.

Faults come from tests/faults/sitecustomize.py. What may be computed again is what no part held at the kill; what a
part held must not be taken up again. Both are checked against a trace of the work, not against the program's word.
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.engine.task import MapTask
from pipeline.engine.worker import StageWorker
from pipeline.session import Session, open_session
from pipeline.stage import MapStage, UserError
from pipeline.store.lock import Epoch, LockLost
from pipeline.store.tables import PartWriter
from tests.run_helpers import (
    KEEP_ALL,
    Command,
    Tables,
    committed,
    copy_run,
    differences,
    draw_videos,
    export_bytes,
    read_tables,
    run_here,
    state,
    twice,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found through /proc"),
]
LOCAL = ("--engine", "local")
SMALL_SHARDS = ("export.rows_per_shard=3",)
"""So that the export writes three shards."""


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run."""

    videos: Path
    run: Path
    seconds: float
    tables: Tables

    def assert_equal(self, run: Path) -> None:
        assert differences(self.tables, read_tables(run)) == []
        assert export_bytes(run) == export_bytes(self.run)

    def command(self, run: Path, *more: object) -> tuple[object, ...]:
        return "run", self.videos, "--out", run, *_sets(*KEEP_ALL, *SMALL_SHARDS), *more

    def video_id(self, name: str) -> str:
        return next(str(r["video_id"]) for r in self.tables.rows["ingest"] if r["source_key"].endswith(name))


def _sets(*sets: str) -> list[str]:
    return [word for text in sets for word in ("--set", text)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("kills")
    videos, run = draw_videos(folder / "videos"), folder / "reference"
    start = time.monotonic()
    Command(folder / "faults").run("run", videos, "--out", run, *_sets(*KEEP_ALL, *SMALL_SHARDS), *LOCAL)
    return Reference(videos, run, time.monotonic() - start, read_tables(run))


def go_on(command: Command, run: Path, *args: object) -> dict[str, int]:
    """Run the same command again after a kill; items begun twice by stage. Committed ones must not be among them."""
    done, begun = committed(run), command.trace("begin")
    command.run(*args)
    everything = command.trace("begin")
    assert set(everything[len(begun) :]) & done == set(), "a committed item was taken up again"
    again = twice(everything)
    assert again.total() <= len(set(begun) - done), "more than the items in flight were computed again"
    return dict(again)


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_a_random_moment(reference: Reference, tmp_path: Path, seed: int) -> None:
    moment, run, command = random.Random(seed), tmp_path / "run", Command(tmp_path / "faults")
    process = command.start(*reference.command(run, *LOCAL))
    time.sleep(moment.uniform(0.2, 0.95) * reference.seconds)
    if seed % 2:
        process.kill()  # the driver alone
    else:
        command.kill("all")
    process.communicate()
    assert command.wait_until_gone() < 10, "the decoder's process ends with its worker"
    go_on(command, run, *reference.command(run, *LOCAL))
    reference.assert_equal(run)


def test_killed_between_a_clips_file_and_its_row(reference: Reference, tmp_path: Path) -> None:
    run, command = tmp_path / "run", Command(tmp_path / "faults")
    command.rules({"kill": "put_file", "match": r"^clips/.*\.mp4$", "nth": 2})
    command.run(*reference.command(run, *LOCAL), code=-9)
    command.wait_until_gone()
    assert len(list((run / "clips").rglob("*.mp4"))) == 2
    assert not list(run.glob("tables/cut/*.parquet"))
    assert go_on(command, run, *reference.command(run, *LOCAL)).keys() == {"cut"}
    reference.assert_equal(run)


@pytest.mark.parametrize("stage", ["scan", "select"])
def test_killed_between_the_last_part_and_the_marker(reference: Reference, tmp_path: Path, stage: str) -> None:
    run, command = tmp_path / "run", Command(tmp_path / "faults")
    command.rules({"kill": "put", "match": f"^markers/{stage}.json$", "when": "before"})
    command.run(*reference.command(run, *LOCAL), code=-9)
    command.wait_until_gone()
    assert list(run.glob(f"tables/{stage}/*.parquet")) and not (run / f"markers/{stage}.json").exists()
    assert go_on(command, run, *reference.command(run, *LOCAL)) == {}
    reference.assert_equal(run)


def test_killed_between_two_shards_of_the_export(reference: Reference, tmp_path: Path) -> None:
    run, command = tmp_path / "run", Command(tmp_path / "faults")
    command.rules({"kill": "put_file", "match": "^export/data/", "nth": 2, "when": "before"})
    command.run(*reference.command(run, *LOCAL), code=-9)
    command.wait_until_gone()
    [shard] = (run / "export/data").iterdir()
    assert not (run / "export/README.md").exists(), "a half-written export is not taken for a finished one"
    written = shard.stat().st_mtime_ns
    assert go_on(command, run, *reference.command(run, *LOCAL)) == {}
    assert shard.stat().st_mtime_ns == written, "the finished shard stands"
    reference.assert_equal(run)


def test_decoders_killed_while_the_run_goes_on(reference: Reference, tmp_path: Path) -> None:
    run, command = tmp_path / "run", Command(tmp_path / "faults")
    process = command.start(*reference.command(run, *LOCAL, *_sets("engine.attempts=9")))
    killed = 0
    while process.poll() is None:
        time.sleep(0.5)
        killed += command.kill("decoder") if killed < 6 else 0
    printed, _ = process.communicate()
    assert process.returncode == 0 and killed >= 2, printed
    reference.assert_equal(run)


def test_a_decode_that_crashes_or_hangs_costs_its_file_only(reference: Reference, tmp_path: Path) -> None:
    """And `retry` mends it, killed twice on its way."""
    run, command = tmp_path / "run", Command(tmp_path / "faults")
    command.rules(
        {"decoder": "scan", "match": "one shot", "how": "crash"},
        {"decoder": "scan", "match": "cuts", "how": "hang"},
        {"decoder": "cut", "match": "hard", "how": "crash"},
    )
    limits = _sets("engine.deadline_base_s=5", "engine.deadline_per_media_s=0.1")
    command.run(*reference.command(run, *LOCAL, *limits))
    tables = read_tables(run)
    crash, hang, no_clip = (reference.video_id(name) for name in ("one shot.mp4", "cuts.mp4", "hard.mp4"))
    assert tables.rejected("scan") == {crash: "decoder_crashed", hang: "timeout"}
    assert tables.rejected("cut") == {no_clip: "decoder_crashed"}
    jobs = command.trace("job")
    assert jobs.count(("scan", "one_shot.mp4")) == jobs.count(("scan", "cuts.mp4")) == 2, "engine.attempts is 2"
    others = tables.ids("embed") - {crash, hang, no_clip}
    assert tables.ids("cut") == {r["clip_id"] for r in reference.tables.rows["cut"] if r["video_id"] in others}

    begun = len(command.trace("begin"))
    command.rules({"kill": "put", "match": "^tables/scan/"})  # the part without the item stands beside the old one
    command.run("retry", run, "--reason", "timeout", *LOCAL, code=-9)
    command.rules({"kill": "put", "match": "^run.yaml$", "when": "before"})  # forgotten, and not tried again yet
    command.run("retry", run, "--reason", "timeout", *LOCAL, code=-9)
    command.rules()
    command.run("retry", run, "--reason", "timeout", *LOCAL)
    assert {key for stage, key in command.trace("begin")[begun:] if stage == "scan"} == {hang}
    command.run("retry", run, "--reason", "decoder_crashed", *LOCAL)
    reference.assert_equal(run)


def _task(session: Session, stage: str, epoch: int) -> MapTask:
    made = session.stage(stage)
    assert isinstance(made, MapStage)
    fingerprint = next(n.fingerprint for n in session.nodes if n.name == stage)
    writer = PartWriter(session.files, stage, fingerprint, Epoch(epoch))
    return MapTask(made, session.files, writer, session.config.engine)


@pytest.mark.parametrize("stage", ["ingest", "dedup", "cut"])
def test_a_worker_that_outlives_its_driver_does_no_harm(
    reference: Reference, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver is dead and another has finished the run; now a worker of the first commits what it held."""
    run = copy_run(reference.run, tmp_path / "run")
    session = open_session(str(run))
    live = session.live()
    old = int(max(path.stem for path in (run / "lock").iterdir()))
    live.load(stage)
    task = _task(session, stage, old)
    everything = f"SELECT DISTINCT out_key AS key FROM live_{live.upstream(stage)}"
    pointers = live.pointers(everything, task.stage.grain_in, task.tables_read)
    run_here(run, reference.videos, sets=SMALL_SHARDS)  # the next writer, under the next epoch
    before = state(run)

    def commit_late() -> None:
        worker = StageWorker(task, None)
        try:
            for start in range(0, pointers.num_rows, 2):  # other parts than the run's own, with other names
                list(worker.process(pointers.slice(start, 2)))
        finally:
            worker.close()

    with pytest.raises(LockLost):
        commit_late()
    assert {path for path in state(run) if path.startswith("tables/")} == {p for p in before if p.startswith("tables/")}

    # The fence passed a moment before the other writer took over: the part does get written.
    monkeypatch.setattr(Epoch, "check", lambda *args: None)
    commit_late()
    monkeypatch.undo()
    assert len(list((run / f"tables/{stage}").iterdir())) > len([p for p in before if p.startswith(f"tables/{stage}/")])
    reference.assert_equal(run)
    now = state(run)
    run_here(run, reference.videos, sets=SMALL_SHARDS)
    changed = {path for path, was in state(run).items() if now.get(path) != was}
    assert {path for path in changed if "export" not in path and "select" not in path} == set(), "no item is done again"
    reference.assert_equal(run)


def test_a_second_writer_is_refused_while_the_first_lives(reference: Reference, tmp_path: Path) -> None:
    run, command = tmp_path / "run", Command(tmp_path / "faults")
    command.rules({"decoder": "scan", "match": "cuts", "how": "hang"})
    process = command.start(*reference.command(run, *LOCAL))
    while ("scan", "cuts.mp4") not in command.trace("job"):
        assert process.poll() is None
        time.sleep(0.1)
    with pytest.raises(UserError, match=f"pid {process.pid} "):
        run_here(run, reference.videos, sets=SMALL_SHARDS)
    process.kill()
    process.communicate()
    command.rules()
    command.run(*reference.command(run, *LOCAL))  # at once: a dead holder is not waited for
    reference.assert_equal(run)


def test_on_ray_a_fault_costs_its_item_only(reference: Reference, tmp_path: Path) -> None:
    """A worker that dies on an item each time, a model that dies once, a decoder that dies each time on a file."""
    run, command = tmp_path / "run", Command(tmp_path / "faults")
    deadly, crash = reference.video_id("cuts.mp4"), reference.video_id("one shot.mp4")
    command.rules(
        {"item": "split", "match": deadly},
        {"model": "scan", "nth": 2},
        {"decoder": "scan", "match": "one shot", "how": "crash"},
    )
    command.run(*reference.command(run))
    tables = read_tables(run)
    assert tables.rejected("split") == {deadly: "worker_crashed"}
    assert tables.rejected("scan") == {crash: "decoder_crashed"}
    assert command.trace("load").count(("scan", "model")) >= 2, "the model's process was started again"
    assert command.trace("begin").count(("split", deadly)) == 3, "tried in each of three passes"
    others = tables.ids("embed") - {deadly, crash}
    for table in ("scan", "split", "dedup", "filter", "cut"):
        expected = [row for row in reference.tables.rows[table] if row["video_id"] in others]
        assert [row for row in tables.rows[table] if row["video_id"] in others] == expected
    command.rules()
    command.run("retry", run, "--reason", "worker_crashed", *LOCAL)
    command.run("retry", run, "--reason", "decoder_crashed", *LOCAL)
    reference.assert_equal(run)


def test_on_ray_workers_and_the_driver_are_killed(reference: Reference, tmp_path: Path) -> None:
    """Workers are killed and the run goes on; the driver alone is killed, and the same command follows at once."""
    moment, run, command = random.Random(7), tmp_path / "run", Command(tmp_path / "faults")
    process = command.start(*reference.command(run))
    for stage in ("embed", "split"):
        while not any(name == stage for name, _ in command.trace("begin")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        time.sleep(moment.uniform(0, 0.2))
        assert command.kill("worker") >= 1
    while not any(name == "generate" for name, _ in command.trace("begin")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    process.communicate()
    command.run(*reference.command(run))
    reference.assert_equal(run)
    assert command.wait_until_gone() < 60
