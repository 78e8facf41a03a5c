"""Many async callers, one synchronous model: whoever waits while a call runs shares the next one.

No timer and no minimum: an idle model starts at once, a busy one fills up. The model is called from a thread, so
that the event loop stays free, and never twice at the same time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.models.protocols import Frames, Vectors


@dataclass(frozen=True, eq=False)
class _Part:
    """Items of one caller that go through the model together, and where their answer goes."""

    items: Frames
    answer: asyncio.Future[Vectors]


class Batcher:
    """Groups the items of concurrent callers, first come first served, into calls of at most `max_items`."""

    def __init__(self, call: Callable[[Frames], Vectors], max_items: int, dim: int) -> None:
        """`call` takes items [B, ...] of one shape and returns vectors [B, dim]; `max_items` bounds B."""
        assert max_items > 0, max_items
        self._call = call
        self._max_items = max_items
        self._dim = dim
        self._waiting: deque[_Part] = deque()
        self._working: asyncio.Task[None] | None = None

    async def submit(self, items: Frames) -> Vectors:
        """Vectors [N, dim] of items [N, ...], N from 0. An exception of the model reaches every caller of that call."""
        if len(items) == 0:
            return np.empty((0, self._dim), np.float32)
        loop = asyncio.get_running_loop()
        parts = [
            _Part(items[start : start + self._max_items], loop.create_future())
            for start in range(0, len(items), self._max_items)
        ]
        self._waiting.extend(parts)
        if self._working is None:
            self._working = loop.create_task(self._work())
        return np.concatenate(await asyncio.gather(*(part.answer for part in parts)))

    async def _work(self) -> None:
        """Run calls until nobody waits."""
        batch: list[_Part] = []
        try:
            while batch := self._take():
                try:
                    vectors = await asyncio.to_thread(self._call, np.concatenate([part.items for part in batch]))
                    _hand_out(vectors, batch)
                except Exception as error:
                    for part in batch:
                        if not part.answer.done():
                            part.answer.set_exception(error)
        finally:
            self._working = None
            for part in (*batch, *self._waiting):  # none, unless the loop ends under us
                part.answer.cancel()
            self._waiting.clear()

    def _take(self) -> list[_Part]:
        """The next call's parts: in order, as many as fit. Those whose caller has gone away are dropped."""
        batch: list[_Part] = []
        room = self._max_items
        while self._waiting and len(self._waiting[0].items) <= room:
            part = self._waiting.popleft()
            if not part.answer.done():
                batch.append(part)
                room -= len(part.items)
        return batch


def _hand_out(vectors: Vectors, batch: list[_Part]) -> None:
    sizes = [len(part.items) for part in batch]
    assert len(vectors) == sum(sizes), f"the model answered {len(vectors)} vectors for {sum(sizes)} items"
    for part, answer in zip(batch, np.split(vectors, np.cumsum(sizes)[:-1]), strict=True):
        if not part.answer.done():
            part.answer.set_result(answer)
