"""The built-in frame embedder: what colours lie where, how much of each there is, and which way the edges run.

A program of a few lines, no weights. It tells one shot from another; it knows nothing of content, and a real model
replaces it in every profile but `demo`. An embedding has three parts, each about unit length before the whole is
brought to unit length, so that a cosine is about the mean of the three parts' cosines:

- layout, 48 numbers: luma (minus mid grey), R - luma and B - luma, means over a 4 x 4 grid;
- palette, 64 numbers: RGB histogram of 4 x 4 x 4 soft bins, square root of the shares;
- edges, 64 numbers: gradient strength by 4 directions over a 4 x 4 grid, square roots.

The parts are damped and not just normalised: a plain grey picture has hardly any layout, a plain one no edges, and
noise must not fill in for them. Sums are of integers or in a fixed order per picture, so a picture gives the same
bytes in a batch of any size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.media.frames import FrameSpec
from pipeline.models import registry
from pipeline.models.protocols import Card, Frames, Vectors
from pipeline.models.spec import ModelSpec

NAME, REVISION = "visual", "1"
_SIDE = 64
"""Width and height of a picture, pixels."""
_CELLS = 4
"""Cells a side of the layout and edge grids."""
_BINS = 4
"""Soft bins a channel of the palette."""
_DIRECTIONS = 4
_LAYOUT_DAMPING = 0.1
"""Root mean square of a cell's luma and chroma (of 1) at which the layout counts for 0.7 of its full weight."""
_EDGE_DAMPING = 4.0
"""Likewise for the edges: length of the square roots of mean gradient a cell."""
_NO_EDGE = 8.0
"""Gradients (grey levels of 255, over two pixels) up to this are taken for noise."""

Floats = npt.NDArray[np.float64]


def card(spec: ModelSpec) -> Card:
    registry.require_builtin(spec, NAME, REVISION)
    return Card(
        frame_spec=FrameSpec(width=_SIDE, height=_SIDE, resize="stretch", interpolation="area").to_json(),
        frames=1,
    )


def load(spec: ModelSpec) -> VisualEmbedder:
    registry.require_builtin(spec, NAME, REVISION)
    return VisualEmbedder(spec)


class VisualEmbedder:
    """See the module's text; a `FrameEmbedder`."""

    dim = 3 * _CELLS**2 + _BINS**3 + _DIRECTIONS * _CELLS**2
    max_batch = 128

    def __init__(self, spec: ModelSpec) -> None:
        self.key = spec.key

    def embed(self, frames: Frames) -> Vectors:
        """Embeddings [B, 176] of pictures uint8 [B, 64, 64, 3] RGB, each of unit length."""
        assert frames.dtype == np.uint8 and frames.shape[1:] == (_SIDE, _SIDE, 3), (frames.dtype, frames.shape)
        parts = np.concatenate([_layout(frames), _palette(frames), _edges(frames)], axis=1)
        return _damped(parts, 0.0).astype(np.float32)


def _layout(frames: Frames) -> Floats:
    cell = _SIDE // _CELLS
    cells = frames.reshape(-1, _CELLS, cell, _CELLS, cell, 3).sum(axis=(2, 4), dtype=np.int64) / (255.0 * cell * cell)
    red, green, blue = cells[..., 0], cells[..., 1], cells[..., 2]
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    layout = np.stack([luma - 0.5, red - luma, blue - luma], axis=-1).reshape(len(frames), 3 * _CELLS**2)
    return _damped(layout, _LAYOUT_DAMPING * _CELLS)


def _palette(frames: Frames) -> Floats:
    fine = 4 * _BINS  # fine bins a channel; exact counts first, softened after
    red, green, blue = np.moveaxis(frames // (256 // fine), -1, 0).astype(np.int64)
    picture = np.arange(len(frames))[:, None, None]
    codes = ((picture * fine + red) * fine + green) * fine + blue
    counts = np.bincount(codes.ravel(), minlength=len(frames) * fine**3).reshape(-1, fine, fine, fine)
    shares: npt.NDArray[Any] = counts / _SIDE**2
    for _ in range(3):  # soften the first axis and turn it to the back, for each channel
        shares = np.tensordot(shares, _soft_bins(fine), axes=(1, 0))
    palette: Floats = np.sqrt(shares).reshape(len(frames), _BINS**3)
    return palette


def _soft_bins(fine: int) -> Floats:
    """Weights [fine, _BINS] that share each fine bin between the two nearest soft bins (multiples of 1/8: exact)."""
    position = np.clip((np.arange(fine) + 0.5) * _BINS / fine - 0.5, 0, _BINS - 1)
    distance = np.abs(position[:, None] - np.arange(_BINS)[None, :])
    return np.maximum(0.0, 1.0 - distance)


def _edges(frames: Frames) -> Floats:
    red, green, blue = np.moveaxis(frames, -1, 0).astype(np.float32)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    across, down = np.zeros_like(luma), np.zeros_like(luma)
    across[:, :, 1:-1] = luma[:, :, 2:] - luma[:, :, :-2]
    down[:, 1:-1, :] = luma[:, 2:, :] - luma[:, :-2, :]
    strength = np.maximum(np.hypot(across, down) - _NO_EDGE, 0.0)
    turn = np.arctan2(down, across) / np.pi * _DIRECTIONS  # one unit a direction; opposite ways are the same edge
    direction = np.rint(turn).astype(np.int64) % _DIRECTIONS
    line = np.arange(_SIDE) // (_SIDE // _CELLS)
    cell = (np.arange(len(frames))[:, None, None] * _CELLS + line[:, None]) * _CELLS + line[None, :]
    size = len(frames) * _CELLS**2 * _DIRECTIONS
    sums = np.bincount((cell * _DIRECTIONS + direction).ravel(), weights=strength.ravel(), minlength=size)
    means = sums.reshape(len(frames), _CELLS**2 * _DIRECTIONS) / (_SIDE // _CELLS) ** 2
    return _damped(np.sqrt(means), _EDGE_DAMPING)


def _damped(vectors: Floats, damping: float) -> Floats:
    """Vectors brought towards unit length, the weak ones less; to unit length when the damping is 0."""
    damped: Floats = vectors / np.sqrt((vectors**2).sum(axis=1, keepdims=True) + damping**2)
    return damped
