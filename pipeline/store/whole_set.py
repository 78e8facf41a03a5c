"""How a whole-set stage reads and writes: streams of live rows in, bounded parts out, a marker that names them."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import IO, Any

import pyarrow as pa

from pipeline.records import REASONS, REJECTS, schema, to_schema
from pipeline.stage import Row
from pipeline.store.files import Files
from pipeline.store.live import Live, Node
from pipeline.store.lock import Epoch
from pipeline.store.tables import from_arrow, to_arrow, to_parquet

PART_ROWS = 20_000
"""Rows a whole-set stage holds before it writes a part."""
BATCH_ROWS = 1_024
"""Rows a whole-set stage is handed at a time."""
CHECK_S = 1.0
"""Seconds between two looks at the lock while files are linked or removed."""


class WholeSetReader:
    """Streams what is live upstream of a stage, joined by key (see stage.Reader).

    DuckDB joins and sorts, on disk where memory is short: every part is read once, however the keys are scattered.
    """

    def __init__(self, live: Live, node: Node) -> None:
        self._live = live
        self._node = node

    def batches(self, columns: Iterable[str], *, ordered: bool = False) -> Iterator[list[Row]]:
        live, key = self._live, self._node.grain_in
        above = live.upstream(self._node.name)
        assert above is not None, self._node.name
        live.load(above)
        tables: dict[str, list[str]] = {}
        for column in columns:
            table, _, name = column.partition(".")
            tables.setdefault(table, []).append(name)
        select = [f"k.key AS {key}"]
        source = live.join_sql(f"SELECT DISTINCT out_key AS key FROM live_{above}", key, list(tables))
        for table, names in tables.items():
            own = [name for name in names if name != key]
            select += [f'd_{table}."{name}"' for name in own]
            if own:
                at = f"d_{table}.file_index = t_{table}.file AND d_{table}.file_row_number = t_{table}.row"
                source += f" JOIN {live.scan_sql(table)} AS d_{table} ON {at}"
        query = f"SELECT {', '.join(select)} FROM {source} {'ORDER BY k.key' if ordered else ''}"
        cursor = live.con.cursor()  # a stream of its own: the stage may ask for another before this one ends
        for batch in cursor.sql(query).to_arrow_reader(BATCH_ROWS):
            yield from_arrow(pa.Table.from_batches([batch]))


class WholeSetWriter:
    """Writes a whole-set stage's rows and rejects in parts (see stage.Writer). `finish` makes them count."""

    def __init__(self, files: Files, node: Node, input_fingerprint: str, epoch: Epoch) -> None:
        self._files = files
        self._node = node
        self._input = input_fingerprint
        self._epoch = epoch
        self._held: dict[str, list[Row]] = {}
        self._parts: dict[str, list[str]] = {name: [] for name in (node.name, *node.extra_tables, "rejects")}
        self._put: list[str] = []
        self._checked = float("-inf")
        self.rows = 0
        self.rejected: Counter[str] = Counter()

    def row(self, table: str, row: Row) -> None:
        assert table == self._node.name or table in self._node.extra_tables, table
        self.rows += table == self._node.name
        self._hold(table, row)

    def reject(self, key: str, reason: str, detail: str) -> None:
        assert reason in REASONS, reason
        self.rejected[reason] += 1
        self._hold("rejects", {"id": key, "shot": None, "reason": reason, "detail": detail, "attempts": 1})

    def put_bytes(self, relative: str, data: bytes) -> None:
        self._epoch.check(self._files)
        self._files.put(relative, data)
        self._put.append(relative)

    def put_file(self, local_path: str, relative: str) -> None:
        self._epoch.check(self._files)
        self._files.put_file(local_path, relative)
        self._put.append(relative)

    def link_or_copy(self, source: str, target: str) -> None:
        self._check_now_and_then()
        self._files.link_or_copy(source, target)

    def list(self, prefix: str) -> list[str]:
        return self._files.list(prefix)

    def remove(self, relative: str) -> None:
        self._check_now_and_then()
        self._files.remove(relative)

    def exists(self, relative: str) -> bool:
        return self._files.size(relative) is not None

    def open_file(self, relative: str) -> IO[bytes]:
        return self._files.open(relative)

    def finish(self) -> None:
        """Write what is held, then the marker."""
        for table in list(self._held):
            self._flush(table)
        extra = {name: self._parts[name] for name in self._node.extra_tables}
        write_marker(
            self._files,
            self._epoch,
            {
                "stage": self._node.name,
                "fingerprint": self._node.fingerprint,
                "input_fingerprint": self._input,
                "rows": self.rows,
                "rejected": dict(sorted(self.rejected.items())),
                "parts": self._parts[self._node.name],
                "reject_parts": self._parts["rejects"],
                "extra_parts": extra,
                "files": sorted(set(self._put)),
            },
        )

    def _check_now_and_then(self) -> None:
        """The lock, for what a stage does thousands of times."""
        if time.monotonic() - self._checked > CHECK_S:
            self._epoch.check(self._files)
            self._checked = time.monotonic()

    def _hold(self, table: str, row: Row) -> None:
        held = self._held.setdefault(table, [])
        held.append(row)
        if len(held) >= PART_ROWS:
            self._flush(table)

    def _flush(self, table: str) -> None:
        rows = self._held.pop(table, [])
        if not rows:
            return
        rejects = table == "rejects"
        folder = f"rejects/{self._node.name}" if rejects else f"tables/{table}"
        stamp = {"hicom.table": table, "hicom.fingerprint": self._node.fingerprint}
        body = to_parquet(to_arrow(rows, to_schema(REJECTS) if rejects else schema(table), table), stamp)
        # The content is in the name: a run that stops short of its marker changes no part of the marker before it.
        content = hashlib.sha256(body).hexdigest()[:20]
        path = f"{folder}/{self._node.fingerprint}-{len(self._parts[table]):05d}-{content}.parquet"
        self._epoch.check(self._files)
        self._files.put(path, body)
        self._parts[table].append(path)


def write_marker(files: Files, epoch: Epoch, marker: dict[str, Any]) -> None:
    """Write a stage's marker: the last write of a stage."""
    epoch.check(files)
    files.put(f"markers/{marker['stage']}.json", json.dumps(marker, indent=1, sort_keys=True).encode())
