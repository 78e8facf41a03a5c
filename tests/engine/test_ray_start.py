"""How much shared memory Ray is given, and what is no address."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.engine import ray_start
from pipeline.engine.limits import EngineConfig
from pipeline.engine.ray_start import OBJECT_STORE_BYTES_PER_CPU, object_store_bytes
from pipeline.stage import UserError

GIB = 1 << 30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A machine of 16 cores and so much free shared memory."""
    here = SimpleNamespace(free=100 * GIB)
    monkeypatch.setattr(ray_start, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(ray_start.os, "cpu_count", lambda: 16)
    monkeypatch.setattr(ray_start.shutil, "disk_usage", lambda path: here)
    return here


def test_frames_of_all_workers_fit_twice(machine: SimpleNamespace) -> None:
    workers = 2 * 16
    for in_flight in (256 << 20, 1 * GIB):
        assert object_store_bytes(in_flight) == 2 * workers * in_flight


def test_small_bounds_get_what_ray_needs_anyway(machine: SimpleNamespace) -> None:
    assert object_store_bytes(EngineConfig().in_flight_bytes) == 16 * OBJECT_STORE_BYTES_PER_CPU


def test_shared_memory_that_is_not_there_is_not_asked_for(machine: SimpleNamespace, tmp_path: Path) -> None:
    machine.free = 10 * GIB
    assert object_store_bytes(1 * GIB) == 8 * GIB
    machine.free = 64 << 20  # as in a container that nobody gave more
    assert object_store_bytes(1 * GIB) == 16 * OBJECT_STORE_BYTES_PER_CPU


@pytest.mark.parametrize("address", ["somewhere", "host:port", ":6379"])
def test_what_is_no_address_is_told(address: str) -> None:
    with pytest.raises(UserError, match=r"expected HOST:PORT, ray://HOST:PORT or auto"):
        ray_start.start(address, 1)
