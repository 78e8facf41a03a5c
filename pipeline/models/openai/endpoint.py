"""An OpenAI-compatible endpoint: requests that are tried again, and a server that may be gone for a while.

A failure that may pass is tried again after a drawn wait that doubles, or after what Retry-After says. When all tries
of a request are spent, the server gets a small request instead. If it answers that, the request was at fault, and its
clip is rejected. If not, the server is, and no clip is rejected for it: everything waits until it answers again, for
a bounded time. Being told to come back later costs no try as long as the server answers anybody within that time.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from pipeline.models.openai.faults import Fault, judge, turned_down
from pipeline.models.openai.options import Options
from pipeline.models.openai.requests import Answer, Request, read_answer, trial_request
from pipeline.models.two_turns import storable
from pipeline.stage import ModelDied, Rejected, UserError

OUTAGES = 2
"""Outages that a request may meet before it is taken for their cause, as one that kills the server."""
TIMEOUTS = 3
"""Time-outs after which a request's tries are spent: they take long, and a busy server has to work for each."""
HOPELESS = 20
"""Requests that all fail before the first is answered: the settings are wrong, and not so many clips."""


class TooLong(Exception):
    """A request that does not fit the model's context or the server's limit of bytes; the server's words."""


class Failed(Exception):
    """A request that got no answer, after the last of its tries."""

    def __init__(self, fault: Fault, tries: int) -> None:
        super().__init__(fault, tries)
        self.fault = fault
        self.tries = tries


