"""A whole-set stage streams what is live and writes bounded parts; its marker, put last, makes them count."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.store import whole_set
from pipeline.store.files import Files
from pipeline.store.live import Live
from pipeline.store.lock import LockLost
from pipeline.store.whole_set import WholeSetReader, WholeSetWriter, write_marker
from tests.store.rows import (
    CHAIN,
    CUT,
    EMBED,
    EXPORT,
    GENERATE,
    INGEST,
    SCAN,
    SELECT,
    commit,
    done,
    failed,
    list_sources,
    live_rejects,
    live_rows,
    put_lock,
    random_row,
    write_whole,
)


def write_select(files: Files, given: str, videos: range, not_selected: range = range(0)) -> WholeSetWriter:
    writer = WholeSetWriter(files, SELECT, given, put_lock(files))
    for i in videos:
        writer.row("select", random_row("select", i, video_id=f"v{i:03d}"))
        for category in ("cats", "dogs"):
            writer.row("select_scores", random_row("select_scores", i, video_id=f"v{i:03d}", category=category))
    for i in not_selected:
        writer.reject(f"v{i:03d}", "not_selected", "so")
    return writer


def ingested(files: Files, videos: int) -> None:
    list_sources(files, [f"s{i:03d}" for i in range(videos)])
    commit(files, INGEST, [done(INGEST, f"s{i:03d}", [f"v{i:03d}"], seed=i) for i in range(videos)])


def embedded(files: Files, videos: int, parts: int = 3) -> dict[str, np.ndarray]:
    """Embeddings in several parts, the ids scattered over them; by id."""
    results = [done(EMBED, f"v{i:03d}", seed=i) for i in random.Random(2).sample(range(videos), videos)]
    for part in range(parts):
        commit(files, EMBED, results[part::parts])
    return {result.key: result.rows[0]["embedding"] for result in results}


def test_parts_are_bounded(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_set, "PART_ROWS", 10)
    writer = write_select(files, "5-abc", range(25), range(25, 37))
    assert max(len(held) for held in writer._held.values()) < 10
    assert files.list("markers") == []
    writer.finish()
    marker = json.loads(files.get("markers/select.json") or b"")
    rows = []
    for paths in (marker["parts"], marker["reject_parts"], marker["extra_parts"]["select_scores"]):
        lengths = []
        for path in paths:
            with files.open(path) as handle:
                lengths.append(pq.read_metadata(handle).num_rows)
        rows.append(lengths)
    assert rows == [[10, 10, 5], [10, 2], [10] * 5]
    assert {path.rpartition("/")[0] for path in files.list("tables")} == {"tables/select", "tables/select_scores"}
    assert marker["rows"] == writer.rows == 25
    assert marker["rejected"] == dict(writer.rejected) == {"not_selected": 12}
    assert marker["input_fingerprint"] == "5-abc" and marker["fingerprint"] == SELECT.fingerprint


def test_nothing_counts_before_the_marker(local: Files) -> None:
    ingested(local, 6)
    embedded(local, 6)
    writer = write_select(local, "6-a", range(4), range(4, 6))
    writer._flush("select")
    live = Live(local, CHAIN)
    assert live.counts("select").missing == 6 and live_rows(live, "select") == []
    writer.finish()
    live.refresh("select")
    assert live.counts("select").missing == 0
    assert live_rejects(live, "select") == [("v004", None, "not_selected"), ("v005", None, "not_selected")]


def test_the_marker_is_the_last_write(local: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = write_select(local, "6-a", range(4), range(4, 6))
    order: list[str] = []
    put = local.put

    def noted(path: str, data: bytes) -> None:
        order.append(path)
        put(path, data)

    monkeypatch.setattr(local, "put", noted)
    writer.put_bytes("export/README.md", b"card")
    writer.finish()
    assert order[-1] == "markers/select.json" and len(order) == 5
    assert json.loads(local.get("markers/select.json") or b"")["files"] == ["export/README.md"]


def test_a_run_that_stops_short_changes_nothing(local: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between its parts, with another order or other rows: what the marker names is as it was."""
    monkeypatch.setattr(whole_set, "PART_ROWS", 3)
    ingested(local, 6)
    embedded(local, 6)
    write_select(local, "6-a", range(6)).finish()
    before = {path: local.get(path) for path in local.list("tables/select")}
    again = WholeSetWriter(local, SELECT, "6-a", put_lock(local, 2))
    for i in (5, 4, 3, 2):
        again.row("select", random_row("select", i + 50, video_id=f"v{i:03d}"))
    assert len(local.list("tables/select")) == len(before) + 1
    assert {path: local.get(path) for path in before} == before
    assert len(live_rows(Live(local, CHAIN), "select")) == 6


def test_the_same_run_writes_the_same_files(local: Files) -> None:
    write_select(local, "6-a", range(4), range(4, 6)).finish()
    before = {path: local.get(path) for path in local.list("") if not path.startswith("lock/")}
    write_select(local, "6-a", range(4), range(4, 6)).finish()
    assert {path: local.get(path) for path in local.list("") if not path.startswith("lock/")} == before


