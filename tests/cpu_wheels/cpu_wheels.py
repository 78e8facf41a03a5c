"""Lets torchvision and torchaudio as PyPI has them (built for CUDA) be imported beside a PyTorch built for CPUs.

Their compiled parts cannot be loaded there. torchvision then stops, because it describes operators that nobody
declared; torchaudio because loading raises. Neither compiled part is used by anything in this project. `python
tests/cpu_wheels/cpu_wheels.py` puts a line into the environment's site-packages that calls `watch` in every process of
it, those of Ray and vLLM included. For test environments only: with matching builds it changes nothing, and users who
install matching builds need nothing.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

LINE_FILE = "hicom_test_cpu_wheels.pth"
_kept: list[Any] = []
"""Declared operators vanish with the library object that declared them."""


def declare_torchvision_operators(module: ModuleType) -> None:
    """Before torchvision runs: declare the two operators it describes, unless its compiled part brings them."""
    import torch

    for library in Path(str(module.__file__)).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
            return
        except OSError:
            continue
    declared = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(declared)


def tolerate_missing_library(module: Any) -> None:
    """After torchaudio's loader is defined: a library that cannot be loaded is one that is not there."""
    load = module._load_lib

    def load_or_not(name: str) -> bool:
        try:
            return bool(load(name))
        except OSError:
            return False

    module._load_lib = load_or_not


BEFORE: dict[str, Callable[[ModuleType], None]] = {"torchvision": declare_torchvision_operators}
AFTER: dict[str, Callable[[ModuleType], None]] = {"torchaudio._extension.utils": tolerate_missing_library}


class Finder(importlib.abc.MetaPathFinder):
    """Mends a module when it is first imported, and costs the other imports nothing."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in BEFORE and name not in AFTER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            BEFORE.get(name, _nothing)(module)
            run(module)
            AFTER.get(name, _nothing)(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _nothing(_: ModuleType) -> None:
    pass


def watch() -> None:
    """Mend the modules when they are imported, if ever."""
    if not any(type(finder).__name__ == Finder.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())


def install() -> Path:
    """Make every process of this environment call `watch` at its start. Returns the file that does."""
    here = str(Path(__file__).resolve().parent)
    line = f"import sys; sys.path.append({here!r}); import cpu_wheels; cpu_wheels.watch()\n"
    file = Path(sysconfig.get_path("purelib")) / LINE_FILE
    file.write_text(line, encoding="utf-8")
    return file


if __name__ == "__main__":
    install()
