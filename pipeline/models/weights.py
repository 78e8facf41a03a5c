"""Where a model's files are: a local folder, or the Hugging Face hub's cache, filled on first use.

A file that is needed is given as a pattern as in a shell, matched against its path within the model's folder; a
pattern may hold alternatives, best first: "*.safetensors|*.bin" wants the first of the two that is there. Only a
commit names the same files for ever, so a hub's revision must be one.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.models.spec import ModelSpec
from pipeline.stage import NO_ROOM, UserError

_REPO = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
COMMITS: dict[str, str] = {
    "timm/vit_large_patch14_clip_336.openai": "81e38efc4637de5023b10e75a7f9bd1c6fa6b010",
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": "1a25a446712ba5ee05982a381eed697ef9b435cf",
}
"""Commits of repositories that a shipped profile names without one, by open_clip's tags. Taken from public code and
logs that pin or name them, not from the hub itself."""


class ToDownload(str):
    """A line about files that are not here and that `folder` brings by itself, unless it must not. Who adds words to
    such a line keeps its type: a run that may download does not stop for it."""

    __slots__ = ()


def lacking_packages(modules: Sequence[str], extra: str) -> list[str]:
    """A line for each top-level module that cannot be imported; `extra` is the extra of ours that brings it."""
    missing = [name for name in modules if find_spec(name) is None]
    return [f"the package {name} is not installed; run: pip install 'hicom-248k-builder[{extra}]'" for name in missing]


def require(*modules: str, extra: str) -> None:
    """Check that top-level modules can be imported. Raises UserError that says what to install."""
    lines = lacking_packages(modules, extra)
    if lines:
        raise UserError(f"this model cannot be loaded: {lines[0]}")


def folder(spec: ModelSpec, patterns: Sequence[str], optional: Sequence[str] = (), main_of: str | None = None) -> Path:
    """The local folder with the model's files, downloaded when they are not in the cache (never with HF_HUB_OFFLINE=1).

    Every one of `patterns` has a file there; those of `optional` are there if the model has them. `main_of` is for
    files of a repository whose commit the spec does not say: that repository, at its commit in COMMITS, else at the one
    that was its main branch when this machine first asked. Raises UserError.
    """
    if spec.path is not None:
        lines = _lacking_in_path(spec, patterns)
        if lines:
            raise UserError(lines[0])
        return Path(spec.path).expanduser()
    wanted = _wanted(spec, patterns, optional, main_of)
    require("huggingface_hub", extra="models")
    return _cached(wanted) or _downloaded(wanted)


def lacking_weights(
    spec: ModelSpec, patterns: Sequence[str], optional: Sequence[str] = (), main_of: str | None = None
) -> list[str]:
    """What `folder` would have to download or complain about, as lines; asks no network."""
    if spec.path is not None:
        return _lacking_in_path(spec, patterns)
    try:
        wanted = _wanted(spec, patterns, optional, main_of)
    except UserError as err:
        return [str(err)]
    lines = lacking_packages(["huggingface_hub"], "models")
    try:
        if lines or _cached(wanted) is not None:
            return lines
    except UserError as err:
        return [str(err)]
    return [ToDownload(f"model {spec.key}: {_not_here(wanted)}")]


def present(files: Sequence[str], patterns: Sequence[str]) -> tuple[list[str], list[str]]:
    """Of patterns with alternatives: the alternatives that `files` satisfy, and the patterns that none satisfies."""
    taken, missing = [], []
    for pattern in patterns:
        there = [one for one in pattern.split("|") if fnmatch.filter(files, one)]
        taken += there[:1]
        missing += [] if there else [pattern]
    return taken, missing


def read_json(file: Path) -> dict[str, Any]:
    """A mapping from a JSON file among a model's files. Raises UserError for a damaged one."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as err:
        raise UserError(f"{file} is damaged ({err}); copy it again, or download it again") from err
    if not isinstance(found, dict):
        raise UserError(f"{file} is damaged (a {type(found).__name__}, expected a mapping); copy it again")
    return found


def files_in(place: Path) -> list[str]:
    """Paths of all files below a folder, relative to it, sorted."""
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())


def _lacking_in_path(spec: ModelSpec, patterns: Sequence[str]) -> list[str]:
    place = Path(str(spec.path)).expanduser()
    if not place.is_dir():
        return [f"model {spec.key}: its path {str(place)!r} is not a folder; give the folder that holds the weights"]
    try:
        missing = present(files_in(place), patterns)[1] or list(_missing_shards(place))
    except UserError as err:
        return [f"model {spec.key}: {err}"]
    if not missing:
        return []
    return [f"model {spec.key}: the folder {str(place)!r} has no {_listed(missing)}"]


