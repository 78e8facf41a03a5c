"""A tiny open_clip model of the true architecture, with random weights, as a folder that open_clip loads.

Nothing is downloaded: the tokenizer's vocabulary ships inside open_clip.

    python -m tests.models.tiny_open_clip FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

IMAGE_PX = 32
WIDTH = 64
DIM = 48
CONTEXT = 24
"""Tokens of a sentence that it reads, with the marks around it."""
MODEL: dict[str, Any] = {
    "embed_dim": DIM,
    "vision_cfg": {"image_size": IMAGE_PX, "layers": 3, "width": WIDTH, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PREPROCESS: dict[str, Any] = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def build(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write open_clip_config.json and open_clip_model.safetensors. `changes` go into the model's config, those of
    `preprocess` into its preprocessing."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    preprocess = {**PREPROCESS, **changes.pop("preprocess", {})}
    model_cfg = {**MODEL, **changes}
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        with torch.no_grad():
            for name, tensor in sorted(model.named_parameters()):
                if "ln_" in name or name == "logit_scale":
                    continue
                spread = tensor.shape[-1] ** -0.5 if tensor.ndim > 1 else 0.5
                tensor.normal_(0, spread)  # wider than open_clip begins with: pictures must end far from each other
    save_file(model.state_dict(), str(folder / "open_clip_model.safetensors"))
    return folder


if __name__ == "__main__":
    build(Path(sys.argv[1]))
