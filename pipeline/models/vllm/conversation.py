"""One clip's conversation with vLLM, in tokens.

Turn 2 is the very tokens of turn 1, prompt and answer, and then the second prompt's. Text that is written out and cut
into tokens again may be cut otherwise; then the engine would find nothing of it in its prefix cache.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from pipeline.models.prompts import PAIRS_PER_CLIP, load_prompt
from pipeline.models.protocols import ClipFrames, Turn
from pipeline.models.two_turns import Reply, answer_seed
from pipeline.models.vllm.engine import Answer, VllmEngine
from pipeline.models.vllm.options import Options, pair_tokens

SECOND_TURN, FIRST_TURN = 0, 1
"""Priorities: second turns go first, since what they need is in the caches now."""

_ANSWER = "\u241f"
"""Stands for the first answer while the chat template is asked what comes after it."""


@dataclass(frozen=True)
class Script:
    """What every clip's conversation has in common."""

    first: list[int]
    """Tokens of the first prompt, with one for the video."""
    second: list[int]
    """Tokens from the end of the first answer to the beginning of the second."""
    schema: dict[str, Any]
    """JSON schema of the second answer."""
    ends: frozenset[int]
    """Tokens that end an answer."""

    @property
    def tokens(self) -> int:
        """Tokens of a conversation beside the video's and the answers'."""
        return len(self.first) - 1 + len(self.second)


def write_script(tokenizer: Any, video_token: int, ends: frozenset[int]) -> Script:
    """The prompts in the model's chat template. Raises ValueError for a template that cannot carry them."""
    qa = load_prompt("qa")
    ask = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": load_prompt("caption").text}]}
    answer = {"role": "assistant", "content": _ANSWER}
    again = {"role": "user", "content": [{"type": "text", "text": qa.render(pairs=PAIRS_PER_CLIP)}]}
    first = _rendered(tokenizer, [ask])
    start, found, rest = _rendered(tokenizer, [ask, answer, again]).partition(_ANSWER)
    if start != first or not found:
        raise ValueError("the model's chat template writes the first turn otherwise once the second has begun")
    script = Script(
        first=_tokens(tokenizer, first),
        second=_tokens(tokenizer, rest),
        schema=qa.schema(pairs=PAIRS_PER_CLIP),
        ends=ends,
    )
    if script.first.count(video_token) != 1 or video_token in script.second:
        raise ValueError("the model's chat template leaves no place for the video")
    return script


def _rendered(tokenizer: Any, messages: list[dict[str, Any]]) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


def _tokens(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


class ClipConversation:
    """A `two_turns.Conversation` about one clip. Frames uint8 [T, H, W, 3], H and W multiples of 28, are taken as they
    are; when T is odd, the model's processor gives the last one twice."""

    def __init__(self, engine: VllmEngine, script: Script, options: Options, clip: ClipFrames) -> None:
        self._engine = engine
        self._script = script
        self._options = options
        self._clip_id = clip.clip_id
        self._video = _video(clip, options.fps)
        self._before_second: list[int] = []
        self.answers: list[tuple[str, Answer]] = []
        """Every answer, with the name of its turn, in order."""

    async def caption(self, max_tokens: int) -> Reply:
        reply, answer = await self._ask("caption", self._script.first, max_tokens)
        said = answer.token_ids
        if said and said[-1] in self._script.ends:
            said = said[:-1]  # the script has its own
        self._before_second = self._script.first + said
        return reply

    async def pairs(self, max_tokens: int) -> Reply:
        reply, _ = await self._ask("qa", self._before_second + self._script.second, max_tokens)
        return reply

    async def _ask(self, name: str, token_ids: list[int], max_tokens: int) -> tuple[Reply, Answer]:
        asked_before = sum(turn == name for turn, _ in self.answers)
        start = time.monotonic()
        answer = await self._engine.generate(
            {"prompt_token_ids": token_ids, **self._video},
            self._sampling(name, max_tokens, asked_before),
            FIRST_TURN if name == "caption" else SECOND_TURN,
        )
        self.answers.append((name, answer))
        turn = Turn(
            turn=name,
            prompt_tokens=len(answer.prompt_token_ids),
            cached_tokens=answer.cached_tokens,
            output_tokens=len(answer.token_ids),
            finish_reason=answer.finish_reason,
        )
        return Reply(answer.text, turn, time.monotonic() - start), answer

    def _sampling(self, name: str, max_tokens: int, asked_before: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        options = self._options
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            repetition_penalty=options.repetition_penalty,
            seed=answer_seed(options.seed, self._clip_id, asked_before),
            # Token by token: the watchdog wants to see progress.
            output_kind=RequestOutputKind.DELTA,
            structured_outputs=StructuredOutputsParams(json=self._script.schema) if name == "qa" else None,
        )


def _video(clip: ClipFrames, fps: float) -> dict[str, Any]:
    """The part of a prompt that holds the frames. The name under which the engine caches them says what they are."""
    count, height, width = clip.frames.shape[:3]
    span_s = float(clip.times_s[-1] - clip.times_s[0])
    metadata = {
        "fps": (count - 1) / span_s if span_s > 0 else fps,
        "duration": clip.duration_s,
        "total_num_frames": count,
        "frames_indices": list(range(count)),
        "do_sample_frames": False,
        "video_backend": "hicom",
    }
    return {
        "multi_modal_data": {"video": [(clip.frames, metadata)]},
        "multi_modal_uuids": {"video": [f"{clip.clip_id}-{count}x{height}x{width}"]},
    }


def video_tokens(count: int, height: int, width: int) -> int:
    """Tokens that so many frames become."""
    return -(-count // 2) * pair_tokens(height, width)
