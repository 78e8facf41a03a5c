"""A clip's conversation in tokens, with an engine that is asked and answers by rote."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import numpy as np
import pytest

from pipeline.models.prompts import PAIRS_PER_CLIP, load_prompt
from pipeline.models.protocols import ClipFrames
from pipeline.models.vllm.conversation import ClipConversation, Script, video_tokens, write_script
from pipeline.models.vllm.engine import Answer, VllmEngine
from pipeline.models.vllm.options import Options

VIDEO, END = ord("V"), ord("E")
CLIP = ClipFrames("abc", np.zeros((5, 56, 84, 3), np.uint8), np.array([0.0, 0.5, 1.0, 1.5, 2.0]), 2.4)
SCRIPT = Script(first=[1, VIDEO, 2], second=[END, 3, 4], schema={"type": "object"}, ends=frozenset({END, 99}))


class Tokenizer:
    """A token for each character; a template in the manner of Qwen2-VL's."""

    def apply_chat_template(self, messages: list[dict[str, Any]], tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize and add_generation_prompt
        return "".join(f"S{m['role']}\n{self.content(m['content'])}E\n" for m in messages) + "Sassistant\n"

    def content(self, content: Any) -> str:
        return (
            content
            if isinstance(content, str)
            else "".join("V" if p["type"] == "video" else p["text"] for p in content)
        )

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [ord(c) for c in text]}


class Rote:
    """Answers in the order given, and keeps what it was asked."""

    def __init__(self, *answers: list[int]) -> None:
        self.asked: list[tuple[dict[str, Any], int]] = []
        self._answers = list(answers)

    async def generate(self, prompt: dict[str, Any], sampling: Any, priority: int) -> Answer:
        self.asked.append((prompt, priority))
        said = self._answers.pop(0)
        return Answer("text", said, prompt["prompt_token_ids"], 7, "stop")


def conversation(engine: Rote, monkeypatch: pytest.MonkeyPatch) -> ClipConversation:
    monkeypatch.setattr(ClipConversation, "_sampling", lambda self, name, max_tokens, asked_before: None)
    return ClipConversation(cast(VllmEngine, engine), SCRIPT, Options(), CLIP)


def test_the_script_is_the_template_cut_at_the_first_answer() -> None:
    script = write_script(Tokenizer(), VIDEO, frozenset({END}))
    first, second = ("".join(map(chr, ids)) for ids in (script.first, script.second))
    assert first == f"Suser\nV{load_prompt('caption').text}E\nSassistant\n"
    assert second == f"E\nSuser\n{load_prompt('qa').render(pairs=PAIRS_PER_CLIP)}E\nSassistant\n"
    assert script.tokens == len(first) - 1 + len(second)


def test_a_template_that_rewrites_the_first_turn_or_has_no_place_for_a_video_is_refused() -> None:
    class Rewrites(Tokenizer):
        def apply_chat_template(self, messages: list[dict[str, Any]], **kwargs: Any) -> str:
            return f"{len(messages)}" + super().apply_chat_template(messages, **kwargs)

    class Blind(Tokenizer):
        def content(self, content: Any) -> str:
            return super().content(content).removeprefix("V")

    with pytest.raises(ValueError, match="writes the first turn otherwise"):
        write_script(Rewrites(), VIDEO, frozenset())
    with pytest.raises(ValueError, match="leaves no place for the video"):
        write_script(Blind(), VIDEO, frozenset())


@pytest.mark.parametrize("end", [[END], [99], []], ids=["the usual end", "another end", "cut off"])
def test_turn_2_is_turn_1s_tokens_and_goes_first(end: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Rote([50, 51, *end], [60, END])
    talk = conversation(engine, monkeypatch)
    asyncio.run(talk.caption(9))
    reply = asyncio.run(talk.pairs(9))
    (first, low), (second, high) = engine.asked
    assert first["prompt_token_ids"] == SCRIPT.first
    assert second["prompt_token_ids"] == [*SCRIPT.first, 50, 51, *SCRIPT.second]
    assert high < low, "vLLM takes the smaller number first"
    assert (reply.turn.turn, reply.turn.prompt_tokens, reply.turn.cached_tokens) == ("qa", 8, 7)


def test_a_turn_that_is_asked_again_starts_from_its_own_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Rote([50], [51, END], [60], [61, END])
    talk = conversation(engine, monkeypatch)
    for turn in (talk.caption, talk.caption, talk.pairs, talk.pairs):
        asyncio.run(turn(9))
    prompts = [prompt["prompt_token_ids"] for prompt, _ in engine.asked]
    assert prompts[0] == prompts[1] == SCRIPT.first
    assert prompts[2] == prompts[3] == [*SCRIPT.first, 51, *SCRIPT.second]


def test_both_turns_give_the_same_frames_under_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Rote([50, END], [60, END])
    talk = conversation(engine, monkeypatch)
    asyncio.run(talk.caption(9))
    asyncio.run(talk.pairs(9))
    first, second = ({k: v for k, v in p.items() if k != "prompt_token_ids"} for p, _ in engine.asked)
    assert first is not second and first["multi_modal_uuids"] == second["multi_modal_uuids"]
    assert first["multi_modal_uuids"] == {"video": ["abc-5x56x84"]}
    [(frames, metadata)] = first["multi_modal_data"]["video"]
    assert frames is CLIP.frames
    assert (metadata["fps"], metadata["total_num_frames"], metadata["do_sample_frames"]) == (2.0, 5, False)


def test_an_odd_number_of_frames_counts_as_one_more() -> None:
    assert [video_tokens(count, 56, 84) for count in (1, 2, 3, 4)] == [6, 6, 12, 12]
