"""The pair that the authors' trainer reads: `<n>_qa_llavaformat.json` and the folder `split_videos`.

Their training configuration names `248328_qa_llavaformat.json` with the data root `split_videos`, so n counts the
clips. Their loader reads `video` (joined to the data root) and `conversations` of each entry. It makes one training
sample of each answer: the instruction before it is the condition, earlier turns stay in the context. So an entry
is a clip with all its pairs as turns.
"""

from __future__ import annotations

import json
import re
from types import TracebackType
from typing import IO

from pipeline.export.rows import VIDEO_FOLDER
from pipeline.stage import Row

PLACEHOLDER = "<video>"
_TOKENS = re.compile(r"<(video|image|audio)>|<\|(\w+)\|>")
"""What the trainer's tokenizer takes for a video or for the end of a turn, wherever in the text it stands."""


def file_name(clips: int) -> str:
    """Name of the file that holds this many clips."""
    return f"{clips}_qa_llavaformat.json"


def neutral(text: str) -> str:
    """The text without the brackets that would make a word of it a control token of the trainer."""
    changed = 1
    while changed:  # what is left may form a token again
        text, changed = _TOKENS.subn(lambda match: match[1] or match[2], text)
    return text


def entry(row: Row) -> dict[str, object]:
    """One entry of the file, from an exported row that has a clip file."""
    turns = []
    for pair in row["pairs"]:
        turns.append({"from": "human", "value": neutral(pair["instruction"])})
        turns.append({"from": "gpt", "value": neutral(pair["answer"])})
    turns[0]["value"] = f"{PLACEHOLDER}\n{turns[0]['value']}"
    return {"id": row["clip_id"], "video": row["clip_path"].removeprefix(f"{VIDEO_FOLDER}/"), "conversations": turns}


class LlavaFile:
    """Writes the file to a local path as a stream: a JSON list, one entry a line, ASCII only."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.entries = 0
        self._handle: IO[str] | None = None

    def __enter__(self) -> LlavaFile:
        self._handle = open(self.path, "w", encoding="ascii", newline="\n")
        self._handle.write("[")
        return self

    def add(self, row: Row) -> None:
        """Add a clip; a virtual clip has no file to train on and is left out."""
        assert self._handle is not None
        if row["clip_path"] is None:
            return
        self._handle.write("\n" if self.entries == 0 else ",\n")
        self._handle.write(json.dumps(entry(row), ensure_ascii=True))
        self.entries += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._handle is not None
        with self._handle:
            self._handle.write("\n]\n")
