"""The Ray engine: workers as a Ray Data actor pool, models as actors beside them (`ray_models`).

What travels through Ray Data is pointers in and tallies out; the workers read their columns and write their parts
themselves. Frames travel from a worker to its model's actor and nowhere else. A worker that dies takes its batch
with it and nothing more: Ray's own retries are off, and the caller sees from the store which items are left.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.exceptions
from ray.util.annotations import RayDeprecationWarning

from pipeline.engine import ray_start
from pipeline.engine.limits import EngineConfig
from pipeline.engine.ray_client import RayModels
from pipeline.engine.ray_failure import NO_FAILURE, Failure, failure, raise_if
from pipeline.engine.ray_models import start_models, stop_models
from pipeline.engine.task import MapTask, Progress, StageFailed, Tally
from pipeline.engine.worker import StageWorker
from pipeline.stage import TwoStepStage, UserError
from pipeline.store.lock import LockLost

WORKER_RETRIES: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 0}
"""A dead worker is replaced, and its batch is lost to this pass: left alone, Ray Data would retry a crashing batch for
ever. Each batch is tried once, so restarts are bounded too; without them a pool that loses its last worker hangs."""
QUIET_LOGGERS = ("ray.data", "ray.data._internal.execution", "ray.data._internal.execution.streaming_executor")
"""Ray Data logs every dropped batch at length; the runner accounts for each item of it instead."""
STORE_SHARE = 0.5
"""Share of Ray's shared memory for frames on their way to a model; the rest is for frames being freed, and Ray Data."""


class RayEngine:
    """Ray in this process, or a cluster's."""

    name = "ray"

    def __init__(self, address: str | None = None, limits: EngineConfig | None = None) -> None:
        """Raises UserError when there is no cluster at the address."""
        self._own = not ray.is_initialized()
        if self._own:
            ray_start.start(address, (limits or EngineConfig()).in_flight_bytes)
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
        workers = _pool_size(task, len(batches))
        task = replace(task, limits=_share(task.limits, workers))
        models = start_models(task) if isinstance(task.stage, TwoStepStage) else []
        try:
            for row in _tallies(task, batches, models, workers).iter_rows():
                progress(_read_tally(row))
        except ray.exceptions.RayError as err:  # its words hold a whole trace; the last line says what was wrong
            last = str(err).strip().splitlines()[-1]
            raise StageFailed(f"stage {task.stage.name}: Ray's workers failed: {last}", str(err)) from err
        finally:
            stop_models(models)

    def close(self) -> None:
        """Stop a Ray that this engine started."""
        if self._own:
            ray.shutdown()


def _tallies(task: MapTask, batches: list[pa.Table], models: list[Any], workers: int) -> ray.data.Dataset:
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
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            **WORKER_RETRIES,
        )
    tallies.set_name(task.stage.name)
    return tallies


class _RayWorker:
    """A StageWorker as Ray Data wants it: batches of pointers in, batches of tallies out."""

    def __init__(self, task: MapTask, models: list[Any]) -> None:
        self._worker = StageWorker(task, RayModels(task, models) if models else None)

    def __call__(self, pointers: pa.Table) -> Iterator[dict[str, list[Any]]]:
        try:
            for tally in self._worker.process(pointers):
                yield _row(tally=tally)
        except (UserError, LockLost, StageFailed) as err:
            yield _row(failed=failure(err, ""))


def _row(tally: Tally | None = None, failed: Failure = NO_FAILURE) -> dict[str, list[Any]]:
    tally = tally or Tally()
    return {
        "items": [tally.items],
        "rows": [tally.rows],
        "frames_decoded": [tally.frames_decoded],
        "reasons": [list(tally.rejected.elements())],
        "failure": [list(failed)],
    }


def _read_tally(row: dict[str, Any]) -> Tally:
    raise_if(row["failure"])
    return Tally(row["items"], row["rows"], Counter(row["reasons"]), row["frames_decoded"])


def _pool_size(task: MapTask, batches: int) -> int:
    """Workers of a stage: as many as there is work, cores beside the models, and the user allows. One in the last pass
    of a stage with a model, which then has one item at a time."""
    resources = task.stage.resources
    cpus: float = ray.cluster_resources().get("CPU", 1.0)
    if isinstance(task.stage, TwoStepStage):
        if task.last_pass:
            return 1
        cpus -= resources.model_cpus * resources.model_replicas
    fit = max(1, math.floor(cpus / resources.num_cpus + 1e-9))
    return max(1, min(batches, fit, task.limits.max_workers or fit))


def _share(limits: EngineConfig, workers: int) -> EngineConfig:
    """The limits with no more bytes in flight than each worker's share of the shared memory."""
    share = ray.cluster_resources().get("object_store_memory", 0.0) * STORE_SHARE / workers
    return replace(limits, in_flight_bytes=max(1, min(limits.in_flight_bytes, int(share))))
