"""Rows to Parquet parts and back.

A part holds the results of some items of one stage: their rows in tables/, their rejects in rejects/ and their
measurements in metrics/, three files of one name. The file in tables/ is put last and is the commit: without it
the other two do not count. A part's name comes from the stage's fingerprint, the writer's epoch and a hash of the
rows and rejects, so a writer that does the same work again writes the same file, one that comes to another result
(a timeout this time) writes another, and nothing that is committed is ever overwritten with something else.
"""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
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
        """Write one part and return its name. `label` marks parts that amend others (see live.py).

        Raises ValueError for a row that does not fit its table, LockLost, DiskFull.
        """
        return self.commit_tables(
            to_arrow([row for result in results for row in result.rows], schema(self.table), self.table),
            to_arrow([_storable(reject) for result in results for reject in result.rejects], _REJECTS, "rejects"),
            to_arrow([result.metrics for result in results if result.metrics is not None], _METRICS, "metrics"),
            label,
        )

    def commit_tables(self, rows: pa.Table, rejects: pa.Table, metrics: pa.Table, label: str = "") -> str:
        """Write one part from its three tables and return its name. An empty table of rows is written too."""
        stamp = {"hicom.table": self.table, "hicom.fingerprint": self.fingerprint}
        rows_body, rejects_body = to_parquet(rows, stamp), to_parquet(rejects, stamp)
        content = hashlib.sha256(rows_body + rejects_body).hexdigest()[:20]
        name = f"{self.fingerprint}-{label}{self.epoch.number:08d}-{content}.parquet"
        self.epoch.check(self.files)
        if rejects.num_rows:
            self.files.put(f"rejects/{self.table}/{name}", rejects_body)
        if metrics.num_rows:
            self.files.put(f"metrics/{self.table}/{name}", to_parquet(metrics, stamp))
        self.files.put(f"tables/{self.table}/{name}", rows_body)
        return name


def _storable(reject: Row) -> Row:
    """The reject with lone surrogates in its detail, which may be anybody's words, written out."""
    return {**reject, "detail": reject["detail"].encode("utf-8", "backslashreplace").decode()}


def to_arrow(rows: Sequence[Row], schema: pa.Schema, what: str) -> pa.Table:
    """Rows as an arrow table of exactly this schema. Raises ValueError naming the column that does not fit."""
    unknown = {key for row in rows for key in row} - set(schema.names)
    if unknown:
        raise ValueError(f"{what}: columns {sorted(unknown)} are not in the table's schema {schema.names}")
    columns = []
    for wanted in schema:
        where = f"{what}.{wanted.name}"
        if any(wanted.name not in row for row in rows):
            raise ValueError(f"{where}: a row lacks this column")
        values = [row[wanted.name] for row in rows]
        fits = _fits(wanted.type)
        try:
            for value in values:
                if value is not None and not fits(value):
                    raise TypeError(f"{type(value).__name__} {value!r:.100}")
            column = pa.array(values, type=wanted.type)
        except (ValueError, TypeError, OverflowError, NotImplementedError) as err:
            raise ValueError(f"{where}: expected {wanted.type}, got {type(err).__name__}: {err}") from err
        _check_nulls(column, wanted, where)
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


def _fits(wanted: pa.DataType) -> Callable[[Any], bool]:
    """Whether a value goes into a column without loss. Arrow itself makes 1 of 1.5 where an integer is wanted, letters
    of a text where a list is, and drops the fields that a struct does not know."""
    if pa.types.is_struct(wanted):
        fields = {inner.name: _fits(inner.type) for inner in wanted}
        return lambda value: (
            isinstance(value, Mapping)
            and value.keys() <= fields.keys()
            and all(inner is None or fields[name](inner) for name, inner in value.items())
        )
    if _is_number_list(wanted):
        kinds = "iu" if pa.types.is_integer(wanted.value_type) else "iuf"
        return lambda value: np.ndim(value) == 1 and (len(value) == 0 or np.asarray(value).dtype.kind in kinds)
    if pa.types.is_list(wanted):
        fits = _fits(wanted.value_type)
        return lambda value: isinstance(value, (list, tuple)) and all(i is None or fits(i) for i in value)
    if pa.types.is_integer(wanted):
        return lambda value: isinstance(value, (int, np.integer))
    return lambda value: True


def _check_nulls(column: pa.Array, wanted: pa.Field, where: str) -> None:
    """Arrow lets nulls into a column that may hold none, and fills a struct's missing field with one."""
    if column.null_count and not wanted.nullable:
        raise ValueError(f"{where}: {column.null_count} of {len(column)} values are null; none may be")
    if pa.types.is_list(wanted.type):
        _check_nulls(column.flatten(), wanted.type.value_field.with_nullable(False), f"{where}[]")
    elif pa.types.is_struct(wanted.type):
        for child, inner in zip(column.flatten(), wanted.type, strict=True):
            _check_nulls(child, inner, f"{where}.{inner.name}")


def to_parquet(table: pa.Table, stamp: dict[str, str]) -> bytes:
    """A Parquet file in memory, the same bytes for the same rows. `stamp` goes into its metadata."""
    buffer = io.BytesIO()
    metadata = {**(table.schema.metadata or {}), **{k.encode(): v.encode() for k, v in stamp.items()}}
    stamped = table.replace_schema_metadata(metadata).combine_chunks()
    # A dictionary of a million different numbers costs memory and saves nothing.
    texts = [field.name for field in stamped.schema if pa.types.is_string(field.type)]
    pq.write_table(stamped, buffer, compression=COMPRESSION, use_dictionary=texts)
    return buffer.getvalue()


def from_arrow(table: pa.Table) -> list[Row]:
    """Rows as dicts. Lists of numbers become numpy arrays: a list of a million frame times stays one array."""
    columns: dict[str, list[Any]] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        columns[name] = _number_lists(column) if _is_number_list(column.type) else column.to_pylist()
    return [{name: values[i] for name, values in columns.items()} for i in range(table.num_rows)]


def _is_number_list(kind: pa.DataType) -> bool:
    number = pa.types.is_list(kind) and (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type))
    return bool(number)


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
        self._kept_bytes = 0

    def __reduce__(self) -> tuple[type[PartReader], tuple[Files, int]]:
        return PartReader, (self._files, self._keep_bytes)

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
        self._kept_bytes += table.nbytes
        while len(self._kept) > 1 and self._kept_bytes > self._keep_bytes:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return table
