"""The clips' own files: read for embedding, linked into the export, and cleared of what no longer belongs."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.export.rows import VIDEO_FOLDER
from pipeline.stage import Row, UserError, Writer

LINKS_AT_ONCE = 16
"""A hard link is instant; a server-side copy on an object store mostly waits."""


def read_clip(writer: Writer, clip_id: str, uri: str) -> bytes:
    """All bytes of a clip's file in the run folder."""
    try:
        with writer.open_file(uri) as handle:
            data: bytes = handle.read()
    except FileNotFoundError as err:
        raise _missing(clip_id, uri) from err
    return data


class LinkedClips:
    """The files below `split_videos`. A name holds the file's hash, so a name that is there is right already."""

    def __init__(self, writer: Writer, export: str) -> None:
        self._writer = writer
        self._export = export
        self._not_wanted = set(writer.list(f"{export}/{VIDEO_FOLDER}"))

    def add(self, rows: Sequence[Row], uris: Sequence[str | None]) -> None:
        """Link or copy the files of exported rows that are not there yet; virtual clips have none."""
        wanted = []
        for row, uri in zip(rows, uris, strict=True):
            if uri is None:
                continue
            target = f"{self._export}/{row['clip_path']}"
            if target in self._not_wanted:
                self._not_wanted.remove(target)
            else:
                wanted.append((row["clip_id"], uri, target))
        with ThreadPoolExecutor(LINKS_AT_ONCE) as pool:
            for _ in pool.map(lambda item: self._link(*item), wanted):
                pass

    def _link(self, clip_id: str, uri: str, target: str) -> None:
        try:
            self._writer.link_or_copy(uri, target)
        except FileNotFoundError as err:
            raise _missing(clip_id, uri) from err

    def remove_others(self) -> None:
        """Remove the files that no added row has: of clips that have left the export, or of an older cut."""
        for relative in sorted(self._not_wanted):
            self._writer.remove(relative)


def _missing(clip_id: str, uri: str) -> UserError:
    return UserError(
        f"export: clip {clip_id}: its file {uri} is gone from the run folder. Put the file back, or make the clips "
        "again in a new run folder."
    )
