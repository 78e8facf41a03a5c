"""What the engine costs by itself: a stage that does nothing over many rows, then finding that nothing is left to do.

    python benchmarks/engine.py [ROWS] [--engine ray|local]

Prints rows per second, the ratio of the second look to the first run, and how much the driver's peak memory grew from
the moment the rows were listed to the end. Ratios are of one run on one machine; the rates are no claim.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from typing import Any

from pipeline.config import load_profile, parse
from pipeline.engine.local import LocalEngine
from pipeline.plan import SOURCES
from pipeline.records import Grain
from pipeline.runner import MapEngine, Runner
from pipeline.session import Session, nodes
from pipeline.stage import MapStage, Output, Resources, Row, Workspace
from pipeline.store.files import open_files
from pipeline.store.live import Counts
from pipeline.store.lock import Lock

ROWS = 200_000


class Noop(MapStage):
    """Gives every source row an id and does nothing else."""

    name = "ingest"
    grain_in, grain_out = Grain.SOURCE, Grain.VIDEO
    reads = ("sources.uri",)
    config = None

    @property
    def resources(self) -> Resources:
        return Resources(batch_size=4096)

    def apply(self, row: Row, work: Workspace) -> Output:
        found = {"dataset": "none", "identity": "manifest", "width": 1, "height": 1, "rotation": 0, "codec": "none"}
        unknown = {"duration_s": None, "fps": None, "bytes": 0, "meta": "{}"}
        return Output([{"video_id": row["source_key"], "uri": row["uri"], **found, **unknown}])


class Silent:
    """A reporter that says nothing."""

    def stage_begins(self, name: str, items: int, pending: int) -> None: ...

    def progress(self, name: str, tally: Any) -> None: ...

    def stage_ends(self, name: str, counts: Counts, seconds: float) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="?", type=int, default=ROWS)
    parser.add_argument("--engine", choices=("ray", "local"), default="ray")
    args = parser.parse_args()
    engine = _engine(args.engine)
    _run(args.rows // 100, engine)  # what the first use of an engine costs is not counted
    first_s, second_s, growth = _run(args.rows, engine)
    engine.close()
    print(f"{args.engine}: {args.rows:,} rows of a stage that does nothing")
    print(f"  first run   {args.rows / first_s:12,.0f} rows/s")
    print(f"  nothing to do: {second_s:.2f} s, {second_s / first_s:.3f} of the first run")
    print(f"  driver memory: {growth:.0f} MiB more than with the rows listed and nothing run")


def _engine(name: str) -> MapEngine:
    if name == "local":
        return LocalEngine()
    from pipeline.engine.ray_data import RayEngine

    return RayEngine()


def _run(rows: int, engine: MapEngine) -> tuple[float, float, float]:
    """Seconds of the run over fresh rows, of the same run again, and what both added to the peak memory, MiB."""
    with tempfile.TemporaryDirectory(prefix="hicom-bench-") as folder:
        files = open_files(folder)
        config = parse(load_profile("demo"), {})
        session = Session(files, config, (Noop(),), nodes((Noop(),), {"ingest": "noop"}), {}, {}, ())
        with Lock(files) as lock:
            runner = Runner(session, lock.epoch, lambda: engine, Silent())
            runner.list_sources([_source(i) for i in range(rows)])
            listed_mib = _peak_mib()
            first_s = _seconds(runner)
            runner.live.refresh(SOURCES)
            return first_s, _seconds(runner), _peak_mib() - listed_mib


def _source(i: int) -> Row:
    key = f"row-{i:07d}"
    empty = {"given_id": None, "meta": "{}", "stamp": None, "problem": None, "problem_detail": None}
    return {"source_key": key, "dataset": "none", "uri": f"/nowhere/{key}.mp4", **empty}


def _seconds(runner: Runner) -> float:
    start = time.perf_counter()
    runner.run(["ingest"])
    return time.perf_counter() - start


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
