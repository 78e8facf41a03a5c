"""A look at every node before work starts. One Ray, of one node, serves all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.engine import ray_probe
from pipeline.engine.ray_data import RayEngine
from pipeline.engine.ray_probe import probe_nodes
from pipeline.stage import UserError
from pipeline.store.files import Files, open_files

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    engine = RayEngine()
    yield
    engine.close()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    made = open_files(str(tmp_path / "run"))
    made.put("run.yaml", b"format: 1")
    return made


def test_a_node_that_sees_everything_is_let_through(files: Files, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    probe_nodes(files, "run.yaml", [str(tmp_path / "videos")])


def refusal(files: Files, *inputs: str) -> str:
    with pytest.raises(UserError) as caught:
        probe_nodes(files, "run.yaml", list(inputs))
    told = str(caught.value)
    assert told.startswith("not every node of the cluster can do this run:\n  ")
    return told


def test_what_a_node_does_not_see_is_named(files: Files, tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere")
    assert f"does not see the input {missing}; use a shared disk or an object store" in refusal(files, missing)
    other = open_files(str(tmp_path / "other run"))
    assert f"does not see the run folder {other.root}; use a shared disk" in refusal(other)
    assert len(refusal(other, missing).splitlines()) == 3


def test_another_version_of_the_program_is_named(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_probe, "code_hash", lambda: "0123456789abcdef")
    assert "has another version of this program; install the same hicom-248k-builder on every node" in refusal(files)


def test_a_node_that_does_not_answer_is_named(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_probe, "PROBE_S", 0.0)
    assert "did not answer within 0 s" in refusal(files)


def test_the_codes_hash_is_of_what_the_files_hold() -> None:
    assert ray_probe.code_hash() == ray_probe.code_hash()
    assert len(ray_probe.code_hash()) == 16
