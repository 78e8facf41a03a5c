"""The files of a run folder, on a local disk or behind any fsspec URL.

Every write is one whole-object put: a reader sees the old object, the new one, or none. On local disks that is
a temporary file, fsync and rename; an object store's put is whole by itself. `create` succeeds for one caller
only; the writer's lock stands on it.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from abc import ABC, abstractmethod
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pipeline.stage import UserError

TEMPORARY = ".tmp-"
"""Prefix of the name of a file that is not committed yet; readers ignore them, `gc` removes them."""


class Files(ABC):
    """A tree of files below a root. Paths are relative, with forward slashes. Instances can be sent to workers."""

    def __init__(self, root: str) -> None:
        self.root = root

    @abstractmethod
    def put(self, relative: str, data: bytes) -> None:
        """Write a whole object, replacing what was there."""

    @abstractmethod
    def put_file(self, local_path: str, relative: str) -> None:
        """Write a finished local file as a whole object. The local file may be moved away."""

    @abstractmethod
    def create(self, relative: str, data: bytes) -> bool:
        """Write a whole object only if none is there; False when one is."""

    @abstractmethod
    def get(self, relative: str) -> bytes | None:
        """A whole object; None when it is not there."""

    @abstractmethod
    def list(self, prefix: str) -> list[str]:
        """Committed files directly or deeper below a folder, relative to the root, sorted."""

    @abstractmethod
    def list_temporary(self) -> list[str]:
        """Files left behind by killed writers."""

    @abstractmethod
    def size(self, relative: str) -> int | None:
        """Bytes; None when it is not there."""

    @abstractmethod
    def remove(self, relative: str) -> None:
        """Remove an object; not an error when it is not there."""

    @abstractmethod
    def open(self, relative: str) -> IO[bytes]:
        """Open for reading, seekable."""

    @abstractmethod
    def link_or_copy(self, source: str, target: str) -> None:
        """Make target the same object as source, unless one of the same size is there."""

    @abstractmethod
    def url(self, relative: str) -> str:
        """Path or URL that DuckDB, PyAV or fsspec open."""


class LocalFiles(Files):
    """A folder on a disk."""

    def _path(self, relative: str) -> Path:
        pure = PurePosixPath(relative)
        assert not pure.is_absolute() and ".." not in pure.parts, relative
        return Path(self.root, *pure.parts)

    def put(self, relative: str, data: bytes) -> None:
        temporary = self._write_temporary(relative, data)
        self._commit(temporary, self._path(relative))

    def put_file(self, local_path: str, relative: str) -> None:
        target = self._path(relative)
        temporary = self._temporary(target)
        try:
            os.rename(local_path, temporary)
        except OSError as err:
            if err.errno != errno.EXDEV:
                raise
            with _disk_errors(self.root):
                shutil.copyfile(local_path, temporary)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        self._commit(temporary, target)

    def create(self, relative: str, data: bytes) -> bool:
        temporary = self._write_temporary(relative, data)
        try:
            os.link(temporary, self._path(relative))
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
        return True

    def get(self, relative: str) -> bytes | None:
        try:
            return self._path(relative).read_bytes()
        except FileNotFoundError:
            return None

    def list(self, prefix: str) -> list[str]:
        return sorted(path for path in self._walk(prefix) if not PurePosixPath(path).name.startswith(TEMPORARY))

    def list_temporary(self) -> list[str]:
        return sorted(path for path in self._walk("") if PurePosixPath(path).name.startswith(TEMPORARY))

    def _walk(self, prefix: str) -> list[str]:
        found = []
        for folder, _, names in os.walk(self._path(prefix)):
            base = PurePosixPath(Path(folder).relative_to(self.root).as_posix())
            found.extend(str(base / name) for name in names)
        return found

    def size(self, relative: str) -> int | None:
        try:
            return self._path(relative).stat().st_size
        except FileNotFoundError:
            return None

    def remove(self, relative: str) -> None:
        self._path(relative).unlink(missing_ok=True)

    def open(self, relative: str) -> IO[bytes]:
        return open(self._path(relative), "rb")

    def link_or_copy(self, source: str, target: str) -> None:
        if self.size(target) is not None and self.size(target) == self.size(source):
            return
        path = self._path(target)
        temporary = self._temporary(path)
        try:
            os.link(self._path(source), temporary)
        except OSError:  # a disk without links
            with _disk_errors(self.root):
                shutil.copyfile(self._path(source), temporary)
        self._commit(temporary, path)

    def url(self, relative: str) -> str:
        return str(self._path(relative))

    def _temporary(self, target: Path) -> Path:
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.parent / f"{TEMPORARY}{uuid.uuid4().hex}"

    def _write_temporary(self, relative: str, data: bytes) -> Path:
        temporary = self._temporary(self._path(relative))
        with _disk_errors(self.root, temporary), open(temporary, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        return temporary

    def _commit(self, temporary: Path, target: Path) -> None:
        os.replace(temporary, target)


class _disk_errors:
    """Turns a full or read-only disk into one clear message, and leaves no half-written file."""

    def __init__(self, root: str, temporary: Path | None = None) -> None:
        self.root = root
        self.temporary = temporary

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError):
            return
        if self.temporary is not None:
            self.temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(
                f"{self.root}: the disk is full ({error.strerror}). What was committed is safe: "
                "make room (hicom gc RUN removes what no view reaches) and run the same command again."
            ) from error


class DiskFull(UserError):
    """No room for a write."""


class RemoteFiles(Files):
    """An object store or another remote file system, through fsspec."""

    def __init__(self, root: str) -> None:
        super().__init__(root.rstrip("/"))
        self._fs: Any = None
        self._base = ""

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "_fs": None, "_base": ""}

    @property
    def fs(self) -> Any:
        if self._fs is None:
            import fsspec

            try:
                self._fs, self._base = fsspec.core.url_to_fs(self.root, use_listings_cache=False)
            except (ImportError, ValueError) as err:
                raise UserError(f"{self.root}: {err}. For s3:// install hicom-248k-builder[s3].") from err
        return self._fs

    def _path(self, relative: str) -> str:
        fs_ready = self.fs
        assert fs_ready is not None and ".." not in PurePosixPath(relative).parts, relative
        return f"{self._base}/{relative}" if relative else self._base

    def put(self, relative: str, data: bytes) -> None:
        self.fs.pipe_file(self._path(relative), data)

    def put_file(self, local_path: str, relative: str) -> None:
        self.fs.put_file(local_path, self._path(relative))

    def create(self, relative: str, data: bytes) -> bool:
        try:
            self.fs.pipe_file(self._path(relative), data, mode="create")
        except FileExistsError:
            return False
        return True

    def get(self, relative: str) -> bytes | None:
        try:
            return bytes(self.fs.cat_file(self._path(relative)))
        except FileNotFoundError:
            return None

    def list(self, prefix: str) -> list[str]:
        path = self._path(prefix)
        start = len(self._base) + 1
        try:
            return sorted(name[start:] for name in self.fs.find(path))
        except FileNotFoundError:
            return []

    def list_temporary(self) -> list[str]:
        return []

    def size(self, relative: str) -> int | None:
        try:
            return int(self.fs.info(self._path(relative))["size"])
        except FileNotFoundError:
            return None

    def remove(self, relative: str) -> None:
        try:
            self.fs.rm_file(self._path(relative))
        except FileNotFoundError:
            return

    def open(self, relative: str) -> IO[bytes]:
        handle: IO[bytes] = self.fs.open(self._path(relative), "rb")
        return handle

    def link_or_copy(self, source: str, target: str) -> None:
        size = self.size(target)
        if size is None or size != self.size(source):
            self.fs.cp_file(self._path(source), self._path(target))

    def url(self, relative: str) -> str:
        return f"{self.root}/{relative}"


def open_files(root: str) -> Files:
    """The run folder's files: a local folder, or any URL that fsspec knows."""
    if "://" in root and not root.startswith("file://"):
        return RemoteFiles(root)
    return LocalFiles(str(Path(root.removeprefix("file://")).absolute()))
