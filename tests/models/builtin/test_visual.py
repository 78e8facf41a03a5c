"""The built-in frame embedder: the same scene stays near, another one is far."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.models.registry import card, load_frame_embedder
from pipeline.models.spec import ModelSpec
from pipeline.stages.dedup import THRESHOLDS, threshold_for

SPEC = ModelSpec(family="builtin", name="visual", revision="1")
MODEL = load_frame_embedder(SPEC)
SIDE = 64
KEEP_THRESHOLD = threshold_for(SPEC.key, THRESHOLDS)


def scene(seed: int, shift_px: int = 0, brighter: int = 0) -> np.ndarray:
    """A random scene, uint8 [64, 64, 3]: a two-colour background, five discs and stripes; moved and lit at will."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    top, bottom = rng.uniform(20, 220, (2, 3))
    picture = top + (bottom - top) * (y / SIDE)[..., None]
    picture = picture + 20 * np.sign(np.sin((x + shift_px) / rng.uniform(2, 5)))[..., None]
    for _ in range(5):
        cx, cy, radius = rng.uniform(0, SIDE), rng.uniform(0, SIDE), rng.uniform(5, 14)
        inside = (x + shift_px - cx) ** 2 + (y - cy) ** 2 < radius**2
        picture = np.where(inside[..., None], rng.uniform(0, 255, 3), picture)
    seen: np.ndarray = np.clip(picture + brighter, 0, 255).astype(np.uint8)
    return seen


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    one, other = MODEL.embed(np.stack([a, b]))
    return float(one @ other)


SMALL_CHANGES: dict[str, Callable[[int], np.ndarray]] = {
    "one pixel": lambda seed: scene(seed, shift_px=1),
    "a little light": lambda seed: scene(seed, brighter=6),
    "noise": lambda seed: np.clip(
        scene(seed) + np.random.default_rng(seed).integers(-4, 5, (SIDE, SIDE, 3)), 0, 255
    ).astype(np.uint8),
}


@pytest.mark.parametrize("change", list(SMALL_CHANGES))
def test_the_same_scene_stays_near(change: str) -> None:
    near = [cosine(scene(seed), SMALL_CHANGES[change](seed)) for seed in range(30)]
    assert min(near) > 0.95, sorted(near)[:3]


def test_another_scene_is_far() -> None:
    vectors = MODEL.embed(np.stack([scene(seed) for seed in range(40)]))
    cosines = (vectors @ vectors.T)[np.triu_indices(40, 1)]
    assert np.percentile(cosines, 99) < 0.85 and cosines.max() < KEEP_THRESHOLD


PLAIN = {
    "black": (0, 0, 0),
    "grey": (128, 128, 128),
    "white": (255, 255, 255),
    "red": (200, 20, 20),
    "blue": (20, 40, 200),
}


@pytest.mark.parametrize("name", list(PLAIN))
def test_plain_pictures_differ_by_colour_and_not_by_noise(name: str) -> None:
    def picture(colour: tuple[int, int, int], seed: int) -> np.ndarray:
        noise = np.random.default_rng(seed).integers(-3, 4, (SIDE, SIDE, 3))
        seen: np.ndarray = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
        return seen

    assert cosine(picture(PLAIN[name], 1), picture(PLAIN[name], 2)) > 0.98
    for other, colour in PLAIN.items():
        if other != name:
            assert cosine(picture(PLAIN[name], 1), picture(colour, 2)) < 0.7, other


def test_embeddings_are_unit_float32_and_the_same_bytes_in_any_batch() -> None:
    rng = np.random.default_rng(0)
    frames = np.stack([*(scene(seed) for seed in range(20)), rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)])
    together = MODEL.embed(frames)
    assert together.dtype == np.float32 and together.shape == (21, MODEL.dim) == (21, 176)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    for size in (1, 2, 5):
        split = [MODEL.embed(frames[i : i + size]) for i in range(0, len(frames), size)]
        assert np.concatenate(split).tobytes() == together.tobytes()


def test_no_pictures_give_no_vectors() -> None:
    assert MODEL.embed(np.zeros((0, SIDE, SIDE, 3), np.uint8)).shape == (0, MODEL.dim)


def test_card_and_shape_agree() -> None:
    wants = card("frame_embedder", SPEC)
    assert (wants.frame_spec["width"], wants.frame_spec["height"], wants.frames) == (SIDE, SIDE, 1)
    with pytest.raises(AssertionError):
        MODEL.embed(np.zeros((1, 32, 32, 3), np.uint8))


def test_cuts_of_a_real_film_part_the_scenes(shared_videos: Path) -> None:
    """Half a second apart within a shot against the same distance across a cut; an edited film with 20 cuts."""
    name = "google_paris_office.mp4"
    with open(shared_videos / "groundtruth.csv", newline="") as file:
        cuts = [int(row["frame"]) for row in csv.DictReader(file) if row["file"] == name and row["kind"] == "cut"]
    indices, vectors = sampled(shared_videos / name, every=15)
    shots = np.searchsorted(cuts, indices, side="right")
    neighbours = (vectors[1:] * vectors[:-1]).sum(axis=1)
    same = shots[1:] == shots[:-1]
    assert len(cuts) == 20 and same.sum() > 40
    assert (neighbours[same] >= KEEP_THRESHOLD).mean() > 0.8
    assert (neighbours[~same] < KEEP_THRESHOLD).mean() > 0.9


def sampled(path: Path, every: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and embeddings of every so many frames."""
    import av

    with av.open(str(path)) as container:
        frames = {
            i: frame.to_ndarray(width=SIDE, height=SIDE, format="rgb24", interpolation="AREA")
            for i, frame in enumerate(container.decode(video=0))
            if i % every == 0
        }
    return np.array(list(frames)), MODEL.embed(np.stack(list(frames.values())))
