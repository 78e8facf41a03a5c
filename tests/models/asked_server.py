"""A describer and the misbehaving server it asks, for the tests of `openai_*`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import pytest

from pipeline.models import registry
from pipeline.models.openai.describer import OpenAIDescriber
from pipeline.models.protocols import ClipFrames, Description
from pipeline.models.spec import ModelSpec
from pipeline.stage import Rejected, Retryable
from tests.models.misbehaving_server import MODEL, Act, Asked, MisbehavingServer, Script

T = TypeVar("T")
VARIABLE = "HICOM_TEST_KEY"
QUICK = {"backoff_s": 0.01, "tries": 3, "timeout_s": 10.0, "outage_s": 0.2}


def spec(server: MisbehavingServer, name: str = MODEL, **options: Any) -> ModelSpec:
    given = {"base_url": server.base_url, "api_key_env": VARIABLE, **QUICK, **options}
    return ModelSpec(family="openai", name=name, options=given)


def clip(number: int = 0, frames: int = 4) -> ClipFrames:
    pictures = np.random.default_rng(number).integers(0, 255, (frames, 28, 56, 3), dtype=np.uint8)
    return ClipFrames(f"c{number}", pictures, np.arange(frames) + 0.5, float(frames))


class Held:
    """A describer on an event loop of its own thread, as the engines hold it."""

    def __init__(self, describer: OpenAIDescriber) -> None:
        self.describe = describer.describe
        self.close = describer.close
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)


@contextmanager
def loaded(server: MisbehavingServer, script: Script | None = None, **options: Any) -> Iterator[Held]:
    """A describer whose server begins to misbehave once it is loaded."""
    describer = registry.load_describer(spec(server, **options))
    assert isinstance(describer, OpenAIDescriber)
    server.asked.clear()
    if script is not None:
        server.script = script
    held = Held(describer)
    yield held
    held.close()
    held.stop()


def described(server: MisbehavingServer, script: Script | None = None, **options: Any) -> Description:
    with loaded(server, script, **options) as describer:
        return describer.run(describer.describe(clip()))


def rejected(server: MisbehavingServer, script: Script, **options: Any) -> Rejected:
    with pytest.raises(Rejected) as caught:
        described(server, script, **options)
    assert not isinstance(caught.value, Retryable), "it was tried often enough here"
    return caught.value


def on(turn: str, act: Act | Callable[[Asked], Act], times: int | None = None) -> Script:
    """This turn goes so, every time or the first times; all else is sound."""

    def script(asked: Asked) -> Act | None:
        if asked.turn != turn or (times is not None and asked.times >= times):
            return None
        return act(asked) if callable(act) else act

    return script
