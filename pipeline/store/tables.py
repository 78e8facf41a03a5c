"""Rows to Parquet parts and back.

A part holds the results of some items of one stage: their rows in tables/, their rejects in rejects/ and their
measurements in metrics/, three files of one name. The file in tables/ is put last and is the commit: without it
the other two do not count. A part's name comes from the stage's fingerprint and the ids in it, so a writer that
does the same work again writes the same names.
"""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.records import METRICS, REJECTS, schema, to_schema
from pipeline.stage import Row
from pipeline.store.files import Files
from pipeline.store.lock import Epoch

COMPRESSION = "zstd"
_REJECTS = to_schema(REJECTS)
_METRICS = to_schema(METRICS)


@dataclass
class ItemResult:
    """Everything a stage made of one item: committed together or not at all."""

    key: str
    rows: list[Row] = field(default_factory=list)
    rejects: list[Row] = field(default_factory=list)
    metrics: Row | None = None


@dataclass(frozen=True)
class PartWriter:
    """Commits parts of one map stage. Can be sent to workers."""

    files: Files
    table: str
    fingerprint: str
    epoch: Epoch

    def commit(self, results: Sequence[ItemResult], label: str = "") -> str:
        """Write one part and return its name. `label` marks parts that amend others (see live.py)."""
        ids = hashlib.sha256("\n".join(sorted(r.key for r in results)).encode()).hexdigest()[:20]
        name = f"{self.fingerprint}-{label}{ids}.parquet"
        rejects = [reject for result in results for reject in result.rejects]
        metrics = [result.metrics for result in results if result.metrics is not None]
        rows = to_arrow([row for result in results for row in result.rows], schema(self.table), self.table)
        self.epoch.check(self.files)
        if rejects:
            self.files.put(f"rejects/{self.table}/{name}", to_parquet(to_arrow(rejects, _REJECTS, "rejects"), self.stamp))
        if metrics:
            self.files.put(f"metrics/{self.table}/{name}", to_parquet(to_arrow(metrics, _METRICS, "metrics"), self.stamp))
        self.files.put(f"tables/{self.table}/{name}", to_parquet(rows, self.stamp))
        return name

    @property
    def stamp(self) -> dict[str, str]:
        """What every part says of itself in its Parquet metadata."""
        return {"hicom.table": self.table, "hicom.fingerprint": self.fingerprint}


def to_arrow(rows: Sequence[Row], schema: pa.Schema, what: str) -> pa.Table:
    """Rows as an arrow table of exactly this schema. Raises ValueError naming the column that does not fit."""
    columns = []
    for name in schema.names:
        column_type = schema.field(name).type
        try:
            column = pa.array([row[name] for row in rows], type=column_type)
        except (KeyError, pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as err:
            raise ValueError(f"{what}.{name}: expected {column_type}, got {type(err).__name__}: {err}") from err
        if column.null_count and not schema.field(name).nullable:
            raise ValueError(f"{what}.{name}: {column.null_count} of {len(column)} values are null; none may be")
        columns.append(column)
    unknown = {key for row in rows for key in row} - set(schema.names)
    if unknown:
        raise ValueError(f"{what}: columns {sorted(unknown)} are not in the table's schema {schema.names}")
    return pa.Table.from_arrays(columns, schema=schema)


def to_parquet(table: pa.Table, stamp: dict[str, str]) -> bytes:
    """A Parquet file in memory, the same bytes for the same rows."""
    buffer = io.BytesIO()
    metadata = {**(table.schema.metadata or {}), **{k.encode(): v.encode() for k, v in stamp.items()}}
    pq.write_table(table.replace_schema_metadata(metadata), buffer, compression=COMPRESSION)
    return buffer.getvalue()


def from_arrow(table: pa.Table) -> list[Row]:
    """Rows as dicts. Lists of numbers become numpy arrays: a list of a million frame times stays one array."""
    columns: dict[str, list[Any]] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        columns[name] = _number_lists(column) if _is_number_list(column.type) else column.to_pylist()
    return [{name: values[i] for name, values in columns.items()} for i in range(table.num_rows)]


def _is_number_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) and (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type))


def _number_lists(column: pa.ChunkedArray) -> list[np.ndarray | None]:
    out: list[np.ndarray | None] = []
    for chunk in column.chunks:
        values = chunk.values.to_numpy(zero_copy_only=False)
        offsets = chunk.offsets.to_numpy()
        valid = chunk.is_valid().to_numpy(zero_copy_only=False)
        out.extend(
            values[start:end] if ok else None for start, end, ok in zip(offsets[:-1], offsets[1:], valid, strict=True)
        )
    return out


class PartReader:
    """Reads rows by pointer (part, row), keeping the parts read last. Can be sent to workers."""

    def __init__(self, files: Files, keep_bytes: int = 256 << 20) -> None:
        self._files = files
        self._keep_bytes = keep_bytes
        self._kept: OrderedDict[tuple[str, tuple[str, ...]], pa.Table] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": self._files, "_keep_bytes": self._keep_bytes, "_kept": OrderedDict()}

    def fill(self, rows: Sequence[Row], parts: Sequence[str], numbers: Sequence[int], columns: Sequence[str]) -> None:
        """Add columns to rows: row i's come from row numbers[i] of parts[i]. Each part is read once."""
        by_part: dict[str, list[int]] = {}
        for i, part in enumerate(parts):
            by_part.setdefault(part, []).append(i)
        for part, where in by_part.items():
            for i, row in zip(where, self.take(part, [numbers[i] for i in where], columns), strict=True):
                rows[i].update(row)

    def take(self, part: str, rows: Iterable[int], columns: Sequence[str]) -> list[Row]:
        """Some rows of a part (its path relative to the run folder), in the order asked for."""
        return from_arrow(self._part(part, tuple(columns)).take(pa.array(list(rows), pa.int64())))

    def _part(self, part: str, columns: tuple[str, ...]) -> pa.Table:
        key = (part, columns)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        with self._files.open(part) as handle:
            table = pq.read_table(handle, columns=list(columns))
        self._kept[key] = table
        while len(self._kept) > 1 and sum(t.nbytes for t in self._kept.values()) > self._keep_bytes:
            self._kept.popitem(last=False)
        return table
