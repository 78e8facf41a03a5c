"""What counts in a run folder: the rows and rejects that the present config and inputs reach.

A run folder keeps more than that: parts of other fingerprints, items that are no longer selected, a part that an
orphaned worker wrote beside ours. `Live` sorts it out, from key columns alone, in DuckDB:

- of a stage's parts only those of its fingerprint count; of a whole-set stage's only those its marker names;
- an item counts only while the stage upstream has it live;
- one outcome per item: when two parts hold the same item, that of the later epoch counts, so that an orphan's part
  changes nothing however late it lands; within an epoch the name decides;
- an amendment overrules the part it amends, as long as the item still shares its output id with an earlier one.
"""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.records import TABLES, Column, Grain, to_schema
from pipeline.stage import UserError
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
    reads: tuple[str, ...] = ()
    """Tables that a whole-set stage reads: their rows may change while the ids stay."""


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
    """Items without an outcome yet: neither a row nor a reject of the whole item."""
    both: int
    """Items with a row and a rejection: always 0, else a part is broken."""


class Live:
    """Live rows and rejects of every stage of a plan, loaded on first use. Call `refresh` after a commit."""

    def __init__(self, files: Files, nodes: Sequence[Node]) -> None:
        self.files = files
        self.nodes = {node.name: node for node in nodes}
        self._order = [node.name for node in nodes]
        self._loaded: dict[str, list[str]] = {}
        """By stage: the parts read, in the order of live_<stage>.file."""
        self.con = connect(files)

    def refresh(self, name: str) -> None:
        """Forget what was read of a stage and of all after it."""
        for later in self._order[self._order.index(name) :]:
            self._loaded.pop(later, None)

    def upstream(self, name: str) -> str | None:
        index = self._order.index(name)
        return self._order[index - 1] if index else None

    def marker(self, name: str) -> dict[str, Any] | None:
        """The stage's marker, if it was written under the present fingerprint."""
        marker = _read_marker(self.files.get(f"markers/{name}.json"))
        return marker if marker and marker["fingerprint"] == self.nodes[name].fingerprint else None

    def parts(self, name: str) -> list[str]:
        """Paths of the parts in tables/ that count for a stage, the one that overrules all others first."""
        return self._parts(name)[0]

    def reject_parts(self, name: str) -> list[str]:
        """Paths of the parts in rejects/ that count: those whose part in tables/ is committed."""
        return self._parts(name)[1]

    def _parts(self, name: str) -> tuple[list[str], list[str]]:
        """Both of one moment: a part that is committed while we look has all of its files in them, or none."""
        node = self.nodes[name]
        if node.whole_set:
            marker = self.marker(name)
            return (list(marker["parts"]), list(marker["reject_parts"])) if marker else ([], [])
        prefix = f"tables/{name}/{node.fingerprint}-"
        parts = [path for path in self.files.list(f"tables/{name}") if path.startswith(prefix)]
        parts.sort(key=lambda path: (path.startswith(prefix + AMENDMENT), path), reverse=True)
        there = set(self.files.list(f"rejects/{name}"))
        return parts, [path for part in parts if (path := _beside(part, "rejects")) in there]

    def load(self, name: str) -> None:
        """Make the tables live_<stage> (in_key, out_key, part, row, file) and rejects_<stage> of a stage.

        `row` is the row's number in its part, `file` the part's number in `scan_sql`. Where the grain changes,
        twins_<stage> (in_key, part) holds the rows whose output id an earlier item has: those an amendment rejects.
        """
        if name in self._loaded:
            return
        above = self.upstream(name)
        if above is not None:
            self.load(above)
        parts = self._load_own(name, above)
        self.con.execute(f"""
            CREATE OR REPLACE TABLE winners AS {_WINNERS} GROUP BY in_key;
            CREATE OR REPLACE TABLE live_{name} AS
              SELECT in_key, r.out_key, r.part, r.row, r.file FROM own_rows r JOIN winners w USING (in_key, rank);
            CREATE OR REPLACE TABLE rejects_{name} AS
              SELECT r.id, r.shot, r.reason, r.detail, r.attempts, r.part FROM own_rejects r
                JOIN winners w ON w.in_key = r.id AND w.rank = r.rank;
            DROP TABLE own_rows; DROP TABLE own_rejects; DROP TABLE winners;
        """)
        self._loaded[name] = parts

    def _load_own(self, name: str, above: str | None) -> list[str]:
        """All outcomes of a stage's own parts, as far as the items are live upstream. A lower rank overrules."""
        node = self.nodes[name]
        parts, reject_parts = self._parts(name)
        # A whole-set stage's marker names parts of one run: none of them overrules another.
        rank = dict.fromkeys(parts, 0) if node.whole_set else {path: i for i, path in enumerate(parts)}
        reject_rank = [rank.get(_beside(path, "tables"), 0) for path in reject_parts]
        self._scan("own_rows", parts, list(rank.values()), f"{node.grain_in} AS in_key, {node.grain_out} AS out_key")
        self._scan("own_rejects", reject_parts, reject_rank, "id, shot, reason, detail, attempts")
        if above is not None:
            for table, key in (("own_rows", "in_key"), ("own_rejects", "id")):
                self.con.execute(f"DELETE FROM {table} WHERE {key} NOT IN (SELECT out_key FROM live_{above})")
        if node.grain_in is not node.grain_out:
            amendments = sum(f"-{AMENDMENT}" in path for path in parts)
            self.con.execute(f"""
                CREATE OR REPLACE TABLE twins_{name} AS
                  SELECT in_key, part FROM own_rows
                    JOIN ({_WINNERS} WHERE rank >= {amendments} GROUP BY in_key) USING (in_key, rank)
                  QUALIFY in_key <> min(in_key) OVER (PARTITION BY out_key);
                DELETE FROM own_rejects WHERE rank < {amendments} AND id NOT IN (SELECT in_key FROM twins_{name});
            """)
        return parts

    def _scan(self, table: str, paths: Sequence[str], ranks: Sequence[int], columns: str) -> None:
        con = self.con
        if not paths:
            con.execute(f"CREATE OR REPLACE TABLE {table} ({_EMPTY[table]})")
            return
        numbered = {"file": range(len(paths)), "part": paths, "rank": ranks}
        con.register("own_parts", pa.table({k: pa.array(v, _PARTS.field(k).type) for k, v in numbered.items()}))
        try:
            con.execute(
                f"CREATE OR REPLACE TABLE {table} AS SELECT {columns}, file_row_number AS row, p.file, p.rank, p.part "
                f"FROM {parquet_sql(self.files, paths)} r JOIN own_parts p ON p.file = r.file_index"
            )
        except duckdb.Error as err:
            raise damaged(self.files, err) from err
        con.unregister("own_parts")

    def scan_sql(self, name: str) -> str:
        """SQL of a stage's parts as one table, dead rows and all, with file_index and file_row_number beside the
        stage's columns: a row is live when they are in live_<stage> as file and row."""
        self.load(name)
        if self._loaded[name]:
            return parquet_sql(self.files, self._loaded[name])
        return f"(SELECT {empty_sql(TABLES[name])}, 0 AS file_index, 0 AS file_row_number WHERE false)"

    def counts(self, name: str) -> Counts:
        """The stage's balance over the items that are live upstream. The first stage's items come from nowhere."""
        self.load(name)
        above = self.upstream(name)
        done, rows_out = self._one(f"SELECT count(DISTINCT in_key), count(*) FROM live_{name}")
        items, shots = (
            dict(
                self.con.execute(
                    f"SELECT reason, count(*) FROM rejects_{name} WHERE shot IS {null} GROUP BY reason ORDER BY reason"
                ).fetchall()
            )
            for null in ("NULL", "NOT NULL")
        )
        both = self._number(
            f"SELECT count(DISTINCT in_key) FROM live_{name} "
            f"WHERE in_key IN (SELECT id FROM rejects_{name} WHERE shot IS NULL)"
        )
        items_in = self._number(f"SELECT count(DISTINCT out_key) FROM live_{above}") if above else rows_out
        missing = self.pending(name) if above else 0
        return Counts(items_in, done, rows_out, items, shots, missing, both)

    def pending(self, name: str) -> int:
        """Make the table pending_<stage> (key) of the items without an outcome; how many they are."""
        self.load(name)
        self.con.execute(f"""
            CREATE OR REPLACE TABLE pending_{name} AS
              SELECT DISTINCT out_key AS key FROM live_{self.upstream(name)} u
                ANTI JOIN (SELECT in_key FROM live_{name}
                           UNION ALL SELECT id FROM rejects_{name} WHERE shot IS NULL) d
                ON d.in_key = u.out_key
        """)
        return self._number(f"SELECT count(*) FROM pending_{name}")

    def input_fingerprint(self, name: str) -> str:
        """Hash of the set of input ids, whatever their order, and for a whole-set stage of where their rows lie."""
        above, node = self.upstream(name), self.nodes[name]
        assert above is not None, name
        self.load(above)
        source = self.join_sql(f"SELECT DISTINCT out_key AS key FROM live_{above}", node.grain_in, node.reads)
        item = ", ".join(["'|'", "k.key", *(f"t_{table}.{what}" for table in node.reads for what in ("part", "row"))])
        number, mixed = self._one(f"SELECT count(*), coalesce(bit_xor(md5_number(concat_ws({item}))), 0) FROM {source}")
        return f"{number}-{int(mixed) & (2**128 - 1):032x}"

    def pointers(self, keys_sql: str, key_grain: Grain, tables: Sequence[str], ordered: bool = False) -> pa.Table:
        """Where the columns of some items lie: key, then <table>__part and <table>__row of every table read.

        `keys_sql` yields one column `key`. Items of a finer grain find the rows of the video they came from.
        """
        select = [f"t_{table}.{what} AS {table}__{what}" for table in tables for what in ("part", "row")]
        reading_order = [f"t_{table}.{what}" for table in tables[:1] for what in ("part", "row")]
        query = (
            f"SELECT {', '.join(['k.key', *select])} FROM {self.join_sql(keys_sql, key_grain, tables)} "
            f"ORDER BY {', '.join([*([] if ordered else reading_order), 'k.key'])}"
        )
        return self.con.cursor().sql(query).to_arrow_table()

    def join_sql(self, keys_sql: str, key_grain: Grain, tables: Sequence[str]) -> str:
        """SQL of some items as `k` (key), each with its one live row of every table as `t_<table>`."""
        join = []
        if key_grain is Grain.CLIP and any(self.nodes[t].grain_out is Grain.VIDEO for t in tables):
            cut = next(n.name for n in self.nodes.values() if (n.grain_in, n.grain_out) == (Grain.VIDEO, Grain.CLIP))
            join.append(f"JOIN {self._one_per_key(cut)} AS parent ON parent.out_key = k.key")
        for table in tables:
            key = "k.key" if self.nodes[table].grain_out is key_grain else "parent.in_key"
            join.append(f"JOIN {self._one_per_key(table)} AS t_{table} ON t_{table}.out_key = {key}")
        return f"({keys_sql}) AS k {' '.join(join)}"

    def _one_per_key(self, name: str) -> str:
        """Until an amendment rejects them, two items may have the same output id: the first has it."""
        self.load(name)
        if self.nodes[name].grain_in is self.nodes[name].grain_out:
            return f"live_{name}"
        return f"(SELECT * FROM live_{name} QUALIFY row_number() OVER (PARTITION BY out_key ORDER BY in_key) = 1)"

    def keys(self, query: str) -> Iterator[str]:
        """First column of a query's rows."""
        cursor = self.con.cursor().execute(query)
        while rows := cursor.fetchmany(10_000):
            yield from (row[0] for row in rows)

    def _number(self, query: str) -> int:
        return int(self._one(query)[0])

    def _one(self, query: str) -> tuple[Any, ...]:
        (row,) = self.con.execute(query).fetchall()  # all of it: DuckDB refuses other work beside an unread result
        return tuple(row)


