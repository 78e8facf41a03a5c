"""The Ray engine: workers as a Ray Data actor pool, models as actors beside them. The only file that imports ray.

What travels through Ray Data is pointers in and tallies out; the workers read their columns and write their parts
themselves. Frames travel from a worker to its model's actor and nowhere else. A worker that dies takes its batch
with it and nothing more: Ray's own retries are off, and the caller sees from the store which items are left.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import socket
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.exceptions
from ray.util.annotations import RayDeprecationWarning

from pipeline.engine.task import Answer, MapTask, Progress, StageFailed, Tally
from pipeline.engine.worker import StageWorker
from pipeline.stage import Chunk, Rejected, Retryable, TwoStepStage, UserError
from pipeline.store.lock import LockLost

MODEL_RESTARTS = 3
"""Times a model's actor is started again after its death, before the stage gives up."""
RESTART_POLL_S = 0.5
"""Seconds between two looks whether a model's process is there again."""
WORKER_RETRIES: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 0}
"""A dead worker is replaced, and its batch is lost to this pass: left alone, Ray Data would retry a crashing batch for
ever. Each batch is tried once, so restarts are bounded too; without them a pool that loses its last worker hangs."""
QUIET_LOGGERS = ("ray.data", "ray.data._internal.execution", "ray.data._internal.execution.streaming_executor")
"""Ray Data logs every dropped batch at length; the runner accounts for each item of it instead."""
KNOCK_S = 10.0
"""Seconds in which something at a cluster's address must answer."""
OBJECT_STORE_BYTES_PER_CPU = 256 << 20
"""Shared memory of an in-process Ray, by core: two workers of a core may each have EngineConfig.in_flight_bytes of
frames on their way; pointers and tallies are small."""


class RayEngine:
    """Ray in this process, or a cluster's."""

    name = "ray"

    def __init__(self, address: str | None = None) -> None:
        """Raises UserError when there is no cluster at the address."""
        self._own = not ray.is_initialized()
        if self._own:
            _init(address)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.max_errored_blocks = -1  # a batch whose worker died is tried again by the caller, item by item
        for name in QUIET_LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)

    def describe(self) -> str:
        """What this Ray is, in a line."""
        has = ray.cluster_resources()
        return f"{ray.__version__}, {len(ray.nodes())} nodes, {has.get('CPU', 0):g} CPUs, {has.get('GPU', 0):g} GPUs"

    def run_map(self, task: MapTask, pointers: pa.Table, progress: Progress, *, batch_size: int) -> None:
        """Work on all items; those of a worker that died stay without an outcome. Raises StageFailed, UserError."""
        batches = [pointers.slice(start, batch_size) for start in range(0, pointers.num_rows, batch_size)]
        models = _start_models(task) if isinstance(task.stage, TwoStepStage) else []
        try:
            for row in _tallies(task, batches, models).iter_rows():
                progress(_read_tally(row))
        except ray.exceptions.RayError as err:  # its words hold a whole trace; the last line says what was wrong
            last = str(err).strip().splitlines()[-1]
            raise StageFailed(f"stage {task.stage.name}: Ray's workers failed: {last}", str(err)) from err
        finally:
            for model in models:
                ray.kill(model)

    def close(self) -> None:
        """Stop a Ray that this engine started."""
        if self._own:
            ray.shutdown()


def _tallies(task: MapTask, batches: list[pa.Table], models: list[Any]) -> ray.data.Dataset:
    """The stage as a dataset: one block per batch of pointers, worked on by a pool of actors."""
    with warnings.catch_warnings():
        # Ray means to drop these arguments in 2.64 and has no other place for the retries yet.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        tallies = ray.data.from_arrow(batches).map_batches(
            _RayWorker,
            fn_constructor_kwargs={"task": task, "models": models},
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=task.stage.resources.num_cpus,
            compute=ray.data.ActorPoolStrategy(size=_pool_size(task, len(batches)), max_tasks_in_flight_per_actor=1),
            **WORKER_RETRIES,
        )
    tallies.set_name(task.stage.name)
    return tallies


class _RayWorker:
    """A StageWorker as Ray Data wants it: batches of pointers in, batches of tallies out."""

    def __init__(self, task: MapTask, models: list[Any]) -> None:
        self._worker = StageWorker(task, _RayModels(task.stage.name, models) if models else None)

    def __call__(self, pointers: pa.Table) -> Iterator[dict[str, list[Any]]]:
        try:
            for tally in self._worker.process(pointers):
                yield _row(tally=tally)
        except UserError as err:
            yield _row(failure=("user", str(err), ""))
        except LockLost as err:
            yield _row(failure=("lock", str(err), ""))
        except StageFailed as err:
            yield _row(failure=("defect", err.message, err.trace))


Failure = tuple[str, str, str]
"""An exception on its way to the driver: kind, message, trace."""
NO_FAILURE: Failure = ("", "", "")


def _raise_if(failure: Sequence[str]) -> None:
    kind, message, trace = failure
    if kind == "user":
        raise UserError(message)
    if kind == "lock":
        raise LockLost(message)
    if kind == "defect":
        raise StageFailed(message, trace)


def _row(tally: Tally | None = None, failure: Failure = NO_FAILURE) -> dict[str, list[Any]]:
    tally = tally or Tally()
    return {
        "items": [tally.items],
        "rows": [tally.rows],
        "frames_decoded": [tally.frames_decoded],
        "reasons": [list(tally.rejected.elements())],
        "failure": [list(failure)],
    }


def _read_tally(row: dict[str, Any]) -> Tally:
    _raise_if(row["failure"])
    return Tally(row["items"], row["rows"], Counter(row["reasons"]), row["frames_decoded"])


