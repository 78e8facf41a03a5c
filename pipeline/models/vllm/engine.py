"""Owns one engine of vLLM: starts it, asks it, notices when it is dead or hangs, leaves none of its processes behind.

The engine lives on an event loop of a thread of its own. So it is started, with all that can fail then, before anybody
has a loop; callers may come from any loop; and whoever holds it may end it from any thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from pipeline.models.vllm.engine_guard import EngineGuard
from pipeline.models.vllm.engine_log import EngineLog
from pipeline.stage import ModelDied, Rejected, Retryable

T = TypeVar("T")

_CLOSE_S = 30.0
"""Seconds for vLLM to end by itself before its processes are killed."""
_CPU_SEQS = 8
"""Answers that one step works on, on a CPU, where nothing else is said."""
_LOOKS_PER_STALL = 10
"""How often the watchdog looks, within the time that makes a stall."""


class EngineNotStarted(Exception):
    """The engine could not be started; the message holds its words."""


@dataclass(frozen=True)
class Answer:
    """What the engine made of one request."""

    text: str
    token_ids: list[int]
    """Of the answer, with the token that ended it."""
    prompt_token_ids: list[int]
    """With one token for each that a video became."""
    cached_tokens: int
    """Prompt tokens served from the prefix cache."""
    finish_reason: str


class VllmEngine:
    """A running engine. `generate` is called on its own loop: by way of `submit`."""

    def __init__(self, args: Mapping[str, Any], stall_s: float) -> None:
        """Start it, which may take minutes. `args` are AsyncEngineArgs'. Raises EngineNotStarted."""
        self._stall_s = stall_s
        self._open = 0
        self._progress_at = 0.0
        self._ids = itertools.count()
        self._processes: list[BaseProcess] = []
        self._llm: Any = None
        self._log = EngineLog()
        self._guard = EngineGuard()
        self._loop = asyncio.new_event_loop()
        self._dead: asyncio.Future[str] = self._loop.create_future()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        try:
            self.submit(self._start(args)).result()
        except Exception as err:
            said = self._log.words() or f"{type(err).__name__}: {err}"
            self.close()
            raise EngineNotStarted(said) from err

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run it on the engine's loop. Cancelling what is returned cancels the work."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    @property
    def config(self) -> Any:
        """vLLM's VllmConfig, as the engine has it now that it runs."""
        return self._llm.vllm_config

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        cache = self.config.cache_config
        return int(cache.num_gpu_blocks) * int(cache.block_size)

    def tokenizer(self) -> Any:
        """transformers' tokenizer of the model."""
        return self._llm.get_tokenizer()

    def pids(self) -> list[int]:
        """The engine's own processes."""
        return self._guard.pids()

    async def generate(self, prompt: Mapping[str, Any], sampling: Any, priority: int) -> Answer:
        """The answer to a prompt as vLLM wants it; a smaller `priority` goes first.

        Raises ModelDied, Retryable("engine_error"), or Rejected("engine_error") for a request that the engine will
        never take.
        """
        if self._dead.done():
            raise ModelDied(self._dead.result())
        if self._open == 0:
            self._progress_at = time.monotonic()
        self._open += 1
        asked = asyncio.ensure_future(self._ask(prompt, sampling, priority))
        asked.add_done_callback(_heard)
        try:
            either: set[asyncio.Future[Any]] = {asked, self._dead}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                return asked.result()
            raise ModelDied(self._dead.result())
        finally:
            self._open -= 1
            asked.cancel()  # vLLM then drops the request; an answer that is there stays

    def close(self) -> None:
        """End the engine and all its processes."""
        if self._loop.is_closed():
            return
        if self._dead.done():
            self._guard.kill()  # one that hangs would not end by itself
        with contextlib.suppress(Exception):
            self.submit(self._stop()).result(_CLOSE_S)
        self._guard.close()
        self._log.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self, args: Mapping[str, Any]) -> None:
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # a fork of a process with threads may hang
        resource_tracker.ensure_running()  # it is this whole process's, and must not bear the engine's mark
        before = set(multiprocessing.active_children())
        with self._guard.marking(), self._log.kept():
            from vllm import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            # Made on the loop that will use it: vLLM then hears from its processes before the first request.
            self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**_for_this_platform(args)))
        self._processes = [child for child in multiprocessing.active_children() if child not in before]
        self._watch = asyncio.create_task(self._watch_for_stalls())

    async def _stop(self) -> None:
        if self._llm is not None:
            self._watch.cancel()
            self._llm.shutdown()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _ask(self, prompt: Mapping[str, Any], sampling: Any, priority: int) -> Answer:
        answer = await self._stream(prompt, sampling, priority)
        if answer.finish_reason == "error":
            # The engine has lost the prepared frames that it was known to have; it wants them again.
            answer = await self._stream(prompt, sampling, priority)
        return answer

    async def _stream(self, prompt: Mapping[str, Any], sampling: Any, priority: int) -> Answer:
        text, token_ids, last = "", [], None
        try:
            async for last in self._llm.generate(dict(prompt), sampling, f"r{next(self._ids)}", priority=priority):
                self._progress_at = time.monotonic()
                text += last.outputs[0].text
                token_ids += last.outputs[0].token_ids
        except Exception as err:
            raise self._explained(err) from err
        assert last is not None, "the engine ended a request without a word"
        return Answer(
            text=text,
            token_ids=token_ids,
            prompt_token_ids=list(last.prompt_token_ids),
            cached_tokens=last.num_cached_tokens or 0,
            finish_reason=str(last.outputs[0].finish_reason),
        )

    def _explained(self, err: Exception) -> Exception:
        """What an exception of vLLM's means here."""
        from vllm.v1.engine.exceptions import EngineDeadError

        if isinstance(err, EngineDeadError) or self._llm.errored:
            self._declare_dead("the engine's process died")
            return ModelDied(self._dead.result())
        cause = err.__cause__ or err  # vLLM wraps what it did not expect into an exception without words
        words = f"{type(cause).__name__}: {cause}"
        return (Rejected if isinstance(err, _client_errors()) else Retryable)("engine_error", words)

    async def _watch_for_stalls(self) -> None:
        while not self._dead.done():
            await asyncio.sleep(self._stall_s / _LOOKS_PER_STALL)
            silent_s = time.monotonic() - self._progress_at
            if self._open and silent_s > self._stall_s:
                self._declare_dead(f"the engine has said nothing for {silent_s:.0f} s, with {self._open} requests open")

    def _declare_dead(self, how: str) -> None:
        """From now on every call, those in flight too, ends in ModelDied."""
        if not self._dead.done():
            self._dead.set_result("; ".join(filter(None, [how, *self._ends(), self._log.words()])))

    def _ends(self) -> list[str]:
        """How the engine's processes ended, of those that did."""
        lines = []
        for process in self._processes:
            process.join(timeout=1.0)
            code = process.exitcode
            if code is not None:
                how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                lines.append(f"{process.name} (pid {process.pid}) ended with {how}")
        return lines


def _heard(asked: asyncio.Future[Answer]) -> None:
    """Nobody waits any more for a request that was given up; asyncio would complain of its exception."""
    if not asked.cancelled():
        asked.exception()


def _for_this_platform(args: Mapping[str, Any]) -> dict[str, Any]:
    """On GPUs, the arguments as they are. vLLM's CPU build (0.31) dies when a request with a seed has its prompt worked
    on in several steps (the seed's generator cannot go back there): so let a step have room for every prompt and every
    clip's frames."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return dict(args)
    seqs = args.get("max_num_seqs", _CPU_SEQS)
    return {**args, "max_num_seqs": seqs, "max_num_batched_tokens": seqs * args["max_model_len"]}


def _client_errors() -> tuple[type[Exception], ...]:
    """What vLLM raises for a request that is wrong in itself."""
    from vllm import exceptions

    return ValueError, TypeError, getattr(exceptions, "VLLMClientError", ValueError)
