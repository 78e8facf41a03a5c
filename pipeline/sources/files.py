"""Adapter `files`: folders, globs, single files and buckets.

A folder or a bucket prefix means its files of known extensions, however deep; the rest is counted as ignored. A
file named explicitly is always tried. Nothing is opened here: what a file really is, `ingest` finds out.

A row's source_key is its root's label and the path below the root (`holiday/day1/a.mp4`); the label is the root's
base name, or the root's full path when two roots share a base name. A file named explicitly has its own name, or
its full path when two such names are equal.
"""

from __future__ import annotations

import glob as local_glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.media.open import local_path
from pipeline.sources.rows import Problem, source_row
from pipeline.sources.uri import BadPlace, base_name, check_url, folder_of, plain_text, resolve, scheme_of
from pipeline.stage import Row, UserError

VIDEO_EXTENSIONS = frozenset(
    {".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".ivf", ".m1v", ".m2ts", ".m2v", ".m4v", ".mkv"}
    | {".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob"}
    | {".webm", ".wmv"}
)
"""Extensions, in lower case, of the files that a folder means."""

HIDDEN, SEEN, RUN_FOLDER = "(hidden)", "(folder seen before)", "(run folder)"
"""What else is ignored, as counted beside the extensions: names that start with a dot, folders reached a second
time through a symbolic link, and run folders of this program (their clips are not sources)."""


def file_row(place: str, name: str) -> Row:
    """The row of a file named explicitly, by the row's form of its place (`uri.resolve`)."""
    path = local_path(place)
    return _stamped(source_row(name, base_name(folder_of(path or place)), place), path)


def folder_rows(root: str, label: str, ignored: Counter[str]) -> Iterator[Row]:
    """Rows of a folder's videos: `root` is an absolute local path or a URL. Counts the rest in `ignored`.

    Symbolic links are followed, each real folder once, links last. A folder below the root that cannot be listed is
    a row of its own with the problem `missing`. Raises UserError when the root itself cannot be listed.
    """
    if scheme_of(root) is not None:
        return _remote_rows(root, label, remote_find(root), ignored)
    return _local_rows(root, label, base_name(root), ignored)


def glob_root(pattern: str) -> str:
    """The deepest folder above a glob's first wildcard."""
    head = pattern
    while local_glob.has_magic(head):
        head = folder_of(head)
    return head


def glob_rows(pattern: str, label: str, ignored: Counter[str]) -> Iterator[Row]:
    """Rows of a glob's matches (`**` is any depth): files of known extensions, and those of folders that match.

    A pattern that spells its extension out (`*.dat`) is explicit: all the files it matches are tried.
    """
    root = glob_root(pattern)
    extension = os.path.splitext(pattern)[1]
    explicit = bool(extension) and not local_glob.has_magic(extension)
    if scheme_of(pattern) is not None:
        yield from _remote_rows(root, label, remote_glob(pattern), ignored, explicit)
        return
    for path in sorted(set(local_glob.glob(pattern, recursive=True)), key=os.fsencode):
        name = f"{label}/{os.path.relpath(path, root)}"
        if os.path.isdir(path):
            if "**" not in pattern:  # `**` matches what is in it, too
                yield from _local_rows(path, name, base_name(root), ignored)
        elif explicit or _is_video(path):
            yield _stamped(source_row(name, base_name(root), resolve(path, "/")), path)
        else:
            ignored[_kind(path)] += 1


def _local_rows(root: str, label: str, dataset: str, ignored: Counter[str]) -> Iterator[Row]:
    for relative, problem in _walk(root, ignored):
        path = os.path.join(root, relative)
        yield _stamped(source_row(f"{label}/{relative}", dataset, resolve(path, "/"), problem=problem), path)


def _stamped(row: Row, path: str | None) -> Row:
    """The row of a local file with what changes when the file does: a download that is finished later, say."""
    try:
        status = os.stat(path) if path is not None else None
    except OSError:
        return row
    return {**row, "stamp": f"{status.st_size}:{status.st_mtime_ns}"} if status else row


def _walk(root: str, ignored: Counter[str]) -> Iterator[tuple[str, Problem | None]]:
    """Relative paths of a local folder's videos, and of the folders that cannot be listed with their problem."""
    seen: set[tuple[int, int]] = set()
    folders, links = [""], list[str]()
    while folders or links:
        relative = folders.pop() if folders else links.pop(0)
        try:
            entries = _list(os.path.join(root, relative), seen)
        except OSError as error:
            if not relative:
                raise UserError(f"input {plain_text(root)!r} cannot be listed: {error.strerror}") from error
            yield f"{relative}/", Problem("missing", f"the folder cannot be listed: {error.strerror}")
            continue
        if entries is None or _is_run_folder(e.name for e in entries):
            ignored[SEEN if entries is None else RUN_FOLDER] += 1
            continue
        for entry in entries:
            below = os.path.join(relative, entry.name)
            if entry.name.startswith("."):
                ignored[HIDDEN] += 1
            elif _is_folder(entry):
                (links if entry.is_symlink() else folders).append(below)
            elif _is_video(entry.name):
                yield below, None
            else:
                ignored[_kind(entry.name)] += 1


def _list(folder: str, seen: set[tuple[int, int]]) -> list[os.DirEntry[str]] | None:
    """A folder's entries by name; None when it was listed before (a link back to it)."""
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in seen:
        return None
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: os.fsencode(entry.name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself: a file that `ingest` finds missing
        return False


def _is_run_folder(names: Iterable[str]) -> bool:
    return {"run.yaml", "tables"} <= set(names)


def _is_video(name: str) -> bool:
    return _kind(name) in VIDEO_EXTENSIONS


def _kind(name: str) -> str:
    return plain_text(os.path.splitext(name)[1].lower()) or "(no extension)"


def _remote_rows(
    root: str, label: str, found: Iterable[str], ignored: Counter[str], explicit: bool = False
) -> Iterator[Row]:
    """Rows of objects, given by their paths below a URL."""
    paths = sorted(set(found))
    tops = {path.rpartition("tables/")[0] for path in paths if "tables/" in path}
    runs = tuple(tops & {path.removesuffix("run.yaml") for path in paths if path.endswith("run.yaml")})
    for path in paths:
        if runs and path.startswith(runs):
            ignored[RUN_FOLDER] += 1
        elif any(part.startswith(".") for part in path.split("/")):
            ignored[HIDDEN] += 1
        elif not (explicit or _is_video(path)):
            ignored[_kind(path)] += 1
        else:
            url = f"{root.rstrip('/')}/{path}"
            try:
                yield source_row(f"{label}/{path}", base_name(root), check_url(url))
            except BadPlace as error:
                yield source_row(f"{label}/{path}", base_name(root), "", problem=Problem("missing", str(error)))


def remote_find(root: str) -> list[str]:
    """Paths of all objects below a URL, relative to it."""
    files, path = open_remote(root)
    with asking(root):
        return [name for found in files.find(path) if (name := found[len(path) :].strip("/"))]


def remote_glob(pattern: str) -> list[str]:
    """Paths of the objects that match a URL with wildcards, relative to its `glob_root`."""
    files, path = open_remote(pattern)
    start = len(glob_root(path))
    with asking(pattern):
        matches = files.glob(path, detail=True)
    return [name[start:].strip("/") for name, info in matches.items() if info.get("type") == "file"]


@contextmanager
def asking(url: str) -> Iterator[None]:
    """Makes whatever a storage driver raises a UserError that names the input."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"input {url!r} does not exist; expected a bucket prefix, an object or a manifest") from error
    except Exception as error:  # each driver has its own classes for a refused or failed request
        raise UserError(f"input {url!r} cannot be looked up: {type(error).__name__}: {error}") from error


def open_remote(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it. Raises UserError when its driver is not installed."""
    import fsspec

    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UserError(f"input {url!r} needs a package that is not installed: {error}") from error
    return found
