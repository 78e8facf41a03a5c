"""Opening media: local files and fsspec URLs, real containers only, and a true reason when it fails.

Media comes from strangers, so the demuxer may read nothing but the bytes it was handed: playlists, other
protocols and picture lists are refused, and only regular files are opened.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote_from_bytes, unquote_to_bytes

from pipeline.stage import Rejected, Retryable

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

DEMUXERS = "mov,matroska,avi,asf,ogg,flv,mpegts,mpeg,mpegvideo,m4v,h264,hevc,mxf,rm,ivf,dv"
"""libav's demuxers that may run. No playlist (hls, dash, concat), no picture list, no device."""

PROTOCOLS = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "hdfs", "http", "https", "memory"})
"""URL schemes opened through fsspec. Chained URLs (`zip::...`) are refused."""

_FILE = "file://"
_MOV_BOXES = (b"ftyp", b"moov", b"moof", b"mdat", b"styp", b"sidx", b"free", b"skip", b"wide", b"pnot", b"uuid")
_STILL_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x1aE\xdf\xa3", "Matroska or WebM"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "ASF or WMV"),
    (b"OggS", "Ogg"),
    (b"FLV\x01", "FLV"),
    (b"\x00\x00\x01\xba", "MPEG program stream"),
    (b"\x00\x00\x01\xb3", "MPEG video"),
    (b"\x06\x0e\x2b\x34\x02\x05\x01\x01", "MXF"),
    (b".RMF", "RealMedia"),
    (b"DKIF", "IVF"),
)
_PICTURES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
)


def uri_of(path: str | bytes) -> str:
    """A local path as the text that tables hold: the path itself, or `file://` with percent escapes when its
    name is not valid UTF-8 or holds control characters. `local_path` reads both."""
    raw = os.fsencode(path)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return _FILE + quote_from_bytes(raw)
    if text.startswith(_FILE) or not text.isprintable():
        return _FILE + quote_from_bytes(raw)
    return text


def local_path(uri: str) -> str | None:
    """The path on this machine that a uri names; None when it is a URL of another machine."""
    if uri.startswith(_FILE):
        return os.fsdecode(unquote_to_bytes(uri[len(_FILE) :]))
    return None if "://" in uri else uri


def open_bytes(uri: str) -> BinaryIO:
    """Open a uri for reading bytes; seekable. Raises Rejected("missing"); Retryable when the storage fails."""
    path = local_path(uri)
    try:
        if path is not None:
            return _open_local(path)
        return _open_remote(uri)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise Rejected("missing", _os_detail(error)) from error
    except Rejected:
        raise
    except (OSError, ValueError) as error:
        kind = Rejected if path is not None else Retryable
        raise kind("missing", _os_detail(error)) from error


def _open_local(path: str) -> BinaryIO:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise Rejected("not_video", "not a regular file")
    return open(path, "rb")


def _open_remote(uri: str) -> BinaryIO:
    scheme = uri.split("://", 1)[0].lower()
    if "::" in uri or scheme not in PROTOCOLS:
        raise Rejected("missing", f"URL scheme {scheme!r} is not opened; known: {', '.join(sorted(PROTOCOLS))}")
    import fsspec

    try:
        opened: BinaryIO = fsspec.open(uri, "rb").open()
    except (OSError, ValueError):
        raise
    except ImportError as error:
        raise Rejected("missing", f"no driver for {scheme}:// is installed: {error}") from error
    except Exception as error:  # storage drivers raise their own classes (botocore, aiohttp) for a failed request
        raise Retryable("missing", f"{type(error).__name__}: {error}") from error
    return opened


def _os_detail(error: BaseException) -> str:
    strerror = getattr(error, "strerror", None)
    return f"{strerror}" if strerror else f"{type(error).__name__}: {error}"


def container_name(head: bytes) -> str | None:
    """The container that the first bytes of a file claim (at least 400 bytes, if it has them); None if none known."""
    if head[4:8] in _MOV_BOXES:
        return "MP4 or QuickTime"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "AVI"
    if any(head[o : o + 1] == b"G" and head[o + step : o + step + 1] == b"G" for o, step in ((0, 188), (4, 192))):
        return "MPEG transport stream"
    return next((name for magic, name in _SIGNATURES if head.startswith(magic)), None)


def open_media(uri: str) -> InputContainer:
    """Open a container for reading; the caller closes it (it is a context manager).

    Raises Rejected: `missing`, `not_video` (empty, a still picture, a playlist, no known container),
    `unreadable` (a known container whose structure libav cannot read).
    """
    import av

    source = open_bytes(uri)
    try:
        head = _read_head(source)
        _refuse_non_video(head)
        path = local_path(uri)
        target: Any = source
        if path is not None:
            source.close()
            target = os.path.abspath(path)  # starts with "/": libav cannot take a part of the name for a protocol
        else:
            source.seek(0)
        # libav's own words are only kept while a container opens: later, decoder threads would have to wait
        # for Python's lock to log, and whoever waits for those threads holds it.
        av.logging.set_level(av.logging.ERROR)
        try:
            with av.logging.Capture():
                opened: InputContainer = av.open(
                    target,
                    metadata_errors="replace",
                    container_options={"protocol_whitelist": "file", "format_whitelist": DEMUXERS},
                )
                return opened
        finally:
            av.logging.set_level(None)
    except av.FFmpegError as error:
        source.close()
        if isinstance(error, MemoryError):
            raise
        raise _open_failure(head, error) from error
    except BaseException:
        source.close()
        raise


def _read_head(source: BinaryIO) -> bytes:
    try:
        return source.read(512)
    except MemoryError:
        raise
    except Exception as error:  # a disk that fails, or a storage driver's own class
        raise Retryable("missing", f"it cannot be read: {_os_detail(error)}") from error


def _refuse_non_video(head: bytes) -> None:
    if not head:
        raise Rejected("not_video", "the file is empty")
    picture = next((name for magic, name in _PICTURES if head.startswith(magic)), None)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        picture = "WebP"
    if head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS:
        picture = "HEIF or AVIF"
    if picture is not None:
        raise Rejected("not_video", f"a {picture} picture")


def _open_failure(head: bytes, error: Any) -> Rejected:
    name = container_name(head)
    if name is None:
        return Rejected("not_video", "its first bytes are of no known video container")
    said = error.log[2].strip() if error.log else error.strerror
    return Rejected("unreadable", f"{name}, but its structure cannot be read: {said}")


def video_stream(container: InputContainer) -> VideoStream:
    """The stream to decode, the first of several (as OpenCV and PySceneDetect choose), with all others switched off.

    One decoder thread: workers run side by side instead, and a damaged packet costs no good frame around it (with
    frame threads it does).

    Raises Rejected: `no_video_stream` (cover art does not count), `unreadable` (no decoder for the codec).
    """
    from av.stream import Discard, Disposition

    pictures = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
    if not pictures:
        kinds = sorted({str(stream.type) for stream in container.streams})
        raise Rejected("no_video_stream", f"streams: {', '.join(kinds) or 'none'}")
    stream = pictures[0]
    if stream.codec_context is None:
        raise Rejected("unreadable", "no decoder for its video codec")
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    stream.thread_type = "SLICE"
    stream.codec_context.thread_count = 1
    return stream
