"""run.yaml: what a run folder was made with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from pipeline.stage import UserError
from pipeline.store.files import Files

FORMAT = 1
"""Version of the run folder's layout."""
RUN_FILE = "run.yaml"


def read_run_file(files: Files) -> dict[str, Any] | None:
    """run.yaml as written; None in a fresh folder. Raises UserError when it cannot be read or is of another format."""
    body = files.get(RUN_FILE)
    if body is None:
        return None
    try:
        run = yaml.safe_load(body)
    except yaml.YAMLError as err:
        raise UserError(f"{files.url(RUN_FILE)} is not YAML ({err}). Restore it, or start with a new --out.") from err
    if not isinstance(run, Mapping) or "format" not in run:
        raise UserError(f"{files.url(RUN_FILE)} is not a run file of this program. Choose another --out.")
    if run["format"] != FORMAT:
        raise UserError(
            f"{files.url(RUN_FILE)} has run folder format {run['format']}, this program reads {FORMAT}. "
            "Use the version that made it, or start with a new --out."
        )
    wrong = [name for name, kind in _HOLDS.items() if not isinstance(run.get(name), kind)]
    if wrong:
        raise UserError(
            f"{files.url(RUN_FILE)} is not whole: {', '.join(wrong)} missing or of another kind. "
            "Restore it, or start with a new --out."
        )
    return dict(run)


_HOLDS = {"profile": str, "overrides": dict, "inputs": list, "config": dict, "stages": dict, "versions": dict}
"""What a run file must hold, in the order in which it is written."""


def write_run_file(files: Files, run: Mapping[str, Any]) -> None:
    """Write run.yaml whole."""
    body = yaml.safe_dump({"format": FORMAT, **run}, sort_keys=False, allow_unicode=True)
    files.put(RUN_FILE, body.encode())
