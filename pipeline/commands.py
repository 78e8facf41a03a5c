"""What the commands do, without a terminal: `cli.py` parses, calls these, and prints."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.engine.task import StageFailed
from pipeline.media.guard import no_scratch_room
from pipeline.plan import PLAN, SOURCES
from pipeline.readiness import go_offline, require_ready
from pipeline.runner import MapEngine, Reporter, Runner
from pipeline.session import Session, open_session, read_session
from pipeline.stage import NO_ROOM, UserError
from pipeline.store.folder import RUN_FILE
from pipeline.store.gc import collect_garbage
from pipeline.store.live import Counts, Live
from pipeline.store.lock import Epoch, Lock, LockLost
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
    offline: bool = False
    """Download no model."""


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
    check_engine(request.engine, request.address)
    if request.limit is not None and not request.inputs:
        raise UserError("--limit takes a sample of the inputs that this command names, and it names none")
    if request.offline:
        go_offline()
    with _locked(lambda: _open(request)) as (session, epoch):
        reporter.opened(session)
        rows = _list(session, request, reporter) if request.inputs else None
        session.save()
        runner = Runner(session, epoch, lambda: make_engine(request.engine, request.address, session), reporter)
        try:
            if rows is not None:
                runner.list_sources(rows)
            left = _left(runner.live, request.stages)
            elsewhere = request.address is not None
            require_ready(session.config, left, elsewhere=elsewhere, reserved=request.engine == "ray")
            _note_machine(session, runner.live, left, _ran_on(request, session.config.engine.max_workers))
            result = RunResult(runner.run(request.stages))
        except (UserError, LockLost):
            raise
        except Exception as err:
            raise _logged(session, err) from err
        finally:
            runner.close()
    _judge(result, request.max_reject_share)
    return result


def _ran_on(request: RunRequest, max_workers: int) -> dict[str, Any]:
    """What measured seconds are to be read with: the engine, and how many cores its workers had; None where another
    machine knows. The local engine has one worker."""
    # What this process may use, where the system can tell: a container may have less than its machine.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = 1 if request.engine == "local" else min(cores, max_workers or cores)
    return {"engine": request.engine, "cores": cores if request.address is None else None}


def _note_machine(session: Session, live: Live, left: Sequence[str], machine: Mapping[str, Any]) -> None:
    """Note in run.yaml what the stages that have work left run on, and leave what is noted of the others.

    A stage that goes on with other cores than it began with is noted with None: its seconds are not of one kind.
    """
    noted = session.record.get("ran_on", {})
    now = {name: dict(machine) for name in left}
    for name in left:
        if not live.nodes[name].whole_set and live.parts(name) and noted.get(name) != machine:
            now[name]["cores"] = None
    if now:
        session.record["ran_on"] = {**noted, **now}
        session.save()


def _open(request: RunRequest) -> Session:
    return open_session(
        request.out,
        profile=request.profile,
        sets=request.sets,
        accept=request.accept_changes,
        create=bool(request.inputs),
    )


@contextmanager
def _locked(open_run: Callable[[], Session]) -> Iterator[tuple[Session, Epoch]]:
    """A run folder opened under its lock: another writer may have finished between the first look and the lock."""
    with Lock(open_run().files) as lock:
        yield open_run(), lock.epoch


def _logged(session: Session, err: Exception) -> StageFailed | UserError:
    """A failure as it is told to the user, its trace in the run folder's logs/. Call while it is handled."""
    if isinstance(err, OSError) and err.errno in NO_ROOM:  # what the run folder has no room for is a UserError already
        return no_scratch_room(err.strerror or str(err))
    message, trace = f"{type(err).__name__}: {err}", traceback.format_exc()
    if isinstance(err, StageFailed):
        message, trace = err.message, err.trace
    if not trace:
        return StageFailed(message)
    log = f"logs/failure-{time.strftime('%Y%m%dT%H%M%S')}.log"
    session.files.put(log, trace.encode("utf-8", "backslashreplace"))
    return StageFailed(
        f"{message}\nThe trace is in {session.files.url(log)}. The same command goes on from what is committed.", trace
    )


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


