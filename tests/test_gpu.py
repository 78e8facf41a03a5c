"""The profile for one GPU with its real weights: by hand, `pytest -m gpu`, where there are a GPU and the weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.doctor import checks
from tests.command_line import assert_balance, hicom
from tests.run_helpers import read_tables

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]


def test_the_small_profile_describes_every_clip(tiny_videos: Path, tmp_path: Path) -> None:
    lacking = [check.found for check in checks("small", (), offline=True) if not check.ok]
    assert not lacking, lacking
    hicom("run", tiny_videos, "--profile", "small", "--out", tmp_path / "run", "--offline")
    tables = read_tables(tmp_path / "run")
    assert_balance(tables)
    assert len(tables.rows["generate"]) == len(tables.rows["cut"]) > 0
    for row in tables.rows["generate"]:
        assert len(row["caption"].split()) > 20, "a real model writes a paragraph"
