"""The GPUs of this machine, as its driver tells them, without torch. Imports nothing of ours."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

COMMAND = ("nvidia-smi", "--query-gpu=index,uuid,name,memory.total,memory.used", "--format=csv,noheader,nounits")
SLICE = -1
PATIENCE_S = 30.0
"""Seconds to wait for the driver's tool; it answers in one or two, and hangs where the driver does."""


class NoAnswer(Exception):
    """The driver's tool is there and does not say what GPUs there are; the message holds its words."""


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    index: int
    """As the driver's tool counts; SLICE for a part of a GPU (MIG), which it does not count."""
    uuid: str
    name: str
    total_bytes: int | None
    """Memory; None where the driver has no number for it (memory shared with the CPU, a part of a GPU)."""
    used_bytes: int
    """Memory that other processes hold already; 0 where the driver has no number for it."""


def visible_gpus() -> list[Gpu]:
    """The GPUs that a process started here sees, CUDA_VISIBLE_DEVICES heeded; none where there is no driver.

    Raises NoAnswer.
    """
    try:
        asked = subprocess.run(COMMAND, capture_output=True, text=True, timeout=PATIENCE_S)
    except FileNotFoundError:
        return []
    except (OSError, subprocess.TimeoutExpired) as err:
        raise NoAnswer(f"nvidia-smi: {err}") from err
    if asked.returncode != 0:
        raise NoAnswer(f"nvidia-smi: {(asked.stdout + asked.stderr).strip()}")
    return _chosen([_read(line) for line in asked.stdout.splitlines() if line.strip()])


def _read(line: str) -> Gpu:
    try:
        index, uuid, name, *memory_mib = (field.strip() for field in line.split(","))
        total, used = (None if text == "[N/A]" else int(text) << 20 for text in memory_mib)
        return Gpu(int(index), uuid, name, total, used or 0)
    except ValueError as err:
        raise NoAnswer(f"nvidia-smi answered {line!r}; expected index, uuid, name, memory.total, memory.used") from err


def _chosen(gpus: list[Gpu]) -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES names, by index or the beginning of the uuid, up to the first that is not there
    (so CUDA reads it); all when it is not set. Parts of GPUs are taken to be there: the driver's tool lists whole GPUs.
    """
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return gpus
    chosen: list[Gpu] = []
    for name in (text.strip() for text in wanted.split(",")):
        found = [gpu for gpu in gpus if str(gpu.index) == name or _is_uuid(gpu, name)]
        if gpus and name.startswith("MIG-"):
            found = [Gpu(SLICE, name, "MIG device", None, 0)]
        if not found:
            break
        chosen += found[:1]
    return chosen


def _is_uuid(gpu: Gpu, name: str) -> bool:
    return name.startswith("GPU-") and gpu.uuid.startswith(name)
