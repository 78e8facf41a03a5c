"""Prompts as data: header, inputs, schema and hash; and that the shipped ones say what the paper asks for."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from pipeline.models.prompts import PAIRS_PER_CLIP, PROMPT_NAMES, load_prompt, prompt_hashes, read_prompt
from pipeline.resources import resource, resource_names
from pipeline.stages.clean import CleanConfig
from pipeline.stages.clean_rules import RULES, Context

SOUND = (
    "---\nname: x\npurpose: test\ninputs: {n: a number}\noutput: {type: array, minItems: $n}\n---\nWrite $n lines.\n"
)


def written(folder: Path, text: str) -> Path:
    path = folder / "x.md"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_shipped_prompt_is_one_of_the_two_turns_and_reads() -> None:
    assert {f"{name}.md" for name in PROMPT_NAMES} == set(resource_names("prompts"))
    for name in PROMPT_NAMES:
        prompt = load_prompt(name)
        assert prompt.name == name and prompt.purpose and prompt.text


def test_inputs_are_filled_into_text_and_schema(tmp_path: Path) -> None:
    prompt = read_prompt(written(tmp_path, SOUND))
    assert prompt.render(n=4) == "Write 4 lines."
    assert prompt.schema(n=4) == {"type": "array", "minItems": 4}


@pytest.mark.parametrize("inputs", [{}, {"n": 1, "m": 2}, {"m": 1}])
def test_exactly_the_inputs_of_the_header_must_be_given(tmp_path: Path, inputs: dict[str, int]) -> None:
    prompt = read_prompt(written(tmp_path, SOUND))
    for fill in (prompt.render, prompt.schema):
        with pytest.raises(ValueError, match=r"prompt 'x' takes the inputs \['n'\]"):
            fill(**inputs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Write lines.\n", "expected a header"),
        (SOUND.replace("purpose: test\n", ""), "exactly the keys"),
        (SOUND.replace("purpose: test\n", "purpose: test\nmodel: y\n"), "exactly the keys"),
        (SOUND.replace("name: x", "name: y"), "expected 'x'"),
        (SOUND.replace("Write $n", "Write $m"), "the text uses an input"),
        (SOUND.replace("Write $n", "Pay $ 5"), "the text uses an input"),
        (SOUND.replace("minItems: $n", "minItems: $m"), "the output schema uses the input 'm'"),
    ],
)
def test_a_malformed_file_is_an_error_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        read_prompt(path)
    assert str(path) in str(caught.value)


def test_an_unknown_prompt_is_an_error_naming_the_known_ones() -> None:
    with pytest.raises(LookupError, match=r"caption\.md, qa\.md"):
        load_prompt("poem")


def test_the_hash_is_of_the_whole_file(tmp_path: Path) -> None:
    before = read_prompt(written(tmp_path, SOUND)).sha256
    assert before == hashlib.sha256(SOUND.encode()).hexdigest()
    assert read_prompt(written(tmp_path, SOUND.replace("purpose: test", "purpose: tests"))).sha256 != before
    data = resource("prompts", "qa.md").read_bytes()
    assert prompt_hashes()["prompt.qa"] == hashlib.sha256(data).hexdigest()
    assert list(prompt_hashes()) == ["prompt.caption", "prompt.qa"]


def test_the_qa_schema_holds_three_pairs_and_nothing_else() -> None:
    schema = load_prompt("qa").schema(pairs=PAIRS_PER_CLIP)
    assert PAIRS_PER_CLIP == 3
    pairs = schema["properties"]["pairs"]
    assert (schema["required"], schema["additionalProperties"]) == (["pairs"], False)
    assert (pairs["minItems"], pairs["maxItems"]) == (3, 3)
    assert (pairs["items"]["required"], pairs["items"]["additionalProperties"]) == (["instruction", "answer"], False)


WRITTEN = (
    'The sign above the door reads "OPEN" in red; a second line, "9\\17", is smaller.\nIt does not move. \u00e9\u4f60'
)


@pytest.mark.parametrize("as_ascii", [True, False])
def test_a_constrained_answer_may_quote_what_is_written_in_the_picture(as_ascii: bool) -> None:
    """It could not with minLength or maxLength: xgrammar then lets no escape into the string."""
    assert accepted(json.dumps(answer(3, WRITTEN), ensure_ascii=as_ascii))


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"pairs": []}),
        json.dumps({"pairs": [{"instruction": "a", "answer": "b"}] * 2}),
        json.dumps({"pairs": [{"instruction": "a", "answer": "b"}] * 4}),
        json.dumps({"pairs": [{"answer": "b", "instruction": "a"}] * 3}),
        json.dumps({"pairs": [{"instruction": "a", "answer": "b", "why": "c"}] * 3}),
        json.dumps({"pairs": [{"instruction": "a", "answer": ["b"]}] * 3}),
        "```json\n" + json.dumps({"pairs": [{"instruction": "a", "answer": "b"}] * 3}),
    ],
    ids=["none", "two", "four", "answer first", "more keys", "a list", "fenced"],
)
def test_a_constrained_answer_is_three_pairs_and_nothing_else(text: str) -> None:
    assert not accepted(text)


def answer(count: int, text: str) -> dict[str, list[dict[str, str]]]:
    return {"pairs": [{"instruction": f"Describe it. {text}", "answer": text} for _ in range(count)]}


def accepted(text: str) -> bool:
    """Whether a decoder that is constrained by the schema may write this, as vLLM constrains it."""
    xgrammar = pytest.importorskip("xgrammar")
    alphabet = [bytes([byte]) for byte in range(256)]
    tokens = xgrammar.TokenizerInfo([*alphabet, b"</s>"], vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[256])
    schema = json.dumps(load_prompt("qa").schema(pairs=PAIRS_PER_CLIP))
    matcher = xgrammar.GrammarMatcher(
        xgrammar.GrammarCompiler(tokens).compile_json_schema(schema, any_whitespace=False)
    )
    return bool(matcher.accept_string(text) and matcher.is_completed())


@pytest.mark.parametrize(
    "needed",
    [
        "exactly 3 instruction-answer pairs",
        "Rule 1: every instruction refers to specific visual information",
        "one particular person, animal, object, written text or part of the scene",
        "Rule 2: every instruction asks for a description",
        "that very thing in detail",
        "how it moves or changes over time",
        "how something or someone looks",
        "what someone or something does from the beginning to the end",
        "where things are and how they stand to one another",
        "What is this video mainly about?",
        "What can be learned from this video?",
        "which element does not show up",
        "yes or no",
        "do not ask to count",
        "any other reasoning",
        "not provided, not described",
        "Mention neither the caption",
        "one JSON object and nothing else",
    ],
)
def test_the_qa_prompt_enforces_the_papers_rules_and_names_its_invalid_instructions(needed: str) -> None:
    assert needed in words("qa", pairs=PAIRS_PER_CLIP)


@pytest.mark.parametrize(
    "needed",
    [
        "people, animals and objects:",
        "actions:",
        "time: what comes first",
        "space: how things stand to one another",
        "text: words and numbers that can be read in the picture, exactly as they are written, in double quotes",
        "how the camera moves",
        "Write down only what can be seen.",
        "do not say that something is unclear, missing or not shown",
    ],
)
def test_the_caption_prompt_asks_for_what_the_pairs_are_made_of(needed: str) -> None:
    assert needed in words("caption")


def words(name: str, **inputs: int) -> str:
    """A prompt's text without its line breaks."""
    return " ".join(load_prompt(name).render(**inputs).split())