def _listed(patterns: Sequence[str]) -> str:
    return ", no ".join(" or ".join(pattern.split("|")) for pattern in patterns)


def _missing_shards(place: Path) -> Iterator[str]:
    """Files that an index of sharded weights names and that are not beside it. Raises UserError for a damaged index."""
    for index in sorted(place.glob("*.index.json")):
        shards = set(read_json(index).get("weight_map", {}).values())
        yield from sorted(shard for shard in shards if not (place / shard).is_file())


@dataclass(frozen=True)
class _Wanted:
    """Files of a repository of the hub."""

    key: str
    """The model's key, for messages."""
    repo: str
    revision: str
    patterns: Sequence[str]
    optional: Sequence[str]


def _wanted(spec: ModelSpec, patterns: Sequence[str], optional: Sequence[str], main_of: str | None) -> _Wanted:
    if main_of is not None:
        return _Wanted(spec.key, main_of, COMMITS.get(main_of, "main"), patterns, optional)
    if not _REPO.fullmatch(spec.name):
        raise UserError(
            f"model {spec.key}: its name must be a repository of the Hugging Face hub, organisation/name, or its "
            f"`path` be set; got {spec.name!r}"
        )
    if not _COMMIT.fullmatch(spec.revision):
        raise UserError(
            f"model {spec.key}: its revision must be a commit of huggingface.co/{spec.name}, 40 hex digits, since a "
            f"branch or tag may move; got {spec.revision!r}. That page's history lists them; or set the model's `path`"
        )
    return _Wanted(spec.key, spec.name, spec.revision, patterns, optional)


def _not_here(wanted: _Wanted) -> str:
    revision = "" if wanted.revision == "main" else f" --revision {wanted.revision}"
    return (
        f"the files of {wanted.repo} are not all on this machine; run once without --offline, or `hf download "
        f"{wanted.repo}{revision}`, or set the model's `path` to a folder that holds them"
    )


def _cached(wanted: _Wanted) -> Path | None:
    """The hub's cached snapshot, if it is whole. Raises UserError for a damaged one."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.file_download import repo_folder_name

    store = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=wanted.repo, repo_type="model")
    ref = store / "refs" / wanted.revision
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else wanted.revision
    snapshot = store / "snapshots" / commit
    if not snapshot.is_dir():
        return None
    taken, missing = present(files_in(snapshot), wanted.patterns)
    if missing or any(_missing_shards(snapshot)):
        return None
    try:  # knows from the hub's listing, where it has that, whether optional files are still to come
        found = snapshot_download(
            wanted.repo, revision=commit, allow_patterns=[*taken, *wanted.optional], local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    return Path(found)


def _downloaded(wanted: _Wanted) -> Path:
    """The hub's snapshot, brought here. Raises UserError that says what to do."""
    import httpx
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        raise UserError(f"model {wanted.key}: offline, and {_not_here(wanted)}")
    try:
        offered = HfApi().list_repo_files(wanted.repo, revision=wanted.revision)
        taken, missing = present(offered, wanted.patterns)
        if missing:
            raise UserError(f"model {wanted.key}: the hub's {wanted.repo} has no {_listed(missing)}")
        found = snapshot_download(wanted.repo, revision=wanted.revision, allow_patterns=[*taken, *wanted.optional])
    except (OSError, ValueError, httpx.HTTPError) as err:
        raise UserError(f"model {wanted.key}: {_why_not_downloaded(err, wanted)}") from err
    return Path(found)


def _why_not_downloaded(err: Exception, wanted: _Wanted) -> str:
    """What kept a hub's files away, and what to do."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{wanted.repo}"
    log_in = "run `hf auth login` or set HF_TOKEN, on every node that loads the model"
    if isinstance(err, errors.GatedRepoError):
        return f"its weights are gated; accept the terms on {page}, then {log_in}"
    if isinstance(err, errors.RepositoryNotFoundError):
        return f"{page} is not there or is private; check the name, or {log_in}"
    if isinstance(err, errors.RevisionNotFoundError):
        return f"{page} has no revision {wanted.revision}; its history lists those there are"
    if isinstance(err, errors.HfHubHTTPError):
        return f"{page} answered {err.response.status_code}: {_first_line(err)}"
    if isinstance(err, OSError) and err.errno in NO_ROOM:
        return f"no room for its weights in {constants.HF_HUB_CACHE}; set HF_HOME to a larger disk"
    return f"the hub cannot be reached ({type(err).__name__}: {_first_line(err)}); {_not_here(wanted)}"


def _first_line(err: Exception) -> str:
    return (str(err).splitlines() or [""])[0]
