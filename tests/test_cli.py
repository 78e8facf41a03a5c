"""The command line itself: its commands, exit codes, and that nothing of it is a surprise."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import cli
from pipeline import commands
from pipeline.commands import RunRequest, RunResult
from pipeline.engine.task import StageFailed
from pipeline.plan import PLAN
from pipeline.show import TerminalReporter
from pipeline.stage import UserError
from pipeline.store.live import Counts
from pipeline.store.lock import LockLost
from tests.command_line import hicom

ROOT = Path(__file__).resolve().parent.parent
OTHERS = ["run", "plan", "status", "rejects", "retry", "query", "stats", "gc", "doctor", "prompts", "demo"]


# Commands


def test_every_stage_of_the_plan_is_a_command_in_its_order() -> None:
    assert list(cli.STAGES) == [stage.name for stage in PLAN]


@pytest.mark.parametrize("name", ["", *cli.STAGES, *OTHERS])
def test_every_command_has_its_help(name: str) -> None:
    out = hicom(*name.split(), "--help").out
    about = cli.STAGES.get(name, "")
    assert "Usage" in out and re.sub(r"\W+", " ", about) in re.sub(r"\W+", " ", out)


def test_the_help_names_every_command() -> None:
    out = hicom("--help").out
    assert all(re.search(rf"\b{name}\b", out) for name in [*cli.STAGES, *OTHERS])


def test_a_command_without_arguments_is_the_help() -> None:
    assert "Usage" in hicom(code=2).out


# What a command asks for


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[RunRequest]:
    """The requests that commands make, none of them done."""
    requests: list[RunRequest] = []

    def run(request: RunRequest, reporter: Any) -> RunResult:
        requests.append(request)
        return RunResult()

    monkeypatch.setattr(commands, "run", run)
    return requests


def test_run_asks_for_what_it_is_told(asked: list[RunRequest]) -> None:
    options = "--set a.b=1 --set c.d=2 --engine local --limit 3 --max-reject-share 0.25 --accept-changes --offline"
    said = hicom("run", "videos", "more", "--out", "my run", "--profile", "demo", *options.split())
    assert asked == [
        RunRequest(
            "my run",
            inputs=("videos", "more"),
            profile="demo",
            sets=("a.b=1", "c.d=2"),
            accept_changes=True,
            engine="local",
            limit=3,
            max_reject_share=0.25,
            offline=True,
        )
    ]
    assert "hicom status 'my run'\n" in said.out, "what it says to do next can be pasted"


def test_defaults_are_those_of_the_request(asked: list[RunRequest]) -> None:
    hicom("run", "--out", "r")
    hicom("scan", "r")
    assert asked == [RunRequest("r"), RunRequest("r", stages=("scan",))]


@pytest.mark.parametrize("name", cli.STAGES)
def test_a_stages_command_runs_that_stage(asked: list[RunRequest], name: str) -> None:
    hicom(name, "r", "--set", "a.b=1", "--address", "auto", "--offline")
    assert asked == [RunRequest("r", stages=(name,), sets=("a.b=1",), address="auto", offline=True)]


def test_inputs_are_for_ingest(asked: list[RunRequest]) -> None:
    hicom("ingest", "r", "videos")
    assert asked[0].inputs == ("videos",)
    assert "scan takes no inputs; they are named once" in hicom("scan", "r", "videos", code=2).err
    assert len(asked) == 1


# Exit codes


@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [
        (UserError("no profile [bold]x[/]"), 2, "error: no profile [bold]x[/]\n"),
        (StageFailed("stage scan failed", "Traceback (most recent call last)"), 1, "failed: stage scan failed\n"),
        (LockLost("another writer"), 1, "failed: LockLost: another writer\n"),
        (ZeroDivisionError("oh"), 1, "failed: ZeroDivisionError: oh\n"),
        (KeyboardInterrupt(), 130, "stopped. What was committed is safe; the same command goes on from there.\n"),
    ],
)
def test_how_a_command_ends(
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    code: int,
    said: str,
) -> None:
    def run(*_: object) -> None:
        raise failure

    monkeypatch.setattr(commands, "run", run)
    ended = hicom("scan", "r", code=code)
    assert (ended.err.lstrip(), ended.out) == (said, "")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["run"], "--out RUN is missing"),
        (["runn"], "No such command 'runn'"),
        (["scan"], "Missing argument 'RUN'"),
        (["scan", "r", "--treshold", "3"], "No such option: --treshold"),
        (["run", "x", "--out", "r", "--limit", "0"], "'--limit'"),
        (["run", "x", "--out", "r", "--max-reject-share", "2"], "'--max-reject-share'"),
        (["run", "x", "--out", "r", "--engine", "spark"], "no engine 'spark'"),
        (["status", "/no/such/run"], "/no/such/run is not a run folder"),
        (
            ["query", "/no/such/run", "SELECT 1", "--format", "xml"],
            "--format xml: expected table, csv, json",
        ),
        (["rejects", "/no/such/run", "--stage", "x"], "no stage 'x'"),
        (["retry", "/no/such/run", "--reason", "x"], "no reject reason 'x'"),
        (["plan", "--profile", "x"], "no profile 'x'"),
        (["gc", "/no/such/run"], "is not a run folder"),
        (["stats", "/no/such/run"], "is not a run folder"),
    ],
)
def test_a_mistake_is_one_message_and_code_2(args: list[str], said: str) -> None:
    ended = hicom(*args, code=2)
    assert ended.err.startswith("error: ") and said in ended.err
    assert ended.err.count("\n") == 1 and ended.out == ""


@pytest.mark.parametrize(("too_many", "code"), [([], 0), (["scan"], 1)])
def test_too_many_failures_are_an_error(monkeypatch: pytest.MonkeyPatch, too_many: list[str], code: int) -> None:
    counts = Counts(4, 1, 1, {"timeout": 3}, {}, 0, 0)
    result = RunResult({"scan": counts}, {"scan": 3}, too_many)
    monkeypatch.setattr(commands, "run", lambda *_: result)
    ended = hicom("scan", "r", "--max-reject-share", "0.5", code=code)
    said = "scan: 3 of 4 items failed, more than --max-reject-share 0.5\n"
    assert ended.err == (said if too_many else "")


# Commands that read


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder after ingest, with sixty rejects. Read only: tests share it."""
    folder = tmp_path_factory.mktemp("cli")
    manifest = folder / "list.csv"
    lines = [f"{'long-name-' * 9}{i:02d}.mp4,bad/id" for i in range(60)]
    manifest.write_text("\n".join(["uri,id", *lines]))
    request = RunRequest(str(folder / "run"), stages=("ingest",), inputs=(str(manifest),), engine="local")
    commands.run(request, TerminalReporter(Console(file=io.StringIO())))
    return folder / "run"


