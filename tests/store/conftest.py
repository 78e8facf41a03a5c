"""Run folders of every kind: a disk, fsspec's memory, and a real S3 server on loopback."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from pipeline.store.files import Files, open_files


def make_root(kind: str, request: pytest.FixtureRequest, name: str) -> str:
    """A fresh root of a kind (local, memory, s3) whose last folder has this name."""
    if kind == "local":
        folder: Path = request.getfixturevalue("tmp_path")
        return str(folder / name)
    if kind == "memory":
        return f"memory://{uuid.uuid4().hex}/{name}"
    return f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}/{name}"


@pytest.fixture(params=["local", "memory", "s3"])
def files(request: pytest.FixtureRequest) -> Files:
    """An empty run folder of each kind, with a space and a quote in its name."""
    return open_files(make_root(request.param, request, "a run's folder"))


@pytest.fixture(params=["local", "s3"])
def shared_files(request: pytest.FixtureRequest) -> Files:
    """An empty run folder that other processes can reach."""
    return open_files(make_root(request.param, request, "a run's folder"))


@pytest.fixture
def local(tmp_path: Path) -> Files:
    """An empty run folder on a disk."""
    return open_files(str(tmp_path / "run"))
