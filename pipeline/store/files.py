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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pipeline.stage import NO_ROOM, UserError

TEMPORARY = ".tmp-"
"""Prefix of the name of a file that is not committed yet; readers ignore them, `gc` removes them."""
READ_AHEAD_BYTES = 1 << 20
"""What a remote file reads beyond what is asked for. s3fs's own 50 MB would fetch every part whole for its ids."""


Paths = list[str]


class Files(ABC):
    """A tree of files below a root. Paths are relative, with forward slashes. Instances can be sent to workers.

    Every method raises UserError when the root cannot be reached, read or written.
    """

    def __init__(self, root: str) -> None:
        self.root = root

    @abstractmethod
    def put(self, relative: str, data: bytes) -> None:
        """Write a whole object, replacing what was there. Raises DiskFull."""

    @abstractmethod
    def put_file(self, local_path: str, relative: str) -> None:
        """Write a finished local file as a whole object. The local file may be moved away. Raises DiskFull."""

    @abstractmethod
    def create(self, relative: str, data: bytes) -> bool:
        """Write a whole object only if none is there; False when one is. Raises DiskFull."""

    @abstractmethod
    def get(self, relative: str) -> bytes | None:
        """A whole object; None when it is not there."""

    @abstractmethod
    def list(self, prefix: str) -> Paths:
        """Committed files directly or deeper below a folder, relative to the root, sorted."""

    @abstractmethod
    def list_temporary(self) -> Paths:
        """Files left behind by killed writers."""

    @abstractmethod
    def size(self, relative: str) -> int | None:
        """Bytes; None when it is not there."""

    @abstractmethod
    def remove(self, relative: str) -> None:
        """Remove an object; not an error when it is not there."""

    @abstractmethod
    def open(self, relative: str) -> IO[bytes]:
        """Open for reading, seekable. Raises FileNotFoundError."""

    @abstractmethod
    def link_or_copy(self, source: str, target: str) -> None:
        """Make target the same object as source, unless one of the same size is there. Raises FileNotFoundError."""

    @abstractmethod
    def url(self, relative: str) -> str:
        """Path or URL that PyAV or fsspec open (DuckDB globs: see live.parquet_sql)."""


class DiskFull(UserError):
    """No room for a write."""


class LocalFiles(Files):
    """A folder on a disk."""

    def _path(self, relative: str) -> Path:
        pure = PurePosixPath(relative)
        assert not pure.is_absolute() and ".." not in pure.parts, relative
        return Path(self.root, *pure.parts)

    def put(self, relative: str, data: bytes) -> None:
        with self._temporary(relative) as (temporary, target):
            _write(temporary, data)
            os.replace(temporary, target)

    def put_file(self, local_path: str, relative: str) -> None:
        with self._temporary(relative) as (temporary, target):
            try:
                os.rename(local_path, temporary)
            except OSError as err:
                if err.errno != errno.EXDEV:
                    raise
                shutil.copyfile(local_path, temporary)
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, target)

    def create(self, relative: str, data: bytes) -> bool:
        with self._temporary(relative) as (temporary, target):
            _write(temporary, data)
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            except OSError as err:
                if err.errno not in _NO_LINKS:
                    raise
                return _create_in_place(target, data)
            return True

    def get(self, relative: str) -> bytes | None:
        with _disk_errors(self.root), suppress(FileNotFoundError):
            return self._path(relative).read_bytes()
        return None

    def list(self, prefix: str) -> Paths:
        return self._walk(prefix, lambda name: not name.startswith(TEMPORARY))

    def list_temporary(self) -> Paths:
        return self._walk("", lambda name: name.startswith(TEMPORARY))

    def _walk(self, prefix: str, wanted: Callable[[str], bool]) -> Paths:
        found: Paths = []
        with _disk_errors(self.root):
            for folder, _, names in os.walk(self._path(prefix), onerror=_raise_unless_gone):
                base = PurePosixPath(Path(folder).relative_to(self.root).as_posix())
                found.extend(str(base / name) for name in names if wanted(name))
        return sorted(found)

    def size(self, relative: str) -> int | None:
        with _disk_errors(self.root), suppress(FileNotFoundError):
            return self._path(relative).stat().st_size
        return None

    def remove(self, relative: str) -> None:
        with _disk_errors(self.root):
            self._path(relative).unlink(missing_ok=True)

    def open(self, relative: str) -> IO[bytes]:
        with _disk_errors(self.root):
            return open(self._path(relative), "rb")

    def link_or_copy(self, source: str, target: str) -> None:
        size = self.size(target)
        if size is not None and size == self.size(source):
            return
        with self._temporary(target) as (temporary, path):
            try:
                os.link(self._path(source), temporary)
            except FileNotFoundError:
                raise
            except OSError:  # a disk without links, or a file that has as many as it may
                shutil.copyfile(self._path(source), temporary)
            os.replace(temporary, path)

    def url(self, relative: str) -> str:
        return str(self._path(relative))

    @contextmanager
    def _temporary(self, relative: str) -> Iterator[tuple[Path, Path]]:
        """A new name beside the target, and the target. Nothing stays under that name, however the block ends."""
        target = self._path(relative)
        temporary = target.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
        with _disk_errors(self.root):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield temporary, target
            finally:
                temporary.unlink(missing_ok=True)


