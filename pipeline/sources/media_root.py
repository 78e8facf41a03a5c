"""Finding a dataset's media by id under one folder or bucket prefix."""

from __future__ import annotations

import os
import re
from collections import Counter
from functools import cached_property
from glob import has_magic

from pipeline.media.open import local_path
from pipeline.sources.files import folder_rows
from pipeline.sources.rows import Problem, read_id, source_row
from pipeline.sources.uri import BadPlace, base_name, plain_text, resolve, scheme_of
from pipeline.stage import Row, UserError

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def media_folder(root: str) -> str:
    """A configured media root as an absolute local path or a URL. Raises UserError."""
    try:
        place = resolve(os.path.expanduser(root), os.getcwd())
    except BadPlace as error:
        raise UserError(f"media_root {plain_text(root)!r} cannot be used: {error}") from error
    return local_path(place) or place


class MediaRoot:
    """Where the media of ids lie.

    With a pattern such as `{videoID}.mp4` or `full_scale/{video_uid}.mp4` a place is made from the id, and nothing
    is listed. With one that ends in `.*`, or without any, the root is listed once, and an id's file is the one of a
    known extension that fits, or the one named like the id, however deep.
    """

    def __init__(self, root: str, pattern: str | None, id_name: str) -> None:
        """`root` is a path or URL, listed when the first id is looked up; `id_name` is the id's name in patterns.

        Raises UserError.
        """
        self._id_name = id_name
        self._pattern = pattern
        self._root = media_folder(root)
        if pattern is not None and set(_PLACEHOLDER.findall(pattern)) != {id_name}:
            raise UserError(f"sources.pattern {pattern!r} must hold {{{id_name}}} and no other placeholder")
        if pattern is not None and has_magic(pattern.removesuffix(".*")):
            raise UserError(f"sources.pattern {pattern!r}: the only wildcard it may hold is a final '.*'")
        self._listed = pattern is None or pattern.endswith(".*")

    def row(self, name: str, dataset: str, given: object, meta: str) -> Row:
        """The row of a video by the id that a manifest gives."""
        given_id = read_id(given)
        if isinstance(given_id, Problem):
            return source_row(name, dataset, "", meta=meta, problem=given_id)
        uri, problem = self.find(given_id)
        return source_row(name, dataset, uri, given_id=given_id, meta=meta, problem=problem)

    def find(self, given_id: str) -> tuple[str, Problem | None]:
        """The row's uri for a valid id, or "" and the problem `missing`. With a pattern nothing is looked up here."""
        name = given_id if self._pattern is None else self._pattern.replace(f"{{{self._id_name}}}", given_id)
        if not self._listed:
            return self._join(name), None
        name = name.removesuffix(".*")
        uris = self._index.get(name)
        if uris is None:
            return "", Problem("missing", f"no video file named {name}.* under {plain_text(self._root)}")
        if len(uris) > 1:
            raise UserError(
                f"more than one file is named {name}.* under {plain_text(self._root)!r}: {uris[0]}, {uris[1]};"
                f" say which kind to take with sources.pattern, such as '{{{self._id_name}}}.mp4'"
            )
        return uris[0], None

    def _join(self, name: str) -> str:
        try:
            return resolve(name, self._root)
        except BadPlace as error:
            raise UserError(f"sources.pattern {self._pattern!r} does not fit media_root: {error}") from error

    @cached_property
    def _index(self) -> dict[str, list[str]]:
        """Places by what an id's name is looked up by."""
        if scheme_of(self._root) is None and not os.path.isdir(self._root):
            raise UserError(f"media_root {plain_text(self._root)!r} is not a folder; say where the videos are")
        index: dict[str, list[str]] = {}
        for row in folder_rows(self._root, "", Counter()):
            if row["problem"] is None:
                below = os.path.splitext(row["source_key"][1:])[0]
                name = below if self._pattern is not None else base_name(below)
                index.setdefault(name, []).append(row["uri"])
        if not index:
            raise UserError(
                f"no video is under the media_root {plain_text(self._root)!r}; say where the videos are with"
                " sources.media_root"
            )
        return index
