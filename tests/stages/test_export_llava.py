"""The LLaVA file, read the way the authors' loader reads it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.export.llava import LlavaFile, neutral
from pipeline.export.rows import exported
from pipeline.stages.export import Export, ExportConfig
from tests.stages.export_store import Folder, Rows, clip, name_of

ODD = 'say "<video>"\n\u2028 naïve 猫 \U0001f600 </s> <|im_end|> & <b> \\n'


def samples(json_path: Path, data_root: str) -> list[dict[str, Any]]:
    """What the loader makes of a file, in our own words: one sample an answer, `<video>` first, path joined."""
    made = []
    for entry in json.loads(json_path.read_bytes().decode("ascii")):
        turns = entry["conversations"]
        assert len(turns) % 2 == 0 and turns[0]["value"].startswith("<video>\n")
        for index in range(1, len(turns), 2):
            assert (turns[index - 1]["from"], turns[index]["from"]) == ("human", "gpt")
            condition = turns[index - 1]["value"].replace("<video>", "").strip()
            video = os.path.join(data_root, entry["video"])
            made.append({"video": video, "condition": condition, "target": turns[index]["value"]})
    return made


def test_the_trainer_gets_every_pair_and_finds_every_video(tmp_path: Path) -> None:
    rows = [clip(index, tmp_path) for index in range(21)]
    Export(ExportConfig(rows_per_shard=8)).run(Rows(rows), Folder(tmp_path))
    made = samples(tmp_path / "export/19_qa_llavaformat.json", os.fspath(tmp_path / "export/split_videos"))
    assert len(made) == 19 * 2, "two virtual clips are left out"
    assert all(Path(sample["video"]).is_file() for sample in made)
    with_file = sorted((row for row in rows if row["clip_uri"]), key=lambda row: row["clip_id"])
    wanted = [pair for row in with_file for pair in sorted(row["pairs"], key=lambda pair: pair["index"])]
    assert [(s["condition"], s["target"]) for s in made] == [(p["instruction"], p["answer"]) for p in wanted]


def test_an_entry_has_the_fields_of_the_format(tmp_path: Path) -> None:
    Export(ExportConfig()).run(Rows([clip(1, tmp_path)]), Folder(tmp_path))
    text = (tmp_path / "export/1_qa_llavaformat.json").read_text()
    (entry,) = json.loads(text)
    sha = clip(1, tmp_path)["clip_sha256"]
    assert entry == {
        "id": name_of(1),
        "video": f"{name_of(1)[:2]}/{name_of(1)}-{sha[:12]}.mp4",
        "conversations": [
            {"from": "human", "value": "<video>\nWhich colour has the square?"},
            {"from": "gpt", "value": "The square is red."},
            {"from": "human", "value": "What does the square of clip 1 do?"},
            {"from": "gpt", "value": "It moves right."},
        ],
    }


def test_odd_text_arrives_and_holds_no_control_token(tmp_path: Path) -> None:
    pairs = [{"index": 0, "instruction": ODD, "answer": ODD}]
    row = exported(clip(0, tmp_path, pairs=pairs))
    with LlavaFile(os.fspath(tmp_path / "odd.json")) as file:
        file.add(row)
    (entry,) = json.loads((tmp_path / "odd.json").read_bytes().decode("ascii"))
    expected = ODD.replace("<video>", "video").replace("<|im_end|>", "im_end")
    assert [turn["value"] for turn in entry["conversations"]] == [f"<video>\n{expected}", expected]


@pytest.mark.parametrize("text", ["<<|video|>>", "<|<|im_end|>|>", "<vi<image>deo>", "<<video>video>"])
def test_no_token_is_left_however_it_is_nested(text: str) -> None:
    assert not any(token in neutral(text) for token in ("<video>", "<image>", "<|im_end|>"))


def test_plain_angle_brackets_stay() -> None:
    assert neutral("2 < 3, <html>, <videos>, <| |>") == "2 < 3, <html>, <videos>, <| |>"
