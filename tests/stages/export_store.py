"""A small run folder for the export's tests: rows in memory, files on disk."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from pipeline.stage import Row

VIRTUAL_EVERY = 10
"""Clip 9, 19, ... of `clips` is virtual."""


def name_of(index: int) -> str:
    """The id of the clip number `index`: 32 hex digits, not in the order of the numbers."""
    return hashlib.sha256(f"clip {index}".encode()).hexdigest()[:32]


def clip(index: int, folder: Path, **other: Any) -> Row:
    """A clip with all the columns that the export reads, by bare name; its file is written below `folder`."""
    virtual = index % VIRTUAL_EVERY == VIRTUAL_EVERY - 1
    clip_id, data = name_of(index), f"the bytes of clip {index}".encode() * 3
    uri = None if virtual else f"clips/{clip_id}.mp4"
    if uri is not None:
        (folder / "clips").mkdir(parents=True, exist_ok=True)
        (folder / uri).write_bytes(data)
    row: Row = {
        "clip_id": clip_id,
        "video_id": f"video-{index // 3}",
        "source_key": f"films/{index // 3}.mp4",
        "dataset": "panda70m" if index % 3 else "ego4d",
        "identity": f"sha256:{index // 3:064x}",
        "category": None if index % 4 == 0 else "a person cooks | eats",
        "categories": [] if index % 4 == 0 else ["a person cooks | eats"],
        "similarity": 0.25,
        "selected_by": "random" if index % 4 == 0 else "category",
        "shot": index % 3,
        "start_pts": 1000 * index,
        "end_pts": 1000 * index + 512 * 8,
        "clip_time_base_num": 1,
        "clip_time_base_den": 512,
        "start_s": 1000 * index / 512,
        "end_s": (1000 * index + 4096) / 512,
        "clip_s": 8.0,
        "clip_uri": uri,
        "method": "virtual" if virtual else "copy",
        "start_error_s": None if virtual else 0.0,
        "end_error_s": None if virtual else 0.04,
        "clip_frames": None if virtual else 200,
        "clip_width": None if virtual else 320,
        "clip_height": None if virtual else 240,
        "clip_bytes": None if virtual else len(data),
        "clip_sha256": None if virtual else hashlib.sha256(data).hexdigest(),
        "model": "builtin:attributes@1",
        "frame_model": "builtin:visual@1",
        "caption": f"Clip {index}: a red square moves right.",
        "describer": "builtin:observer@1",
        "pairs": [
            {"index": 2, "instruction": f"What does the square of clip {index} do?", "answer": "It moves right."},
            {"index": 0, "instruction": "Which colour has the square?", "answer": "The square is red."},
        ],
    }
    assert other.keys() <= row.keys()
    return {**row, **other}


class Rows:
    """A Reader over rows in memory, in batches of 7, shuffled by `seed` where no order is asked for."""

    def __init__(self, rows: Iterable[Row], seed: int = 0) -> None:
        self.rows = list(rows)
        random.Random(seed).shuffle(self.rows)

    def batches(self, columns: Iterable[str], *, ordered: bool = False) -> Iterator[list[Row]]:
        names = {"clip_id", *(column.split(".")[1] for column in columns)}
        rows = sorted(self.rows, key=lambda row: row["clip_id"]) if ordered else self.rows
        for start in range(0, len(rows), 7):
            yield [{name: row[name] for name in names} for row in rows[start : start + 7]]


class Killed(BaseException):
    """Stands for the process's end."""


class Folder:
    """A Writer over a local folder that says what it wrote, and dies before write number `dies_at`."""

    def __init__(self, root: Path, dies_at: int | None = None) -> None:
        self.root = root
        self.table: list[Row] = []
        self.put: list[str] = []
        self.linked: list[str] = []
        self.removed: list[str] = []
        self._dies_at = dies_at

    def row(self, table: str, row: Row) -> None:
        assert table == "export"
        self.table.append(row)

    def reject(self, key: str, reason: str, detail: str) -> None:
        raise AssertionError(f"the export rejects nothing: {key} {reason} {detail}")

    def put_bytes(self, relative: str, data: bytes) -> None:
        self._target(relative).write_bytes(data)
        self.put.append(relative)

    def put_file(self, local_path: str, relative: str) -> None:
        shutil.move(local_path, self._target(relative))
        self.put.append(relative)

    def link_or_copy(self, source: str, target: str) -> None:
        if not (self.root / source).exists():
            raise FileNotFoundError(source)
        os.link(self.root / source, self._target(target))
        self.linked.append(target)

    def list(self, prefix: str) -> list[str]:
        return sorted(p.relative_to(self.root).as_posix() for p in (self.root / prefix).rglob("*") if p.is_file())

    def remove(self, relative: str) -> None:
        (self.root / relative).unlink()
        self.removed.append(relative)

    def exists(self, relative: str) -> bool:
        return (self.root / relative).exists()

    def open_file(self, relative: str) -> IO[bytes]:
        return (self.root / relative).open("rb")

    def _target(self, relative: str) -> Path:
        if self._dies_at is not None:
            self._dies_at -= 1
            if self._dies_at < 0:
                raise Killed
        target = self.root / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def content(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