_PARTS = pa.schema([("file", pa.int64()), ("part", pa.string()), ("rank", pa.int64())])
_PLACE = "row BIGINT, file BIGINT, rank BIGINT, part VARCHAR"
_EMPTY = {
    "own_rows": f"in_key VARCHAR, out_key VARCHAR, {_PLACE}",
    "own_rejects": f"id VARCHAR, shot INTEGER, reason VARCHAR, detail VARCHAR, attempts INTEGER, {_PLACE}",
}
_WINNERS = (
    "SELECT in_key, min(rank) AS rank FROM "
    "(SELECT in_key, rank FROM own_rows UNION ALL SELECT id, rank FROM own_rejects)"
)


_MARKER = {"stage", "fingerprint", "input_fingerprint"}
"""What every marker holds."""


def _read_marker(body: bytes | None) -> dict[str, Any] | None:
    """A marker; None when there is none, or one that cannot be read: then the stage counts as not finished, and what
    is committed of it still stands."""
    try:
        marker = json.loads(body or b"null")
    except ValueError:
        return None
    return marker if isinstance(marker, dict) and marker.keys() >= _MARKER else None


def damaged(files: Files, err: duckdb.Error) -> UserError:
    """A part that is missing or is not Parquet, in words. DuckDB names the file in its first line, or behind the
    traceback when our own reader stumbled; a store that cannot be reached stays just that."""
    said = next(line for line in str(err).splitlines() if not line.startswith(("Traceback", " ")))
    if said.startswith(f"{UserError.__name__}: "):
        return UserError(said.partition(": ")[2])
    return UserError(
        f"{files.root}: a file of this run folder cannot be read: {said}. Restore it. Or remove "
        "it, and of a stage that sees the whole set (sources, select, export) its file in markers/ too: the same "
        "command with its inputs then computes again what was in it."
    )


