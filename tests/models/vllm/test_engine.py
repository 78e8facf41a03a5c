"""Engines of vLLM that die, hang or do not start."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.models.protocols import ClipFrames
from pipeline.models.spec import ModelSpec
from pipeline.stage import ModelDied, UserError

pytest.importorskip("vllm")
from pipeline.models.vllm import describer as vllm_describer
from pipeline.models.vllm.describer import VllmDescriber
from tests.models import tiny_qwen2vl

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in tiny_qwen2vl.ENVIRONMENT.items():
            patch.setenv(name, value)
        yield tiny_qwen2vl.build(tmp_path_factory.mktemp("qwen2vl"))


def load(weights: Path, **options: Any) -> VllmDescriber:
    options = {**tiny_qwen2vl.OPTIONS, **options}
    return vllm_describer.load(ModelSpec(family="vllm", name="tiny/qwen2-vl", path=str(weights), options=options))


def while_clips_are_in_flight(describer: VllmDescriber, signum: signal.Signals) -> list[Any]:
    """What comes of six clips when the engine's processes get a signal in the middle of their captions."""
    noise = np.random.default_rng(0).integers(0, 256, (16, 112, 140, 3), np.uint8)
    clips = [ClipFrames(f"clip {n}", noise, np.arange(16) / 2.0, 8.0) for n in range(6)]

    async def describe() -> list[Any]:
        tasks = [asyncio.create_task(describer.describe(clip)) for clip in clips]
        while describer.engine._open < len(clips):
            await asyncio.sleep(0.005)
        for pid in describer.engine.pids():
            os.kill(pid, signum)
        return await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(describe())


def test_when_the_engine_is_killed_every_call_says_so_at_once_and_so_does_every_later_one(weights: Path) -> None:
    describer = load(weights)
    start = time.monotonic()
    said = while_clips_are_in_flight(describer, signal.SIGKILL)
    assert time.monotonic() - start < 30
    assert [type(one) for one in said] == [ModelDied] * 6, said
    assert "ended with signal SIGKILL" in str(said[0])
    [later] = while_clips_are_in_flight_again(describer)
    assert isinstance(later, ModelDied)
    describer.close()


def while_clips_are_in_flight_again(describer: VllmDescriber) -> list[Any]:
    clip = ClipFrames("later", np.zeros((2, 56, 56, 3), np.uint8), np.array([0.0, 0.5]), 1.0)
    return asyncio.run(_one(describer, clip))


async def _one(describer: VllmDescriber, clip: ClipFrames) -> list[Any]:
    return await asyncio.gather(describer.describe(clip), return_exceptions=True)


def test_an_engine_that_hangs_is_taken_for_dead_and_ended(weights: Path) -> None:
    describer = load(weights, stall_s=3.0)
    said = while_clips_are_in_flight(describer, signal.SIGSTOP)
    assert [type(one) for one in said] == [ModelDied] * 6, said
    assert "has said nothing for 3 s, with 6 requests open" in str(said[0])
    assert describer.engine.pids() != []
    describer.close()
    assert describer.engine.pids() == []


def test_an_engine_that_does_not_start_tells_in_its_own_words_why(weights: Path) -> None:
    with pytest.raises(
        UserError, match=r"tiny/qwen2-vl@: vLLM did not start: ValueError: No available memory for the cache"
    ):
        load(weights, kv_cache_bytes=4096)


def test_arguments_that_vllm_does_not_know_are_the_users_mistake(weights: Path) -> None:
    with pytest.raises(UserError, match=r"vLLM did not start: TypeError: .*no_such_argument"):
        load(weights, engine_args={"no_such_argument": 1})
