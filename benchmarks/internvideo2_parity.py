"""Our InternVideo2 against what the authors' code gave for the same weights, at a published size.

    python benchmarks/internvideo2_parity.py original.npz 1B [--depth 40] [--dtype float32] [--device cpu]

tests/models/internvideo2/golden/original.py says how original.npz is made; the depth must be the same. Weights
are made from their names, so none are needed; 1B takes 6 GB in float32. Prints differences relative to the largest
number, to the length, and (of numbers over a tenth of the largest) to each number, and the smallest cosine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np

from pipeline.models.device import torch_device, torch_dtype
from pipeline.models.internvideo2 import sizes as internvideo2_sizes
from tests.models import tiny_internvideo2 as tiny

NAMES = {"1B": "OpenGVLab/InternVideo2-Stage2_1B-224p-f4", "6B": "OpenGVLab/InternVideo2-Stage2_6B-224p-f4"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("original", type=Path)
    parser.add_argument("size", choices=list(NAMES))
    parser.add_argument("--depth", type=int)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="cpu")
    args = parser.parse_args()

    import torch

    from pipeline.models.internvideo2.embedder import InternVideo2Embedder
    from pipeline.models.internvideo2.model import InternVideo2

    size = internvideo2_sizes.PUBLISHED[NAMES[args.size]]
    size = dataclasses.replace(size, vision=dataclasses.replace(size.vision, depth=args.depth or size.vision.depth))
    with torch.device("meta"):
        model = InternVideo2(size)
    dtype = torch_dtype(args.dtype)
    weights = {
        name: torch.from_numpy(tiny.tensor(name, tuple(of.shape))).to(dtype) for name, of in model.state_dict().items()
    }
    model.load_state_dict(weights, strict=True, assign=True)
    model.text_encoder.fill_buffers()
    device = torch_device(args.device, gpus=1)
    model = model.eval().requires_grad_(False).to(device)

    theirs = np.load(args.original)
    embedder = InternVideo2Embedder(args.size, model, None, 1)  # type: ignore[arg-type]
    vision = size.vision
    frames = tiny.videos(len(theirs["videos"]), vision.frames, vision.image_px)
    started = time.perf_counter()
    report("videos", embedder.embed_videos(frames), theirs["videos"])
    print(json.dumps({"seconds_per_video": round((time.perf_counter() - started) / len(frames), 3)}))
    with torch.inference_mode():
        pieces, mask = (torch.from_numpy(of).to(device) for of in tiny.pieces(size.text.vocabulary))
        report("texts", model.texts(pieces, mask).float().cpu().numpy(), theirs["texts"])


def report(what: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    """Print how far unit vectors are apart."""
    ours, theirs = (of.astype(np.float64) for of in (ours, theirs))
    ours, theirs = (of / np.linalg.norm(of, axis=-1, keepdims=True) for of in (ours, theirs))
    apart, largest = np.abs(ours - theirs), np.abs(theirs).max()
    sizeable = np.abs(theirs) > largest / 10
    figures = {
        "of_largest": apart.max() / largest,
        "of_length": np.linalg.norm(ours - theirs, axis=-1).max(),
        "of_each": (apart[sizeable] / np.abs(theirs[sizeable])).max(),
        "least_cosine": (ours * theirs).sum(axis=-1).min(),
    }
    print(what, json.dumps({name: float(f"{value:.9g}") for name, value in figures.items()}))


if __name__ == "__main__":
    main()