_DENIED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@contextmanager
def _disk_errors(root: str) -> Iterator[None]:
    """Turns a full, read-only or forbidden disk into one clear message."""
    try:
        yield
    except OSError as err:
        if err.errno in NO_ROOM:
            raise DiskFull(
                f"{root}: no room to write ({err.strerror}). What was committed is safe: make room "
                "(hicom gc RUN removes what no view reaches) and run the same command again."
            ) from err
        if err.errno in _DENIED:
            raise UserError(
                f"{root}: {err.filename or 'a file in it'}: {err.strerror}. The run folder must be a folder that "
                "this user may read and write: change its permissions, or choose another --out."
            ) from err
        raise


def _raise_unless_gone(err: OSError) -> None:
    if not isinstance(err, FileNotFoundError):
        raise err


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def _create_in_place(target: Path, data: bytes) -> bool:
    """`create` on a disk without links: exclusive too, but a reader may meet the object while it is written."""
    try:
        with open(target, "xb") as handle:
            handle.write(data)
    except FileExistsError:
        return False
    return True


class RemoteFiles(Files):
    """An object store or another remote file system, through fsspec.

    Where it is and who may use it comes from the environment alone: for s3:// AWS_ENDPOINT_URL,
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE and what else botocore reads.
    """

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
                fs, self._base = fsspec.core.url_to_fs(self.root, use_listings_cache=False)
            except ImportError as err:
                raise UserError(f"{self.root}: {err}. For s3:// install hicom-248k-builder[s3].") from err
            except ValueError as err:
                raise UserError(f"{self.root}: {err}. Give a local folder, or a URL that fsspec opens.") from err
            if hasattr(fs, "default_block_size"):
                fs.default_block_size = READ_AHEAD_BYTES
            self._fs = fs
        return self._fs

    def _path(self, relative: str) -> str:
        fs_ready = self.fs
        assert fs_ready is not None and ".." not in PurePosixPath(relative).parts, relative
        return f"{self._base}/{relative}" if relative else self._base

    def put(self, relative: str, data: bytes) -> None:
        with _remote_errors(self.root, writes=True):
            self.fs.pipe_file(self._path(relative), data)

    def put_file(self, local_path: str, relative: str) -> None:
        os.stat(local_path)  # whatever is not found below is not this file
        with _remote_errors(self.root, writes=True):
            self.fs.put_file(local_path, self._path(relative))

    def create(self, relative: str, data: bytes) -> bool:
        with _remote_errors(self.root, writes=True), suppress(FileExistsError):
            self.fs.pipe_file(self._path(relative), data, mode="create")
            return True
        return False

    def get(self, relative: str) -> bytes | None:
        with _remote_errors(self.root), suppress(FileNotFoundError):
            return bytes(self.fs.cat_file(self._path(relative)))
        return None

    def list(self, prefix: str) -> Paths:
        return sorted(self.list_sizes(prefix))

    def list_temporary(self) -> Paths:
        return []

    def list_sizes(self, prefix: str) -> dict[str, int]:
        """Files as `list` finds them, with their sizes in bytes."""
        folder = self._path(prefix) + "/"
        start = len(self._base) + 1
        with _remote_errors(self.root), suppress(FileNotFoundError):
            found = self.fs.find(folder, detail=True)
            # s3fs may name the folder itself, when a first file comes into it at this moment.
            return {n[start:]: int(i["size"]) for n, i in found.items() if n.startswith(folder) and n != folder}
        return {}

    def get_range(self, relative: str, start: int, end: int) -> bytes:
        """Bytes of an object from start to end, exclusive. Raises FileNotFoundError."""
        with _remote_errors(self.root):
            return bytes(self.fs.cat_file(self._path(relative), start=start, end=end))

    def size(self, relative: str) -> int | None:
        with _remote_errors(self.root), suppress(FileNotFoundError):
            return int(self.fs.info(self._path(relative))["size"])
        return None

    def remove(self, relative: str) -> None:
        with _remote_errors(self.root), suppress(FileNotFoundError):
            self.fs.rm_file(self._path(relative))

    def open(self, relative: str) -> IO[bytes]:
        with _remote_errors(self.root):
            handle: IO[bytes] = self.fs.open(self._path(relative), "rb")
        return handle

    def link_or_copy(self, source: str, target: str) -> None:
        size = self.size(target)
        if size is None or size != self.size(source):
            with _remote_errors(self.root):
                self.fs.cp_file(self._path(source), self._path(target))

    def url(self, relative: str) -> str:
        return f"{self.root}/{relative}"


_CLIENT_PACKAGES = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "azure")
"""Where the errors of a store's client come from when they are not OSErrors: no credentials, no connection."""


@contextmanager
def _remote_errors(root: str, *, writes: bool = False) -> Iterator[None]:
    """Turns a store that is not there, or that does not let us in, into one clear message."""
    try:
        yield
    except FileNotFoundError as err:
        if not writes:
            raise
        raise UserError(f"{root}: {err}. The bucket must be there before the run: create it.") from err
    except PermissionError as err:
        raise UserError(f"{root}: access denied ({err}). Check the credentials in the environment.") from err
    except Exception as err:
        if type(err).__module__.partition(".")[0] not in _CLIENT_PACKAGES:
            raise
        raise UserError(
            f"{root}: cannot be reached: {err}. Check the network, the endpoint (for s3://: AWS_ENDPOINT_URL) and the "
            "credentials in the environment, then run the same command again."
        ) from err


def open_files(root: str) -> Files:
    """The run folder's files: a local folder, or any URL that fsspec knows. Raises UserError for a name that is not."""
    if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in root):
        raise UserError(f"run folder {root!r}: its name is not UTF-8, and no table could hold it. Choose another.")
    for scheme in ("file://", "local://"):
        root = root.removeprefix(scheme)
    return RemoteFiles(root) if "://" in root else LocalFiles(str(Path(root).absolute()))
