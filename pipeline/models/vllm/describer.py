"""Describer on vLLM, in the process that holds it: Qwen2-VL, both turns on one engine.

A clip is let in when the engine's caches have room for both its turns; then the second turn finds what the first left:
the prompt, frames and caption in the KV cache, the prepared frames in the cache before it. Second turns go ahead of
other clips' first turns.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.models import registry
from pipeline.models.protocols import Card, ClipFrames, Description
from pipeline.models.spec import ModelSpec
from pipeline.models.two_turns import TurnLimits, converse
from pipeline.models.vllm.admission import Admission, Load, TooLarge
from pipeline.models.vllm.conversation import ClipConversation, Script, video_tokens, write_script
from pipeline.models.vllm.engine import EngineNotStarted, VllmEngine
from pipeline.models.vllm.options import Options as Options
from pipeline.models.vllm.options import check_engine_args, engine_args, pair_tokens
from pipeline.models.weights import folder, lacking_packages, lacking_weights, read_json, require
from pipeline.stage import ModelDied, Rejected, Retryable, UserError

FILES = ("config.json", "*.safetensors", "tokenizer.json", "preprocessor_config.json|processor_config.json")
MORE_FILES = ("*.json", "*.jinja", "*.txt")
MODEL_TYPE = "qwen2_vl"
"""`model_type` of config.json: two frames of 28 x 28 pixels are one token, which the budget of frames relies on."""
PREPARED_BYTES = {True: 1, False: 4}
"""Bytes of a pixel's channel in the cache of prepared frames: as they come where vLLM leaves the normalisation to the
engine, else float32."""


def card(spec: ModelSpec) -> Card:
    options = _options(spec)
    check_engine_args(options.engine_args)
    return Card(
        frame_spec={},
        frames=options.max_frames,
        reads_prompts=True,
        budget=options.budget(),
        cpus=2.0 + options.tensor_parallel_size if options.cpus is None else options.cpus,
        gpus=float(options.tensor_parallel_size) if options.gpus is None else options.gpus,
        replicas=options.replicas,
        in_flight=options.in_flight,
    )


def lacks(spec: ModelSpec) -> list[str]:
    """Packages and weights; whether the GPUs have room for the model is for `hicom doctor` to say."""
    _options(spec)
    return lacking_packages(("vllm", "transformers"), extra="vllm") + lacking_weights(spec, FILES, MORE_FILES)


def load(spec: ModelSpec) -> VllmDescriber:
    """Start the engine and try it with a tiny clip. Raises UserError with the engine's words when it does not start."""
    options = _options(spec)
    require("vllm", "transformers", extra="vllm")
    place = folder(spec, FILES, MORE_FILES)
    config = read_json(place / "config.json")
    if config.get("model_type") != MODEL_TYPE:
        raise UserError(
            f"model {spec.key}: its config.json says {config.get('model_type')!r}, and this family runs {MODEL_TYPE} "
            "models; serve others with `vllm serve`, and take the family openai"
        )
    try:
        engine = VllmEngine(engine_args(place, options), options.stall_s)
    except EngineNotStarted as err:
        raise UserError(f"model {spec.key}: vLLM did not start: {err}") from err
    try:
        describer = VllmDescriber(spec.key, engine, options, _script(place, engine, int(config["video_token_id"])))
        describer.rehearse()
    except Exception as err:
        engine.close()
        if isinstance(err, (ValueError, Rejected, ModelDied)):
            words = err.detail if isinstance(err, Rejected) else err
            raise UserError(f"model {spec.key}: its first request failed: {words}") from err
        raise
    return describer


def _options(spec: ModelSpec) -> Options:
    own: Options = registry.options("describer", spec)
    return own


def _script(place: Path, engine: VllmEngine, video_token: int) -> Script:
    tokenizer = engine.tokenizer()
    older = place / "chat_template.json"
    if not tokenizer.chat_template and older.is_file():
        tokenizer.chat_template = read_json(older)["chat_template"]
    ends = {tokenizer.eos_token_id}
    generation = place / "generation_config.json"
    if generation.is_file():
        stops = read_json(generation).get("eos_token_id", [])
        ends.update(stops if isinstance(stops, list) else [stops])
    return write_script(tokenizer, video_token, frozenset(ends))


