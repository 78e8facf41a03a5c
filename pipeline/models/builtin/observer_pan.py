"""Whether the whole picture slides, as under a panning camera: phase correlation, believed when its parts agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Luma = npt.NDArray[np.float32]

_LEAST_TOTAL = 0.1
"""Share of the picture's width or height that it must slide over the clip."""
_LEAST_STEP = 0.005
"""Share of the picture that counts as a slide from one sampled frame to the next."""
_LEAST_AGREEMENT = 0.7
"""Share of the steps between frames that must slide the same way."""
_SECOND_PEAK = 0.6
"""A correlation whose second peak is above this share of the first is ambiguous (patterns that repeat)."""
_PEAK_RADIUS = 3
"""Pixels around a peak that belong to it."""
_GAIN = 0.7
"""A part agrees when sliding leaves less than this share of its difference."""
_TEXTURED = 2.0
"""Standard deviation of luma, of 255, from which a part can tell whether it slid."""
_LEAST_PARTS = 5
"""Of nine, textured parts needed: one object on an empty background is no pan."""


@dataclass(frozen=True)
class Pan:
    """How far the picture's content slides over the clip, as shares of its width (+ right) and height (+ down)."""

    dx: float
    dy: float


def find_pan(luma: Luma) -> Pan | None:
    """The slide of luma [T, H, W], summed over the steps that agree; None when there is none or it is uncertain."""
    if len(luma) < 3:
        return None
    height, width = luma.shape[1:]
    window = np.outer(np.hanning(height), np.hanning(width)).astype(np.float32)
    spectra = np.fft.rfft2((luma - luma.mean(axis=(1, 2), keepdims=True)) * window)
    steps = [_step(luma[i], luma[i + 1], spectra[i], spectra[i + 1]) for i in range(len(luma) - 1)]
    slides = np.array(steps, dtype=np.float64) / (width, height)  # [T - 1, 2]
    axis = int(np.abs(slides.sum(axis=0)).argmax())
    sign = np.sign(slides[:, axis].sum())
    agree = slides[:, axis] * sign > _LEAST_STEP
    total = slides[agree].sum(axis=0)
    if agree.mean() < _LEAST_AGREEMENT or abs(total[axis]) < _LEAST_TOTAL:
        return None
    return Pan(dx=float(total[0]), dy=float(total[1]))


def _step(before: Luma, after: Luma, before_spectrum: np.ndarray, after_spectrum: np.ndarray) -> tuple[int, int]:
    """Pixels (dx, dy) that the content slid; (0, 0) when it did not, or not certainly."""
    height, width = before.shape
    product = after_spectrum * np.conj(before_spectrum)
    surface = np.fft.irfft2(product / (np.abs(product) + 1e-6), s=(height, width))
    dy, dx = (int(i) for i in np.unravel_index(int(surface.argmax()), surface.shape))
    peak = surface[dy, dx]
    around = np.arange(-_PEAK_RADIUS, _PEAK_RADIUS + 1)
    surface[np.ix_((dy + around) % height, (dx + around) % width)] = 0
    dy, dx = dy - height * (dy > height // 2), dx - width * (dx > width // 2)
    if surface.max() > _SECOND_PEAK * peak or (dx, dy) == (0, 0) or abs(dx) > width // 2 or abs(dy) > height // 2:
        return 0, 0
    return (dx, dy) if _parts_agree(before, after, dx, dy) else (0, 0)


def _parts_agree(before: Luma, after: Luma, dx: int, dy: int) -> bool:
    """Whether the slide explains the difference in nearly every textured part of the picture."""
    height, width = before.shape
    to = np.s_[max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)]
    came_from = np.s_[max(0, -dy) : height + min(0, -dy), max(0, -dx) : width + min(0, -dx)]
    slid, still = np.abs(after[to] - before[came_from]), np.abs(after[to] - before[to])
    verdicts = []
    for part in _ninths(slid.shape):
        if after[to][part].std() > _TEXTURED:
            verdicts.append(slid[part].mean() < _GAIN * still[part].mean())
    return len(verdicts) >= _LEAST_PARTS and float(np.mean(verdicts)) >= _LEAST_AGREEMENT


def _ninths(shape: tuple[int, ...]) -> list[tuple[slice, slice]]:
    rows, columns = (np.linspace(0, side, 4).astype(int) for side in shape[:2])
    return [(slice(rows[r], rows[r + 1]), slice(columns[c], columns[c + 1])) for r in range(3) for c in range(3)]
