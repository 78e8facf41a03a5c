"""What may be in flight at once: fair, bounded, and nothing lost when a caller goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine

import pytest

from pipeline.models.vllm.admission import Admission, Load, TooLarge

LIMIT = Load(kv_tokens=100, cache_bytes=1000, clips=3)
NOTHING = Load(0, 0, 0)


class Gate:
    """Clips that stay in flight until told to leave."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.inside: list[str] = []
        self._leave: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def arrive(self, name: str, load: Load) -> None:
        self._leave[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._stay(name, load))
        await _settle()

    async def leave(self, *names: str) -> None:
        for name in names:
            self._leave[name].set()
            await self._tasks[name]
        await _settle()

    def cancel(self, name: str) -> None:
        self._tasks[name].cancel()

    async def _stay(self, name: str, load: Load) -> None:
        async with self.admission.admit(load):
            self.inside.append(name)
            await self._leave[name].wait()
            self.inside.remove(name)


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(test: Callable[[Gate], Coroutine[None, None, None]]) -> Awaitable[None] | None:
    return asyncio.run(test(Gate(Admission(LIMIT))))


@pytest.mark.parametrize(
    "load", [Load(40, 1), Load(1, 400), Load(1, 1)], ids=["KV tokens", "bytes of the cache", "clips"]
)
def test_each_limit_holds_and_who_waits_comes_in_when_one_leaves(load: Load) -> None:
    async def test(gate: Gate) -> None:
        fit = 2 if load != Load(1, 1) else 3
        names = [str(n) for n in range(5)]
        for name in names:
            await gate.arrive(name, load)
        assert gate.inside == names[:fit]
        await gate.leave("0")
        assert gate.inside == names[1 : fit + 1]
        await gate.leave(*names[1:])
        assert gate.admission.held == NOTHING

    run(test)


def test_a_small_clip_does_not_overtake_a_large_one() -> None:
    async def test(gate: Gate) -> None:
        await gate.arrive("first", Load(60, 1))
        await gate.arrive("large", Load(90, 1))
        await gate.arrive("small", Load(10, 1))
        assert gate.inside == ["first"]
        await gate.leave("first")
        assert gate.inside == ["large", "small"]
        await gate.leave("large", "small")

    run(test)


def test_a_clip_with_more_bytes_than_the_cache_is_let_in_alone() -> None:
    async def test(gate: Gate) -> None:
        await gate.arrive("one", Load(10, 10))
        await gate.arrive("huge", Load(10, 5000))
        await gate.arrive("two", Load(10, 10))
        assert gate.inside == ["one"]
        await gate.leave("one")
        assert gate.inside == ["huge"]
        await gate.leave("huge")
        assert gate.inside == ["two"]
        await gate.leave("two")

    run(test)


def test_a_clip_with_more_tokens_than_the_kv_cache_is_refused_with_both_numbers() -> None:
    async def test(gate: Gate) -> None:
        with pytest.raises(TooLarge, match=r"101 tokens .* has 100"):
            await gate._stay("huge", Load(101, 1))
        assert gate.admission.held == NOTHING

    run(test)


def test_a_waiting_clip_that_is_cancelled_leaves_the_line() -> None:
    async def test(gate: Gate) -> None:
        await gate.arrive("first", Load(60, 1))
        await gate.arrive("large", Load(90, 1))
        await gate.arrive("small", Load(40, 1))
        gate.cancel("large")
        await _settle()
        assert gate.inside == ["first", "small"]
        await gate.leave("first", "small")
        assert gate.admission.held == NOTHING

    run(test)


def test_a_clip_that_is_cancelled_just_as_it_is_let_in_gives_its_room_back() -> None:
    async def test(gate: Gate) -> None:
        await gate.arrive("first", Load(60, 1))
        await gate.arrive("second", Load(60, 1))
        await gate.arrive("third", Load(60, 1))
        gate._leave["first"].set()
        await asyncio.sleep(0)  # the first leaves and lets the second in, which has not run yet
        gate.cancel("second")
        await _settle()
        assert gate.inside == ["third"]
        await gate.leave("third")
        assert gate.admission.held == NOTHING

    run(test)


def test_a_clip_that_fails_gives_its_room_back() -> None:
    async def test(gate: Gate) -> None:
        with pytest.raises(ZeroDivisionError):
            async with gate.admission.admit(Load(60, 1)):
                raise ZeroDivisionError
        assert gate.admission.held == NOTHING

    run(test)
