"""What the commands do, without a terminal: `cli.py` parses, calls these, and prints."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.engine.task import StageFailed
from pipeline.plan import PLAN, SOURCES
from pipeline.runner import MapEngine, Reporter, Runner
from pipeline.session import Session, open_session
from pipeline.stage import UserError
from pipeline.store.folder import RUN_FILE
from pipeline.store.gc import collect_garbage
from pipeline.store.live import Counts, Live
from pipeline.store.lock import Lock
from pipeline.store.retry import forget

DECISIONS = frozenset(
    {
        "not_selected",
        "redundant",
        "no_sample",
        "too_short",
        "too_long",
        "no_clip_left",
        "duplicate_id",
        "all_pairs_invalid",
    }
)
"""Reasons that are the pipeline's own choice; every other reason is a failure of an item."""


@dataclass(frozen=True)
class RunRequest:
    """One `hicom run` or stage command."""

    out: str
    stages: tuple[str, ...] = tuple(stage.name for stage in PLAN)
    inputs: tuple[str, ...] = ()
    profile: str | None = None
    sets: tuple[str, ...] = ()
    accept_changes: bool = False
    engine: str = "ray"
    address: str | None = None
    limit: int | None = None
    max_reject_share: float = 1.0


@dataclass
class RunResult:
    """What a run came to."""

    counts: dict[str, Counts] = field(default_factory=dict)
    failed_items: dict[str, int] = field(default_factory=dict)
    """By stage: items rejected for a failure, not by decision."""
    too_many: list[str] = field(default_factory=list)
    """Stages whose failures pass --max-reject-share."""


def run(request: RunRequest, reporter: RunReporter) -> RunResult:
    """Run stages in order. Raises UserError, StageFailed, LockLost."""
    creates = bool(request.inputs)
    session = open_session(
        request.out, profile=request.profile, sets=request.sets, accept=request.accept_changes, create=creates
    )
    with Lock(session.files) as lock:
        # Read again: another writer may have finished between the first look and the lock.
        session = open_session(
            request.out, profile=request.profile, sets=request.sets, accept=request.accept_changes, create=creates
        )
        reporter.opened(session)
        rows = _list(session, request, reporter) if request.inputs else None
        session.save()
        runner = Runner(session, lock.epoch, lambda: make_engine(request.engine, request.address, session), reporter)
        try:
            if rows is not None:
                runner.list_sources(rows)
            result = RunResult(runner.run(request.stages))
        except StageFailed as err:
            if err.trace:
                session.files.put(f"logs/failure-{time.strftime('%Y%m%dT%H%M%S')}.log", err.trace.encode())
            raise
        finally:
            runner.close()
    _judge(result, request.max_reject_share)
    return result


class RunReporter(Reporter, Protocol):
    """A Reporter that is told of the opened session and of the listing too."""

    def opened(self, session: Session) -> None: ...

    def listed(self, rows: int, ignored: dict[str, int], no_longer: int) -> None: ...


def _list(session: Session, request: RunRequest, reporter: RunReporter) -> list[dict[str, Any]]:
    """The source rows of the inputs. Raises UserError when an input is missing or holds nothing."""
    from pipeline.sources.listing import list_sources

    listing = list_sources(list(request.inputs), session.config.sources, limit=request.limit)
    rows = list(listing.rows)
    live = session.live()
    live.load(SOURCES)
    before = set(live.keys(f"SELECT in_key FROM live_{SOURCES}"))
    reporter.listed(len(rows), dict(listing.ignored), len(before - {row["source_key"] for row in rows}))
    session.record_inputs(request.inputs, request.limit)
    return rows


def make_engine(name: str, address: str | None, session: Session) -> MapEngine:
    """An engine by name. Raises UserError."""
    if name == "local":
        if address is not None:
            raise UserError("--address names a Ray cluster; --engine local does not use one. Leave one of them out.")
        from pipeline.engine.local import LocalEngine

        return LocalEngine()
    if name == "ray":
        from pipeline.engine.ray_data import RayEngine

        engine = RayEngine(address)
        if address is not None:
            from pipeline.engine.ray_probe import probe_nodes

            local_inputs = [text for text in session.record["inputs"] if "://" not in text and "*" not in text]
            probe_nodes(session.files, RUN_FILE, [os.path.abspath(text) for text in local_inputs])
        return engine
    raise UserError(f"no engine {name!r}; there are: ray, local")


def _judge(result: RunResult, max_reject_share: float) -> None:
    for name, counts in result.counts.items():
        failed = sum(n for reason, n in counts.rejected.items() if reason not in DECISIONS)
        result.failed_items[name] = failed
        if counts.items_in and failed / counts.items_in > max_reject_share:
            result.too_many.append(name)


def retry(out: str, reason: str, reporter: RunReporter, engine: str, address: str | None) -> tuple[int, RunResult]:
    """Forget the rejects of a reason and run everything that is now pending. Returns how many were forgotten."""
    from pipeline.records import REASONS

    if reason not in REASONS:
        raise UserError(f"no reject reason {reason!r}; there are: {', '.join(REASONS)}")
    if reason in DECISIONS:
        raise UserError(f"{reason} is a decision, not a failure: it would be made again. Change the config instead.")
    session = open_session(out)
    with Lock(session.files) as lock:
        forgotten = forget(session.live(), reason, lock.epoch)
    if not forgotten:
        return 0, RunResult()
    done = tuple(stage for stage in (s.name for s in session.stages) if session.live().marker(stage) is not None)
    return forgotten, run(RunRequest(out, stages=done, engine=engine, address=address), reporter)


def status(out: str) -> list[tuple[str, str, Counts]]:
    """Each stage with its state (done, partial, waiting, stale) and counts."""
    session = open_session(out)
    live = session.live()
    return [(stage.name, _state(live, stage.name), live.counts(stage.name)) for stage in session.stages]


def _state(live: Live, name: str) -> str:
    marker = live.marker(name)
    if marker is not None:
        return "done" if marker["input_fingerprint"] == live.input_fingerprint(name) else "new input"
    body = live.files.get(f"markers/{name}.json")
    if body is not None:
        return "other config"
    return "partial" if live.parts(name) else "not run"


def failure_message(error: BaseException) -> str:
    """One line for a failure that is not the user's: what failed, and where the trace is."""
    if isinstance(error, StageFailed):
        return f"{error}" + (
            "\nThe trace is in the run folder's logs/. The same command goes on from what is committed."
            if error.trace
            else ""
        )
    return f"{type(error).__name__}: {error}"


def gc(out: str, *, dry_run: bool) -> dict[str, int]:
    """Remove what no view reaches; files and bytes removed by kind."""
    session = open_session(out)
    with Lock(session.files):
        return collect_garbage(session.live(), dry_run=dry_run)
