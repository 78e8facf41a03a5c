"""Describer on any OpenAI-compatible endpoint: vLLM's own server, SGLang, llama.cpp, or a hosted model.

Both turns are one conversation; the frames are encoded once and sent with each. The model is known by the name that the
server gives it: which weights stand behind that name is the server's word. What goes wrong on the way, and what is done
about it: `endpoint`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, cast

import numpy as np

from pipeline.models import registry
from pipeline.models.openai.check import check
from pipeline.models.openai.endpoint import Endpoint, TooLong
from pipeline.models.openai.options import Options
from pipeline.models.openai.requests import Request, caption_request, frames_request, pairs_request, sampled
from pipeline.models.protocols import Card, ClipFrames, Description, Turn
from pipeline.models.spec import ModelSpec
from pipeline.models.two_turns import Reply, TurnLimits, answer_seed, converse
from pipeline.models.weights import lacking_packages, require
from pipeline.stage import Rejected

__all__ = ["Options", "card", "lacks", "load"]

_CLOSE_S = 5.0
"""Most seconds that closing the connections may take."""


def card(spec: ModelSpec) -> Card:
    options = _options(spec)
    return Card(
        frame_spec={},
        frames=options.max_frames,
        reads_prompts=True,
        budget=options.budget(),
        in_flight=options.max_concurrency,
        environment=(options.api_key_env,) if options.api_key_env else (),
    )


def lacks(spec: ModelSpec) -> list[str]:
    """The package; and a key, where the server is surely not one of the user's own."""
    options = _options(spec)
    found = lacking_packages(("openai",), extra="endpoint")
    if options.base_url.startswith("https:") and options.api_key_env and not options.key():
        found.append(
            f"no key for {options.base_url}; run: export {options.api_key_env}=... (where the server wants none, set "
            "the describer's options.api_key_env to an empty text)"
        )
    return found


def load(spec: ModelSpec) -> OpenAIDescriber:
    """Try the server with a small request. Raises UserError when it is not there, does not serve the model, turns down
    the key, or takes no requests of this form."""
    require("openai", extra="endpoint")
    options = _options(spec)
    _run_apart(_check(spec.name, options))
    return OpenAIDescriber(spec, options)


class OpenAIDescriber:
    """See the module's text; a `Describer`."""

    def __init__(self, spec: ModelSpec, options: Options) -> None:
        self.key = spec.key
        self._options = options
        self._endpoint = Endpoint(spec.name, options)
        self._slots = asyncio.Semaphore(options.max_concurrency)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._limits = TurnLimits(
            caption_tokens=options.caption_tokens, qa_tokens=options.qa_tokens, retry_factor=options.retry_factor
        )

    async def describe(self, clip: ClipFrames) -> Description:
        """Describe a clip of frames uint8 [T, H, W, 3] RGB. One that is too long for the server is described from half
        its frames, and so on down to `min_frames`."""
        async with self._slots:  # whole conversations: a second turn never waits behind other clips' first turns
            self._loop = asyncio.get_running_loop()
            seen = clip
            left: list[Turn] = []
            requests = 0
            while True:
                started = time.monotonic()
                frames = await asyncio.to_thread(frames_request, seen, self._options)
                conversation = _Conversation(self._endpoint, self._options, clip.clip_id, frames)
                encode_s = time.monotonic() - started
                try:
                    said = await converse(conversation, self._limits)
                except TooLong as error:
                    left += conversation.turns
                    requests += conversation.requests + 1
                    seen = self._with_fewer(seen, error)
                else:
                    requests += conversation.requests
                    measured = {**said.measured, "encode_s": encode_s, "requests": float(requests)}
                    used = None if seen is clip else len(seen.frames)
                    return replace(said, turns=left + said.turns, frames_used=used, measured=measured)

    def close(self) -> None:
        """Close the connections, from whichever thread."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        if loop.is_closed():  # and its connections with it; the client is to know
            with contextlib.suppress(RuntimeError):
                _run_apart(self._endpoint.close())
        elif not loop.is_running():
            loop.run_until_complete(self._endpoint.close())
        elif loop is _running_loop():
            self._closing = loop.create_task(self._endpoint.close())
        else:
            asyncio.run_coroutine_threadsafe(self._endpoint.close(), loop).result(_CLOSE_S)

    def _with_fewer(self, clip: ClipFrames, error: TooLong) -> ClipFrames:
        """The clip with half its frames. Raises Rejected when they are few already."""
        options, count = self._options, len(clip.frames)
        half = max(options.min_frames, count // 2 // options.frame_multiple * options.frame_multiple)
        if half >= count:
            raise Rejected("engine_error", f"too long for the server even with {count} frames: {error}")
        kept = (2 * np.arange(half) + 1) * count // (2 * half)
        return replace(clip, frames=clip.frames[kept], times_s=clip.times_s[kept])


class _Conversation:
    """One clip's two turns."""

    def __init__(self, endpoint: Endpoint, options: Options, clip_id: str, frames: Request) -> None:
        self._endpoint = endpoint
        self._options = options
        self._clip_id = clip_id
        self._frames = frames
        self._caption = ""
        self.turns: list[Turn] = []
        self.requests = 0

    async def caption(self, max_tokens: int) -> Reply:
        reply = await self._ask("caption", caption_request(self._frames), max_tokens)
        self._caption = reply.text
        return reply

    async def pairs(self, max_tokens: int) -> Reply:
        return await self._ask("qa", pairs_request(self._frames, self._caption, self._options), max_tokens)

    async def _ask(self, name: str, request: Request, max_tokens: int) -> Reply:
        started = time.monotonic()
        answer = await self._endpoint.ask(sampled(request, self._options, max_tokens, self._seed(name)))
        turn = Turn(
            turn=name,
            prompt_tokens=answer.prompt_tokens,
            cached_tokens=answer.cached_tokens,
            output_tokens=answer.output_tokens,
            finish_reason=answer.finish_reason,
        )
        self.turns.append(turn)
        self.requests += answer.tries
        if answer.refusal and not answer.text:
            raise Rejected("refused", f"the {name} turn was refused: {answer.refusal[:200]!r}")
        return Reply(answer.text, turn, time.monotonic() - started)

    def _seed(self, name: str) -> int | None:
        asked_before = sum(turn.turn == name for turn in self.turns)
        seed = self._options.seed
        return None if seed is None else answer_seed(seed, self._clip_id, asked_before)


def _options(spec: ModelSpec) -> Options:
    return cast(Options, registry.options("describer", spec))


async def _check(model: str, options: Options) -> None:
    endpoint = Endpoint(model, options)
    try:
        await check(endpoint, model, options)
    finally:
        await endpoint.close()


def _run_apart(work: Coroutine[Any, Any, None]) -> None:
    """Run it to its end on an event loop of its own, whether or not this thread has one."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
