"""What the commands do, called without a terminal."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import commands
from pipeline.commands import RunRequest, RunResult
from pipeline.engine.limits import EngineConfig
from pipeline.engine.local import LocalEngine
from pipeline.engine.task import StageFailed
from pipeline.records import REASONS
from pipeline.runner import Runner
from pipeline.session import Session, open_session
from pipeline.stage import UserError
from pipeline.stages.split import Split
from pipeline.store.live import Counts
from pipeline.store.lock import Lock, LockLost
from tests.tiny import Notes


class Told(Notes):
    """A reporter of whole commands that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.listings: list[tuple[int, dict[str, int], int]] = []

    def opened(self, session: Session) -> None:
        pass

    def listed(self, rows: int, ignored: dict[str, int], no_longer: int) -> None:
        self.listings.append((rows, ignored, no_longer))


def run(out: Path, *inputs: Path, told: Told | None = None, **given: Any) -> RunResult:
    """`hicom ingest` without a terminal, unless other stages are given."""
    request = RunRequest(str(out), **{"stages": ("ingest",), "inputs": tuple(map(str, inputs)), **given})
    return commands.run(RunRequest(**{**request.__dict__, "engine": "local"}), told or Told())


@pytest.fixture(scope="module")
def poems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two poems that call themselves videos, and a picture of no known kind."""
    folder = tmp_path_factory.mktemp("poems")
    for name in ("ode.mp4", "sonnet.mp4"):
        (folder / name).write_text(f"{name}: shall I compare thee to a summer's day")
    (folder / "notes.txt").write_text("x")
    return folder


@pytest.fixture(scope="module")
def ingested(poems: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder after ingest, which rejected both poems. Read only: tests share it."""
    out = tmp_path_factory.mktemp("ingested") / "run"
    told = Told()
    result = run(out, poems, told=told)
    assert result.counts["ingest"].rejected == {"not_video": 2} and result.failed_items == {"ingest": 2}
    assert told.listings == [(2, {".txt": 1}, 0)]
    return out


@pytest.fixture
def own(ingested: Path, tmp_path: Path) -> Path:
    """A copy of the run folder."""
    return Path(shutil.copytree(ingested, tmp_path / "run"))


# Mistakes are told before anything is written


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"engine": "spark"}, "no engine 'spark'; there are: ray, local"),
        ({"engine": "local", "address": "auto"}, "--address names a Ray cluster"),
        ({"inputs": (), "limit": 3}, "--limit takes a sample of the inputs that this command names"),
        ({"inputs": ()}, "is not a run folder"),
        ({"profile": "huge"}, "no profile 'huge'"),
        ({"sets": ("split.treshold=3",)}, "did you mean threshold"),
    ],
)
def test_a_mistake_leaves_no_folder(tmp_path: Path, poems: Path, given: dict[str, Any], message: str) -> None:
    request = {"out": str(tmp_path / "run"), "inputs": (str(poems),), "engine": "local", **given}
    with pytest.raises(UserError, match=message):
        commands.run(RunRequest(**request), Told())
    assert not (tmp_path / "run").exists()


def test_after_inputs_that_are_not_there_the_folder_is_still_fresh(tmp_path: Path, poems: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        run(tmp_path / "run", tmp_path / "nothing")
    assert not (tmp_path / "run/run.yaml").exists()
    assert run(tmp_path / "run", poems, sets=("filter.min_s=1",)).counts["ingest"].items_in == 2


# Runs


def test_a_later_command_goes_on_with_the_inputs_of_the_first(own: Path) -> None:
    told = Told()
    assert run(own, told=told).counts["ingest"].items_in == 2
    assert told.listings == [] and told.begun == [("ingest", 2, 0)]


def test_cores_are_those_that_workers_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    assert commands._ran_on(RunRequest("run"), 0) == {"engine": "ray", "cores": 6}
    assert commands._ran_on(RunRequest("run"), 4)["cores"] == 4
    assert commands._ran_on(RunRequest("run"), 8)["cores"] == 6
    assert commands._ran_on(RunRequest("run", engine="local"), 4) == {"engine": "local", "cores": 1}
    assert commands._ran_on(RunRequest("run", address="auto"), 0)["cores"] is None


def test_inputs_that_are_no_longer_named_are_told(own: Path, poems: Path) -> None:
    told = Told()
    assert run(own, poems / "ode.mp4", told=told).counts["ingest"].items_in == 1
    ((rows, _, no_longer),) = told.listings
    assert rows == 1 and no_longer >= 1
    assert yaml.safe_load((own / "run.yaml").read_text())["inputs"] == [str(poems / "ode.mp4")]


def test_all_stages_of_a_run_without_a_video_balance(own: Path) -> None:
    """Nothing came in, nothing goes out, and every stage says so."""
    stages = RunRequest("").stages
    counts = run(own, stages=stages).counts
    assert list(counts) == list(stages)
    assert all(counts[name].items_in == counts[name].rows_out == 0 for name in stages[1:])
    assert [state for _, state, _ in commands.status(str(own))] == ["done"] * 11
    assert (own / "export/README.md").is_file()


def counted(items_in: int, **rejected: int) -> Counts:
    return Counts(items_in, 0, 0, rejected, {}, 0, 0)


@pytest.mark.parametrize(
    ("share", "too_many"), [(1.0, []), (0.5, []), (0.49, ["scan"]), (0.1, ["embed", "scan"]), (0.0, ["embed", "scan"])]
)
def test_failures_are_judged_and_decisions_are_not(share: float, too_many: list[str]) -> None:
    result = RunResult(
        {
            "embed": counted(8, timeout=1),
            "select": counted(7, not_selected=7),
            "scan": counted(4, decoder_crashed=1, decode_failed=1),
            "split": counted(0),
        }
    )
    commands._judge(result, share)
    assert result.too_many == too_many
    assert result.failed_items == {"embed": 1, "select": 0, "scan": 2, "split": 0}


def test_decisions_are_known_reasons() -> None:
    assert set(REASONS) > commands.DECISIONS


def test_a_run_is_opened_again_under_its_lock(own: Path) -> None:
    """Another writer may have finished between the first look and the lock."""
    made = [open_session(str(own)), open_session(str(own), sets=["split.threshold=30"])]
    with commands._locked(lambda: made.pop(0)) as (session, epoch):
        assert session.config.split.threshold == 30
        epoch.check(session.files)


# Failures


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (ZeroDivisionError("in the plan"), "ZeroDivisionError: in the plan\nThe trace is in"),
        (StageFailed("stage scan failed on v1", "far away"), "stage scan failed on v1\nThe trace is in"),
    ],
)
def test_a_failure_leaves_its_trace_in_the_log(
    own: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, told: str
) -> None:
    monkeypatch.setattr(Runner, "run", raising(failure))
    with pytest.raises(StageFailed) as caught:
        run(own)
    assert str(caught.value).startswith(told)
    (log,) = (own / "logs").iterdir()
    assert str(log) in str(caught.value)
    assert ("far away" if isinstance(failure, StageFailed) else "Traceback") in log.read_text()
    monkeypatch.undo()
    assert run(own).counts["ingest"].items_in == 2, "the lock is free again"


