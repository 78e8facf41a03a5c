"""A tiny InternVideo2 stage-2 model of the true architecture, and weights for one of any size.

Every number follows from a tensor's name and its place in it, by integer arithmetic alone: the same on any machine, in
any order, without keeping a file. The golden's generator fills the original model with the very same numbers.

    python -m tests.models.tiny_internvideo2 FOLDER     a checkpoint in the published format that `load` opens
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.models.internvideo2.sizes import SIZE_FILE, Size, TextSize, VisionSize
from pipeline.models.spec import ModelSpec

Floats = npt.NDArray[np.float32]
Shapes = dict[str, tuple[int, ...]]

WORDS = """
    the of about video dog cat ball red blue sky tree run jump play cook book life record news show sci fi do docu
    ##s ##ing ##ed ##ment ##ary ##port 3
"""
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split(), *"abcdefghijklmnopqrstuvwxyz", *",.'!?-"]

TINY = Size(
    file="tiny.pt",
    vision=VisionSize(
        width=48,
        depth=3,
        heads=4,
        mlp_width=96,
        pool_heads=3,
        pool_width=20,
        image_px=28,
        patch_px=14,
        frames=4,
        image_positions=True,
    ),
    text=TextSize(width=32, layers=2, fusion_layers=1, heads=4, mlp_width=64, vocabulary=len(VOCABULARY), positions=48),
    embedding=16,
)

SENTENCES = [
    "A video about a dog.",
    "dog",
    "A sci-fi show: the red ball runs, jumping... and playing!",
    "A documentary or report about the blue sky, a tree, and life",
    "the cat " * 19 + "run",
    "Dóg — 3-D/3d (zeppelins), naïve skÿ",
]
"""One word to 39 word pieces, the most there may be; punctuation, accents, words that are not in the vocabulary."""


NAMES = Path(__file__).parent / "internvideo2" / "golden" / "internvideo2_names.json"
"""Names and shapes of checkpoints as the authors' code builds them (internvideo2/golden/original.py): tiny, 1B, 6B."""

_TIED = {
    "text_encoder.cls.predictions.decoder.weight": "text_encoder.bert.embeddings.word_embeddings.weight",
    "text_encoder.cls.predictions.decoder.bias": "text_encoder.cls.predictions.bias",
}
"""Weights with two names in the original."""


def build(folder: Path, seed: int = 0) -> Path:
    """Write a tiny checkpoint in the published format, its size and its vocabulary into a folder; returns it."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"module": tensors(seed)}, folder / TINY.file)
    write_size(folder, TINY)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return folder


def write_size(folder: Path, size: Size, **changed: Mapping[str, object]) -> None:
    """Write the file that says how large the model is; `changed`: other values, right or wrong, for its parts."""
    value = dataclasses.asdict(size)
    for part, changes in changed.items():
        value[part] |= changes
    (folder / SIZE_FILE).write_text(json.dumps(value), encoding="utf-8")


def tensors(seed: int = 0) -> dict[str, Any]:
    """The tiny checkpoint's tensors by name."""
    import torch

    return {name: torch.from_numpy(tensor(name, shape, seed)) for name, shape in shapes("tiny").items()}


def shapes(size: str) -> Shapes:
    """Names and shapes of a checkpoint of `NAMES`."""
    return unfolded(json.loads(NAMES.read_text(encoding="utf-8"))[size])


def spec(folder: Path, **options: object) -> ModelSpec:
    """The tiny model as a config names it."""
    return ModelSpec(family="internvideo2", name="tiny", revision="0", path=str(folder), options=dict(options))


def videos(count: int, frames: int, side: int) -> npt.NDArray[np.uint8]:
    """Videos uint8 [count, frames, side, side, 3]: noise over a colour that drifts."""
    noise = uniform(f"videos {frames} {side}", (count, frames, side, side, 3))
    base = uniform("colours", (count, frames, 1, 1, 3))
    return np.clip(127.5 + 70 * base + 55 * noise, 0, 255).astype(np.uint8)


