"""The two-turn protocol over an engine that answers what a test says: when it asks again, and what it gives up on."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from pipeline.models.protocols import Description, Pair, Turn
from pipeline.models.two_turns import Reply, TurnLimits, converse, is_refusal, parse_pairs
from pipeline.stage import Rejected, Retryable

LIMITS = TurnLimits(caption_tokens=10, qa_tokens=20, retry_factor=3)
CAPTION = "A brown dog walks along a grey sofa."
PAIRS = [{"instruction": f"Describe dog {n}.", "answer": f"Dog {n} walks along."} for n in range(3)]
JSON = json.dumps({"pairs": PAIRS})


class Script:
    """A conversation that gives out prepared answers, each (text, finish reason), and remembers what it was asked."""

    def __init__(self, captions: list[tuple[str, str]], pairs: list[tuple[str, str]]) -> None:
        self._answers = {"caption": iter(captions), "qa": iter(pairs)}
        self.asked: list[tuple[str, int]] = []

    async def caption(self, max_tokens: int) -> Reply:
        return self._reply("caption", max_tokens)

    async def pairs(self, max_tokens: int) -> Reply:
        return self._reply("qa", max_tokens)

    def _reply(self, turn: str, max_tokens: int) -> Reply:
        self.asked.append((turn, max_tokens))
        text, end = next(self._answers[turn])
        told = Turn(turn=turn, prompt_tokens=5, cached_tokens=2, output_tokens=len(text), finish_reason=end)
        return Reply(text, told, seconds=0.25)


def said(*pairs: tuple[str, str], captions: list[tuple[str, str]] | None = None) -> tuple[Description, Script]:
    script = Script(captions or [(CAPTION, "stop")], list(pairs))
    return asyncio.run(converse(script, LIMITS)), script


def rejected(*pairs: tuple[str, str], captions: list[tuple[str, str]] | None = None) -> Rejected:
    with pytest.raises(Rejected) as caught:
        said(*pairs, captions=captions)
    assert not isinstance(caught.value, Retryable)
    return caught.value


def test_a_caption_then_three_pairs() -> None:
    description, script = said((JSON, "stop"))
    assert script.asked == [("caption", 10), ("qa", 20)]
    assert description.caption == CAPTION
    assert description.pairs == [Pair(pair["instruction"], pair["answer"]) for pair in PAIRS]
    assert [turn.turn for turn in description.turns] == ["caption", "qa"]
    assert description.measured == {"caption_s": 0.25, "qa_s": 0.25}


def test_a_caption_that_was_cut_off_is_asked_once_more_with_more_room() -> None:
    description, script = said((JSON, "stop"), captions=[("A brown", "length"), (CAPTION, "stop")])
    assert script.asked == [("caption", 10), ("caption", 30), ("qa", 20)]
    assert description.caption == CAPTION
    assert [turn.finish_reason for turn in description.turns] == ["length", "stop", "stop"]
    assert description.measured == {"caption_s": 0.5, "qa_s": 0.25}


def test_a_caption_that_is_cut_off_twice_is_truncated() -> None:
    reject = rejected(captions=[("A brown", "length"), ("A brown dog", "length")])
    assert (reject.reason, reject.detail) == ("truncated", "the caption was cut off after 11 tokens, twice")


@pytest.mark.parametrize(
    ("text", "detail"), [(" \n", "the caption is empty"), ("Sorry, no.", "the caption is a refusal: 'Sorry, no.'")]
)
def test_a_caption_that_is_none_is_refused(text: str, detail: str) -> None:
    reject = rejected(captions=[(text, "stop")])
    assert (reject.reason, reject.detail) == ("refused", detail)


@pytest.mark.parametrize("first", [("{", "stop"), (JSON[:-5], "length"), (JSON, "length"), ('{"pairs": []}', "stop")])
def test_pairs_that_are_not_what_was_asked_for_are_asked_once_more_with_more_room(first: tuple[str, str]) -> None:
    description, script = said(first, (JSON, "stop"))
    assert script.asked[1:] == [("qa", 20), ("qa", 60)]
    assert len(description.pairs) == 3


def test_pairs_that_are_wrong_twice_are_bad_output_with_the_engines_words() -> None:
    reject = rejected(("Here you are:", "stop"), (JSON[:-9], "length"))
    assert reject.reason == "bad_output"
    assert "cut off" in reject.detail or "not JSON" in reject.detail
    assert '"pairs"' in reject.detail


def test_pairs_that_are_refused_are_not_asked_again() -> None:
    reject = rejected(("I cannot help with that.", "stop"))
    assert (reject.reason, reject.detail) == ("refused", "the pairs were refused: 'I cannot help with that.'")


def test_a_content_filter_is_a_refusal() -> None:
    assert rejected(captions=[("A", "content_filter")]).reason == "refused"


def test_any_other_end_is_the_engines_failure_and_may_be_tried_again() -> None:
    with pytest.raises(Retryable) as caught:
        said(captions=[("A", "abort")])
    assert (caught.value.reason, caught.value.detail) == ("engine_error", "the caption turn ended with 'abort'")


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ([], "not a list `pairs`"),
        ({"pairs": {"instruction": "a", "answer": "b"}}, "not a list `pairs`"),
        ({"pairs": PAIRS[:2]}, "2 pairs, expected 3"),
        ({"pairs": [*PAIRS, PAIRS[0]]}, "4 pairs, expected 3"),
        ({"pairs": [*PAIRS[:2], {"instruction": "a"}]}, "not a list `pairs`"),
        ({"pairs": [*PAIRS[:2], {"instruction": "a", "answer": " "}]}, "not a list `pairs`"),
        ({"pairs": [*PAIRS[:2], {"instruction": "a", "answer": 3}]}, "not a list `pairs`"),
    ],
)
def test_what_is_wrong_with_an_answer(answer: Any, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        parse_pairs(json.dumps(answer))


@pytest.mark.parametrize("text", ["[" * 5000, '{"pairs":' * 5000])
def test_an_answer_without_end_is_bad_output(text: str) -> None:
    assert "not JSON" in rejected((text, "stop"), (text, "stop")).detail


@pytest.mark.parametrize("text", ["I\u2019m sorry, no.", "As an AI model", "I am unable to see it", '"I cannot say."'])
def test_how_refusals_begin(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize("text", [CAPTION, "In the centre, a sign reads 'sorry'.", "Iron gates open."])
def test_descriptions_are_no_refusals(text: str) -> None:
    assert not is_refusal(text)
