"""Bounds what an engine works on at once, so that what a clip has put into its caches is still there when its next turn
comes: tokens in the KV cache, bytes in the cache of prepared frames, and clips.

First come, first served: whoever is at the head of the line waits until there is room, and nobody overtakes. All calls
come from one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


class TooLarge(Exception):
    """A clip that the engine cannot hold even alone; the message says what is missing."""


@dataclass(frozen=True)
class Load:
    """What a clip takes until both its turns are over."""

    kv_tokens: int
    """Tokens of both turns, prompt and answers, in the KV cache."""
    cache_bytes: int
    """Bytes of its prepared frames."""
    clips: int = 1

    def __add__(self, other: Load) -> Load:
        return Load(self.kv_tokens + other.kv_tokens, self.cache_bytes + other.cache_bytes, self.clips + other.clips)

    def __sub__(self, other: Load) -> Load:
        return self + Load(-other.kv_tokens, -other.cache_bytes, -other.clips)

    def within(self, limit: Load) -> bool:
        """Whether nothing is more than its limit."""
        return self.kv_tokens <= limit.kv_tokens and self.cache_bytes <= limit.cache_bytes and self.clips <= limit.clips


class Admission:
    """Who may be in flight. A clip with more bytes than the whole cache is let in alone: its frames are then prepared
    once for each turn. One with more tokens than the whole KV cache is refused."""

    def __init__(self, limit: Load) -> None:
        self.limit = limit
        self.held = Load(0, 0, 0)
        """What is in flight."""
        self._line: deque[tuple[Load, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def admit(self, load: Load) -> AsyncIterator[Load]:
        """Wait for room, and hold it meanwhile; gives what is in flight with this clip. Raises TooLarge."""
        if load.kv_tokens > self.limit.kv_tokens:
            raise TooLarge(
                f"both turns of the clip take {load.kv_tokens} tokens of KV cache and the engine has "
                f"{self.limit.kv_tokens}"
            )
        await self._wait(load)
        try:
            yield self.held
        finally:
            self._leave(load)

    async def _wait(self, load: Load) -> None:
        if not self._line and self._has_room(load):
            self.held += load
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((load, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._call_in()  # whoever is behind may fit where this one did not
            else:
                self._leave(load)  # was let in, and is gone before it noticed
            raise

    def _has_room(self, load: Load) -> bool:
        return self.held.clips == 0 or (self.held + load).within(self.limit)

    def _leave(self, load: Load) -> None:
        self.held -= load
        self._call_in()

    def _call_in(self) -> None:
        """Let in from the head of the line as many as there is room for."""
        while self._line:
            load, turn = self._line[0]
            if not turn.cancelled():
                if not self._has_room(load):
                    return
                self.held += load
                turn.set_result(None)
            self._line.popleft()
