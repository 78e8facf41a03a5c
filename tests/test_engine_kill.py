"""vLLM's processes, and the process that holds them, killed for good (SIGKILL) in the middle of `generate`."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests import clips
from tests.run_helpers import Command, read_tables, twice

pytest.importorskip("vllm")
from tests.models import tiny_qwen2vl

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found through /proc"),
]
COLORS = ("maroon", "sky", "black", "gold")
VIDEOS = 4


def draw(folder: Path) -> Path:
    """Videos of four shots of six seconds each."""
    folder.mkdir()
    for n in range(VIDEOS):
        shots = [(COLORS[(n + shot) % 4], 60 + n) for shot in range(4)]
        clips.write_clip(folder / f"{n}.mp4", clips.shots(*shots), keyframes=[(60 + n) * shot for shot in (1, 2, 3)])
    return folder


def profile(folder: Path) -> Path:
    """Built-in embedders, and a describer that takes one clip after another, so that a kill finds many waiting."""
    options = {**tiny_qwen2vl.OPTIONS, "max_num_seqs": 1}
    weights = tiny_qwen2vl.build(folder / "weights")
    models = {
        "video_text": {"family": "builtin", "name": "attributes", "revision": "1"},
        "frame": {"family": "builtin", "name": "visual", "revision": "1"},
        "describer": {"family": "vllm", "name": "tiny/qwen2-vl", "path": str(weights), "options": options},
    }
    path = folder / "killed.yaml"
    path.write_text(
        yaml.safe_dump({"models": models, "select": {"categories": "categories-demo", "random_rest": 1000}})
    )
    return path


def wait_for_clips(command: Command, process: subprocess.Popen[str], count: int) -> None:
    """Until so many clips are described."""
    while sum(stage == "generate" for stage, _ in command.trace("done")) < count:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def test_the_run_ends_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in tiny_qwen2vl.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    command, run = Command(tmp_path / "faults"), tmp_path / "run"
    process = command.start("run", draw(tmp_path / "videos"), "--profile", profile(tmp_path), "--out", run)
    wait_for_clips(command, process, 3)
    assert command.kill("engine") >= 1
    wait_for_clips(command, process, 7)
    assert command.kill("model") == 1
    printed, _ = process.communicate()
    assert process.returncode == 0, printed

    tables = read_tables(run)
    rejected = tables.rejected("generate")
    assert tables.ids("cut") == tables.ids("generate") | rejected.keys(), "nothing is lost"
    assert not set(rejected.values()) - {"bad_output", "truncated", "refused"}, rejected
    assert tables.ids("generate")
    begun = twice(command.trace("begin"))["generate"]
    asked = twice([r for r in command.trace("request") if not r[1].startswith("rehearsal")])["generate"]
    figures = f"{len(tables.ids('cut'))} clips, {begun} taken up twice, {asked} turns asked of an engine twice"
    logging.getLogger(__name__).info(figures)
    assert asked <= 4, f"each kill finds one clip in the engine, with two turns at most; {figures}"
    assert command.trace("load").count(("generate", "model")) >= 3
    assert command.wait_until_gone() < 60, "no engine is left behind"
