"""Adapter `table`: a CSV, JSONL or Parquet file with a row a video.

One column names the media (a local path or a URL; relative paths lie under the manifest's folder or `media_root`),
one may give the id; the others become the row's `meta`. A row's source_key is the manifest's name and the row's id,
or its path where there are no ids (`clips.csv/abc`), so it stays the same when rows are added or moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.sources.manifest import Manifest, Record
from pipeline.sources.rows import Problem, meta_json, read_id, source_row
from pipeline.sources.uri import BadPlace, resolve, stem, without_query
from pipeline.stage import Row, UserError

URI_COLUMNS = ("uri", "url", "path", "video", "file", "video_path")
ID_COLUMNS = ("id", "video_id", "videoid")
"""Column names tried in this order, in any case, when the config names none."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table mean what."""

    uri: str
    id: str | None


def choose_columns(manifest: Manifest, uri_column: str | None, id_column: str | None) -> Columns:
    """The columns as configured, or as found by name. Raises UserError when there is no such column."""
    uri = _column(manifest, uri_column, URI_COLUMNS, "uri_column")
    if uri is None:
        raise UserError(
            f"manifest {manifest.name!r}: no column names the media; tried {', '.join(URI_COLUMNS)}; it has"
            f" {manifest.shown_columns}. Name it with --set sources.uri_column=NAME"
        )
    return Columns(uri, _column(manifest, id_column, ID_COLUMNS, "id_column"))


def table_rows(manifest: Manifest, label: str, columns: Columns, media_root: str) -> Iterator[Row]:
    """A row a record. `media_root` is the folder, path or URL, under which relative paths lie."""
    dataset = stem(manifest.place)
    for record in manifest.records:
        if record.error is not None:
            name = f"{label}/:{record.number}"
            yield source_row(name, dataset, "", problem=Problem("bad_row", record.error))
        else:
            yield _row(record, label, dataset, columns, media_root)


def _row(record: Record, label: str, dataset: str, columns: Columns, media_root: str) -> Row:
    path = record.values.get(columns.uri)
    given_id = read_id(record.values.get(columns.id)) if columns.id else None
    meta = meta_json({k: v for k, v in record.values.items() if k not in (columns.uri, columns.id)})
    if isinstance(given_id, Problem):
        given = record.values.get(columns.id or "")
        own = given if isinstance(given, str) and given else _path_name(path, record)
        return source_row(f"{label}/{own}", dataset, "", meta=meta, problem=given_id)
    name = f"{label}/{given_id or _path_name(path, record)}"
    uri, problem = _place(path, columns.uri, media_root)
    return source_row(name, dataset, uri, given_id=given_id, meta=meta, problem=problem)


def _path_name(path: object, record: Record) -> str:
    return without_query(path) if isinstance(path, str) and path else f":{record.number}"


def _place(path: object, column: str, media_root: str) -> tuple[str, Problem | None]:
    if path is None or path == "":
        return "", Problem("missing", f"the row has nothing in column {column!r}")
    if not isinstance(path, str):
        return "", Problem("bad_row", f"column {column!r} holds {type(path).__name__}, not a path or URL")
    try:
        return resolve(path, media_root), None
    except BadPlace as error:
        return "", Problem("missing", str(error))


def _column(manifest: Manifest, wanted: str | None, tried: Sequence[str], option: str) -> str | None:
    if wanted is not None:
        if wanted not in manifest.columns:
            raise UserError(
                f"manifest {manifest.name!r} has no column {wanted!r} (sources.{option}); it has"
                f" {manifest.shown_columns}"
            )
        return wanted
    by_lower = {name.lower(): name for name in reversed(manifest.columns)}
    return next((by_lower[name] for name in tried if name in by_lower), None)