ENGINES = ("ray", "local")


def check_engine(name: str, address: str | None) -> None:
    """Before any work. Raises UserError."""
    if name not in ENGINES:
        raise UserError(f"no engine {name!r}; there are: {', '.join(ENGINES)}")
    if name == "local" and address is not None:
        raise UserError("--address names a Ray cluster; --engine local does not use one. Leave one of them out.")


def make_engine(name: str, address: str | None, session: Session) -> MapEngine:
    """An engine by its name, checked before. Raises UserError."""
    if name == "local":
        from pipeline.engine.local import LocalEngine

        return LocalEngine()
    from pipeline.engine.ray_data import RayEngine

    engine = RayEngine(address, session.config.engine)
    if address is not None:
        from pipeline.engine.ray_probe import probe_nodes

        local_inputs = [text for text in session.record["inputs"] if "://" not in text and "*" not in text]
        try:
            probe_nodes(session.files, RUN_FILE, [os.path.abspath(text) for text in local_inputs])
        except BaseException:
            engine.close()
            raise
    return engine


def _judge(result: RunResult, max_reject_share: float) -> None:
    for name, counts in result.counts.items():
        failed = sum(n for reason, n in counts.rejected.items() if reason not in DECISIONS)
        result.failed_items[name] = failed
        if counts.items_in and failed / counts.items_in > max_reject_share:
            result.too_many.append(name)


def retry(out: str, reason: str, reporter: RunReporter, engine: str, address: str | None) -> tuple[int, RunResult]:
    """Forget the rejects of a reason and run everything that is now pending. Returns how many were forgotten."""
    from pipeline.records import REASONS

    check_engine(engine, address)
    if reason not in REASONS:
        raise UserError(f"no reject reason {reason!r}; there are: {', '.join(REASONS)}")
    if reason in DECISIONS:
        raise UserError(f"{reason} is a decision, not a failure: it would be made again. Change the config instead.")
    with _locked(lambda: open_session(out)) as (session, epoch):
        live = session.live()
        begun = [i for i, stage in enumerate(session.stages) if _state(live, stage.name) != "not run"]
        forgotten = forget(live, reason, epoch)
    # Even when none is left to forget: a retry that was killed goes on here.
    stages = tuple(stage.name for stage in session.stages[: max(begun, default=-1) + 1])
    return forgotten, run(RunRequest(out, stages=stages, engine=engine, address=address), reporter)


def status(out: str) -> list[tuple[str, str, Counts]]:
    """Each stage with its state and counts."""
    session = read_session(out)
    live = session.live()
    return [(stage.name, _state(live, stage.name), live.counts(stage.name)) for stage in session.stages]


def _state(live: Live, name: str) -> str:
    """done, partial, new input (done with other inputs), other config (done with another), or not run."""
    marker = live.marker(name)
    if marker is not None:
        return "done" if marker["input_fingerprint"] == live.input_fingerprint(name) else "new input"
    body = live.files.get(f"markers/{name}.json")
    if body is not None:
        return "other config"
    return "partial" if live.parts(name) else "not run"


def _left(live: Live, names: Sequence[str]) -> Sequence[str]:
    """Of stages in order, the first that has work left and all after it, which may get more to do by that."""
    for index, name in enumerate(names):
        if _state(live, name) != "done" or live.pending(name):
            return names[index:]
    return ()


def failure_message(error: BaseException) -> str:
    """What is told of a failure that is not the user's."""
    return error.message if isinstance(error, StageFailed) else f"{type(error).__name__}: {error}"


def gc(out: str, *, dry_run: bool) -> dict[str, int]:
    """Remove what no view reaches; files and bytes removed by kind."""
    with _locked(lambda: read_session(out)) as (session, _):
        return collect_garbage(session.live(), dry_run=dry_run)
