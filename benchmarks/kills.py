"""Runs that are killed (SIGKILL) and continued, against an uninterrupted one: what was lost, what was done twice.

    python benchmarks/kills.py FOLDER [--engine ray] [--random 9] [--seed 0] [--work DIR] [--set A.B=C]

First the folder's videos go through one uninterrupted run. Then each line is a fresh run that is killed once and
continued with the same command: some at random moments of the uninterrupted run, and three aimed: between a clip's
file and its row, between a stage's last part and its marker, between two shards of the export. A driver that is killed
alone leaves its workers behind; the continuation starts while they still live. Columns:

- stage: the stage under way at the kill;
- held: items of map stages with a committed result at the kill;
- open: items begun and not committed at the kill; only they may be done again;
- again: items that were begun before the kill and once more after it;
- lost: committed items that were taken up again all the same (0 is right);
- equal: every table, floats to the last bit, and every byte of export/.

Needs a checkout (it uses the tests' fault injector) and Linux.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.run_helpers import KEEP_ALL, Command, committed, differences, export_bytes, read_tables

AIMED: dict[str, dict[str, Any]] = {
    "clip file, no row": {"kill": "put_file", "match": r"^clips/.*\.mp4$", "nth": 5},
    "last part, no marker": {"kill": "put", "match": "^markers/scan.json$", "when": "before"},
    "between two shards": {"kill": "put_file", "match": "^export/data/", "nth": 3, "when": "before"},
}
WHO = ("all", "driver", "workers, then driver")
SHOWN = ("sources", "ingest", "scan", "cut", "export", "rejects")
ROWS_PER_SHARD = "export.rows_per_shard=5"


@dataclass
class Bench:
    """The command under test and its uninterrupted run."""

    videos: str
    engine: str
    sets: list[str]
    work: Path

    def __post_init__(self) -> None:
        start = time.time()
        command = Command(self.work / "reference.faults")
        command.run(*self.args(self.work / "reference"), timeout_s=3600)
        self.seconds = time.time() - start
        self.steps = [at - start for _, _, at in command.timed_trace("begin")]
        self.tables = read_tables(self.work / "reference")
        self.export = export_bytes(self.work / "reference")

    def args(self, run: Path) -> list[object]:
        sets = [word for text in (*KEEP_ALL, ROWS_PER_SHARD, *self.sets) for word in ("--set", text)]
        return ["run", self.videos, "--out", run, "--engine", self.engine, *sets]

    def killed(self, name: str, who: str, moment_s: float | None) -> dict[str, Any]:
        """One run, killed and continued: at this second of the uninterrupted run, or by the rule of this name."""
        run, command = self.work / "killed", Command(self.work / "killed.faults")
        for folder in (run, command.faults):
            shutil.rmtree(folder, ignore_errors=True)
        command.rules(*([] if moment_s is not None else [AIMED[name]]))
        process = command.start(*self.args(run))
        if moment_s is not None:
            self._wait_for(command, process, moment_s)
            if who != "all":
                command.kill("worker") if who != "driver" else None
                process.kill()
            else:
                command.kill("all")
        printed, _ = process.communicate()
        if process.returncode != -9:
            raise SystemExit(f"{name}: not killed, exit code {process.returncode}:\n{printed}")
        stages, begun, held = command.trace("stage"), command.trace("begin"), committed(run)
        start = time.time()
        command.run(*self.args(run), timeout_s=3600)
        after = set(command.trace("begin")[len(begun) :])
        command.wait_until_gone()
        lines = differences(self.tables, read_tables(run)) + ([] if export_bytes(run) == self.export else ["export"])
        return {
            "kill": name,
            "who": who,
            "stage": stages[-1][0] if stages else "start",
            "held": len(held),
            "open": len(set(begun) - held),
            "again": len(after & set(begun)),
            "lost": len(after & held),
            "rest_s": f"{time.time() - start:.0f}",
            "equal": "yes" if not lines else "NO: " + "; ".join(lines[:3]),
        }

    def _wait_for(self, command: Command, process: Any, moment_s: float) -> None:
        """Until the run is as far as the uninterrupted one was then, however fast this machine is just now."""
        steps = sum(at <= moment_s for at in self.steps)
        while len(command.trace("begin")) < steps:
            if process.poll() is not None:
                return
            time.sleep(0.02)
        time.sleep(min(moment_s - max((at for at in self.steps if at <= moment_s), default=0.0), 5.0))


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs that are killed and continued, against an uninterrupted one.")
    parser.add_argument("folder", help="folder of videos")
    parser.add_argument("--engine", default="ray", help="ray or local")
    parser.add_argument("--random", type=int, default=9, help="kills at random moments")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--work", type=Path, help="folder to work in; a temporary one otherwise")
    parser.add_argument("--set", action="append", default=[], dest="sets", help="a further config value for every run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        bench = Bench(args.folder, args.engine, args.sets, args.work or Path(made))
        rows = {name: len(bench.tables.rows[name]) for name in SHOWN}
        print(f"uninterrupted: {bench.seconds:.0f} s, {rows}", flush=True)
        moments = random.Random(args.seed)
        drawn = [moments.uniform(0, bench.steps[-1]) for _ in range(args.random)]
        kills = [(f"at {at:.1f} s", WHO[i % len(WHO)], at) for i, at in enumerate(drawn)]
        for name, who, at in [*kills, *((name, "all", None) for name in AIMED)]:
            report(bench.killed(name, who, at))


def report(line: dict[str, Any]) -> None:
    print(", ".join(f"{key} {value}" for key, value in line.items()), flush=True)


if __name__ == "__main__":
    main()
