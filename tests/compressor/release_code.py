"""Builds the compressor of the authors' code, from a checkout of github.com/lntzm/HICom that is not part of this one.

Their package imports training and video libraries that a compressor does not use; those that are missing here are
stood in for by empty modules. No line of `hicom/model/projector.py` is changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import transformers

UNUSED = {
    "cv2": (),
    "imageio": (),
    "decord": ("VideoReader", "cpu"),
    "moviepy": (),
    "moviepy.editor": ("VideoFileClip",),
}
"""Modules that their package imports and the compressor does not use, and the names it takes from them."""
SIGLIP = "siglip-so400m-patch14-384"


def projector_builder(checkout: Path) -> Callable[..., Any]:
    """Their `build_vision_projector`, imported without their packages' own start-up code."""
    for name, taken in UNUSED.items():
        try:
            import_module(name)
        except ImportError:
            sys.modules[name] = ModuleType(name)
            vars(sys.modules[name]).update(dict.fromkeys(taken, object))
    for name, folder in (("hicom", checkout / "hicom"), ("hicom.model", checkout / "hicom" / "model")):
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    transformers.TRANSFORMERS_CACHE = ""  # gone from newer versions, and used for downloads only
    return import_module("hicom.model.projector").build_vision_projector  # type: ignore[no-any-return]


def projector_config(kind: str, guide: str | None, out_width: int) -> SimpleNamespace:
    """The fields of their model's config that the compressor reads; `kind` is their mm_projector_type."""
    return SimpleNamespace(
        mm_projector_type=kind,
        mm_vision_tower=SIGLIP,
        mm_hidden_size=1152,
        hidden_size=out_width,
        use_guide=guide,
        use_clip_scale="",
        max_num_frames=128,
        mm_patch_merge_type="flat",
    )