def pieces(vocabulary: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Word pieces all over a vocabulary and their mask, both [6, 40], of texts of 1 to 40 pieces."""
    lengths = np.array([1, 2, 7, 20, 39, 40])[:, None]
    mask = (np.arange(40) < lengths).astype(np.int64)
    drawn = ((uniform("pieces", mask.shape).astype(np.float64) + 1) / 2 * vocabulary).astype(np.int64)
    return np.minimum(drawn, vocabulary - 1) * mask, mask


def tensor(name: str, shape: tuple[int, ...], seed: int = 0) -> npt.NDArray[np.float32 | np.int64]:
    """A weight of a likely size by its name: so that nothing in the model is too small to matter.

    A token begins small, so that what the first normalisation adds below its root matters too.
    """
    name = _TIED.get(name, name)
    if name.endswith("position_ids"):
        return np.broadcast_to(np.arange(shape[-1], dtype=np.int64), shape).copy()
    return np.asarray(uniform(f"{seed} {name}", shape) * _spread(name, shape) + _middle(name, shape))


def _middle(name: str, shape: tuple[int, ...]) -> np.float32:
    if name.endswith("gamma"):
        return np.float32(0.3)
    return np.float32(len(shape) == 1 and name.endswith("weight"))  # of a normalisation


def _spread(name: str, shape: tuple[int, ...]) -> np.float32:
    if "pos_embed" in name or "cls_token" in name or "patch_embed" in name:
        return np.float32(0.02)
    if "_embeddings" in name:
        return np.float32(1)
    if len(shape) < 2:
        return np.float32(0.1 if name.endswith("gamma") else 0.2)
    return np.float32((3 / np.prod(shape[1:])) ** 0.5)  # of variance 1 over the numbers that are added up


def uniform(name: str, shape: tuple[int, ...]) -> Floats:
    """Numbers from -1 to 1, evenly spread, exact multiples of 2^-23: splitmix64 of their place, started by the name."""
    start = np.uint64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
    flat = np.empty(int(np.prod(shape, dtype=np.int64)), np.float32)
    for at in range(0, len(flat), 1 << 20):  # in pieces, so that the largest tensors need no memory beside
        x = np.arange(at + 1, min(at + (1 << 20), len(flat)) + 1, dtype=np.uint64)
        x = x * np.uint64(0x9E3779B97F4A7C15) + start
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = (x ^ (x >> np.uint64(31))) >> np.uint64(40)  # 24 bits
        flat[at : at + len(x)] = (x.astype(np.int64) - (1 << 23)).astype(np.float32) * np.float32(2.0**-23)
    return flat.reshape(shape)


def folded(of: Shapes) -> dict[str, list[int]]:
    """Names that differ in one number, and that number counts from one place to another, as one: blocks.{0-39}.x"""
    groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for name, shape in of.items():
        number = re.search(r"(?<=\.)\d+(?=\.)", name)
        key = (name if number is None else f"{name[: number.start()]}{{}}{name[number.end() :]}", shape)
        groups.setdefault(key, []).append(-1 if number is None else int(number[0]))
    for (_, _), numbers in groups.items():
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), numbers
    return {
        template.replace("{}", f"{{{numbers[0]}-{numbers[-1]}}}"): list(shape)
        for (template, shape), numbers in groups.items()
    }


def unfolded(of: dict[str, list[int]]) -> Shapes:
    """What `folded` was given, in another order."""
    found: Shapes = {}
    for template, shape in of.items():
        number = re.search(r"\{(\d+)-(\d+)\}", template)
        if number is None:
            found[template] = tuple(shape)
            continue
        for i in range(int(number[1]), int(number[2]) + 1):
            found[template.replace(number[0], str(i))] = tuple(shape)
    return found


if __name__ == "__main__":
    build(Path(sys.argv[1]))
