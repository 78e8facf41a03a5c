"""What DuckDB sees of a run folder behind a URL: its parts, to read, as `parts://<path in the run folder>`.

Given the store's own file system, DuckDB asks for a part's existence, size and time seven times before it reads it.
Here one listing answers for a folder, and two requests read a part's ids: its end and its beginning. Paths are taken
as they are, never as patterns, so the run folder may have any name.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from pipeline.store.files import READ_AHEAD_BYTES, RemoteFiles


class RemoteParts(AbstractFileSystem):  # type: ignore[misc]
    """A read-only file system over the parts of one run folder."""

    protocol = "parts"
    cachable = False

    def __init__(self, files: RemoteFiles) -> None:
        super().__init__()
        self._files = files
        self._sizes: dict[str, int] = {}

    def glob(self, path: str, **_: Any) -> list[str]:
        return [self._strip_protocol(path)]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        relative = self._strip_protocol(path)
        if relative not in self._sizes:
            self._sizes |= self._files.list_sizes(str(PurePosixPath(relative).parent))
        if relative not in self._sizes:
            raise FileNotFoundError(self._files.url(relative))
        return {"name": relative, "size": self._sizes[relative], "type": "file"}

    def modified(self, path: str) -> datetime:
        """Always the same: a part never changes under its name."""
        return datetime(2000, 1, 1, tzinfo=UTC)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> AbstractBufferedFile:
        return _Part(
            self, path, mode, block_size=READ_AHEAD_BYTES, cache_type="readahead", size=self.info(path)["size"]
        )

    def fetch(self, path: str, start: int, end: int) -> bytes:
        """Some bytes of a part."""
        return self._files.get_range(self._strip_protocol(path), start, end)


class _Part(AbstractBufferedFile):  # type: ignore[misc]
    def _fetch_range(self, start: int, end: int) -> bytes:
        data: bytes = self.fs.fetch(self.path, start, end)
        return data