def test_the_example_in_the_qa_prompt_names_the_keys_of_the_schema_in_their_order() -> None:
    schema = load_prompt("qa").schema(pairs=PAIRS_PER_CLIP)
    pair = schema["properties"]["pairs"]["items"]
    assert re.findall(r'"(\w+)":', load_prompt("qa").text.splitlines()[-2])[:3] == ["pairs", *pair["properties"]]


def test_an_instruction_that_obeys_the_prompt_passes_the_rules_of_clean_and_those_it_forbids_do_not() -> None:
    text = load_prompt("qa").text
    shown = re.findall(r'^- "(.+)"$', text, re.M)
    forbidden = [line for line in re.findall(r'"([^"]+[?.])"', text) if line not in shown]
    assert len(shown) == 3 and len(forbidden) == 3
    assert [broken(instruction) for instruction in shown] == [[]] * 3
    assert [broken(instruction) for instruction in forbidden] == [["no_target"]] * 3


def broken(instruction: str) -> list[str]:
    """Ids of the rules of `clean` that an instruction with a good answer breaks."""
    good = "It is tall and made of dark wood. From the left edge it moves slowly to the middle of the picture."
    context = Context(caption="A caption. Of two sentences.", kept=[], min_answer_words=CleanConfig().min_answer_words)
    return [rule.id for rule in RULES if rule.breaks(instruction, good, context)]
