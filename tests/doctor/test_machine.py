"""The machine's checks: what each finds, and what it says to do."""

from __future__ import annotations

import importlib.metadata
import re
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from pipeline.doctor import machine
from pipeline.doctor.check import Check
from tests.command_line import hicom


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray takes seconds to start."""
    monkeypatch.setattr(machine, "_ray", lambda: "2.60.0, 1 nodes, 2 CPUs, 0 GPUs")


def found() -> dict[str, Check]:
    return {check.name: check for check in machine.checks()}


@pytest.mark.usefixtures("no_ray")
def test_a_machine_that_runs_these_tests_is_sound() -> None:
    checks = found()
    assert [check for check in checks.values() if not check.ok and check.name != "scratch space"] == []
    assert checks["av"].found == importlib.metadata.version("av")
    assert checks["decoders"].found == "h264, hevc, vp9, av1"
    assert "caption.md" in checks["prompts and manifests"].found


@pytest.mark.usefixtures("no_ray")
def test_every_package_of_the_base_that_can_fail_is_checked() -> None:
    """Those that this very command needs to start are not: it would not get so far."""
    project = (Path(__file__).parent.parent.parent / "pyproject.toml").read_text()
    (base,) = re.findall(r"^dependencies = \[(.*?)^\]", project, re.M | re.S)
    named = set(re.findall(r'"([a-z-]+)', base))
    assert named - set(machine.NEEDED_PACKAGES) == {"typer", "rich", "pyyaml"}
    assert set(machine.NEEDED_PACKAGES) <= named


@pytest.mark.usefixtures("no_ray")
def test_a_package_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "NEEDED_PACKAGES", ("av", "no-such-package"))
    assert found()["no-such-package"] == Check(
        "no-such-package", False, "not installed; run: pip install hicom-248k-builder"
    )


@pytest.mark.usefixtures("no_ray")
def test_codecs_that_are_missing_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "NEEDED_ENCODERS", ("libx264", "libnonsense"))
    check = found()["encoders"]
    assert not check.ok and check.found.startswith("missing: libnonsense; install the av wheel from PyPI")


Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(("free_gib", "ok"), [(1.9, False), (2.0, True)])
def test_a_scratch_folder_that_is_too_small_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free_gib: float, ok: bool
) -> None:
    monkeypatch.setattr("pipeline.doctor.machine.tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("pipeline.doctor.machine.shutil.disk_usage", lambda _: Usage(0, 0, int(free_gib * 2**30)))
    check = found()["scratch space"]
    assert check.ok is ok and str(tmp_path) in check.found
    assert ok or "set TMPDIR to a folder with 2 GiB or more" in check.found


def test_ray_is_started_and_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    class Ray:
        def describe(self) -> str:
            steps.append("described")
            raise OSError("no shared memory")

        def close(self) -> None:
            steps.append("closed")

    monkeypatch.setattr("pipeline.engine.ray_data.RayEngine", Ray)
    assert found()["ray starts"] == Check("ray starts", False, "OSError: no shared memory")
    assert steps == ["described", "closed"]


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 1)])
def test_the_command_prints_all_and_fails_when_one_does(monkeypatch: pytest.MonkeyPatch, ok: bool, code: int) -> None:
    outcome: list[Any] = [Check("python", True, "3.11"), Check("av", ok, "[18]")]
    monkeypatch.setattr(machine, "checks", lambda: outcome)
    assert hicom("doctor", code=code).out.splitlines() == ["ok   python: 3.11", f"{'ok  ' if ok else 'FAIL'} av: [18]"]