def test_status(run: Path) -> None:
    row = next(line for line in hicom("status", run).out.splitlines() if "ingest" in line)
    assert [cell.strip() for cell in row.split("│")][1:-1] == ["ingest", "done", "60", "0", "bad_id 60", ""]


def test_rejects_are_whole_lines_in_a_pipe(run: Path) -> None:
    lines = hicom("rejects", run).out.splitlines()
    rows = [line for line in lines if "bad_id" in line]
    assert len(rows) == 50 and lines[-1].startswith("10 more rows: --limit N")
    assert all(line.count("list.csv") == 1 and "'bad/id' is not an id" in line for line in rows)
    for options, count in (((), 61), (("--limit", "7"), 8), (("--stage", "scan"), 1)):
        assert len(hicom("rejects", run, "--format", "csv", *options).out.splitlines()) == count


def test_query(run: Path, tmp_path: Path) -> None:
    sql = "SELECT reason, count(*) AS n FROM rejects GROUP BY 1"
    assert hicom("query", run, sql, "--format", "csv").out == "reason,n\nbad_id,60\n"
    target = tmp_path / "answer.json"
    assert hicom("query", run, sql, "--format", "json", "--output", target).out == ""
    assert '"n": 60' in target.read_text()
    assert hicom("query", run, "DROP VIEW rejects", code=2).err.startswith("error: hicom query runs one statement")
    out = hicom("query", run).out
    assert all(view in out for view in ("clips", "select_scores", "rejects", "clip_sha256"))


def test_stats(run: Path) -> None:
    out = hicom("stats", run).out
    assert "(the paper's Tab. 1, and Fig. 4's shares)" in out
    assert re.search(r"ingest\s*│\s*video\s*│\s*60\s*│\s*0\s*│\s*60", out)


def test_gc(run: Path) -> None:
    assert hicom("gc", run, "--dry-run").out == "would remove: nothing, 0.0 MiB\n"


def test_plan() -> None:
    out = hicom("plan").out
    assert all(name in out for name in cli.STAGES)


# As a process


def test_the_program_starts_light() -> None:
    """What the help needs is loaded, and nothing that costs seconds."""
    code = "import sys, cli; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert not loaded & {"ray", "av", "cv2", "torch", "scenedetect", "numpy", "pyarrow", "duckdb", "pydantic", "yaml"}


def test_python_cli_py_is_hicom(tmp_path: Path) -> None:
    """From any folder, and with an exit code."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), "status", "none"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: none is not a run folder")
