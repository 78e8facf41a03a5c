"""The GPUs of a machine, by a stand-in for the driver's tool."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from pipeline import gpus
from pipeline.gpus import Gpu, NoAnswer, visible_gpus
from tests.fake_driver import put_driver

H200 = "0, GPU-aaaa-1111, NVIDIA H200, 143771, 0\n"
A100 = "1, GPU-bbbb-2222, NVIDIA A100-SXM4-80GB, 81920, 1024\n"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return partial(put_driver, tmp_path, monkeypatch)


def test_without_a_driver_there_is_none(driver: Callable[..., None]) -> None:
    driver(None)
    assert visible_gpus() == []


def test_the_drivers_answer_is_read(driver: Callable[..., None]) -> None:
    driver(H200 + A100)
    assert visible_gpus() == [
        Gpu(0, "GPU-aaaa-1111", "NVIDIA H200", 143771 << 20, 0),
        Gpu(1, "GPU-bbbb-2222", "NVIDIA A100-SXM4-80GB", 80 << 30, 1 << 30),
    ]


def test_memory_that_the_driver_has_no_number_for_is_unknown(driver: Callable[..., None]) -> None:
    driver("0, GPU-cccc, NVIDIA GB10, [N/A], [N/A]\n")
    assert visible_gpus() == [Gpu(0, "GPU-cccc", "NVIDIA GB10", None, 0)]


@pytest.mark.parametrize(
    ("chosen", "indices"),
    [
        ("1", [1]),
        ("1, 0", [1, 0]),
        ("GPU-bb", [1]),
        ("", []),
        ("-1", []),
        ("0,7,1", [0]),
        ("NoDevFiles", []),
        ("MIG-aa,MIG-bb", [-1, -1]),
    ],
)
def test_the_environments_choice_is_heeded(
    driver: Callable[..., None], monkeypatch: pytest.MonkeyPatch, chosen: str, indices: list[int]
) -> None:
    driver(H200 + A100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert [gpu.index for gpu in visible_gpus()] == indices


def test_a_part_of_a_gpu_counts_with_unknown_memory(
    driver: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver(H200)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-aaaa-1111")
    assert visible_gpus() == [Gpu(gpus.SLICE, "MIG-aaaa-1111", "MIG device", None, 0)]


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", 9, "couldn't communicate"),
        ("No devices were found\n", 0, "answered 'No devices were found'; expected index"),
        ("0, GPU-aaaa, NVIDIA H200, much, 0\n", 0, "answered '0, GPU-aaaa, NVIDIA H200, much, 0'"),
    ],
)
def test_a_driver_that_does_not_answer_is_told(
    driver: Callable[..., None], answer: str, code: int, message: str
) -> None:
    driver(answer, code)
    with pytest.raises(NoAnswer, match=message):
        visible_gpus()


def test_a_driver_that_hangs_is_not_waited_for(
    driver: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver("")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    monkeypatch.setattr(gpus, "PATIENCE_S", 0.2)
    with pytest.raises(NoAnswer, match="timed out"):
        visible_gpus()
