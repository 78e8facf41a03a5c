"""Reading a manifest record by record: CSV, JSONL or Parquet, local or behind a URL, whatever is broken in it.

A record that cannot be read does not stop the others: it comes back with an error and its number. Bytes that are
not UTF-8 come back as surrogate escapes in CSV (they may be part of a file's name).
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from pipeline.media.open import open_bytes, uri_of
from pipeline.sources.uri import base_name, folder_of, key_text, plain_text, scheme_of
from pipeline.stage import Rejected, UserError

if TYPE_CHECKING:
    import pyarrow as pa

MAX_RECORD_CHARS = 16 * 2**20
"""Longest line or field that is read, characters (bytes in JSONL); a longer one is an unreadable record. The
longest rows of Panda-70M, with the captions of a whole film, are far below it."""

_HEAD_RECORDS = 100
_SHOWN_COLUMNS, _SHOWN_CHARS = 20, 40


@dataclass(frozen=True)
class Record:
    """One record of a manifest."""

    number: int
    """Line of the file where it starts (CSV, JSONL) or row (Parquet), from 1."""
    values: dict[str, Any] = field(default_factory=dict)
    """Values by column; text in CSV, JSON or Parquet values otherwise."""
    error: str | None = None
    """Why it cannot be read; then `values` is empty."""


@dataclass(frozen=True)
class Manifest:
    """An opened manifest."""

    place: str
    """Absolute local path or URL."""
    columns: list[str]
    """Column names (of Parquet, not those of bytes); for JSONL, the keys in its first 100 lines."""
    records: Iterator[Record]

    @property
    def name(self) -> str:
        return base_name(self.place)

    @property
    def shown_columns(self) -> str:
        """The column names for a message: the first few, each escaped and cut."""
        shown = [key_text(name)[:_SHOWN_CHARS] for name in self.columns[:_SHOWN_COLUMNS]]
        left = len(self.columns) - len(shown)
        return ", ".join(shown) + (f" and {left} more" if left else "") or "none"

    @property
    def folder(self) -> str:
        return folder_of(self.place)


def is_manifest(place: str) -> bool:
    """True for the extensions that `open_manifest` reads."""
    return _extension(place) in _READERS


def open_manifest(place: str) -> Manifest:
    """Open a manifest by its extension and read its column names.

    Raises UserError: unknown extension, not readable, empty, not text or not Parquet, a column named twice.
    """
    reader = _READERS.get(_extension(place))
    shown = plain_text(place)
    if reader is None:
        raise UserError(f"manifest {shown!r} has an unknown extension; expected one of {', '.join(_READERS)}")
    file = _open(place)
    try:
        columns, records = reader(file, shown)
        twice = [name for name, times in Counter(columns).items() if times > 1]
        if twice:
            raise UserError(f"manifest {shown!r} names column {twice[0]!r} twice; rename one of them")
        first = next(records, None)
        if first is None:
            raise UserError(f"manifest {shown!r} has no rows; expected one row a video")
    except BaseException:
        file.close()
        raise
    return Manifest(place, columns, _then_close(file, itertools.chain([first], records)))


def read_text(place: str) -> str:
    """A whole UTF-8 file (a byte order mark is dropped). Raises UserError."""
    shown = plain_text(place)
    try:
        with _open(place) as file:
            return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"manifest {shown!r} is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def _then_close(file: IO[bytes], records: Iterator[Record]) -> Iterator[Record]:
    with file:
        yield from records


def _extension(place: str) -> str:
    name = base_name(place).lower()
    return name[name.rfind(".") :] if "." in name else ""


def _open(place: str) -> IO[bytes]:
    try:
        return open_bytes(place if scheme_of(place) else uri_of(place))
    except Rejected as error:
        raise UserError(f"manifest {plain_text(place)!r} cannot be opened: {error.detail}") from error


def _read_csv(file: IO[bytes], shown: str) -> tuple[list[str], Iterator[Record]]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD_CHARS))
    lines = _Lines(_decoded(file, shown))
    try:
        header = next(csv.reader(lines, strict=True), None)
    except csv.Error as error:
        raise UserError(f"manifest {shown!r}: the header line cannot be read: {error}") from error
    if not header:
        raise UserError(f"manifest {shown!r} is empty or starts with an empty line; expected a line of column names")
    columns = [plain_text(name.strip()) for name in header]
    return columns, _csv_records(lines, columns)


def _csv_records(lines: _Lines, columns: list[str]) -> Iterator[Record]:
    """Records of a CSV file. One that does not parse, or has too few or too many fields, costs its first line only:
    reading goes on with its second line, so that a quote never closed does not swallow what follows."""
    reader = csv.reader(lines, strict=True)
    with closing(lines):
        while True:
            lines.begin_record()
            number = lines.number + 1
            try:
                values = next(reader, None)
            except csv.Error as error:
                lines.give_back()
                yield Record(number, error=f"line {number}: {error}")
                continue
            if values is None:
                return
            if len(values) == len(columns):
                yield Record(number, dict(zip(columns, values, strict=True)))
            elif values:  # an empty line is no record
                lines.give_back()
                yield Record(number, error=f"line {number}: {len(values)} fields, the header has {len(columns)}")


class _Lines:
    """The lines of a text for csv.reader, with a way to give back all but the first of those taken for a record."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self.number = 0
        """Number of the last line taken, from 1."""
        self._text = text
        self._taken: list[str] = []
        self._back: deque[str] = deque()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._back.popleft() if self._back else self._text.readline(MAX_RECORD_CHARS + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self._taken.append(line)
        if len(line) > MAX_RECORD_CHARS:
            while line and line[-1] not in "\r\n":
                line = self._text.readline(MAX_RECORD_CHARS)
            raise csv.Error(f"the line is longer than {MAX_RECORD_CHARS:,} characters")
        return line

    def close(self) -> None:
        self._text.close()

    def begin_record(self) -> None:
        self._taken.clear()

    def give_back(self) -> None:
        self._back.extendleft(reversed(self._taken[1:]))
        self.number -= len(self._taken) - 1


def _decoded(file: IO[bytes], shown: str) -> io.TextIOWrapper:
    head = file.read(4096)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"manifest {shown!r} is UTF-16; save it as UTF-8")
    if b"\0" in head:
        raise UserError(f"manifest {shown!r} is not text: it holds NUL bytes. A CSV file in UTF-8 is expected")
    file.seek(0)
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _read_jsonl(file: IO[bytes], shown: str) -> tuple[list[str], Iterator[Record]]:
    if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise UserError(f"manifest {shown!r} is UTF-16; save it as UTF-8")
    file.seek(0)
    records = _jsonl_records(file)
    head = list(itertools.islice(records, _HEAD_RECORDS))
    columns = dict.fromkeys(plain_text(name) for record in head for name in record.values)
    if head and not columns:
        raise UserError(f"manifest {shown!r}: its first {len(head)} lines hold no JSON object; {head[0].error}")
    return list(columns), itertools.chain(head, records)


