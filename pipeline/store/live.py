"""What counts in a run folder: the rows and rejects that the present config and inputs reach.

A run folder keeps more than that: parts of other fingerprints, items that are no longer selected, a part that an
orphaned worker wrote beside ours. `Live` sorts it out, from key columns alone, in DuckDB:

- of a stage's parts only those of its fingerprint count; of a whole-set stage's only those its marker names;
- one outcome per item: when two parts hold the same item, the first by name counts, amendments before all;
- an item counts only while the stage upstream has it live.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.records import Column, Grain, to_schema
from pipeline.store.files import Files, RemoteFiles

AMENDMENT = "amend-"
"""Label of a part that overrules others: duplicates found once all ids are known."""


@dataclass(frozen=True)
class Node:
    """A stage as the store knows it."""

    name: str
    grain_in: Grain
    grain_out: Grain
    fingerprint: str
    whole_set: bool
    """Its marker names the parts that count."""
    extra_tables: tuple[str, ...] = ()


@dataclass(frozen=True)
class Counts:
    """The balance of a stage."""

    items_in: int
    items_done: int
    """Distinct input items that left as rows."""
    rows_out: int
    rejected: dict[str, int]
    """Whole items, by reason."""
    shots_rejected: dict[str, int]
    """Shots, by reason."""
    missing: int
    """Items without an outcome yet."""
    both: int
    """Items with a row and a rejection: always 0, else a part is broken."""


class Live:
    """Live rows and rejects of every stage of a plan, loaded on first use. Call `refresh` after a commit."""

    def __init__(self, files: Files, nodes: Sequence[Node]) -> None:
        self.files = files
        self.nodes = {node.name: node for node in nodes}
        self._order = [node.name for node in nodes]
        self._loaded: set[str] = set()
        self.con = connect(files)

    def refresh(self, name: str) -> None:
        """Forget what was read of a stage and of all after it."""
        self._loaded -= set(self._order[self._order.index(name) :])

    def upstream(self, name: str) -> str | None:
        index = self._order.index(name)
        return self._order[index - 1] if index else None

    def marker(self, name: str) -> dict[str, Any] | None:
        """The stage's marker, if it was written under the present fingerprint."""
        body = self.files.get(f"markers/{name}.json")
        marker = json.loads(body) if body else None
        return marker if marker and marker["fingerprint"] == self.nodes[name].fingerprint else None

    def parts(self, name: str) -> list[str]:
        """Paths of the parts in tables/ that count for a stage."""
        node = self.nodes[name]
        if node.whole_set:
            marker = self.marker(name)
            return list(marker["parts"]) if marker else []
        prefix = f"tables/{name}/{node.fingerprint}-"
        return [path for path in self.files.list(f"tables/{name}") if path.startswith(prefix)]

    def reject_parts(self, name: str) -> list[str]:
        """Paths of the parts in rejects/ that count: those whose part in tables/ is committed."""
        if self.nodes[name].whole_set:
            marker = self.marker(name)
            return list(marker["reject_parts"]) if marker else []
        committed = {path.rpartition("/")[2] for path in self.parts(name)}
        return [path for path in self.files.list(f"rejects/{name}") if path.rpartition("/")[2] in committed]

    def load(self, name: str) -> None:
        """Make the temp tables live_<stage> (in_key, out_key, part, row) and rejects_<stage> of a stage."""
        if name in self._loaded:
            return
        above = self.upstream(name)
        if above is not None:
            self.load(above)
        self._load_own(name)
        semi = f"SEMI JOIN live_{above} u ON u.out_key = w.in_key" if above else ""
        self.con.execute(f"""
            CREATE OR REPLACE TEMP TABLE winners AS
              SELECT in_key, min(ord) AS ord FROM
                (SELECT in_key, ord FROM own_rows UNION ALL SELECT id, ord FROM own_rejects) w {semi} GROUP BY in_key;
            CREATE OR REPLACE TEMP TABLE live_{name} AS
              SELECT in_key, r.out_key, r.part, r.row FROM own_rows r JOIN winners w USING (in_key, ord);
            CREATE OR REPLACE TEMP TABLE rejects_{name} AS
              SELECT r.id, r.shot, r.reason, r.detail, r.attempts, r.part FROM own_rejects r
                JOIN winners w ON w.in_key = r.id AND w.ord = r.ord;
        """)
        self._loaded.add(name)

    def _load_own(self, name: str) -> None:
        node = self.nodes[name]
        parts = sorted(self.parts(name), key=lambda path: (f"-{AMENDMENT}" not in path, path))
        by_name = {path.rpartition("/")[2]: i for i, path in enumerate(parts)}
        if node.whole_set:
            reject_order = dict.fromkeys(self.reject_parts(name), 0)
            order = dict.fromkeys(parts, 0)
        else:
            reject_order = {path: by_name[path.rpartition("/")[2]] for path in self.reject_parts(name)}
            order = {path: i for i, path in enumerate(parts)}
        self._scan("own_rows", order, f"{node.grain_in} AS in_key, {node.grain_out} AS out_key", _EMPTY_ROWS)
        self._scan("own_rejects", reject_order, "id, shot, reason, detail, attempts", _EMPTY_REJECTS)

    def _scan(self, table: str, order: dict[str, int], columns: str, empty: str) -> None:
        con = self.con
        parts = pa.table({"file": [self.files.url(p) for p in order], "part": list(order), "ord": list(order.values())})
        con.register("parts_arrow", parts.cast(_PARTS))
        con.execute("CREATE OR REPLACE TEMP TABLE own_parts AS SELECT * FROM parts_arrow")
        con.unregister("parts_arrow")
        if not order:
            con.execute(f"CREATE OR REPLACE TEMP TABLE {table} ({empty})")
            return
        con.execute(
            f"CREATE OR REPLACE TEMP TABLE {table} AS SELECT {columns}, file_row_number AS row, p.ord, p.part "
            "FROM read_parquet(?, filename = true, file_row_number = true) r JOIN own_parts p ON p.file = r.filename",
            [[self.files.url(path) for path in order]],
        )

    def counts(self, name: str) -> Counts:
        """The stage's balance over the items that are live upstream."""
        self.load(name)
        above = self.upstream(name)
        items_in = self._number(f"SELECT count(DISTINCT out_key) FROM live_{above}") if above else 0
        done = self._number(f"SELECT count(DISTINCT in_key) FROM live_{name}")
        rows_out = self._number(f"SELECT count(*) FROM live_{name}")
        item_rejects = dict(
            self.con.execute(
                f"SELECT reason, count(*) FROM rejects_{name} WHERE shot IS NULL GROUP BY reason ORDER BY reason"
            ).fetchall()
        )
        shot_rejects = dict(
            self.con.execute(
                f"SELECT reason, count(*) FROM rejects_{name} WHERE shot IS NOT NULL GROUP BY reason ORDER BY reason"
            ).fetchall()
        )
        both = self._number(
            f"SELECT count(*) FROM (SELECT DISTINCT in_key FROM live_{name}) l "
            f"SEMI JOIN (SELECT id FROM rejects_{name} WHERE shot IS NULL) r ON r.id = l.in_key"
        )
        return Counts(items_in, done, rows_out, item_rejects, shot_rejects, self.pending(name), both) if above else Counts(
            rows_out, done, rows_out, item_rejects, shot_rejects, 0, both
        )

    def pending(self, name: str) -> int:
        """Make the temp table pending_<stage> (key) of the items without an outcome; how many they are."""
        self.load(name)
        self.con.execute(f"""
            CREATE OR REPLACE TEMP TABLE pending_{name} AS
              SELECT DISTINCT out_key AS key FROM live_{self.upstream(name)} u
                ANTI JOIN (SELECT in_key FROM live_{name} UNION ALL SELECT id FROM rejects_{name}) d
                ON d.in_key = u.out_key
        """)
        return self._number(f"SELECT count(*) FROM pending_{name}")

    def input_fingerprint(self, name: str) -> str:
        """Hash of the set of input ids, whatever their order."""
        self.load(name)
        above = self.upstream(name)
        number, mixed = self._one(
            f"SELECT count(*), coalesce(bit_xor(md5_number(out_key)), 0) FROM (SELECT DISTINCT out_key FROM live_{above})"
        )
        return f"{number}-{int(mixed) & (2**128 - 1):032x}"

    def pointers(self, keys_sql: str, key_grain: Grain, tables: Sequence[str], ordered: bool = False) -> pa.Table:
        """Where the columns of some items lie: key, then <table>__part and <table>__row of every table read.

        `keys_sql` yields one column `key`. Items of a finer grain find the rows of the video they came from.
        """
        select, join = ["k.key"], []
        if key_grain is Grain.CLIP and any(self._grain(t) is Grain.VIDEO for t in tables):
            self.load("cut")
            join.append("JOIN live_cut AS parent ON parent.out_key = k.key")
        for table in tables:
            self.load(table)
            key = "k.key" if self._grain(table) is key_grain else "parent.in_key"
            join.append(f"JOIN live_{table} AS t_{table} ON t_{table}.out_key = {key}")
            select += [f"t_{table}.part AS {table}__part", f"t_{table}.row AS {table}__row"]
        order = "k.key" if ordered else ", ".join([*(f"t_{t}.part, t_{t}.row" for t in tables[:1]), "k.key"])
        query = f"SELECT {', '.join(select)} FROM ({keys_sql}) k {' '.join(join)} ORDER BY {order}"
        return self.con.sql(query).to_arrow_table()

    def _grain(self, table: str) -> Grain:
        return self.nodes[table].grain_out

    def keys(self, query: str) -> Iterator[str]:
        """First column of a query's rows."""
        cursor = self.con.execute(query)
        while rows := cursor.fetchmany(10_000):
            yield from (row[0] for row in rows)

    def _number(self, query: str) -> int:
        return int(self._one(query)[0])

    def _one(self, query: str) -> tuple[Any, ...]:
        row = self.con.execute(query).fetchone()
        assert row is not None
        return tuple(row)


_PARTS = pa.schema([("file", pa.string()), ("part", pa.string()), ("ord", pa.int64())])
_EMPTY_ROWS = "in_key VARCHAR, out_key VARCHAR, row BIGINT, ord BIGINT, part VARCHAR"
_EMPTY_REJECTS = (
    "id VARCHAR, shot INTEGER, reason VARCHAR, detail VARCHAR, attempts INTEGER, row BIGINT, ord BIGINT, part VARCHAR"
)


def connect(files: Files) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB that can read the run folder's parts."""
    con = duckdb.connect()
    con.execute("SET enable_progress_bar = false")
    con.execute("SET preserve_insertion_order = false")
    if isinstance(files, RemoteFiles):
        con.register_filesystem(files.fs)
    return con


def empty_sql(columns: Sequence[Column]) -> str:
    """SQL select list of nulls with these columns' names and types."""
    empty = duckdb.from_arrow(to_schema(tuple(columns)).empty_table())
    return ", ".join(f"CAST(NULL AS {kind}) AS {name}" for name, kind in zip(empty.columns, empty.types, strict=True))
