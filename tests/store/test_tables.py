"""Rows survive the way to Parquet and back; what does not fit a table is refused by name."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.records import SHOT, schema, to_schema
from pipeline.stage import Row
from pipeline.store.files import Files
from pipeline.store.lock import Epoch, LockLost
from pipeline.store.tables import ItemResult, PartReader, PartWriter, from_arrow, to_arrow, to_parquet
from tests.store.rows import ALL_TABLES, INGEST, commit, done, failed, put_lock, random_row, reject


def read(body: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(body))


def same(left: Row, right: Row) -> bool:
    """Equal in every column, arrays by value and type."""
    if left.keys() != right.keys():
        return False
    for name, a in left.items():
        b = right[name]
        if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
            if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
                return False
            if a.dtype != b.dtype or not np.array_equal(a, b):
                return False
        elif a != b:
            return False
    return True


@pytest.mark.parametrize("table", ALL_TABLES)
def test_every_table_round_trips(table: str) -> None:
    wanted = to_schema(ALL_TABLES[table])
    rows = [random_row(table, seed) for seed in range(30)]
    arrow = to_arrow(rows, wanted, table)
    assert arrow.schema.equals(wanted, check_metadata=True)
    back = read(to_parquet(arrow, {"hicom.table": table}))
    assert back.schema.metadata[b"hicom.table"] == table.encode()
    assert [field.metadata for field in back.schema] == [field.metadata for field in wanted]
    assert all(same(a, b) for a, b in zip(rows, from_arrow(back), strict=True))
    nothing = read(to_parquet(to_arrow([], wanted, table), {}))
    assert nothing.num_rows == 0 and nothing.schema.names == wanted.names and from_arrow(nothing) == []


def test_the_same_rows_give_the_same_bytes() -> None:
    rows = [random_row("dedup", seed) for seed in range(40)]
    whole = to_parquet(to_arrow(rows, schema("dedup"), "dedup"), {"a": "1"})
    assert whole == to_parquet(to_arrow(rows, schema("dedup"), "dedup"), {"a": "1"})
    halves = [to_arrow(half, schema("dedup"), "dedup") for half in (rows[:7], rows[7:])]
    assert whole == to_parquet(pa.concat_tables(halves), {"a": "1"})
    assert whole != to_parquet(to_arrow(rows[::-1], schema("dedup"), "dedup"), {"a": "1"})


def shot(**given: Any) -> Row:
    return {"index": 0, "start_pts": 0, "end_pts": 9, "start_frame": 0, "end_frame": 9, **given}


@pytest.mark.parametrize(
    ("table", "changed", "said"),
    [
        ("embed", {"model": None}, r"embed\.model: 1 of 1 values are null"),
        ("embed", {"embedding": None}, r"embed\.embedding: 1 of 1 values are null"),
        ("embed", {"embedding": "0.5"}, r"embed\.embedding: expected list<.*float"),
        ("embed", {"embedding": [0.5, None]}, r"embed\.embedding: expected list<.*float"),
        ("embed", {"embedding": np.zeros((2, 2), np.float32)}, r"embed\.embedding: expected list"),
        ("embed", {"embedding": 0.5}, r"embed\.embedding: expected list"),
        ("embed", {"embedding": [[0.5], [0.5, 1.0]]}, r"embed\.embedding: expected list"),
        ("embed", {"model": 3}, r"embed\.model: expected string"),
        ("embed", {"model": "\ud800"}, r"embed\.model: expected string, got UnicodeEncodeError"),
        ("embed", {"extra": 1}, r"embed: columns \['extra'\] are not in the table's schema"),
        ("scan", {"frames_decoded": 1.5}, r"scan\.frames_decoded: expected int64, got TypeError: float 1\.5"),
        ("scan", {"frame_pts": np.array([1.5])}, r"scan\.frame_pts: expected list<.*int64"),
        ("select", {"categories": "cats"}, r"select\.categories: expected list<.*string.*>, got TypeError: str 'cats'"),
        ("select", {"categories": ["cats", None]}, r"select\.categories\[\]: 1 of 2 values are null"),
        ("scan", {"frames_decoded": 2**70}, r"scan\.frames_decoded: expected int64, got OverflowError"),
        ("scan", {"embedding_dim": 2**40}, r"scan\.embedding_dim: expected int32"),
        ("split", {"shots": [shot(end_frame=None)]}, r"split\.shots\[\]\.end_frame: 1 of 1 values are null"),
        ("split", {"shots": [{"index": 0}]}, r"split\.shots\[\]\.start_pts: 1 of 1 values are null"),
        ("split", {"shots": [shot(end_frame=9.5)]}, r"split\.shots: expected list<.*got TypeError: list .*9\.5"),
        ("split", {"shots": [shot(), None]}, r"split\.shots\[\]: 1 of 2 values are null"),
        ("split", {"shots": [shot(score=1)]}, r"split\.shots: expected list<.*got TypeError: list .*'score': 1"),
        ("clean", {"rejected_pairs": [{"index": 0, "instruction": "a", "answer": "b", "rules": None}]}, r"\.rules"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(table: str, changed: Row, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        to_arrow([{**random_row(table, 1), **changed}], schema(table), table)


def test_a_missing_column_is_refused() -> None:
    row = random_row("embed", 1)
    del row["model"]
    with pytest.raises(ValueError, match=r"embed\.model: a row lacks this column"):
        to_arrow([random_row("embed", 2), row], schema("embed"), "embed")


def test_nulls_where_they_may_be() -> None:
    keyframe = {"frame": 0, "pts": 0, "similarity": None}
    row = {**random_row("dedup", 1), "keyframes": [keyframe], "distinct_shots": []}
    assert from_arrow(to_arrow([row], schema("dedup"), "dedup"))[0]["keyframes"] == [keyframe]
    assert SHOT.field("index").nullable is False


def test_a_list_of_numbers_stays_an_array() -> None:
    """Ten hours of frame times are an array over arrow's own memory, not two million Python objects."""
    times = np.arange(2_000_000, dtype=np.int64)
    row = random_row("scan", 1, frame_pts=times, frame_scores=np.zeros(0))
    arrow = to_arrow([random_row("scan", 0), row], schema("scan"), "scan")
    back = from_arrow(arrow)[1]
    assert isinstance(back["frame_pts"], np.ndarray) and back["frame_pts"].base is not None
    assert np.shares_memory(back["frame_pts"], arrow["frame_pts"].chunk(0).values.to_numpy())
    assert np.array_equal(back["frame_pts"], times)
    assert back["frame_scores"].dtype == np.float64 and len(back["frame_scores"]) == 0


