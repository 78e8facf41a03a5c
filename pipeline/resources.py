"""Data files that the code reads by name: prompts and manifests. Imports nothing of ours.

In a checkout they are top-level folders, where people find and edit them; a wheel carries the same folders inside
the package, at `pipeline/_data/<kind>`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Kind = Literal["prompts", "manifests"]

_PACKAGE = Path(__file__).resolve().parent


def resource(kind: Kind, name: str) -> Path:
    """The file `name` (with its extension) of a kind.

    Raises LookupError, its message naming the files there are, when there is no such file. A name is never a path:
    one with a separator is not found.
    """
    known = resource_names(kind)
    if name not in known:
        raise LookupError(f"no file {name!r} in {_folder(kind)}; there are: {', '.join(known)}")
    return _folder(kind) / name


def resource_names(kind: Kind) -> list[str]:
    """Names of the files of a kind, sorted."""
    return sorted(path.name for path in _folder(kind).iterdir() if path.is_file() and not path.name.startswith("."))


def _folder(kind: Kind) -> Path:
    """Where the files of a kind are. Raises LookupError when the installation is incomplete."""
    places = [_PACKAGE / "_data" / kind, _PACKAGE.parent / kind]
    for place in places:
        if place.is_dir():
            return place
    raise LookupError(f"the folder {kind!r} is in neither {places[0]} nor {places[1]}; reinstall the package")
