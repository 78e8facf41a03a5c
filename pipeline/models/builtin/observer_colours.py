"""Names of colours: the nearest of a few anchors in OKLab, where distances are about as large as people see them.

OKLab: Bjoern Ottosson, "A perceptual color space for image processing", 2020; the matrices are his.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

ANCHORS: dict[str, tuple[str, ...]] = {
    "black": ("000000", "161616"),
    "dark grey": ("333333", "4a4a4a"),
    "grey": ("6c6c6c", "8a8a8a"),
    "light grey": ("aeaeae", "cacaca"),
    "white": ("ececec", "ffffff"),
    "dark red": ("5a0c0c", "8b0000"),
    "red": ("c81414", "ff0000", "e04040"),
    "pink": ("ff9fb8", "ff69b4", "e8a0a8"),
    "orange": ("ff8c00", "e8701c", "f0a050"),
    "brown": ("8b5a2b", "5c3317", "7a4a30", "3c2414"),
    "beige": ("d2b48c", "e8d8b8", "b09878"),
    "yellow": ("ffff00", "f0d020", "f0e068"),
    "olive": ("808000", "5a5a20", "8a8850"),
    "dark green": ("006400", "1e4620", "103010", "3c5a3c"),
    "green": ("008c00", "00ff00", "30c030", "4ca04c", "567d3c"),
    "light green": ("90ee90", "a8e060", "b8d8a8"),
    "teal": ("008080", "206a6a"),
    "cyan": ("00ffff", "40e0d0", "20b8c8"),
    "dark blue": ("00008b", "141e78", "101838", "203060"),
    "blue": ("0000ff", "2060e0", "3c50c8"),
    "light blue": ("87ceeb", "add8e6", "5090e8", "8cb0e0"),
    "blue-grey": ("60748c", "90a4b4", "3c4c5c"),
    "purple": ("800080", "6a28a0", "401050", "6c5090"),
    "lilac": ("b090e0", "d8bfe8"),
    "magenta": ("ff00ff", "d020a0"),
}
"""Names with sRGB anchors. Our table: common English names, several anchors for names that span a wide range."""

NAMES: tuple[str, ...] = tuple(ANCHORS)

_RGB_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LMS_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_LEVELS = 32
"""Levels a channel in the lookup table: 32768 colours, each within 4 of 255 of what it stands for."""


def to_oklab(rgb: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """OKLab of sRGB colours [..., 3] from 0 to 255: lightness 0 to 1, then two colour axes of about +-0.3."""
    share = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    lab: npt.NDArray[np.float64] = np.cbrt(linear @ _RGB_TO_LMS.T) @ _LMS_TO_LAB.T
    return lab


def name_indices(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Index into NAMES for every pixel of uint8 RGB pictures [..., 3]."""
    cell = frames.astype(np.uint16) * _LEVELS // 256
    indices: npt.NDArray[np.uint8] = _table()[(cell[..., 0] * _LEVELS + cell[..., 1]) * _LEVELS + cell[..., 2]]
    return indices


@lru_cache(maxsize=1)
def _table() -> npt.NDArray[np.uint8]:
    """Index into NAMES for the middle of every cell of the RGB cube, [32768]."""
    owner = np.array([index for index, name in enumerate(NAMES) for _ in ANCHORS[name]], dtype=np.uint8)
    anchors = to_oklab([list(bytes.fromhex(code)) for name in NAMES for code in ANCHORS[name]])
    middles = (np.arange(_LEVELS) + 0.5) * (256 / _LEVELS) - 0.5
    cells = to_oklab(np.stack(np.meshgrid(middles, middles, middles, indexing="ij"), axis=-1).reshape(-1, 3))
    distances = ((cells[:, None, :] - anchors[None, :, :]) ** 2).sum(axis=-1)
    nearest: npt.NDArray[np.uint8] = owner[distances.argmin(axis=1)]
    return nearest