class VllmDescriber:
    """See the module's text; a `Describer`."""

    def __init__(self, key: str, engine: VllmEngine, options: Options, script: Script) -> None:
        self.key = key
        self.engine = engine
        self._options = options
        self._script = script
        self._limits = TurnLimits(
            caption_tokens=options.caption_tokens, qa_tokens=options.qa_tokens, retry_factor=options.retry_factor
        )
        config = engine.config
        self._context = int(config.model_config.max_model_len)
        self._block = int(config.cache_config.block_size)
        as_they_come = bool(getattr(config.model_config.multimodal_config, "mm_device_do_normalize", False))
        self._prepared_bytes = PREPARED_BYTES[as_they_come]
        limit = Load(
            kv_tokens=engine.kv_tokens,
            cache_bytes=int(options.mm_cache_gb * 2**30),
            clips=int(config.scheduler_config.max_num_seqs),
        )
        self._admission = Admission(limit)

    async def describe(self, clip: ClipFrames) -> Description:
        """Describe a clip of frames uint8 [T, H, W, 3] RGB, H and W multiples of 28."""
        described: Description = await asyncio.wrap_future(self.engine.submit(self._describe(clip)))
        return described

    def rehearse(self) -> None:
        """Both turns of a tiny grey clip, cut short: what would fail for every clip fails now. Raises ValueError when
        the frames do not become the tokens they should."""
        shape = (2, 56, 84, 3)
        clip = ClipFrames("rehearsal", np.full(shape, 127, np.uint8), np.array([0.0, 0.5]), 1.0)
        conversation = self.conversation(clip)

        async def both_turns() -> None:
            await conversation.caption(1)
            await conversation.pairs(1)

        self.engine.submit(both_turns()).result()
        got = len(conversation.answers[0][1].prompt_token_ids)
        expected = len(self._script.first) - 1 + video_tokens(*shape[:3])
        if got != expected:
            raise ValueError(
                f"a prompt with {shape[0]} frames of {shape[2]} x {shape[1]} became {got} tokens, {expected=}"
            )

    def conversation(self, clip: ClipFrames) -> ClipConversation:
        """To be held on the engine's loop."""
        return ClipConversation(self.engine, self._script, self._options, clip)

    def close(self) -> None:
        self.engine.close()

    async def _describe(self, clip: ClipFrames) -> Description:
        seen = self._fitting(clip)
        arrived = time.monotonic()
        try:
            async with self._admission.admit(self._load(seen)) as in_flight:
                wait_s = time.monotonic() - arrived
                async with asyncio.timeout(self._options.deadline_s):
                    said = await converse(self.conversation(seen), self._limits)
        except TooLarge as err:
            raise Rejected("engine_error", str(err)) from err
        except TimeoutError as err:
            raise Retryable("timeout", f"no answer within {self._options.deadline_s:g} s in flight") from err
        return replace(
            said,
            frames_used=None if seen is clip else len(seen.frames),
            measured={**said.measured, "wait_s": wait_s, "in_flight": float(in_flight.clips)},
        )

    def _load(self, clip: ClipFrames) -> Load:
        """What the clip takes of the caches; answers that are asked for again may take more."""
        tokens = self._script.tokens + video_tokens(*clip.frames.shape[:3])
        tokens += self._options.caption_tokens + self._options.qa_tokens
        tokens = min(tokens, self._context)
        return Load(
            kv_tokens=-(-tokens // self._block) * self._block,
            cache_bytes=clip.frames.nbytes * self._prepared_bytes,
        )

    def _fitting(self, clip: ClipFrames) -> ClipFrames:
        """The clip, or as many of its frames, evenly, as the context has room for. Raises Rejected."""
        count, height, width = clip.frames.shape[:3]
        room = self._context - self._script.tokens - self._options.answer_tokens
        fits = 2 * (room // pair_tokens(height, width))
        if count <= fits:
            return clip
        if fits < 2:
            raise Rejected(
                "engine_error",
                f"a context of {self._context} tokens has room for {max(room, 0)} of video; two frames of "
                f"{width} x {height} become {pair_tokens(height, width)}",
            )
        kept = np.linspace(0, count - 1, fits).round().astype(int)
        return replace(clip, frames=clip.frames[kept], times_s=clip.times_s[kept])