@pytest.mark.parametrize("failure", [UserError("no room"), LockLost("another writer"), StageFailed("does not balance")])
def test_a_failure_that_needs_no_trace_leaves_none(
    own: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    monkeypatch.setattr(Runner, "run", raising(failure))
    with pytest.raises(type(failure), match=str(failure)):
        run(own)
    assert not (own / "logs").exists()


def raising(failure: Exception) -> Any:
    def run(*_: object) -> None:
        raise failure

    return run


def test_words_of_a_failure() -> None:
    assert commands.failure_message(StageFailed("stage scan failed", "trace")) == "stage scan failed"
    assert commands.failure_message(LockLost("gone")) == "LockLost: gone"


# Status


def states(out: Path) -> dict[str, str]:
    return {name: state for name, state, _ in commands.status(str(out))}


def test_states_of_a_stage(own: Path, poems: Path) -> None:
    assert states(own) == {"ingest": "done", **dict.fromkeys(list(states(own))[1:], "not run")}
    (own / "markers/ingest.json").unlink()
    assert states(own)["ingest"] == "partial"
    run(own)
    assert states(own)["ingest"] == "done"
    session = open_session(str(own))
    with Lock(session.files) as lock:
        Runner(session, lock.epoch, LocalEngine, Told()).list_sources([])
    assert states(own)["ingest"] == "new input"
    run(own, poems, stages=RunRequest("").stages)
    run(own, sets=("split.threshold=30",))
    assert [states(own)[name] for name in ("scan", "split", "cut", "export")] == ["done", *["other config"] * 3]


def test_a_run_of_another_program_has_a_status(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Split, "version", Split.version + 1)
    with pytest.raises(UserError, match="the program changed"):
        run(own)
    assert states(own)["ingest"] == "done"
    assert commands.gc(str(own), dry_run=True).get("tables") is None, "nor is anything of it garbage"


# Retry


def test_rejects_are_tried_again(own: Path) -> None:
    forgotten, result = commands.retry(str(own), "not_video", Told(), "local", None)
    assert forgotten == 2 and list(result.counts) == ["ingest"]
    assert result.counts["ingest"].rejected == {"not_video": 2}
    forgotten, result = commands.retry(str(own), "timeout", Told(), "local", None)
    assert forgotten == 0 and result.counts["ingest"].missing == 0


@pytest.mark.parametrize(
    ("reason", "engine", "message"),
    [
        ("tiemout", "local", "no reject reason 'tiemout'; there are: missing, not_video"),
        ("too_short", "local", "too_short is a decision, not a failure"),
        ("timeout", "spark", "no engine 'spark'"),
    ],
)
def test_a_retry_that_makes_no_sense_is_told(own: Path, reason: str, engine: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        commands.retry(str(own), reason, Told(), engine, None)


# Engines


def test_engines_by_name(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(str(own))
    assert isinstance(commands.make_engine("local", None, session), LocalEngine)
    made: list[Any] = []

    class Ray:
        def __init__(self, address: str | None, limits: EngineConfig) -> None:
            assert limits is session.config.engine
            self.address, self.closed = address, False
            made.append(self)

        def close(self) -> None:
            self.closed = True

    probed: list[tuple[str, list[str]]] = []

    def probe(files: Any, seen_by_driver: str, inputs: list[str]) -> None:
        probed.append((seen_by_driver, inputs))
        if made[-1].address == "half":
            raise UserError("node b does not see the run folder")

    monkeypatch.setattr("pipeline.engine.ray_data.RayEngine", Ray)
    monkeypatch.setattr("pipeline.engine.ray_probe.probe_nodes", probe)
    commands.make_engine("ray", None, session)
    assert probed == [], "one machine needs no look at others"
    session.record_inputs(["videos", "s3://bucket/x", "some/*.mp4"], None)
    commands.make_engine("ray", "auto", session)
    assert probed == [("run.yaml", [str(Path.cwd() / "videos")])]
    with pytest.raises(UserError, match="node b"):
        commands.make_engine("ray", "half", session)
    assert [engine.closed for engine in made] == [False, False, True]
