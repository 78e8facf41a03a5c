"""`hicom demo` as a stranger runs it: from an installed wheel, in a folder of their own, on Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.demo.videos import BROKEN, VIDEOS

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Demo:
    """A finished demo, and the means to ask it."""

    folder: Path
    env: dict[str, str]
    printed: str

    def hicom(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "cli", *words], cwd=self.folder, env=self.env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def rows(self, sql: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self.hicom("query", "demo-run/run", sql, "--format", "json"))
        return rows


@pytest.fixture(scope="module")
def demo(wheel_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("elsewhere")
    env = {**os.environ, "PYTHONPATH": str(wheel_site), "COLUMNS": "200"}
    where = Demo(folder, env, "")
    return Demo(folder, env, where.hicom("demo"))


def test_every_shot_ends_as_the_table_says(demo: Demo) -> None:
    table = {f"videos/{v.name}": [shot.outcome for shot in v.shots] for v in VIDEOS}
    found: dict[str, list[str]] = {}
    for row in demo.rows(
        "SELECT source_key, outcome FROM shots JOIN videos USING (video_id) ORDER BY source_key, shot"
    ):
        found.setdefault(row["source_key"], []).append(row["outcome"])
    assert found == {name: table[name] for name in found}
    outcomes = {outcome for shots in found.values() for outcome in shots}
    assert outcomes == {"kept", "redundant", "too_short"}


def test_the_quotas_bind_and_the_broken_files_are_rejected(demo: Demo) -> None:
    reasons = {row["id"]: row["reason"] for row in demo.rows("SELECT id, reason FROM rejects WHERE stage = 'ingest'")}
    assert reasons == {f"videos/{name}": reason for name, reason in BROKEN.items()}
    (left_over,) = demo.rows("SELECT count(*) AS videos FROM rejects WHERE reason = 'not_selected'")
    (selected,) = demo.rows('SELECT count(*) AS videos FROM "select"')
    assert left_over["videos"] >= 1
    assert left_over["videos"] + selected["videos"] == len(VIDEOS)


def test_clips_are_copied_where_that_is_exact_and_encoded_elsewhere(demo: Demo) -> None:
    methods = {row["method"] for row in demo.rows("SELECT DISTINCT method FROM clips")}
    assert methods == {"copy", "encode"}


def test_it_prints_the_funnel_three_clips_and_what_to_try_next(demo: Demo) -> None:
    for reason in (*BROKEN.values(), "not_selected", "redundant", "too_short"):
        assert reason in demo.printed
    assert demo.printed.count("  Q: ") == demo.printed.count("  A: ") == 9
    assert "hicom run MY_VIDEOS" in demo.printed


def test_a_second_time_there_is_nothing_to_do(demo: Demo) -> None:
    before = sorted((demo.folder / "demo-run").rglob("*.parquet"))
    demo.hicom("demo")
    assert sorted((demo.folder / "demo-run").rglob("*.parquet")) == before
