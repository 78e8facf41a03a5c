"""The two-turn protocol (paper, sec. 3.2) over any engine that can hold a conversation about a clip.

Turn 1 asks for a caption, turn 2 continues the conversation and asks for the pairs as JSON. An answer that was cut
off, and a second answer that is not the JSON that was asked for, is asked once more with room for more tokens; then the
clip is rejected with the engine's words.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.models.prompts import PAIRS_PER_CLIP
from pipeline.models.protocols import Description, Pair, Turn
from pipeline.stage import Rejected, Retryable


@dataclass(frozen=True)
class Reply:
    """An engine's answer to one turn."""

    text: str
    turn: Turn
    seconds: float
    """Wall seconds from asking to the last token."""


class Conversation(Protocol):
    """One clip's conversation with an engine. Both turns see the same frames."""

    async def caption(self, max_tokens: int) -> Reply:
        """Ask for the caption. Asked again, it starts over."""
        ...

    async def pairs(self, max_tokens: int) -> Reply:
        """Ask for the pairs, as JSON, after the caption of the last `caption` call. Asked again, it repeats turn 2."""
        ...


@dataclass(frozen=True, kw_only=True)
class TurnLimits:
    """Tokens that an answer may have. The defaults are those of every describer, and our choice."""

    caption_tokens: int = 1024
    """The prompt asks for 150 to 300 words."""
    qa_tokens: int = 1536
    """Three pairs of up to six sentences, as JSON."""
    retry_factor: int = 2
    """Times as many for a turn that is asked again."""


def answer_seed(seed: int, clip_id: str, asked_before: int) -> int:
    """Seed of an answer, 32 bits: the same for a clip whenever and wherever it is described; another each time that a
    turn is asked again, since with the same one the model would say the same."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{clip_id}\n{asked_before}".encode()).digest()[:4], "big")


async def converse(conversation: Conversation, limits: TurnLimits) -> Description:
    """Both turns. Raises Rejected("truncated" | "refused" | "bad_output") and what the conversation raises."""
    replies: list[Reply] = []
    caption = await _caption(conversation, limits, replies)
    pairs = await _pairs(conversation, limits, replies)
    return Description(
        caption=caption, pairs=pairs, turns=[reply.turn for reply in replies], measured=_seconds(replies)
    )


async def _caption(conversation: Conversation, limits: TurnLimits, replies: list[Reply]) -> str:
    for max_tokens in (limits.caption_tokens, limits.caption_tokens * limits.retry_factor):
        reply = await conversation.caption(max_tokens)
        replies.append(reply)
        if not cut_off(reply.turn):
            break
    else:
        raise Rejected("truncated", f"the caption was cut off after {reply.turn.output_tokens} tokens, twice")
    return checked_caption(reply.text)


def checked_caption(text: str) -> str:
    """The caption as it came. Raises Rejected for one that is none."""
    if not text.strip():
        raise Rejected("refused", "the caption is empty")
    if is_refusal(text):
        raise Rejected("refused", f"the caption is a refusal: {_beginning(text)}")
    return text


async def _pairs(conversation: Conversation, limits: TurnLimits, replies: list[Reply]) -> list[Pair]:
    for max_tokens in (limits.qa_tokens, limits.qa_tokens * limits.retry_factor):
        reply = await conversation.pairs(max_tokens)
        replies.append(reply)
        try:
            if not cut_off(reply.turn):
                return parse_pairs(reply.text)
            wrong = f"cut off after {reply.turn.output_tokens} tokens"
        except ValueError as err:
            wrong = str(err)
            if is_refusal(reply.text):
                raise Rejected("refused", f"the pairs were refused: {_beginning(reply.text)}") from err
    raise Rejected("bad_output", f"the pairs, asked twice: {wrong}; the answer begins {_beginning(reply.text)}")


def cut_off(turn: Turn) -> bool:
    """Whether the limit of tokens ended the answer. Raises Rejected for every other end that is no answer."""
    end = turn.finish_reason
    if end == "content_filter":
        raise Rejected("refused", f"the {turn.turn} turn was stopped by the engine's content filter")
    if end not in ("stop", "length"):
        raise Retryable("engine_error", f"the {turn.turn} turn ended with {end!r}")
    return end == "length"


def parse_pairs(text: str) -> list[Pair]:
    """The pairs of an answer that is the JSON object of prompts/qa.md. Raises ValueError that says what is wrong."""
    try:
        answer: Any = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as err:  # the latter: a model that writes [ without end
        raise ValueError(f"not JSON ({err})") from err
    pairs = answer.get("pairs") if isinstance(answer, dict) else None
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        raise ValueError("JSON, but not a list `pairs` of instruction and answer")
    if len(pairs) != PAIRS_PER_CLIP:
        raise ValueError(f"{len(pairs)} pairs, expected {PAIRS_PER_CLIP}")
    return [Pair(pair["instruction"], pair["answer"]) for pair in pairs]


def _is_pair(value: Any) -> bool:
    fields = ("instruction", "answer")
    return isinstance(value, dict) and all(isinstance(value.get(f), str) and value[f].strip() for f in fields)


_REFUSAL = re.compile(
    r"\W*(?:i(?:'m| am) (?:very |so |really )?sorry|sorry,|i apologi[sz]e|as an ai\b|"
    r"i(?:'m| am) (?:not able|unable) to|i (?:cannot|can't|can not|won't) )",
    re.IGNORECASE,
)
"""How a refusal begins."""


def is_refusal(text: str) -> bool:
    """Whether an answer begins as a refusal does."""
    return _REFUSAL.match(text.replace("\u2019", "'")) is not None


_SURROGATE = re.compile("[\ud800-\udfff]")


def storable(text: str) -> str:
    """The text with every lone surrogate, which JSON may hold and UTF-8 may not, as a replacement character."""
    return _SURROGATE.sub("\ufffd", text)


def _beginning(text: str) -> str:
    return repr(text.strip()[:200])


def _seconds(replies: list[Reply]) -> dict[str, float]:
    """Seconds of each turn, those asked twice together: caption_s and qa_s."""
    names = dict.fromkeys(reply.turn.turn for reply in replies)
    return {f"{name}_s": sum(reply.seconds for reply in replies if reply.turn.turn == name) for name in names}
