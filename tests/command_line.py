"""The command as users meet it, in this process: arguments in, exit code and words out. And whether a run balances."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from dataclasses import dataclass
from typing import Any

import cli
from pipeline.plan import PLAN, SOURCES
from tests.run_helpers import Tables

LOCAL = ("--engine", "local")


@dataclass(frozen=True)
class Said:
    """What a command came to."""

    code: int
    out: str
    err: str


def hicom(*args: object, code: int = 0) -> Said:
    """Run `hicom ARGS` in this process. Its exit code must be `code`, and it must not end in a traceback."""
    out, err = io.StringIO(), io.StringIO()
    ended: Any = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main([str(arg) for arg in args])
        except SystemExit as stop:
            ended = stop.code
    said = Said(ended, out.getvalue(), err.getvalue())
    assert said.code == code, said
    assert "Traceback" not in said.out + said.err, said
    return said


def sets(*settings: str) -> list[str]:
    """Settings as arguments."""
    return [arg for setting in settings for arg in ("--set", setting)]


def refused(*args: object, code: int = 2) -> str:
    """Run a command that must be refused; what it says, in one message that starts with `error:` (2) or `failed:`."""
    said = hicom(*args, code=code)
    assert said.err.startswith("error: " if code == 2 else "failed: "), said
    assert said.err.count("\nerror: ") + said.err.count("\nfailed: ") == 0, said
    return said.err


def assert_balance(tables: Tables, through: str = PLAN[-1].name) -> None:
    """Nothing disappears: through this stage, ids in = ids out + ids rejected, and shots likewise."""
    rejects, above = tables.rows["rejects"], SOURCES
    for stage in PLAN:
        key = stage.grain_in.value
        ids_in = [row[key] for row in tables.rows[above]]
        ids_out = {row[key] for row in tables.rows[stage.name]}
        rejected = [row["id"] for row in rejects if row["stage"] == stage.name and row["shot"] is None]
        assert len(ids_in) == len(set(ids_in)), f"{stage.name}: an id comes in twice"
        assert sorted(ids_in) == sorted([*ids_out, *rejected]), f"{stage.name} does not balance"
        if stage.name in SHOTS:
            _assert_shots(tables, stage.name, set(rejected))
        if stage.name == through:
            return
        above = stage.name


SHOTS = {"dedup": ("split", "shots"), "filter": ("dedup", "distinct_shots"), "cut": ("filter", "kept_shots")}
"""Stages whose shots balance, and the column that the shots come in."""


def _assert_shots(tables: Tables, stage: str, rejected: set[str]) -> None:
    table, column = SHOTS[stage]
    shots_in = {row["video_id"]: len(row[column]) for row in tables.rows[table]}
    if stage == "cut":
        out = Counter(row["video_id"] for row in tables.rows["cut"])
    else:
        column_out = {"dedup": "distinct_shots", "filter": "kept_shots"}[stage]
        out = Counter({row["video_id"]: len(row[column_out]) for row in tables.rows[stage]})
    dropped = Counter(r["id"] for r in tables.rows["rejects"] if r["stage"] == stage and r["shot"] is not None)
    for video, count in shots_in.items():
        whole = video in rejected and not dropped[video]  # a crash loses the item before it has shots to tell of
        assert whole or count == out[video] + dropped[video], f"{stage}: shots of {video} do not balance"
