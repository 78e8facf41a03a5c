"""A profile of the paper's three kinds of models: tiny checkpoints of the true architectures, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.models import tiny_internvideo2, tiny_open_clip, tiny_qwen2vl

FRAME_MODEL = "open_clip:tiny@0"


def write(folder: Path, **describer_options: Any) -> Path:
    """Make the checkpoints below a folder; returns the profile's file."""
    values = {
        "models": {
            "video_text": {
                "family": "internvideo2",
                "name": "tiny",
                "revision": "0",
                "path": str(tiny_internvideo2.build(folder / "internvideo2")),
            },
            "frame": {
                "family": "open_clip",
                "name": "tiny",
                "revision": "0",
                "path": str(tiny_open_clip.build(folder / "open_clip")),
            },
            "describer": {
                "family": "vllm",
                "name": "tiny",
                "revision": "0",
                "path": str(tiny_qwen2vl.build(folder / "qwen2vl")),
                "options": {**tiny_qwen2vl.OPTIONS, **describer_options},
            },
        },
        # Random weights find nearly all pictures alike: a threshold near 1 keeps some shots and drops others.
        "dedup": {"thresholds": {FRAME_MODEL: 0.9999}},
    }
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file
