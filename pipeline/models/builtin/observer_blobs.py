"""Areas of one distinct colour that can be followed through a clip: found by colour name, kept only when certain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.models.builtin.observer_colours import NAMES, to_oklab

_LEAST_SHARE, _MOST_SHARE = 0.004, 0.3
"""Shares of the picture that such an area may cover in a frame."""
_DOMINANCE = 0.7
"""Share of its colour's pixels that the largest connected area must hold: else there are several alike."""
_PRESENCE = 0.8
"""Share of the frames in which the area must be found, the first and the last among them."""
_STEADINESS = 2.5
"""How many times larger its largest size may be than its smallest."""
_LONGEST_STEP = 0.3
"""Shares of the picture it may move from frame to frame; more is another area."""
_LEAST_CONTRAST = 0.08
"""Distance in OKLab from the picture around it."""
_MOST_BLOBS = 3


@dataclass(frozen=True)
class Blob:
    """An area of one colour and its way through the picture."""

    colour: str
    share: float
    """Of the picture, median over the frames."""
    luma: float
    """Mean, 0 to 255."""
    contrast: float
    """Distance in OKLab of its mean colour from that of the rest of the picture."""
    xs: tuple[float, ...]
    """Places of its middle, frame by frame where it was found, left to right 0 to 1."""
    ys: tuple[float, ...]
    """The same, top to bottom."""
    is_brightest: bool
    """Nothing else in the picture is as bright."""
    is_darkest: bool
    """Nothing else in the picture is as dark."""


def find_blobs(
    frames: npt.NDArray[np.uint8], names: npt.NDArray[np.uint8], luma: npt.NDArray[np.float32]
) -> tuple[Blob, ...]:
    """The areas of frames uint8 [T, H, W, 3] with colour names [T, H, W] and luma [T, H, W], most striking first."""
    shares = (np.bincount(names.ravel(), minlength=len(NAMES)) / names.size).tolist()
    found = []
    for index, share in enumerate(shares):
        if not _PRESENCE * _LEAST_SHARE < share < _MOST_SHARE:
            continue
        masks = _largest_areas(names, index)
        present = np.asarray(masks.any(axis=(1, 2)))  # [T]
        if present.mean() >= _PRESENCE and present[0] and present[-1]:
            blob = _blob(NAMES[index], frames[present], luma[present], masks[present])
            if blob is not None:
                found.append(blob)
    found.sort(key=lambda blob: (-_strikingness(blob), blob.colour))
    return tuple(found[:_MOST_BLOBS])


def _largest_areas(names: npt.NDArray[np.uint8], index: int) -> npt.NDArray[np.bool_]:
    """Per frame the largest connected area of a colour; nothing where its size is wrong or there are several alike."""
    import cv2

    kernel = np.ones((3, 3), np.uint8)
    result = np.zeros(names.shape, dtype=np.bool_)
    for frame, picture in enumerate(names):
        # Opening takes away the thin rims in which one colour passes into another.
        opened = cv2.morphologyEx((picture == index).astype(np.uint8), cv2.MORPH_OPEN, kernel)
        _, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=8)
        sizes = stats[1:, cv2.CC_STAT_AREA]
        if not sizes.size:
            continue
        largest = int(sizes.max())
        if _LEAST_SHARE <= largest / picture.size <= _MOST_SHARE and largest >= _DOMINANCE * sizes.sum():
            result[frame] = labels == 1 + int(sizes.argmax())
    return result


def _blob(
    colour: str, frames: npt.NDArray[np.uint8], luma: npt.NDArray[np.float32], masks: npt.NDArray[np.bool_]
) -> Blob | None:
    """The area as one thing over the frames where it was found, or None when it need not be one thing."""
    sizes = masks.sum(axis=(1, 2))  # [T]
    height, width = masks.shape[1:]
    ys = (masks.sum(axis=2) @ (np.arange(height) + 0.5)) / sizes / height
    xs = (masks.sum(axis=1) @ (np.arange(width) + 0.5)) / sizes / width
    longest_step = float(np.hypot(np.diff(xs), np.diff(ys)).max(initial=0.0))
    contrast = float(np.linalg.norm(to_oklab(frames[masks].mean(axis=0)) - to_oklab(frames[~masks].mean(axis=0))))
    if sizes.max() > _STEADINESS * sizes.min() or longest_step > _LONGEST_STEP or contrast < _LEAST_CONTRAST:
        return None
    inside, outside = luma[masks], luma[~masks]
    return Blob(
        colour=colour,
        share=float(np.median(sizes) / (height * width)),
        luma=float(inside.mean()),
        contrast=contrast,
        xs=tuple(xs.tolist()),
        ys=tuple(ys.tolist()),
        # The faintest and the strongest 2 percent may be rims and noise of coding.
        is_brightest=float(np.quantile(outside, 0.98)) < float(np.median(inside)) - 10,
        is_darkest=float(np.quantile(outside, 0.02)) > float(np.median(inside)) + 10,
    )


def _strikingness(blob: Blob) -> float:
    """Contrast, up to twice as much for one that crosses the picture."""
    way = np.hypot(max(blob.xs) - min(blob.xs), max(blob.ys) - min(blob.ys))
    return blob.contrast * (1 + min(1.0, float(way)))
