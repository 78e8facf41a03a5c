"""Prompts as data: header, inputs, schema and hash; and that the shipped ones say what the paper asks for."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pipeline.models.prompts import PAIRS_PER_CLIP, PROMPT_NAMES, load_prompt, prompt_hashes, read_prompt
from pipeline.resources import resource, resource_names

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


def test_the_qa_prompt_enforces_the_papers_rules_and_names_its_invalid_instructions() -> None:
    text = " ".join(load_prompt("qa").render(pairs=3).split())
    assert "exactly 3 instruction-answer pairs" in text
    for needed in (
        "Rule 1: every instruction refers to specific visual information",
        "Rule 2: every instruction asks for a description",
        "What is this video mainly about?",
        "What can be learned from this video?",
        "which element does not show up",
        "yes or no",
        "do not ask to count",
        "not provided, not described",
        "Mention neither the caption",
    ):
        assert needed in text
