"""The export stage over rows in memory and files on disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from pipeline.records import TABLES
from pipeline.stage import Row, UserError
from pipeline.stages.export import Export, ExportConfig
from tests.stages.export_store import Folder, Killed, Rows, clip, content, name_of


def export(rows: list[Row], run: Path, *, seed: int = 0, dies_at: int | None = None, **config: Any) -> Folder:
    writer = Folder(run, dies_at)
    config.setdefault("rows_per_shard", 10)
    Export(ExportConfig(**config)).run(Rows(rows, seed), writer)
    return writer


def shards(run: Path) -> list[Path]:
    return sorted((run / "export/data").iterdir())


def test_declares_columns_that_exist() -> None:
    tables = {f"{table}.{column.name}" for table, columns in TABLES.items() for column in columns}
    assert set(Export.reads) <= tables
    bare = [name.split(".")[1] for name in Export.reads]
    assert len(set(bare)) == len(bare), "two columns of one name would hide each other"


def test_every_clip_is_one_row_in_the_order_of_ids(tmp_path: Path) -> None:
    writer = export([clip(index, tmp_path) for index in range(35)], tmp_path)
    names = [path.name for path in shards(tmp_path)]
    assert names == [f"train-{index:05d}-of-00004.parquet" for index in range(4)]
    rows = [row for path in shards(tmp_path) for row in pq.read_table(path).to_pylist()]
    assert [row["clip_id"] for row in rows] == sorted(name_of(index) for index in range(35))
    assert [len(pq.read_table(path)) for path in shards(tmp_path)] == [10, 10, 10, 5]
    for stored in writer.table:
        shard = pq.read_table(tmp_path / "export" / stored["shard"]).to_pylist()
        assert shard[stored["shard_row"]]["clip_id"] == stored["clip_id"]
    assert len(writer.table) == 35


def test_a_row_carries_the_clip_exactly(tmp_path: Path) -> None:
    export([clip(5, tmp_path)], tmp_path)
    (row,) = pq.read_table(shards(tmp_path)[0]).to_pylist()
    assert (row["start_pts"], row["end_pts"], row["time_base_num"], row["time_base_den"]) == (5000, 9096, 1, 512)
    assert row["duration_s"] == row["end_s"] - row["start_s"] == 8.0
    assert row["pairs"] == [
        {"instruction": "Which colour has the square?", "answer": "The square is red."},
        {"instruction": "What does the square of clip 5 do?", "answer": "It moves right."},
    ], "pairs stand in the order of their index"
    file = tmp_path / "export" / row["clip_path"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == row["clip_sha256"]
    assert file.samefile(tmp_path / f"clips/{name_of(5)}.mp4"), "a link, not a second copy"


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 2)):
        rows = [clip(index, tmp_path / folder) for index in range(25)]
        export(rows, tmp_path / folder, seed=seed, embed_video_bytes=True)
    first, second = content(tmp_path / "a/export"), content(tmp_path / "b/export")
    assert first == second
    assert len(first) == 3 + 23 + 1 + 1  # shards, clips with a file, JSON, card


@pytest.mark.parametrize("dies_at", [0, 1, 5, 11, 12, 17, 22, 33, 34])
def test_continues_after_a_kill(tmp_path: Path, dies_at: int) -> None:
    whole = [clip(index, tmp_path / "whole") for index in range(33)]
    expected = export(whole, tmp_path / "whole")
    rows = [clip(index, tmp_path / "killed") for index in range(33)]
    with pytest.raises(Killed):
        export(rows, tmp_path / "killed", dies_at=dies_at)
    before = content(tmp_path / "killed/export")
    assert "README.md" not in before, "an unfinished export has no card"
    second = export(rows, tmp_path / "killed")
    assert content(tmp_path / "killed/export") == content(tmp_path / "whole/export")
    assert second.table == expected.table
    again = {f"export/{name}" for name in before} & {*second.put, *second.linked}
    assert not [name for name in again if not name.endswith(".json")], "what was finished is not made again"


def test_a_second_run_writes_no_shard_and_no_link(tmp_path: Path) -> None:
    rows = [clip(index, tmp_path) for index in range(12)]
    export(rows, tmp_path)
    second = export(rows, tmp_path, seed=5)
    assert second.linked == []
    assert second.put == ["export/11_qa_llavaformat.json", "export/README.md"]
    assert second.removed == ["export/README.md"]


def test_only_the_shard_of_a_changed_clip_is_written_again(tmp_path: Path) -> None:
    rows = [clip(index, tmp_path) for index in range(25)]
    export(rows, tmp_path)
    place = sorted(row["clip_id"] for row in rows).index(rows[7]["clip_id"]) // 10
    rows[7] = {**rows[7], "caption": "Another caption."}
    second = export(rows, tmp_path)
    assert [name for name in second.put if name.endswith(".parquet")] == [
        f"export/data/train-{place:05d}-of-00003.parquet"
    ]


def test_nothing_of_an_older_plan_stays(tmp_path: Path) -> None:
    rows = [clip(index, tmp_path) for index in range(25)]
    export(rows, tmp_path)
    (tmp_path / "export/LICENSE").write_text("the user's own file")
    kept = rows[:12]
    kept[3] = {**kept[3], "clip_sha256": "f" * 64}  # cut anew
    export(kept, tmp_path)
    names = set(content(tmp_path / "export"))
    files = {name for name in names if name.startswith("split_videos/")}
    assert names - files == {
        "LICENSE",
        "README.md",
        "11_qa_llavaformat.json",
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
    }
    assert len(files) == 11
    assert any(f"{kept[3]['clip_id']}-{'f' * 12}.mp4" in name for name in files)


def test_a_damaged_shard_is_written_again(tmp_path: Path) -> None:
    rows = [clip(index, tmp_path) for index in range(12)]
    export(rows, tmp_path)
    expected = content(tmp_path / "export")
    good = shards(tmp_path)[0].read_bytes()
    for damage in (b"", b"not parquet", good[:-20], good[:-200] + b"\xff" * 192 + good[-8:]):
        shards(tmp_path)[0].write_bytes(damage)
        export(rows, tmp_path)
        assert content(tmp_path / "export") == expected


def test_embedded_files_are_the_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [clip(index, tmp_path) for index in range(12)]
    export(rows, tmp_path)
    monkeypatch.setattr("pipeline.export.shards.LARGEST_EMBEDDED_BYTES", 58)
    export(rows, tmp_path, embed_video_bytes=True)
    for row in (row for path in shards(tmp_path) for row in pq.read_table(path).to_pylist()):
        if row["clip_path"] is None or row["clip_bytes"] > 58:
            assert row["video"] is None
        else:
            assert row["video"]["bytes"] == (tmp_path / "export" / row["clip_path"]).read_bytes()
            assert f"split_videos/{row['video']['path']}" == row["clip_path"]
    assert {row["clip_bytes"] for row in rows} == {None, 57, 60}, "all three cases are there"


def test_an_empty_set_is_a_valid_export(tmp_path: Path) -> None:
    export([clip(0, tmp_path)], tmp_path)
    writer = export([], tmp_path)
    assert writer.table == []
    assert sorted(content(tmp_path / "export")) == [
        "0_qa_llavaformat.json",
        "README.md",
        "data/train-00000-of-00001.parquet",
    ]
    assert pq.read_table(shards(tmp_path)[0]).num_rows == 0
    assert json.loads((tmp_path / "export/0_qa_llavaformat.json").read_text()) == []
    assert "This export is empty" in (tmp_path / "export/README.md").read_text()


@pytest.mark.parametrize("embed", [False, True])
def test_a_clip_file_that_is_gone_is_named(tmp_path: Path, embed: bool) -> None:
    rows = [clip(index, tmp_path) for index in range(3)]
    (tmp_path / rows[1]["clip_uri"]).unlink()
    with pytest.raises(UserError, match=f"{rows[1]['clip_id']}.*clips/.*is gone"):
        export(rows, tmp_path, embed_video_bytes=embed)


def test_config_is_strict() -> None:
    with pytest.raises(ValidationError):
        ExportConfig(rows_per_shard=0)
    with pytest.raises(ValidationError):
        ExportConfig(shards=3)  # type: ignore[call-arg]
