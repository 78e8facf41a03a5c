"""A worker's side of a model on Ray: which actor is asked, and what becomes of a call when the actor dies."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import math
import os
import time
from typing import Any

import ray
import ray.exceptions

from pipeline.engine.ray_failure import Failure, raise_if
from pipeline.engine.ray_models import Said
from pipeline.engine.task import MODEL_DEATHS, MapTask, ModelHung, OnceAnswer, Patience, gave_up, not_loaded_again
from pipeline.stage import Chunk, ModelDied, Rejected, Retryable, UserError

LISTEN_S = 30.0
"""Seconds in which a model's process that does not answer must at least say for how long, or take note that it is to
end."""
CANCELLED = (ray.exceptions.TaskCancelledError, asyncio.CancelledError, concurrent.futures.CancelledError)
"""What a call ends with that a dying model cancelled."""
RESTART_POLL_S = 0.5
"""Seconds between two looks whether Ray has made a dead model's process again."""


class _Replica:
    """One of a model's actors, as a worker sees it."""

    def __init__(self, task: MapTask, actor: Any) -> None:
        self.actor = actor
        self.life = 0
        self._stage = task.stage.name
        self._patience = Patience(task)
        self._back: Any = None
        """The answer to whether it is loaded again, while nobody knows."""
        self._died_loading = 0
        self._words = ""
        """What its last death was."""

    def answered(self) -> None:
        self._patience.answered()

    def died(self, life: int, words: str) -> None:
        """A call of this life of the actor met its death. Raises StageFailed when it dies whatever it is asked."""
        if life == self.life:
            self.life += 1
            self._words = words
            self._back = self.actor.ready.remote()
            self._patience.died(words)

    def silent_s(self) -> float:
        """Seconds for which the actor has answered nobody, any worker's calls counted; endless when it does not even
        listen."""
        try:
            return float(ray.get(self.actor.silent_s.remote(), timeout=LISTEN_S))
        except ray.exceptions.GetTimeoutError:
            return math.inf
        except ray.exceptions.RayActorError:  # the calls to it learn it by themselves
            return 0.0

    def end(self, words: str) -> None:
        """Let the actor end itself, or kill it where it does not even listen. Ray starts it again."""
        with contextlib.suppress(ray.exceptions.RayActorError):  # it is gone already
            try:
                ray.get(self.actor.end.remote(words), timeout=LISTEN_S)
            except ray.exceptions.GetTimeoutError:
                ray.kill(self.actor, no_restart=False)

    def waits_for(self) -> Any:
        """What to wait for until it may be loaded again; None when it can be asked."""
        return self._back

    def look(self) -> None:
        """Take note of what it waited for. Raises StageFailed when it cannot be loaded again."""
        try:
            failed: Failure = ray.get(self._back)
        except ray.exceptions.ActorUnavailableError:  # Ray has not made its process yet
            time.sleep(RESTART_POLL_S)
            self._back = self.actor.ready.remote()
        except ray.exceptions.RayActorError as err:
            self._died_loading += 1
            if self._died_loading > MODEL_DEATHS:
                raise gave_up(self._stage, self._died_loading, f"while it was loaded: {_last_line(err)}") from err
            self._back = self.actor.ready.remote()
        else:
            kind, why, _ = failed
            if kind == "user":
                raise not_loaded_again(self._stage, self._words, why)
            raise_if(failed)
            self._back, self._died_loading = None, 0


class RayModels:
    """The model's actors as one client of a worker: they take turns, and each worker begins with another."""

    def __init__(self, task: MapTask, actors: list[Any]) -> None:
        self._replicas = [_Replica(task, actor) for actor in actors]
        self._turn = itertools.count(os.getpid())
        self._timeout_s = task.limits.infer_timeout_s

    def submit(self, chunk: Chunk) -> RayAnswer:
        return RayAnswer(self._next(), chunk, self._timeout_s)

    def _next(self) -> _Replica:
        """The next replica that can be asked; waits while all are being loaded again."""
        while True:
            for _ in self._replicas:
                replica = self._replicas[next(self._turn) % len(self._replicas)]
                if replica.waits_for() is None:
                    return replica
            coming = {replica.waits_for(): replica for replica in self._replicas}
            (first, *_), _ = ray.wait(list(coming), num_returns=1)
            coming[first].look()


class RayAnswer(OnceAnswer):
    """An actor's answer."""

    def __init__(self, replica: _Replica, chunk: Chunk, timeout_s: float) -> None:
        self._replica = replica
        self._life = replica.life
        self._timeout_s = timeout_s
        self._late = time.monotonic() + timeout_s
        self._ref = replica.actor.infer.remote(chunk)

    def done(self) -> bool:
        ready, _ = ray.wait([self._ref], timeout=0)
        return bool(ready)

    def _wait(self) -> Chunk:
        try:
            answer = self._in_time()
        except ray.exceptions.RayActorError as err:
            raise self._dead(f"its process died: {_last_line(err)}") from err
        except (ray.exceptions.TaskCancelledError, ray.exceptions.RayTaskError) as err:
            cause = getattr(err, "cause", err)
            if isinstance(cause, CANCELLED):
                raise self._dead("it died under another call") from err
            raise cause from err  # a defect of the model, as it was raised there
        if not isinstance(answer, tuple):
            self._replica.answered()
            return answer
        kind, reason, words = answer
        if kind == "died":
            raise self._dead(words)
        if kind == "user":
            raise UserError(words)
        self._replica.answered()
        raise (Retryable if kind == "retryable" else Rejected)(reason, words)

    def _in_time(self) -> Chunk | Said:
        """Wait as long as the actor answers anybody. Raises ModelHung when it does not."""
        left = self._late - time.monotonic()
        while True:
            try:
                answer: Chunk | Said = ray.get(self._ref, timeout=max(0.0, left))
                return answer
            except ray.exceptions.GetTimeoutError:
                left = self._timeout_s - self._replica.silent_s()
                if left <= 0 and not self.done():
                    raise self._hung() from None

    def _dead(self, words: str) -> ModelDied:
        self._replica.died(self._life, words)
        return ModelDied(words)

    def _hung(self) -> ModelHung:
        words = f"no answer within {self._timeout_s:g} s"
        if self._life == self._replica.life:
            self._replica.end(words)
        self._replica.died(self._life, words)
        return ModelHung(words)


def _last_line(err: Exception) -> str:
    return str(err).strip().splitlines()[-1].strip()