def _beside(path: str, folder: str) -> str:
    """The file of the same part in another of the three folders."""
    return f"{folder}/{path.partition('/')[2]}"


def connect(files: Files) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB that can read the run folder's parts."""
    # What does not fit into memory goes to a folder that DuckDB makes when it needs one, and removes.
    spill = os.path.join(tempfile.gettempdir(), f"hicom-duckdb-{uuid.uuid4().hex}")
    con = duckdb.connect(config={"preserve_insertion_order": False, "temp_directory": spill})
    con.execute("SET enable_progress_bar = false")
    if isinstance(files, RemoteFiles):
        from pipeline.store.remote_parts import RemoteParts

        con.register_filesystem(RemoteParts(files))
    return con


def parquet_sql(files: Files, paths: Sequence[str]) -> str:
    """SQL that reads parts as one table, with file_row_number."""
    places = ", ".join(quoted(glob_literal(place(files, path))) for path in paths)
    return f"read_parquet([{places}], file_row_number = true)"


def place(files: Files, path: str) -> str:
    """What DuckDB calls a file or folder of the run folder."""
    return f"parts://{path}" if isinstance(files, RemoteFiles) else files.url(path)


def glob_literal(path: str) -> str:
    """A pattern that fits this path alone: DuckDB takes `*?[` in a path for a pattern."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)


def quoted(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def empty_sql(columns: Sequence[Column]) -> str:
    """SQL select list of nulls with these columns' names and types."""
    empty = duckdb.from_arrow(to_schema(tuple(columns)).empty_table())
    return ", ".join(f"CAST(NULL AS {kind}) AS {name}" for name, kind in zip(empty.columns, empty.types, strict=True))
