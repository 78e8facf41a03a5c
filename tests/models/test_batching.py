"""Sharing a synchronous model among async callers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from pipeline.models.batching import Batcher


class Recorder:
    """A model whose answer to an item is the item's first value, twice; remembers the sizes of its calls."""

    def __init__(self, act: Callable[[np.ndarray], None] | None = None) -> None:
        self.sizes: list[int] = []
        self.seen: list[int] = []
        self._act = act
        self._busy = threading.Lock()

    def __call__(self, items: np.ndarray) -> np.ndarray:
        assert self._busy.acquire(blocking=False), "entered twice at once"
        try:
            self.sizes.append(len(items))
            self.seen.extend(items.reshape(len(items), -1)[:, 0].tolist())
            time.sleep(0.002)
            if self._act is not None:
                self._act(items)
            return np.repeat(items.reshape(len(items), -1)[:, :1], 2, axis=1).astype(np.float32)
        finally:
            self._busy.release()


def items(*values: int) -> np.ndarray:
    return np.array(values, np.uint8).reshape(-1, 1, 1) * np.ones((1, 2, 3), np.uint8)


def test_each_caller_gets_its_own_answers() -> None:
    model = Recorder()
    batcher = Batcher(model, max_items=7, dim=2)
    asked = [items(*range(10 * caller, 10 * caller + caller)) for caller in range(12)]

    async def main() -> list[np.ndarray]:
        return await asyncio.gather(*(batcher.submit(one) for one in asked))

    for one, answer in zip(asked, asyncio.run(main()), strict=True):
        assert answer.dtype == np.float32 and answer.shape == (len(one), 2)
        np.testing.assert_array_equal(answer[:, 0], one[:, 0, 0])


def test_callers_share_calls_and_no_call_passes_the_bound() -> None:
    model = Recorder()
    batcher = Batcher(model, max_items=8, dim=2)

    async def main() -> None:
        await asyncio.gather(*(batcher.submit(items(1, 2)) for _ in range(20)))

    asyncio.run(main())
    assert model.sizes == [8] * 5


def test_a_chunk_above_the_bound_is_split() -> None:
    model = Recorder()
    answer = asyncio.run(Batcher(model, max_items=4, dim=2).submit(items(*range(10))))
    assert model.sizes == [4, 4, 2]
    np.testing.assert_array_equal(answer[:, 0], np.arange(10))


def test_first_come_first_served() -> None:
    model = Recorder()
    batcher = Batcher(model, max_items=2, dim=2)

    async def main() -> int:
        small_done = asyncio.Event()

        async def flood() -> None:
            while not small_done.is_set():
                await asyncio.gather(*(batcher.submit(items(9, 9)) for _ in range(3)))

        async def small() -> int:
            await asyncio.sleep(0.01)
            before = len(model.seen)
            await batcher.submit(items(1))
            small_done.set()
            return before

        return (await asyncio.wait_for(asyncio.gather(small(), flood(), flood()), timeout=20))[0]

    before = asyncio.run(main())
    ahead = 2 * 3 * 2  # what two floods can have had waiting when it came
    assert model.seen.index(1) - before <= ahead


def test_no_frames_cost_no_call() -> None:
    model = Recorder()
    answer = asyncio.run(Batcher(model, max_items=4, dim=2).submit(items()))
    assert answer.shape == (0, 2) and answer.dtype == np.float32 and model.sizes == []


def test_a_failing_call_reaches_its_callers_and_no_other() -> None:
    def fail_on_5(batch: np.ndarray) -> None:
        if (batch == 5).any():
            raise RuntimeError("cannot take 5")

    batcher = Batcher(Recorder(fail_on_5), max_items=2, dim=2)

    async def main() -> list[object]:
        calls = (batcher.submit(items(v)) for v in (1, 2, 5, 6, 7, 8))
        first = await asyncio.gather(*calls, return_exceptions=True)
        return [*first, await batcher.submit(items(9))]

    answers = asyncio.run(main())
    failed = [isinstance(answer, RuntimeError) for answer in answers]
    assert failed == [False, False, True, True, False, False, False]


def test_a_model_that_answers_too_little_is_an_error_and_not_a_hang() -> None:
    batcher = Batcher(lambda batch: np.zeros((len(batch) - 1, 2), np.float32), max_items=4, dim=2)
    with pytest.raises(AssertionError, match="answered 1 vectors for 2 items"):
        asyncio.run(asyncio.wait_for(batcher.submit(items(1, 2)), timeout=10))


def test_a_caller_that_goes_away_is_not_computed() -> None:
    model = Recorder(lambda batch: time.sleep(0.05))
    batcher = Batcher(model, max_items=1, dim=2)

    async def main() -> None:
        first = asyncio.ensure_future(batcher.submit(items(1)))
        gone = asyncio.ensure_future(batcher.submit(items(2)))
        last = asyncio.ensure_future(batcher.submit(items(3)))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.gather(first, last)

    asyncio.run(main())
    assert model.seen == [1, 3]


def test_works_again_in_another_event_loop() -> None:
    batcher = Batcher(Recorder(), max_items=4, dim=2)

    async def leave_early() -> None:
        waiting = asyncio.ensure_future(batcher.submit(items(1, 2, 3, 4, 5)))
        await asyncio.sleep(0)
        waiting.cancel()

    asyncio.run(leave_early())
    for value in (1, 2):
        answer = asyncio.run(asyncio.wait_for(batcher.submit(items(value)), timeout=10))
        assert answer[0, 0] == value


def test_the_event_loop_stays_free_while_the_model_works() -> None:
    batcher = Batcher(Recorder(lambda batch: time.sleep(0.2)), max_items=4, dim=2)

    async def main() -> int:
        waiting = asyncio.ensure_future(batcher.submit(items(1)))
        ticks = 0
        while not waiting.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks

    assert asyncio.run(main()) >= 3