class _ModelActor:
    """Loads a stage's model once and answers many callers at a time."""

    def __init__(self, stage: TwoStepStage) -> None:
        self._failure = NO_FAILURE
        try:
            self._model = stage.load_model()
        except UserError as err:  # told by `ready`: an exception would arrive as Ray's own kind
            self._failure = ("user", str(err), "")
        except Exception as err:
            message = f"stage {stage.name}: its model did not load: {type(err).__name__}: {err}"
            self._failure = ("defect", message, traceback.format_exc())

    async def infer(self, chunk: Chunk) -> Chunk | tuple[str, bool, str]:
        try:
            return await self._model.infer(chunk)
        except Rejected as err:  # told as a value, for the same reason
            return err.reason, isinstance(err, Retryable), err.detail

    def ready(self) -> Failure:
        """Why the model did not load, if it did not."""
        return self._failure


class _RayModels:
    """The model's actors as one client: they take turns, and each worker begins with another."""

    def __init__(self, stage: str, actors: list[Any]) -> None:
        self._stage = stage
        self._actors = actors
        self._turn = itertools.count(os.getpid())

    def submit(self, chunk: Chunk) -> Answer:
        return _RayAnswer(self._stage, self._actors[next(self._turn) % len(self._actors)], chunk)


class _RayAnswer:
    def __init__(self, stage: str, actor: Any, chunk: Chunk) -> None:
        self._stage = stage
        self._actor = actor
        self._ref = actor.infer.remote(chunk)

    def done(self) -> bool:
        ready, _ = ray.wait([self._ref], timeout=0)
        return bool(ready)

    def result(self) -> Chunk:
        try:
            answer = ray.get(self._ref)
        except ray.exceptions.RayActorError as err:
            _wait_until_back(self._stage, self._actor)
            raise Retryable("engine_error", f"the model's process died: {err}") from err
        except ray.exceptions.RayTaskError as err:  # a defect of the model, as it was raised there
            raise err.cause from err
        if isinstance(answer, Chunk):
            return answer
        reason, retry, detail = answer
        raise (Retryable if retry else Rejected)(reason, detail)


def _wait_until_back(stage: str, actor: Any) -> None:
    """Wait until a model's process that died is there again: a call in between fails at once and would cost its item
    an attempt. Raises StageFailed when it will not come back: else every item left would be rejected for it."""
    while True:
        try:
            ray.get(actor.ready.remote())
            return
        except ray.exceptions.ActorUnavailableError:
            time.sleep(RESTART_POLL_S)
        except ray.exceptions.RayActorError as err:
            message = f"stage {stage}: its model's process died more than {MODEL_RESTARTS} times"
            raise StageFailed(message, str(err)) from err


def _start_models(task: MapTask) -> list[Any]:
    """One actor per replica. Raises UserError or StageFailed with the model's own words when one does not load."""
    resources = task.stage.resources
    remote: Any = ray.remote(_ModelActor)
    actor = remote.options(
        name=None,
        num_cpus=resources.model_cpus,
        num_gpus=resources.model_gpus,
        max_restarts=MODEL_RESTARTS,
        max_task_retries=0,
        max_concurrency=1000,
    )
    actors: list[Any] = [actor.remote(task.stage) for _ in range(resources.model_replicas)]
    try:
        failures = ray.get([a.ready.remote() for a in actors])
    except ray.exceptions.RayActorError as err:
        raise StageFailed(f"stage {task.stage.name}: the process that loads its model died", str(err)) from err
    for failure in failures:
        _raise_if(failure)
    return actors


def _pool_size(task: MapTask, batches: int) -> int:
    """Workers of a stage: as many as there is work, cores beside the models, and the user allows."""
    resources = task.stage.resources
    cpus: float = ray.cluster_resources().get("CPU", 1.0)
    if isinstance(task.stage, TwoStepStage):
        cpus -= resources.model_cpus * resources.model_replicas
    fit = max(1, math.floor(cpus / resources.num_cpus + 1e-9))
    return max(1, min(batches, fit, task.limits.max_workers or fit))


def _init(address: str | None) -> None:
    """Start Ray in this process, or connect to a cluster. Raises UserError."""
    if address is not None:
        _knock(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's core calls it an error that an actor which restarts has its arguments in the object store, which is how Ray
    # Data makes every actor. Set RAY_BACKEND_LOG_LEVEL yourself to see all it says.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        options |= {
            "include_dashboard": False,
            "object_store_memory": (os.cpu_count() or 1) * OBJECT_STORE_BYTES_PER_CPU,
        }
        # Workers on this machine find the package where this process found it, installed or not.
        here = str(Path(__file__).resolve().parents[2])
        paths = dict.fromkeys([here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
        options["runtime_env"] = {"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}}
    try:
        with _silent_stderr():  # Ray's core announces the log level itself, past every logger
            # "local": without it Ray joins any cluster that it finds started on this machine.
            ray.init(address=address or "local", **options)
    except ConnectionError as err:
        raise UserError(
            f"no Ray cluster at {address}: {err}. Start one with `ray start --head`, or leave --address out."
        ) from err


def _knock(address: str) -> None:
    """Ray tries an address for minutes, so look first whether anything answers there. Raises UserError."""
    scheme, _, place = address.rpartition("://")
    if address == "auto" or scheme not in ("", "ray"):
        return
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--address {address}: expected HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()
    except (OSError, OverflowError) as err:
        raise UserError(
            f"no Ray cluster at {address}: {err}. Start one with `ray start --head`, or leave --address out."
        ) from err


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Nothing that this process's libraries write to file descriptor 2 shows. Exceptions still tell what failed."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
