"""Checks of the machine that every run will need."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
import tempfile
from functools import partial
from typing import Literal

from pipeline.doctor.check import Check, Lacking, check
from pipeline.resources import resource_names

NEEDED_PACKAGES = (
    "av",
    "duckdb",
    "fsspec",
    "numpy",
    "opencv-python-headless",
    "pyarrow",
    "pydantic",
    "ray",
    "scenedetect-headless",
)
NEEDED_ENCODERS = ("libx264",)
NEEDED_DECODERS = ("h264", "hevc", "vp9", "av1")
SCRATCH_GIB = 2
"""Free space below which the scratch folder is called too small, GiB: our choice; clips are cut there one by one."""


def checks() -> list[Check]:
    """All checks, in the order of a run's needs."""
    return [
        check("python", _python),
        *[check(name, partial(importlib.metadata.version, name)) for name in NEEDED_PACKAGES],
        check("encoders", lambda: _codecs(NEEDED_ENCODERS, "w")),
        check("decoders", lambda: _codecs(NEEDED_DECODERS, "r")),
        check("ray starts", _ray),
        check("scratch space", _scratch),
        check("prompts and manifests", lambda: ", ".join(resource_names("prompts") + resource_names("manifests"))),
    ]


def _python() -> str:
    return sys.version.split()[0]


def _codecs(names: tuple[str, ...], mode: Literal["r", "w"]) -> str:
    from pipeline.media.codecs import missing_codecs

    missing = missing_codecs(names, mode)
    if missing:
        raise Lacking(f"missing: {', '.join(missing)}; install the av wheel from PyPI, which carries them")
    return ", ".join(names)


def _ray() -> str:
    from pipeline.engine.ray_data import RayEngine

    engine = RayEngine()
    try:
        return engine.describe()
    finally:
        engine.close()


def _scratch() -> str:
    folder = tempfile.gettempdir()
    free_gib = shutil.disk_usage(folder).free / 2**30
    if free_gib < SCRATCH_GIB:
        raise Lacking(f"{free_gib:.1f} GiB free in {folder}; set TMPDIR to a folder with {SCRATCH_GIB} GiB or more")
    return f"{free_gib:.0f} GiB free in {folder}"