def test_a_part_is_three_files_of_one_name(local: Files) -> None:
    name = commit(local, INGEST, [done(INGEST, "a", ["v1"]), failed("b", "missing")])
    assert local.list("tables") == [f"tables/ingest/{name}"]
    assert local.list("rejects") == [f"rejects/ingest/{name}"]
    assert local.list("metrics") == [f"metrics/ingest/{name}"]
    with local.open(f"tables/ingest/{name}") as handle:
        metadata = pq.read_schema(handle).metadata
    assert metadata[b"hicom.fingerprint"] == b"f0ingest" and name.startswith("f0ingest-00000001-")


def test_any_words_of_a_reject_can_be_stored(local: Files) -> None:
    lone = ItemResult("a", rejects=[reject("a", "missing", detail="gone: b\udcff \ud83d")])
    name = commit(local, INGEST, [lone])
    with local.open(f"rejects/ingest/{name}") as handle:
        assert pq.read_table(handle)["detail"].to_pylist() == ["gone: b\\udcff \\ud83d"]


def test_rows_are_put_last(local: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    put = local.put

    def noted(path: str, data: bytes) -> None:
        order.append(path.partition("/")[0])
        put(path, data)

    monkeypatch.setattr(local, "put", noted)
    writer = PartWriter(local, "ingest", "f", put_lock(local))
    order.clear()
    writer.commit([done(INGEST, "a"), failed("b", "missing")])
    assert order == ["rejects", "metrics", "tables"]
    order.clear()
    writer.commit([ItemResult("c", [], [reject("c", "missing")])])
    assert order == ["rejects", "tables"]


def test_the_same_work_writes_the_same_files(local: Files) -> None:
    results = [done(INGEST, "a", ["v1"]), failed("b", "missing")]
    name = commit(local, INGEST, results)
    before = {path: local.get(path) for path in local.list("")}
    assert commit(local, INGEST, results) == name
    assert {path: local.get(path) for path in local.list("")} == before


def test_other_results_of_the_same_items_are_another_part(local: Files) -> None:
    """What is committed is never overwritten by a later result, nor joined with its rejects."""
    names = {
        commit(local, INGEST, [done(INGEST, "a", ["v1"])]),
        commit(local, INGEST, [done(INGEST, "a", ["v1"], seed=2)]),
        commit(local, INGEST, [failed("a", "timeout")]),
        commit(local, INGEST, [failed("a", "missing")]),
        commit(local, INGEST, [done(INGEST, "a", ["v1"])], epoch=2),
    }
    assert len(names) == 5


def test_a_zombie_writes_nothing(local: Files) -> None:
    put_lock(local, 2)
    before = local.list("")
    with pytest.raises(LockLost):
        PartWriter(local, "ingest", "f", Epoch(1)).commit([failed("b", "missing")])
    assert local.list("") == before


def test_the_reader_fills_rows_in_their_order(files: Files) -> None:
    put_lock(files)
    parts = [
        f"tables/ingest/{commit(files, INGEST, [done(INGEST, f'{p}-{i}', seed=i) for i in range(5)])}" for p in "ab"
    ]
    reader: PartReader = pickle.loads(pickle.dumps(PartReader(files)))
    rows: list[Row] = [{"n": i} for i in range(6)]
    picks = [(1, 4), (0, 0), (1, 0), (0, 4), (0, 4), (1, 2)]
    reader.fill(rows, [parts[p] for p, _ in picks], [r for _, r in picks], ["source_key", "bytes"])
    assert [row["source_key"] for row in rows] == [f"{'ab'[p]}-{r}" for p, r in picks]
    assert [row["n"] for row in rows] == list(range(6))
    assert set(rows[0]) == {"n", "source_key", "bytes"}
    assert [row["source_key"] for row in reader.take(parts[0], [3, 1], ["source_key"])] == ["a-3", "a-1"]
    with pytest.raises(FileNotFoundError):
        reader.take("tables/ingest/none.parquet", [0], ["source_key"])


def test_the_reader_opens_a_part_once_while_it_fits(
    tmp_path: Path, local: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [f"tables/ingest/{commit(local, INGEST, [done(INGEST, f'{i}')])}" for i in range(4)]
    opened: list[str] = []
    open_ = local.open

    def noted(path: str) -> IO[bytes]:
        opened.append(path)
        return open_(path)

    monkeypatch.setattr(local, "open", noted)
    reader = PartReader(local)
    for part in parts * 3:
        reader.take(part, [0], ["source_key"])
    assert opened == parts
    opened.clear()
    small = PartReader(local, keep_bytes=1)
    for part in (parts[0], parts[0], parts[1], parts[0]):
        small.take(part, [0], ["source_key"])
    assert opened == [parts[0], parts[1], parts[0]]
    assert small._kept_bytes == next(iter(small._kept.values())).nbytes and len(small._kept) == 1