def test_a_zombie_writes_and_removes_nothing(local: Files, tmp_path: Path) -> None:
    local.put("export/a", b"")
    source = tmp_path / "file"
    source.write_bytes(b"x")
    zombie = write_select(local, "6-a", range(4))
    put_lock(local, 2)
    before = local.list("")
    for act in (
        zombie.finish,
        lambda: zombie.put_bytes("export/b", b""),
        lambda: zombie.put_file(str(source), "export/b"),
        lambda: zombie.link_or_copy("export/a", "export/b"),
        lambda: zombie.remove("export/a"),
        lambda: write_marker(local, zombie._epoch, {"stage": "select"}),
    ):
        with pytest.raises(LockLost):
            act()
    assert local.list("") == before


def test_a_row_of_another_table_is_a_defect(local: Files) -> None:
    writer = WholeSetWriter(local, SELECT, "6-a", put_lock(local))
    with pytest.raises(AssertionError):
        writer.row("ingest", random_row("ingest", 0))
    with pytest.raises(AssertionError):
        writer.reject("v1", "no such reason", "so")


def test_what_a_stage_does_with_files(files: Files, tmp_path: Path) -> None:
    writer = WholeSetWriter(files, SELECT, "6-a", put_lock(files))
    source = tmp_path / "shard"
    source.write_bytes(b"shard")
    writer.put_file(str(source), "export/shard")
    writer.link_or_copy("export/shard", "export/same")
    assert writer.list("export") == ["export/same", "export/shard"] and writer.exists("export/same")
    with writer.open_file("export/same") as handle:
        assert handle.read() == b"shard"
    writer.remove("export/same")
    assert not writer.exists("export/same")


def test_the_reader_joins_by_key(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_set, "BATCH_ROWS", 7)
    ingested(files, 30)
    embeddings = embedded(files, 30)
    reader = WholeSetReader(Live(files, CHAIN), SELECT)
    columns = ["ingest.dataset", "embed.embedding", "embed.video_id", "ingest.source_key"]
    for ordered in (True, False):
        batches = list(reader.batches(columns, ordered=ordered))
        rows = [row for batch in batches for row in batch]
        ids = [row["video_id"] for row in rows]
        assert sorted(ids) == [f"v{i:03d}" for i in range(30)] and (ids == sorted(ids) or not ordered)
        assert max(map(len, batches)) <= 7
        for row in rows:
            assert set(row) == {"video_id", "dataset", "embedding", "source_key"}
            assert row["source_key"] == "s" + row["video_id"][1:]
            assert row["embedding"].dtype == np.float32
            assert np.array_equal(row["embedding"], embeddings[row["video_id"]])
    assert next(reader.batches([], ordered=True))[0] == {"video_id": "v000"}


def test_two_streams_at_once(local: Files) -> None:
    ingested(local, 5_000)
    embedded(local, 5_000)
    live = Live(local, CHAIN)
    reader = WholeSetReader(live, SELECT)
    first = reader.batches(["embed.model"], ordered=True)
    second = reader.batches(["embed.model"], ordered=True)
    seen = [next(first), next(second)]
    live.counts("embed")
    assert sum(map(len, [*seen, *first, *second])) == 10_000


def test_the_reader_sees_live_rows_only(local: Files) -> None:
    ingested(local, 6)
    embedded(local, 6)
    commit(local, EMBED, [failed("v001", "timeout"), done(EMBED, "v002", seed=99)], epoch=2)
    list_sources(local, ["s001", "s002", "s003"])
    rows = [row for b in WholeSetReader(Live(local, CHAIN), SELECT).batches(["embed.model"], ordered=True) for row in b]
    assert [row["video_id"] for row in rows] == ["v002", "v003"]
    assert rows[0]["model"] == random_row("embed", 99)["model"]


def test_the_reader_gives_a_clip_its_videos_columns(local: Files) -> None:
    ingested(local, 3)
    embedded(local, 3)
    write_whole(local, SELECT, [random_row("select", i, video_id=f"v00{i}") for i in range(3)])
    commit(local, SCAN, [done(SCAN, f"v00{i}", seed=i) for i in range(3)])
    commit(local, CUT, [done(CUT, f"v00{i}", [f"c{i}a", f"c{i}b"], seed=i) for i in range(3)])
    commit(local, GENERATE, [done(GENERATE, f"c{i}{j}", seed=i) for i in range(3) for j in "ba"])
    columns = ["generate.clip_id", "cut.video_id", "ingest.source_key", "scan.frame_pts", "generate.raw_pairs"]
    after = Live(local, [*CHAIN, EXPORT])
    rows = [row for batch in WholeSetReader(after, EXPORT).batches(columns, ordered=True) for row in batch]
    assert [row["clip_id"] for row in rows] == ["c0a", "c0b", "c1a", "c1b", "c2a", "c2b"]
    for row in rows:
        number = int(row["clip_id"][1])
        assert row["video_id"] == f"v00{number}" and row["source_key"] == f"s00{number}"
        assert np.array_equal(row["frame_pts"], random_row("scan", number)["frame_pts"])
        assert row["raw_pairs"] == random_row("generate", number)["raw_pairs"]


def test_the_reader_of_an_empty_set(files: Files) -> None:
    reader = WholeSetReader(Live(files, CHAIN), SELECT)
    assert list(reader.batches(["embed.embedding", "ingest.dataset"], ordered=True)) == []