class Endpoint:
    """Requests to one model of one server. Belongs to the event loop that first awaits it."""

    def __init__(self, model: str, options: Options) -> None:
        import openai

        self._model = model
        self._options = options
        self._key = options.key()
        self._trial = trial_request(options)
        self._client: Any = openai.AsyncOpenAI(
            api_key=self._key or "none",  # the client insists on one
            base_url=options.base_url,
            max_retries=0,
            timeout=openai.Timeout(options.timeout_s, connect=options.connect_timeout_s),
        )
        self._resume_at = 0.0
        """Nothing is sent before, on the monotonic clock: the server asked us to wait."""
        self._recovered_at = 0.0
        self._answered_at = 0.0
        self._looking = asyncio.Lock()
        self._dead: str | None = None
        """Why the server was given up."""
        self._has_answered = False
        self._failed_first = 0
        """Requests that failed for good before the first that was answered."""

    async def close(self) -> None:
        await self._client.close()

    async def ask(self, request: Request) -> Answer:
        """The answer to a request.

        Raises Rejected or TooLong for what this request is to blame for, UserError for what every request would meet,
        ModelDied when the server has been gone for `outage_s`.
        """
        for outages in range(OUTAGES + 1):
            began = time.monotonic()
            try:
                answer = await self.send(request, self._options.tries, patient=True)
            except Failed as failed:
                passing = failed.fault.kind == "passing"
                if not (passing and await self._was_gone(began)) or outages == OUTAGES:
                    raise self._meaning(failed) from None
            else:
                self._has_answered = True
                return answer
        raise AssertionError("the last round returns or raises")

    async def send(self, request: Request, tries: int, patient: bool = False) -> Answer:
        """The answer to a request that is sent up to `tries` times; when `patient`, being turned away costs no try.

        Raises Failed; ModelDied when a patient request is turned away for `outage_s` and so is everybody else.
        """
        began = 0.0
        sent = spent = timeouts = 0
        while True:
            await self._until_welcome()
            began = began or time.monotonic()  # what others were told to wait is not this one's
            sent += 1
            try:
                async with asyncio.timeout(self._options.timeout_s):
                    found = await self._client.chat.completions.create(model=self._model, **request)
                answer = read_answer(found, sent)
            except Exception as error:
                fault = judge(error, self._key)
                if fault is None:
                    raise
            else:
                self._answered_at = time.monotonic()
                return answer
            if patient and fault.turned_away:
                self._see_it_lives(began, fault)
            else:
                spent += 1
                timeouts += fault.timed_out
                if fault.kind != "passing" or spent == tries or timeouts == TIMEOUTS:
                    raise Failed(fault, sent)
            await asyncio.sleep(self._wait_s(fault, sent))

    def _see_it_lives(self, since: float, fault: Fault) -> None:
        """Raises ModelDied when nobody was answered for `outage_s`, counted from `since` at the earliest."""
        silent_s = time.monotonic() - max(since, self._answered_at)
        if self._dead is None and silent_s >= self._options.outage_s:
            self._dead = (
                f"the endpoint {self._options.base_url} has not answered for {silent_s:.0f} s ({fault.words}); "
                "no clip was rejected for that, and the same command goes on once it answers"
            )
        if self._dead is not None:
            raise ModelDied(self._dead)

    async def _until_welcome(self) -> None:
        """Wait while the server wants to be left alone; then a little more, each its own, not to come all at once."""
        if self._resume_at > time.monotonic():
            while (wait_s := self._resume_at - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            await asyncio.sleep(random.uniform(0, self._options.backoff_s))

    def _wait_s(self, fault: Fault, tried: int) -> float:
        """Seconds before the next try. What the server asks for holds for all requests, and is waited for there."""
        options = self._options
        if not fault.wait_s:  # 0 would be a request after the other
            return random.uniform(0, min(options.backoff_max_s, options.backoff_s * 2.0 ** min(tried - 1, 99)))
        self._resume_at = max(self._resume_at, time.monotonic() + min(fault.wait_s, options.retry_after_max_s))
        return 0.0

    async def _was_gone(self, since: float) -> bool:
        """Whether the server was away after `since`; returns when it is there.

        Raises ModelDied when it does not come back, UserError when it turns everyone down.
        """
        async with self._looking:  # one looks, the others learn from it
            if self._dead is not None:
                raise ModelDied(self._dead)
            if self._recovered_at > since:
                return True
            began, tried = time.monotonic(), 0
            while (fault := await self._fault_now()) is not None:
                tried += 1
                self._see_it_lives(began, fault)
                await asyncio.sleep(self._wait_s(fault, tried))
            if tried:
                self._recovered_at = time.monotonic()
            return tried > 0

    async def _fault_now(self) -> Fault | None:
        """What keeps the server from answering; None when it does, be it with a refusal. Raises UserError."""
        try:
            await self.send(self._trial, 1)
        except Failed as failed:
            if failed.fault.kind == "everyone":
                raise self._meaning(failed) from None
            return failed.fault if failed.fault.kind == "passing" else None
        return None

    async def served(self) -> list[str]:
        """Models that the server lists; empty when it keeps no list that we can read. Raises Failed when no server is
        there or it turns down the key."""
        try:
            async with asyncio.timeout(self._options.timeout_s):
                page = await self._client.models.list()
            return [storable(str(model.id)) for model in page.data]
        except Exception as error:
            fault = judge(error, self._key)
            if fault is not None and (fault.no_answer or fault.status in (401, 403)):
                raise Failed(fault, 1) from None
            return []

    def _meaning(self, failed: Failed) -> Exception:
        """A request that got no answer, as an exception for whoever asked."""
        fault = failed.fault
        match fault.kind:
            case "everyone":
                return turned_down(fault, self._model, self._options)
            case "too_long":
                return TooLong(fault.words)
            case "refused":
                return Rejected("refused", fault.words)
            case "clip":
                return self._rejected("engine_error", fault.words)
            case "passing":
                words = f"{fault.words}; asked {failed.tries} times, and the server is there"
                return self._rejected("timeout" if fault.timed_out else "engine_error", words)

    def _rejected(self, reason: str, words: str) -> Exception:
        """A clip's reject; but when nothing ever worked, it is no clip's fault."""
        self._failed_first += not self._has_answered
        if self._failed_first < HOPELESS:
            return Rejected(reason, words)
        return UserError(
            f"the endpoint {self._options.base_url} failed on each of the first {HOPELESS} clips, the last with: "
            f"{words}. Nothing else is tried. When that is mended: hicom retry RUN --reason {reason}"
        )
