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
"""`auto`: a GPU where the option `gpus` reserves one and this process sees it, else the CPU."""


def torch_device(device: Device, gpus: float) -> torch.device:
    """The device to compute on. `gpus`: what the model reserves; a process that reserves none may see them all.
    Raises UserError for a GPU that this process does not see."""
    import torch

    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise UserError(
            "device: cuda was asked for and this process sees no GPU; under Ray a model's process sees only the GPUs "
            "that its option `gpus` reserves. Set gpus: 1, or device: auto"
        )
    return torch.device("cuda" if device == "cuda" or (device == "auto" and gpus > 0 and there) else "cpu")


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


@contextmanager
def room_for(key: str, items: str) -> Iterator[None]:
    """A call of the model `key` with so many items. Raises UserError when the GPU has no room for them."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as err:
        raise UserError(
            f"model {key}: no room on the GPU for {items} at once; lower its option max_batch, or take dtype: bfloat16"
        ) from err
