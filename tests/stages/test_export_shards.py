"""Shards: the plan's bounds, and what other tools read from them."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.export import shards
from pipeline.export.rows import exported
from pipeline.stages.export import Export, ExportConfig
from tests.stages.export_store import Folder, Rows, clip


@pytest.mark.parametrize(
    ("sizes", "rows", "size", "expected"),
    [
        ([], 3, None, (0,)),
        ([5, 5, 5], 3, None, (3,)),
        ([5, 5, 5, 5], 3, None, (3, 1)),
        ([5, 5, 5, 5], 3, 10, (2, 2)),
        ([50, 5, 50, None, 5], 9, 10, (1, 1, 1, 2)),
        ([None] * 7, 3, 1, (3, 3, 1)),
    ],
)
def test_plan(sizes: list[int | None], rows: int, size: int | None, expected: tuple[int, ...]) -> None:
    plan = shards.plan_shards(iter(sizes), rows, size)
    assert plan.rows == expected
    assert plan.clips_with_file == sum(one is not None for one in sizes)
    assert len(plan.names) == len(expected)


def test_row_groups_end_at_either_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [clip(index, tmp_path) for index in range(8)]  # 57 bytes each
    out, uris = [exported(row) for row in rows], [row["clip_uri"] for row in rows]

    def groups(embed: bool) -> list[int]:
        shards.write_shard(Folder(tmp_path), "shard.parquet", out, uris if embed else None)
        meta = pq.read_metadata(tmp_path / "shard.parquet")
        return [meta.row_group(index).num_rows for index in range(meta.num_row_groups)]

    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 150)
    assert groups(embed=True) == [3, 3, 2]
    monkeypatch.setattr(shards, "ROW_GROUP_ROWS", 2)
    assert groups(embed=True) == [3, 3, 2], "the content is the same: nothing to write"
    (tmp_path / "shard.parquet").unlink()
    assert groups(embed=True) == [2, 2, 2, 2]
    assert groups(embed=False) == [2, 2, 2, 2]


def test_a_null_where_none_may_be_is_an_error(tmp_path: Path) -> None:
    row = {**exported(clip(0, tmp_path)), "caption": None}
    with pytest.raises(pa.ArrowInvalid, match="caption"):
        shards.write_shard(Folder(tmp_path), "shard.parquet", [row], None)
    assert not (tmp_path / "shard.parquet").exists()


@pytest.mark.parametrize("embed", [False, True])
def test_hugging_face_datasets_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embed: bool) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [clip(index, tmp_path, caption="naïve 猫 <b>\n") for index in range(23)]
    config = ExportConfig(rows_per_shard=10, embed_video_bytes=embed)
    Export(config).run(Rows(rows), Folder(tmp_path))
    monkeypatch.chdir(tmp_path / "export")
    read = datasets.load_dataset(
        "parquet", data_files="data/train-*.parquet", split="train", cache_dir=os.fspath(tmp_path / "cache")
    )
    assert read.num_rows == 23
    assert [field.name for field in shards.columns(embed)[0]] == read.column_names
    if embed:
        assert read.features["video"] == datasets.Video()
        read = read.cast_column("video", datasets.Video(decode=False))
    for row in read:
        assert row["caption"] == "naïve 猫 <b>\n"
        assert [set(pair) for pair in row["pairs"]] == [{"instruction", "answer"}] * 2
        if embed and row["clip_path"] is not None:
            assert row["video"]["bytes"] == Path(row["clip_path"]).read_bytes()


def test_hugging_face_datasets_finds_the_shards_by_the_card(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    Export(ExportConfig(rows_per_shard=4)).run(Rows(clip(index, tmp_path) for index in range(9)), Folder(tmp_path))
    read = datasets.load_dataset(os.fspath(tmp_path / "export"), cache_dir=os.fspath(tmp_path / "cache"))
    assert {name: split.num_rows for name, split in read.items()} == {"train": 9}
