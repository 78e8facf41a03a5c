"""Turning a run's inputs into rows of the `sources` table, on the driver, before any work starts.

The rows do not depend on the order in which inputs are named. Every row has a source_key of its own: where two rows
of one manifest would share one (the same id twice), the later ones get ` #2`, ` #3` in the manifest's order, so that
each is accounted for.
"""

from __future__ import annotations

import hashlib
import heapq
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass as plain_dataclass
from glob import has_magic
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from pipeline.media.open import local_path
from pipeline.sources import ego4d, panda70m
from pipeline.sources.files import VIDEO_EXTENSIONS, asking, file_row, folder_rows, glob_root, glob_rows, open_remote
from pipeline.sources.manifest import is_manifest, open_manifest
from pipeline.sources.media_root import MediaRoot, media_folder
from pipeline.sources.table import choose_columns, table_rows
from pipeline.sources.uri import BadPlace, base_name, folder_of, plain_text, resolve, scheme_of, without_query
from pipeline.stage import Row, UserError

Adapter = Literal["auto", "files", "table", "panda70m", "ego4d"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SourcesConfig:
    """How inputs are read."""

    adapter: Adapter = "auto"
    """What the inputs are. `auto` looks at each: folders, globs and other files are `files`; .csv, .jsonl, .ndjson
    and .parquet are `table`, or `panda70m` by their columns; .json is `ego4d`."""
    media_root: Annotated[str, Field(min_length=1)] | None = None
    """Folder or URL under which a manifest's media lie. Default: the manifest's own folder."""
    pattern: Annotated[str, Field(min_length=1)] | None = None
    """Where an id's media lie under media_root, such as `full_scale/{video_uid}.mp4` (ego4d) or `{videoID}.*`
    (panda70m; `.*` is any known extension). Default: the video file named like the id, however deep."""
    uri_column: str | None = None
    """The `table` column that names the media. Default: uri, url, path, video, file or video_path."""
    id_column: str | None = None
    """The `table` column that gives the id. Default: id, video_id or videoID, if there is one."""


@plain_dataclass(frozen=True)
class Listing:
    """What a run is asked to work on."""

    rows: list[Row]
    """Rows of the `sources` table, in the order of their source_key."""
    found: int
    """Rows before `limit` was applied."""
    ignored: Counter[str]
    """What the folders hold besides: number of files by extension, and (hidden), (run folder) and the like."""


@plain_dataclass(frozen=True)
class _Input:
    kind: Literal["folder", "glob", "file", "table", "panda70m", "ego4d"]
    place: str
    """Absolute local path (with surrogate escapes) or URL."""


def list_sources(inputs: Sequence[str], config: SourcesConfig, *, limit: int | None = None, seed: int = 0) -> Listing:
    """List the source rows of all inputs.

    `limit` keeps a sample of that many rows: those with the smallest SHA-256 of `seed:source_key`, so that the same
    seed gives the same sample, and a larger limit keeps all of a smaller one's rows.

    Nothing but manifests is opened. Memory: about 0.6 kB a row; with `limit`, 0.1 kB a row that is left out.

    Raises UserError: no input, an input that is not there, a folder without a video, a manifest that is not one.
    """
    if not inputs:
        raise UserError("no input is given; name a folder, a glob, a video file or a manifest")
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; expected 1 or more")
    chosen = {found.place: found for text in inputs for found in _recognise(text, config)}
    labelled = _label(list(chosen.values()))
    ignored: Counter[str] = Counter()
    found = 0

    def counted() -> Iterator[Row]:
        nonlocal found
        for row in _unique(row for label, item in labelled for row in _rows(item, label, config, ignored)):
            found += 1
            yield row

    rows = list(counted()) if limit is None else heapq.nsmallest(limit, counted(), key=_sample_order(seed))
    return Listing(sorted(rows, key=lambda row: str(row["source_key"])), found, ignored)


def _sample_order(seed: int) -> Callable[[Row], bytes]:
    return lambda row: hashlib.sha256(f"{seed}:{row['source_key']}".encode()).digest()


def _unique(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows with source_keys made distinct."""
    times: dict[str, int] = {}
    for row in rows:
        key = row["source_key"]
        while key in times:
            times[row["source_key"]] += 1
            key = f"{row['source_key']} #{times[row['source_key']]}"
        times[key] = 1
        row["source_key"] = key
        yield row


def _label(items: list[_Input]) -> list[tuple[str, _Input]]:
    """Each input with the label that starts its rows' source_keys, in the order of labels."""
    names = Counter(_short_label(item) for item in items)
    labelled = [(n if names[n := _short_label(item)] == 1 else _long_label(item), item) for item in items]
    return sorted(labelled, key=lambda pair: (pair[0].encode("utf-8", "surrogateescape"), pair[1].place))


def _short_label(item: _Input) -> str:
    return base_name(glob_root(item.place) if item.kind == "glob" else item.place)


def _long_label(item: _Input) -> str:
    return without_query(glob_root(item.place) if item.kind == "glob" else item.place)


def _rows(item: _Input, label: str, config: SourcesConfig, ignored: Counter[str]) -> Iterator[Row]:
    if item.kind == "file":
        yield file_row(resolve(item.place, "/"), label)
    elif item.kind == "folder":
        yield from _not_empty(item, folder_rows(item.place, label, ignored), ignored)
    elif item.kind == "glob":
        yield from _not_empty(item, glob_rows(item.place, label, ignored), ignored)
    else:
        yield from _manifest_rows(item, label, config)


def _manifest_rows(item: _Input, label: str, config: SourcesConfig) -> Iterator[Row]:
    folder = config.media_root or folder_of(item.place)
    if item.kind == "ego4d":
        yield from ego4d.ego4d_rows(item.place, MediaRoot(folder, config.pattern, ego4d.ID_NAME))
        return
    manifest = open_manifest(item.place)
    is_panda70m = config.adapter == "auto" and panda70m.is_panda70m(manifest.columns)
    if item.kind == "panda70m" or is_panda70m:
        yield from panda70m.panda70m_rows(manifest, MediaRoot(folder, config.pattern, panda70m.ID_NAME))
    else:
        columns = choose_columns(manifest, config.uri_column, config.id_column)
        yield from table_rows(manifest, label, columns, media_folder(folder))


def _not_empty(item: _Input, rows: Iterator[Row], ignored: Counter[str]) -> Iterator[Row]:
    before = ignored.total()
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        others = ignored.total() - before
        raise UserError(
            f"input {plain_text(item.place)!r} holds no video ({others} other files or folders). Known extensions:"
            f" {' '.join(sorted(VIDEO_EXTENSIONS))}; a file named explicitly is always tried"
        )


def _recognise(text: str, config: SourcesConfig) -> list[_Input]:
    """What an input is. Raises UserError when it is not there."""
    shown = plain_text(text)
    if scheme_of(text) not in (None, "file"):
        return _recognise_url(text, config)
    try:
        place = resolve(text, os.getcwd())
    except BadPlace as error:
        raise UserError(f"input {shown!r} cannot be used: {error}") from error
    path = local_path(place) or ""
    if os.path.isdir(path):
        return [_folder(path, config)]
    if os.path.lexists(path):
        return [_file(path, config)]
    if not has_magic(path):
        raise UserError(f"input {shown!r} does not exist; expected a folder, a glob, a video file or a manifest")
    if config.adapter in ("auto", "files"):
        return [_Input("glob", path)]
    raise UserError(f"input {shown!r} does not exist; adapter {config.adapter} takes manifests, not globs")


def _recognise_url(text: str, config: SourcesConfig) -> list[_Input]:
    try:
        url = resolve(text, "/")
    except BadPlace as error:
        raise UserError(f"input {plain_text(text)!r} cannot be used: {error}") from error
    if scheme_of(url) in ("http", "https"):  # no listing there; `ingest` or the manifest's reader opens it
        return [_file(url, config)]
    if has_magic(url) and config.adapter in ("auto", "files"):
        return [_Input("glob", url)]
    files, path = open_remote(url)
    with asking(url):
        is_folder = files.info(path)["type"] == "directory"
    return [_folder(url, config) if is_folder else _file(url, config)]


def _folder(place: str, config: SourcesConfig) -> _Input:
    if config.adapter not in ("auto", "files"):
        raise UserError(f"input {plain_text(place)!r} is a folder; adapter {config.adapter} takes a manifest file")
    return _Input("folder", place)


def _file(place: str, config: SourcesConfig) -> _Input:
    if config.adapter == "files":
        return _Input("file", place)
    if config.adapter != "auto":
        return _Input(config.adapter, place)
    if is_manifest(place):
        return _Input("table", place)
    return _Input("ego4d" if base_name(place).lower().endswith(".json") else "file", place)
