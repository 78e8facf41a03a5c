"""Where a torch model computes, and in which type of numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from pipeline.stage import UserError

if TYPE_CHECKING:
    import torch

DType = Literal["float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]
"""`auto`: a GPU where this process sees one, else the CPU."""


def torch_device(device: Device) -> torch.device:
    """The device to compute on. Raises UserError for a GPU that this process does not see."""
    import torch

    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise UserError(
            "device: cuda was asked for and this process sees no GPU; under Ray a model's process sees only the GPUs "
            "that its option `gpus` reserves. Set gpus: 1, or device: auto"
        )
    return torch.device("cuda" if device != "cpu" and there else "cpu")


def torch_dtype(name: DType) -> torch.dtype:
    """The type of numbers by its name."""
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


@contextmanager
def inference() -> Iterator[None]:
    """No gradients; and on a GPU convolutions in full float32, which TensorFloat-32, torch's default for them, is not,
    and the same way at every call. For the thread that enters it."""
    import torch

    steady = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.inference_mode(), steady:
        yield
