"""How a place and a name are written in a row.

A place is an absolute local path, a `file://` URL for odd names, or a URL that fsspec opens (`pipeline.media.open`
reads all three). Names on a disk are bytes; inside Python they are text with surrogate escapes (`os.fsdecode`),
which neither arrow nor JSON can hold, so no such text leaves this package.
"""

from __future__ import annotations

import hashlib
import os
import re
from urllib.parse import unquote_to_bytes, urlsplit

from pipeline.media.open import PROTOCOLS, uri_of

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_ODD_IN_KEY = re.compile(r"[\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MAX_KEY_CHARS = 1024


class BadPlace(ValueError):
    """A path or URL that cannot be opened as written. The message says why."""


def scheme_of(place: str) -> str | None:
    """The URL scheme in lower case; None for a local path."""
    match = _SCHEME.match(place)
    return match.group(1).lower() if match else None


def resolve(text: str, folder: str) -> str:
    """The row's form of a path or URL as a user or a manifest writes it; relative paths lie under `folder` (a
    local path or a URL).

    Raises BadPlace, its message for people, when it cannot be opened as written.
    """
    scheme = scheme_of(text)
    if scheme == "file":
        return _local(_path_of_file_url(text))
    if scheme is not None:
        return check_url(text)
    if scheme_of(folder) is not None:
        return check_url(_below(folder, text))
    return _local(os.path.join(folder, text))


def check_url(url: str) -> str:
    """The URL with its scheme in lower case. Raises BadPlace for one that we do not open."""
    scheme, rest = scheme_of(url), url.partition("://")[2]
    if scheme not in PROTOCOLS:
        raise BadPlace(f"scheme {scheme}:// is not supported; known: file, {', '.join(sorted(PROTOCOLS))}")
    if "::" in url:
        raise BadPlace("a URL with '::' would chain file systems, which is not supported")
    if any("\ud800" <= c <= "\udfff" for c in url):
        raise BadPlace("the URL is not valid Unicode")
    if scheme in ("http", "https") and "@" in urlsplit(url).netloc:
        raise BadPlace("the URL carries a user name or password, which would end up in tables; take it out")
    return f"{scheme}://{rest}"


def folder_of(place: str) -> str:
    """The folder that holds a file, as a path or URL."""
    return os.path.dirname(place) if scheme_of(place) is None else place.rpartition("/")[0]


def base_name(place: str) -> str:
    """Last component of a path or URL (without its query), for labels; never empty."""
    path = place if scheme_of(place) is None else place.partition("://")[2].partition("?")[0]
    return path.rstrip("/").rpartition("/")[2] or "root"


def stem(place: str) -> str:
    """Base name without its extension."""
    return os.path.splitext(base_name(place))[0]


def key_text(name: str) -> str:
    """A name as it stands in a source_key: backslash escapes for what does not print, bounded in length.

    Different names stay different: the backslash itself is doubled, and what is too long ends in its hash.
    """
    escaped = _ODD_IN_KEY.sub(_escape, name)
    if len(escaped) <= _MAX_KEY_CHARS:
        return escaped
    return f"{escaped[: _MAX_KEY_CHARS - 33]}~{_hash(escaped)[:32]}"


def without_query(place: str) -> str:
    """The place; of an http URL, the query, which may hold a signature, is replaced by 12 hex digits of its hash."""
    if scheme_of(place) not in ("http", "https") or "?" not in place:
        return place
    address, _, query = place.partition("?")
    return f"{address}?{_hash(query)[:12]}"


def plain_text(text: str) -> str:
    """Text that arrow and JSON can hold: undecodable bytes become backslash escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _local(path: str) -> str:
    if "\0" in path:
        raise BadPlace("the path holds a NUL character")
    try:
        return uri_of(os.path.abspath(path))
    except UnicodeEncodeError as error:
        raise BadPlace("the path holds characters that no file name can hold") from error


def _path_of_file_url(url: str) -> str:
    host, _, path = url.partition("://")[2].partition("/")
    if host not in ("", "localhost"):
        raise BadPlace(f"a file URL of another machine ({plain_text(host)!r}) cannot be opened")
    return os.fsdecode(unquote_to_bytes(f"/{path}"))


def _below(folder: str, relative: str) -> str:
    if relative.startswith("/") or ".." in relative.split("/"):
        raise BadPlace(f"a path found in a manifest of {folder} must lie below it")
    return f"{folder.rstrip('/')}/{relative.removeprefix('./')}"


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    if character == "\\":
        return "\\\\"
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
