"""Stage `ingest`: a source row to a video. Is it there, is it video, which video is it?

The header is probed in the guarded process; its duration alone rejects nothing. Two rows with one video_id are
settled by the engine after the map (`duplicate_id`): a stage sees one row at a time.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass as plain_dataclass
from typing import IO, Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from pipeline.media.open import local_path, open_bytes
from pipeline.records import Grain
from pipeline.stage import MapStage, Output, Rejected, Resources, Retryable, Row, Workspace

_BLOCK_BYTES = 4 * 2**20
_LASTING_ERRORS = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EINVAL}
)
_LASTING_STATUS = frozenset({400, 401, 403, 404, 405, 410})
_OTHER_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_PROBED = ("duration_s", "fps", "width", "height", "rotation", "codec", "bytes")


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class IngestConfig:
    """Nothing to set: what a file is and which id it has depend on no choice."""


@plain_dataclass(frozen=True)
class _Found:
    """What storage says of a file without reading it."""

    bytes: int | None
    etag: str | None


class Ingest(MapStage):
    """Source row to video. Rejects: the row's own problem, missing, not_video, no_video_stream, unreadable."""

    name = "ingest"
    grain_in = Grain.SOURCE
    grain_out = Grain.VIDEO
    names_content = True
    reads = (
        "sources.dataset",
        "sources.uri",
        "sources.given_id",
        "sources.meta",
        "sources.problem",
        "sources.problem_detail",
    )

    def __init__(self, config: IngestConfig) -> None:
        self.config = config

    @property
    def resources(self) -> Resources:
        # Files are hashed whole, so a batch may be many gigabytes: keep it small.
        return Resources(batch_size=32)

    def apply(self, row: Row, work: Workspace) -> Output:
        if row["problem"] is not None:
            raise Rejected(row["problem"], row["problem_detail"] or "")
        uri = row["uri"]
        found = _find_local(path) if (path := local_path(uri)) is not None else _find_remote(uri)
        [probed] = work.guarded("probe", {"uri": uri}, None)  # before the hash: most rejects need no whole read
        video_id, identity = _identify(row["given_id"], uri, found)
        return Output(
            [
                {
                    "video_id": video_id,
                    "dataset": row["dataset"],
                    "uri": uri,
                    "identity": identity,
                    "meta": row["meta"],
                    **{column: probed.info[column] for column in _PROBED},
                }
            ]
        )


def _identify(given_id: str | None, uri: str, found: _Found) -> tuple[str, str]:
    """video_id and identity: the manifest's id, else size and ETag of a remote file, else the SHA-256 of all bytes.

    A video_id made here is the first 32 hex digits of a SHA-256, 128 bits: for a billion videos the chance that any
    two share it is below 1e-20, and it stays short in file names, as clip_id is. `identity` keeps the whole hash. A
    weak ETag (`W/...`) does not promise equal bytes and is not used.
    """
    if given_id is not None:
        return given_id, "manifest"
    if found.bytes is not None and found.etag is not None:
        identity = f"size+etag:{found.bytes}:{found.etag}"
        return hashlib.sha256(identity.encode()).hexdigest()[:32], identity
    digest = _sha256(uri)
    return digest[:32], f"sha256:{digest}"


def _find_local(path: str) -> _Found:
    try:
        status = os.stat(path)
    except OSError as error:
        words = f"a link that leads nowhere: {error.strerror}" if os.path.islink(path) else str(error.strerror)
        raise _rejection(error)("missing", words) from error
    kind = _OTHER_KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is not None:
        raise Rejected("not_video", f"{kind}, not a regular file")
    return _Found(status.st_size, None)


def _find_remote(uri: str) -> _Found:
    import fsspec

    try:
        files, path = fsspec.core.url_to_fs(uri)
        info: dict[str, Any] = files.info(path)
    except ImportError as error:
        raise Rejected("missing", f"no driver for this URL is installed: {error}") from error
    except Exception as error:  # each storage driver has its own classes for a refused or failed request
        raise _rejection(error)("missing", _words(error)) from error
    if info.get("type") == "directory":
        raise Rejected("not_video", "a folder, not an object")
    etag = str(info.get("ETag") or info.get("etag") or "")
    size = info.get("size")
    return _Found(None if size is None else int(size), None if etag.startswith("W/") else etag.strip('"') or None)


def _rejection(error: Exception) -> type[Rejected]:
    """Rejected for a failure that will stay, Retryable for one that may pass (a network, a server, a stale mount)."""
    status = getattr(error.__cause__, "status", None)  # of HTTP, which fsspec reports as FileNotFoundError
    if status is not None:
        return Rejected if status in _LASTING_STATUS else Retryable
    if isinstance(error, OSError) and error.errno is not None:
        return Rejected if error.errno in _LASTING_ERRORS else Retryable
    return Rejected if isinstance(error, (FileNotFoundError, PermissionError)) and not error.__cause__ else Retryable


def _words(error: Exception) -> str:
    cause = error.__cause__
    status = getattr(cause, "status", None)
    if status is not None:
        return f"HTTP status {status} {getattr(cause, 'message', '')}".rstrip()
    return f"{type(error).__name__}: {error}"


def _sha256(uri: str) -> str:
    digest = hashlib.sha256()
    file: IO[bytes]
    with open_bytes(uri) as file:
        try:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        except Exception as error:  # a disk or a network that gives up in the middle
            raise Retryable("missing", f"reading stopped: {_words(error)}") from error
    return digest.hexdigest()
