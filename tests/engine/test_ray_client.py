"""What a worker makes of an actor's silence and of its end. Without Ray."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray.exceptions

from pipeline.engine import ray_client
from pipeline.engine.limits import EngineConfig
from pipeline.engine.ray_client import RayAnswer, RayModels
from pipeline.engine.task import MapTask, ModelHung
from pipeline.stage import Chunk, ModelDied
from pipeline.store.files import Files
from pipeline.store.tables import PartWriter
from tests.tiny import TinyEmbed

LATE = ray.exceptions.GetTimeoutError()


class Actor:
    """Stands in for Ray and an actor: each method's outcomes in turn, the last for ever, and the calls it got."""

    def __init__(self, **outcomes: list[Any]) -> None:
        self._outcomes = outcomes
        self.called: list[str] = []

    def __getattr__(self, method: str) -> Any:
        def remote(*_: object) -> str:
            self.called.append(method)
            return method

        return SimpleNamespace(remote=remote)

    def get(self, ref: str, timeout: float) -> Any:
        told = self._outcomes[ref]
        outcome = told.pop(0) if len(told) > 1 else told[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def ask(monkeypatch: pytest.MonkeyPatch, actor: Actor) -> RayAnswer:
    fake = SimpleNamespace(get=actor.get, wait=lambda refs, timeout: ([], refs), exceptions=ray.exceptions)
    monkeypatch.setattr(ray_client, "ray", fake)
    limits = EngineConfig(infer_timeout_s=10.0)
    task = MapTask(TinyEmbed(), cast(Files, None), cast(PartWriter, None), limits)
    return RayModels(task, [actor]).submit(Chunk({}))


def test_a_call_waits_as_long_as_the_actor_answers_others(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = Actor(infer=[LATE, LATE, LATE, Chunk({}, {"is": "here"})], silent_s=[2.0])
    assert ask(monkeypatch, actor).result().info == {"is": "here"}
    assert "end" not in actor.called


@pytest.mark.parametrize("silence", [11.0, LATE])
def test_an_actor_that_answers_nobody_or_does_not_listen_is_ended(
    monkeypatch: pytest.MonkeyPatch, silence: object
) -> None:
    actor = Actor(infer=[LATE], silent_s=[2.0, silence], end=[None])
    with pytest.raises(ModelHung, match="no answer within 10 s"):
        ask(monkeypatch, actor).result()
    assert actor.called == ["infer", "silent_s", "silent_s", "end", "ready"]


def test_an_actor_that_is_gone_is_not_asked_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = ray.exceptions.RayActorError()
    actor = Actor(infer=[LATE, gone], silent_s=[gone])
    with pytest.raises(ModelDied, match="its process died"):
        ask(monkeypatch, actor).result()
    assert "end" not in actor.called


def task_error(cause: BaseException) -> Exception:
    error: Exception = ray.exceptions.RayTaskError("infer", "Traceback: ...", cast(Exception, cause))
    return error


@pytest.mark.parametrize(
    "ended",
    [
        ray.exceptions.TaskCancelledError(),
        task_error(ray.exceptions.TaskCancelledError()),
        task_error(asyncio.CancelledError()),
    ],
)
def test_a_cancelled_call_met_its_models_death(monkeypatch: pytest.MonkeyPatch, ended: Exception) -> None:
    with pytest.raises(ModelDied, match="it died under another call"):
        ask(monkeypatch, Actor(infer=[ended])).result()


def test_a_defect_of_the_model_is_told_as_it_was_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError, match="two"):
        ask(monkeypatch, Actor(infer=[task_error(ZeroDivisionError("two"))])).result()
