"""A stage's model as Ray actors: loaded once in each, asked by many workers, started again when it dies.

An actor loads when it is first asked, and not when it is made: so whoever asks learns of a death while loading, and
counts it. Ray itself may start an actor again without end.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import ray
import ray.exceptions

from pipeline.engine.ray_failure import NO_FAILURE, Failure, failure, raise_if
from pipeline.engine.task import MapTask, Silence, StageFailed
from pipeline.stage import Chunk, Model, ModelDied, Rejected, Resources, Retryable, TwoStepStage, UserError

LAST_WORDS_S = 0.5
"""Seconds for which a process lives on after its model died, so that the callers hear what it said."""
CLOSE_S = 30.0
"""Seconds in which a model must end what it started; then its process is killed."""
CALLS_AT_ONCE = 10_000
"""Calls that a process takes in. More than all workers have open, or else it seems to hang: it is not heard."""
DRIVERS_VARIABLES = ("HF_HUB_OFFLINE",)
"""Environment variables that the command decides for every model (--offline)."""
SHARED_PREFIXES = ("HF_", "HUGGING_FACE_", "VLLM_", "OPENAI_")
"""Environment variables of the command that a model's process takes over where its node has none of that name."""

Said = tuple[str, str, str]
"""What a model said instead of an answer: kind (rejected, retryable, died, user), reason if any, words."""


class _ModelActor:
    """Loads a stage's model once and answers many callers at a time. Ends its process when the model dies."""

    def __init__(self, stage: TwoStepStage, decided: Mapping[str, str], shared: Mapping[str, str]) -> None:
        os.environ.update(decided)
        for name, value in shared.items():
            os.environ.setdefault(name, value)
        self._stage = stage
        self._model: Model | None = None
        self._loading: asyncio.Task[Failure] | None = None
        self._died = ""
        self._silence = Silence()

    async def ready(self) -> Failure:
        """Wait until the model is loaded; why it cannot be, if so."""
        while self._died:  # this process is about to end
            await asyncio.sleep(1)
        if self._loading is None:
            self._loading = asyncio.create_task(asyncio.to_thread(self._load))
        return await asyncio.shield(self._loading)

    def _load(self) -> Failure:
        try:
            self._model = self._stage.load_model()
        except Exception as err:
            return failure(err, f"stage {self._stage.name}: its model did not load")
        self._silence.breaks()
        return NO_FAILURE

    async def silent_s(self) -> float:
        """Seconds for which it has answered nobody, though it was asked."""
        return self._silence.seconds()

    async def infer(self, chunk: Chunk) -> Chunk | Said:
        with self._silence.call():
            try:
                return await self._infer(chunk)
            except (Exception, asyncio.CancelledError):
                if not self._died:
                    raise
                return "died", "", self._died  # ending the model cancels what is open

    async def _infer(self, chunk: Chunk) -> Chunk | Said:
        if self._died:
            return "died", "", self._died
        not_loaded = await self.ready()
        if self._model is None:
            return "died", "", not_loaded[1]
        try:
            return await self._model.infer(chunk)
        except Rejected as err:
            return ("retryable" if isinstance(err, Retryable) else "rejected"), err.reason, err.detail
        except UserError as err:
            return "user", "", str(err)
        except ModelDied as err:
            await self.end(str(err))
            return "died", "", self._died

    async def end(self, words: str) -> None:
        """End this process: the model is dead, or taken for it."""
        if not self._died:
            self._died = words or "it said nothing"
            threading.Thread(target=self._exit, daemon=True).start()

    def _exit(self) -> None:
        """Let what was said go out, end what the model started, and have Ray end the process and start another. A
        process that ends by itself would be an accident, which Ray tells the terminal at length."""
        time.sleep(LAST_WORDS_S)
        if self._model is not None:
            closing = threading.Thread(target=self._model.close, daemon=True)
            closing.start()
            closing.join(CLOSE_S)
        ray.kill(ray.get_runtime_context().current_actor, no_restart=False)
        time.sleep(CLOSE_S)
        os._exit(1)

    async def close(self) -> None:
        if self._model is not None:
            await asyncio.to_thread(self._model.close)


def start_models(task: MapTask) -> list[Any]:
    """One actor per replica, loaded. Raises UserError or StageFailed with the model's own words when one is not."""
    stage, resources = task.stage, task.stage.resources
    check_room(stage.name, resources)
    remote: Any = ray.remote(_ModelActor)
    actor = remote.options(
        name=None,
        num_cpus=resources.model_cpus,
        num_gpus=resources.model_gpus,
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=CALLS_AT_ONCE,
    )
    environment = _environment(resources.model_environment)
    actors: list[Any] = [actor.remote(stage, *environment) for _ in range(resources.model_replicas)]
    try:
        for failed in ray.get([one.ready.remote() for one in actors]):
            raise_if(failed)
    except BaseException as err:
        kill(actors)
        if isinstance(err, ray.exceptions.RayActorError):
            raise StageFailed(f"stage {stage.name}: the process that loads its model died", str(err)) from err
        raise
    return actors


def stop_models(actors: list[Any]) -> None:
    """End the models: first what they started, then their processes."""
    if actors:
        ray.wait([actor.close.remote() for actor in actors], num_returns=len(actors), timeout=CLOSE_S)
    kill(actors)


def kill(actors: list[Any]) -> None:
    for actor in actors:
        ray.kill(actor)


def _environment(named: tuple[str, ...]) -> tuple[dict[str, str], dict[str, str]]:
    """Variables of this process that a model's process takes over: whatever its node has, and where its node has none.

    They travel as arguments, which Ray neither logs nor shows; what a runtime environment holds, it does.
    """
    here = os.environ
    decided = {name: here[name] for name in (*DRIVERS_VARIABLES, *named) if name in here}
    shared = {name: value for name, value in here.items() if name.startswith(SHARED_PREFIXES) and name not in decided}
    return decided, shared


def check_room(stage: str, asked: Resources) -> None:
    """Whether the cluster can ever hold all replicas of a model and a worker: Ray would wait for ever, and say nothing.

    Raises UserError.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fit = sum(_fit(node, asked) for node in nodes)
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    wanted = f"{asked.model_replicas} x ({asked.model_gpus:g} GPUs and {asked.model_cpus:g} CPUs, in one node)"
    if fit < asked.model_replicas:
        largest = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
        raise UserError(
            f"stage {stage}: its model asks for {wanted}. Ray has {len(nodes)} nodes with {gpus:g} GPUs and {cpus:g} "
            f"CPUs in all, at most {largest:g} GPUs in one: room for {fit}. Change the model's options (replicas; gpus "
            "or tensor_parallel_size), choose a smaller model, or give Ray more."
        )
    left = cpus - asked.model_cpus * asked.model_replicas
    if left < asked.num_cpus - 1e-9:
        raise UserError(
            f"stage {stage}: its model asks for {wanted}. Of Ray's {cpus:g} CPUs that leaves {left:g}, and the workers "
            f"that feed it need {asked.num_cpus:g} each. Lower the model's option replicas, or give Ray more."
        )


def _fit(node: Mapping[str, float], asked: Resources) -> int:
    """Replicas that a node has room for."""
    room = [
        math.floor(node.get(name, 0.0) / each + 1e-9)
        for name, each in (("CPU", asked.model_cpus), ("GPU", asked.model_gpus))
        if each > 0
    ]
    return min(room, default=asked.model_replicas)
