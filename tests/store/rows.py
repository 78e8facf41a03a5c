"""Random rows of any table, and a short plan to put them into a run folder."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.records import METRICS, REJECTS, TABLES, Column, Grain
from pipeline.stage import Row
from pipeline.store.files import Files
from pipeline.store.live import Live, Node
from pipeline.store.lock import Epoch
from pipeline.store.tables import ItemResult, PartWriter
from pipeline.store.whole_set import WholeSetWriter

ALL_TABLES: dict[str, tuple[Column, ...]] = {**TABLES, "rejects": REJECTS, "metrics": METRICS}

SOURCES = Node("sources", Grain.SOURCE, Grain.SOURCE, "sources", whole_set=True)
INGEST = Node("ingest", Grain.SOURCE, Grain.VIDEO, "f0ingest", whole_set=False)
EMBED = Node("embed", Grain.VIDEO, Grain.VIDEO, "f0embed", whole_set=False)
SELECT = Node("select", Grain.VIDEO, Grain.VIDEO, "f0select", whole_set=True, extra_tables=("select_scores",))
SCAN = Node("scan", Grain.VIDEO, Grain.VIDEO, "f0scan", whole_set=False)
CUT = Node("cut", Grain.VIDEO, Grain.CLIP, "f0cut", whole_set=False)
GENERATE = Node("generate", Grain.CLIP, Grain.CLIP, "f0generate", whole_set=False)
EXPORT = Node("export", Grain.CLIP, Grain.CLIP, "f0export", whole_set=True)
CHAIN = (SOURCES, INGEST, EMBED, SELECT, SCAN, CUT, GENERATE)


def random_value(kind: pa.DataType, rng: random.Random) -> Any:
    """A value as a stage would give it: numbers in lists as a numpy array."""
    if pa.types.is_struct(kind):
        return {inner.name: random_value(inner.type, rng) for inner in kind}
    if pa.types.is_list(kind):
        length = rng.choice((0, 1, 3, 50))
        if pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type):
            values = [random_value(kind.value_type, rng) for _ in range(length)]
            return np.array(values, kind.value_type.to_pandas_dtype())
        return [random_value(kind.value_type, rng) for _ in range(length)]
    if pa.types.is_integer(kind):
        return rng.randrange(-(2**31), 2**31)
    if pa.types.is_float32(kind):
        return float(np.float32(rng.uniform(-1, 1)))
    if pa.types.is_floating(kind):
        return rng.uniform(-1e6, 1e6)
    if pa.types.is_timestamp(kind):
        return datetime(2025, 1, 1, tzinfo=UTC) + timedelta(milliseconds=rng.randrange(10**10))
    assert pa.types.is_string(kind), kind
    return rng.choice(("", "plain", "ü 漢字 🎬", "quo\"te's", "new\nline", "nul\0 inside")) + str(rng.randrange(10**6))


def random_row(table: str, seed: int, **given: Any) -> Row:
    """A row of a table that fits its schema; `given` overrides columns."""
    rng = random.Random(f"{table} {seed}")
    row = {
        column.name: None if column.nullable and rng.random() < 0.3 else random_value(column.type, rng)
        for column in ALL_TABLES[table]
    }
    assert given.keys() <= row.keys()
    return {**row, **given}


def reject(key: str, reason: str, shot: int | None = None, detail: str = "so", attempts: int = 1) -> Row:
    """A row of a rejects table."""
    return {"id": key, "shot": shot, "reason": reason, "detail": detail, "attempts": attempts}


def done(node: Node, key: str, out_keys: Sequence[str] | None = None, seed: int = 0, **given: Any) -> ItemResult:
    """An item with a row for each output key; its own key when none are given."""
    if node.grain_in is node.grain_out:
        rows = [random_row(node.name, seed, **{node.grain_in: key}, **given)]
    else:
        keys = {node.grain_in.value: key}
        rows = [random_row(node.name, seed, **keys, **{node.grain_out: out}, **given) for out in out_keys or [key]]
    return ItemResult(key, rows, [], random_row("metrics", seed, id=key))


def failed(key: str, reason: str, shots: Mapping[int, str] | None = None) -> ItemResult:
    """An item that is rejected whole, and its shots with it."""
    rejects = [reject(key, reason), *(reject(key, why, shot) for shot, why in (shots or {}).items())]
    return ItemResult(key, [], rejects, random_row("metrics", 1, id=key))


def put_lock(files: Files, number: int = 1) -> Epoch:
    """Make an epoch valid without holding a lock."""
    for old in files.list("lock"):
        files.remove(old)
    files.put(f"lock/{number:08d}.json", b"")
    return Epoch(number)


def commit(files: Files, node: Node, results: Sequence[ItemResult], epoch: int = 1, label: str = "") -> str:
    """Commit a part of a map stage in the name of an epoch; its file name."""
    return PartWriter(files, node.name, node.fingerprint, put_lock(files, epoch)).commit(results, label)


def write_whole(
    files: Files, node: Node, rows: Iterable[Row], rejects: Mapping[str, str] | None = None, given: str = "1-0"
) -> WholeSetWriter:
    """Run a whole-set stage by hand: rows, rejects by id, then the marker."""
    writer = WholeSetWriter(files, node, given, put_lock(files))
    for row in rows:
        writer.row(node.name, row)
    for key, reason in (rejects or {}).items():
        writer.reject(key, reason, "so")
    writer.finish()
    return writer


def list_sources(files: Files, keys: Iterable[str]) -> None:
    """Make these the run's inputs."""
    write_whole(files, SOURCES, [random_row("sources", 0, source_key=key) for key in keys])


def live_rows(live: Live, name: str) -> list[tuple[str, str]]:
    """Input and output key of every live row, sorted."""
    live.load(name)
    return sorted(live.con.execute(f"SELECT in_key, out_key FROM live_{name}").fetchall())


def live_rejects(live: Live, name: str) -> list[tuple[str, int | None, str]]:
    """Id, shot and reason of every live reject, sorted."""
    live.load(name)
    rows = live.con.execute(f"SELECT id, shot, reason FROM rejects_{name}").fetchall()
    return sorted(rows, key=lambda row: (row[0], -1 if row[1] is None else row[1], row[2]))


def pending(live: Live, name: str) -> list[str]:
    """Ids without an outcome, sorted."""
    live.pending(name)
    return sorted(live.keys(f"SELECT key FROM pending_{name}"))