def _jsonl_records(file: IO[bytes]) -> Iterator[Record]:
    for number in itertools.count(1):
        line = file.readline(MAX_RECORD_CHARS + 1)
        if not line:
            return
        if len(line) > MAX_RECORD_CHARS:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_RECORD_CHARS)
            yield Record(number, error=f"line {number}: longer than {MAX_RECORD_CHARS:,} bytes")
        elif text := line.removeprefix(codecs.BOM_UTF8).strip():
            yield _json_record(number, text)


def _json_record(number: int, text: bytes) -> Record:
    try:
        value = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Record(number, error=f"line {number}: not UTF-8 (byte {error.start})")
    except (ValueError, RecursionError) as error:
        return Record(number, error=f"line {number}: not JSON: {error}")
    if not isinstance(value, dict):
        return Record(number, error=f"line {number}: a JSON object is expected, not {type(value).__name__}")
    return Record(number, value)


def _read_parquet(file: IO[bytes], shown: str) -> tuple[list[str], Iterator[Record]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(file)
        names = [f.name for f in opened.schema_arrow if not _holds_bytes(f.type)]
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"manifest {shown!r} is not a Parquet file that can be read: {error}") from error
    return names, _parquet_records(opened.iter_batches(batch_size=4096, columns=names), shown)


def _parquet_records(batches: Iterable[pa.RecordBatch], shown: str) -> Iterator[Record]:
    import pyarrow as pa

    number = 0
    try:
        for batch in batches:
            columns = {name: _values(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
            for row in range(batch.num_rows):
                number += 1
                yield Record(number, {name: values[row] for name, values in columns.items()})
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"manifest {shown!r} cannot be read after row {number}: {error}") from error


def _values(column: pa.Array) -> list[Any]:
    """Python values of a column; text that is not UTF-8 comes with surrogate escapes, as in CSV."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return list(column.to_pylist())
    raw = column.cast(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary())
    return [None if b is None else b.decode("utf-8", "surrogateescape") for b in raw.to_pylist()]


def _holds_bytes(kind: pa.DataType) -> bool:
    """True for columns of bytes (such as whole videos) at any depth: they are not read."""
    import pyarrow as pa

    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return True
    return any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))


_READERS: dict[str, Callable[[IO[bytes], str], tuple[list[str], Iterator[Record]]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
