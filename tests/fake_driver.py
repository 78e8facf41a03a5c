"""A stand-in for nvidia-smi, for machines with other GPUs than a test is about."""

from __future__ import annotations

from pathlib import Path

import pytest

A100 = "NVIDIA A100-SXM4-80GB"


def gpus(count: int, mib: int = 81920, used_mib: int = 0, name: str = A100) -> str:
    """What nvidia-smi answers on a machine of so many equal GPUs."""
    return "".join(f"{index}, GPU-{index:04d}-{index:04d}, {name}, {mib}, {used_mib}\n" for index in range(count))


def put_driver(folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str | None, code: int = 0) -> None:
    """Make this the only program on the PATH that answers for GPUs; None: there is no driver."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(folder))
    tool = folder / "nvidia-smi"
    tool.unlink(missing_ok=True)
    if answer is not None:
        tool.write_text(f"#!/bin/sh\n/bin/cat <<'END'\n{answer}END\nexit {code}\n")
        tool.chmod(0o755)
