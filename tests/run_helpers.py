"""Runs the command in processes of its own, breaks them, and compares what two run folders hold."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline import commands
from pipeline.commands import RunRequest, RunResult
from pipeline.query import open_query
from pipeline.records import TABLES, Grain
from pipeline.session import open_session
from pipeline.stage import UserError
from tests import clips

ROOT = Path(__file__).resolve().parent.parent
FAULTS = Path(__file__).resolve().parent / "faults"
KEYS = ("source_key", "video_id", "clip_id", "id", "stage", "shot", "category", "reason")
"""Columns that rows are put in order by."""
MEASURED = ("attempts",)
"""Columns that say how it went and not what came of it."""


@dataclass
class Command:
    """`hicom` in processes of its own, with faults and a trace (see faults/sitecustomize.py).

    One Command may be run several times: rules that fire once have fired then.
    """

    faults: Path
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def rules(self, *rules: dict[str, Any]) -> None:
        """What is to break from now on."""
        self.faults.mkdir(parents=True, exist_ok=True)
        (self.faults / "rules.json").write_text(json.dumps(rules))

    def start(self, *args: object) -> subprocess.Popen[str]:
        """Start `hicom ARGS` in a session of its own."""
        self.faults.mkdir(parents=True, exist_ok=True)
        env = {
            **os.environ,
            "HICOM_TEST_FAULTS": str(self.faults),
            "HICOM_TEST_TOKEN": self.token,
            "PYTHONPATH": os.pathsep.join([str(FAULTS), str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "COLUMNS": "200",
        }
        return subprocess.Popen(
            [sys.executable, str(ROOT / "cli.py"), *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
            start_new_session=True,
        )

    def run(self, *args: object, code: int = 0, timeout_s: float = 280) -> str:
        """Run `hicom ARGS` to its end and return what it printed. The exit code must be `code`."""
        process = self.start(*args)
        try:
            printed, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.kill("all")
            printed, _ = process.communicate()
            raise AssertionError(f"no end after {timeout_s} s: {printed}") from None
        assert process.returncode == code, f"exit code {process.returncode}, not {code}:\n{printed}"
        return printed

    def processes(self, kind: str = "all") -> list[int]:
        """Processes of this command: all, decoder (guarded children), engine (vLLM's), and of Ray: worker, model, node
        (its raylet)."""
        return [pid for pid, line in _with_token(self.token) if _is_kind(kind, line)]

    def kill(self, kind: str = "all") -> int:
        """SIGKILL processes of a kind; how many."""
        killed = 0
        for pid in self.processes(kind):
            try:
                os.kill(pid, signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                continue
        return killed

    def wait_until_gone(self, timeout_s: float = 60) -> float:
        """Wait for the last process to end; seconds waited."""
        start = time.monotonic()
        while self.processes():
            assert time.monotonic() - start < timeout_s, [line for _, line in _with_token(self.token)]
            time.sleep(0.05)
        return time.monotonic() - start

    def trace(self, step: str) -> list[tuple[str, str]]:
        """(stage, id) of every step of this kind so far, in order (see faults/sitecustomize.py)."""
        return [(name, key) for name, key, _ in self.timed_trace(step)]

    def timed_trace(self, step: str) -> list[tuple[str, str, float]]:
        """The same with the time of each step, seconds since the epoch."""
        try:
            lines = (self.faults / "trace.log").read_text().splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            kind, name, rest = line.split(" ", 2)
            key, _, at = rest.rpartition(" ")
            if kind == step:
                found.append((name, key, float(at)))
        return found


def _with_token(token: str) -> Iterator[tuple[int, str]]:
    """Pid and command line of every living process that has this token in its environment."""
    sought = f"HICOM_TEST_TOKEN={token}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if sought in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:  # gone, or another user's
            continue


def _is_kind(kind: str, line: str) -> bool:
    match kind:
        case "decoder":
            return "guard_child" in line
        case "engine":
            return line.startswith("VLLM::")
        case "worker":
            return "ray::MapWorker" in line
        case "model":
            return "ray::_ModelActor" in line
        case "node":
            return "/raylet/raylet " in line
        case _:
            return True


@dataclass(frozen=True)
class Tables:
    """What counts in a run folder: live rows and rejects by table, in the order of their keys."""

    rows: dict[str, list[dict[str, Any]]]

    def ids(self, table: str) -> set[str]:
        """Keys of a table's rows; of `rejects`, the ids."""
        key = "id" if table == "rejects" else KEYS_OF[table]
        return {row[key] for row in self.rows[table]}

    def rejected(self, stage: str) -> dict[str, str]:
        """Reason of every item (not shot) that a stage rejected."""
        return {r["id"]: r["reason"] for r in self.rows["rejects"] if r["stage"] == stage and r["shot"] is None}


KEYS_OF = {name: next(c.name for c in reversed(cols) if c.name in set(Grain)) for name, cols in TABLES.items()}


def read_tables(run: Path | str) -> Tables:
    """All tables of a run folder through the views that users query, and the rejects."""
    con = open_query(open_session(str(run)))
    rows = {}
    for table in (*TABLES, "rejects"):
        found = con.sql(f'SELECT * FROM "{table}"').to_arrow_table().to_pylist()
        kept = [{name: value for name, value in row.items() if name not in MEASURED} for row in found]
        rows[table] = sorted(kept, key=lambda row: [str(row.get(name)) for name in KEYS])
    return Tables(rows)


def differences(left: Tables, right: Tables) -> list[str]:
    """Where two runs differ, one line each; floats must be equal to the last bit."""
    lines = []
    for table, rows in left.rows.items():
        others = right.rows[table]
        if len(rows) != len(others):
            lines.append(f"{table}: {len(rows)} rows and {len(others)}")
        for row, other in zip(rows, others, strict=False):
            keys = [row[key] for key in KEYS if row.get(key)]
            lines += [
                f"{table}: {keys}: {name}: {_short(row[name])} and {_short(other[name])}"
                for name in row
                if repr(row[name]) != repr(other[name])
            ]
    return lines


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 120 else text[:117] + "..."


def export_bytes(run: Path) -> dict[str, bytes]:
    """Every file of the export by its path."""
    export = run / "export"
    return {str(p.relative_to(export)): p.read_bytes() for p in sorted(export.rglob("*")) if p.is_file()}


def state(run: Path) -> dict[str, tuple[int, int]]:
    """Size and time of last change of every file but the lock's and run.yaml, which each command writes."""
    return {
        str(path.relative_to(run)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.relative_to(run).parts[0] not in ("lock", "run.yaml")
    }


def measured(run: Path, stage: str, but: Collection[str] = ()) -> list[dict[str, Any]]:
    """Rows of a stage's metrics parts, those of other configs too, except the parts named by `but`."""
    parts = sorted((run / "metrics" / stage).glob("*.parquet"))
    return [row for part in parts if part.name not in but for row in pq.read_table(part).to_pylist()]


def metrics_parts(run: Path, stage: str) -> set[str]:
    """Names of a stage's metrics parts."""
    return {path.name for path in (run / "metrics" / stage).glob("*.parquet")}


def committed(run: Path) -> set[tuple[str, str]]:
    """(stage, id) of every item of a map stage with a committed result."""
    try:
        session = open_session(str(run))
    except UserError:  # killed before run.yaml was written
        return set()
    live = session.live()
    done = set()
    for stage in session.stages:
        if live.nodes[stage.name].whole_set:
            continue
        live.load(stage.name)
        keys = live.keys(f"SELECT in_key FROM live_{stage.name} UNION SELECT id FROM rejects_{stage.name}")
        done |= {(stage.name, str(key)) for key in keys}
    return done


def twice(begun: Sequence[tuple[str, str]]) -> Counter[str]:
    """Items begun more than once, by stage."""
    return Counter(stage for (stage, _), count in Counter(begun).items() if count > 1)


def copy_run(run: Path, to: Path) -> Path:
    """A copy of a run folder that keeps times of change."""
    shutil.copytree(run, to, copy_function=shutil.copy2)
    return to


def draw_videos(folder: Path) -> Path:
    """Six tiny videos, 9 shots at the default threshold of which 8 are kept, and a file that is not video."""
    folder.mkdir(parents=True)
    clips.write_clip(folder / "cuts.mp4", clips.shots(("maroon", 60), ("sky", 60), ("black", 60)), keyframes=(60, 120))
    clips.write_clip(folder / "soft.mp4", clips.shots(("orange", 60), ("blue", 60)))  # a score of 40 at the cut
    clips.write_clip(folder / "hard.mp4", clips.shots(("black", 55), ("white", 55)))
    clips.write_clip(folder / "one shot.mp4", clips.disc(54))
    clips.write_clip(folder / "b frames.mp4", clips.disc(60, (0, 1)), clips.h264(gop=10, b_frames=2))
    clips.write_clip(folder / "short.mp4", clips.flat("gold", 20))
    clips.text(folder / "notes.mp4")
    return folder


class Silent:
    """Told what happens in a run, and says nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *told: None


def run_here(
    out: Path | str, *inputs: Path | str, sets: Sequence[str] = (), stages: Sequence[str] = (), **other: Any
) -> RunResult:
    """`hicom run` in this process, on the local engine."""
    request = RunRequest(
        str(out), inputs=tuple(map(str, inputs)), sets=(*KEEP_ALL, *sets), **{"engine": "local", **other}
    )
    return commands.run(replace(request, stages=tuple(stages)) if stages else request, Silent())


KEEP_ALL = ("select.random_rest=1000",)
"""Quotas are no part of these tests: every readable video goes on to scan."""
