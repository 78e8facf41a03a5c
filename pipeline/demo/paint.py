"""Pictures for the demo videos: a pattern in two colours that moves evenly.

Every look is a tile of the picture's size, uint8 [H, W], where 0 stands for the first colour and 255 for the
second. A frame is the tile moved by drift times time, around the edges, and coloured.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

COLORS: dict[str, tuple[int, int, int]] = {
    "black": (12, 12, 14),
    "slate": (58, 60, 64),
    "grey": (128, 128, 128),
    "silver": (198, 198, 198),
    "white": (244, 244, 244),
    "maroon": (96, 22, 8),
    "red": (222, 48, 22),
    "orange": (244, 140, 30),
    "gold": (240, 196, 48),
    "cream": (250, 240, 208),
    "forest": (10, 72, 28),
    "green": (32, 168, 60),
    "lime": (160, 232, 96),
    "navy": (14, 22, 92),
    "blue": (32, 72, 228),
    "sky": (132, 190, 250),
    "purple": (128, 40, 168),
}
"""Names and their red, green and blue."""


def plain(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width), np.uint8)


def disc(height: int, width: int) -> np.ndarray:
    """A disc a third of the picture high, in the middle."""
    y, x = np.mgrid[:height, :width]
    inside = (y - height // 2) ** 2 + (x - width // 2) ** 2 <= (height // 6) ** 2
    return np.where(inside, 255, 0).astype(np.uint8)


def checker(height: int, width: int) -> np.ndarray:
    """Fields an eighteenth of the height, so that a small copy of the picture still shows them."""
    field = height // 18
    y, x = np.mgrid[:height, :width]
    return np.where((y // field + x // field) % 2 == 0, 0, 255).astype(np.uint8)


def stripes(height: int, width: int) -> np.ndarray:
    """Eight upright waves from the first colour to the second and back."""
    wave = np.sin(np.arange(width) * (2 * np.pi * 8 / width))
    return np.broadcast_to(np.round(127.5 + 127.5 * wave), (height, width)).astype(np.uint8)


def glow(height: int, width: int) -> np.ndarray:
    """The first colour at the left and right edges, the second in the middle."""
    wave = np.sin(np.arange(width) * (np.pi / width)) ** 2
    return np.broadcast_to(np.round(255 * wave), (height, width)).astype(np.uint8)


def clouds(height: int, width: int) -> np.ndarray:
    """Smooth random spots; the same ones every time, and without a seam when moved around the edges."""
    noise: np.ndarray = np.random.default_rng(248).standard_normal((height, width))
    for axis in (0, 1):
        for step in (1, 2, 4, 4):
            noise = noise + np.roll(noise, step, axis)
    low, high = noise.min(), noise.max()
    tile: np.ndarray = np.round(255 * (noise - low) / (high - low)).astype(np.uint8)
    return tile


LOOKS: dict[str, Callable[[int, int], np.ndarray]] = {
    "plain": plain,
    "disc": disc,
    "checker": checker,
    "stripes": stripes,
    "glow": glow,
    "clouds": clouds,
}


def colored(tile: np.ndarray, colors: tuple[str, str], right_px: int, down_px: int) -> np.ndarray:
    """uint8 [H, W, 3] RGB: the tile moved right and down by whole pixels, in two colours of COLORS."""
    share = np.arange(256)[:, None] / 255
    first, second = (np.array(COLORS[name]) for name in colors)
    palette = np.round(first + (second - first) * share).astype(np.uint8)
    picture: np.ndarray = palette[np.roll(tile, (down_px, right_px), (0, 1))]
    return picture
