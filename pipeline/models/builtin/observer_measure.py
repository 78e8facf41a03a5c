"""What the built-in describer measures in a clip: numbers and names, no words yet.

Everything is said of the sampled frames, T of them, and of nine regions of the picture. Places are shares of the
picture: x from 0 (left) to 1 (right), y from 0 (top) to 1 (bottom).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.models.builtin.observer_blobs import Blob, find_blobs
from pipeline.models.builtin.observer_colours import NAMES, name_indices, to_oklab
from pipeline.models.builtin.observer_pan import Pan, find_pan
from pipeline.models.protocols import ClipFrames, Frames

REGIONS: tuple[str, ...] = (
    *("upper left", "upper middle", "upper right"),
    *("middle left", "centre", "middle right"),
    *("lower left", "lower middle", "lower right"),
)
"""Names of the thirds by thirds of the picture, row by row."""

_CHANGED = 28
"""Difference of R, G or B, of 255, that counts as a change of the pixel; above coding noise."""
_EDGE_LUMA = 12.0
"""Step of luma, of 255, between neighbouring pixels that counts as an edge."""
_ABRUPT_SHARE, _ABRUPT_RATIO = 0.6, 4.0
"""An abrupt change: this share of the pixels change between two sampled frames, so many times as many as usual."""

Luma = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Colours:
    """Colour names of an area with the share of its pixels, the largest first."""

    shares: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Area:
    """A part of the picture, or all of it, over the clip."""

    colours: Colours
    begin: Colours
    """In the first third of the frames."""
    end: Colours
    """In the last third of the frames."""
    luma: float
    """Mean, 0 to 255."""
    edges: float
    """Share of pixels at an edge."""
    distinctness: float
    """Distance in OKLab of its mean colour from the whole picture's."""
    changed: float
    """Share of pixels that are not the same over the whole clip."""
    activity: float
    """Share of pixels that change from a sampled frame to the next, mean over the clip."""
    activity_begin: float
    """The same in the first third of the clip."""
    activity_end: float
    """The same in the last third."""


@dataclass(frozen=True)
class Observation:
    """All that is measured in a clip."""

    frames: int
    picture: Area
    regions: dict[str, Area]
    """By name, in the order of REGIONS."""
    luma: tuple[float, float, float]
    """Mean of the picture in the first frame, the middle one and the last, 0 to 255."""
    luma_range: float
    """The brightest frame's mean minus the darkest one's."""
    luma_is_steady: bool
    """Whether luma only rises or only falls over the clip, small wavers aside."""
    blobs: tuple[Blob, ...]
    """Areas of one distinct colour, most striking first."""
    pan: Pan | None
    abrupt: tuple[tuple[float, float], ...]
    """Between which seconds of the clip nearly all of the picture changes, far more than at other times."""


def observe(clip: ClipFrames) -> Observation:
    """Measure a clip. Deterministic."""
    luma = (clip.frames @ np.array([0.299, 0.587, 0.114], dtype=np.float32)).astype(np.float32)
    names = name_indices(clip.frames)
    whole_lab = _mean_lab(clip.frames)
    height, width = luma.shape[1:]
    rows, columns = np.linspace(0, height, 4).astype(int), np.linspace(0, width, 4).astype(int)
    regions = {}
    for index, name in enumerate(REGIONS):
        row, column = divmod(index, 3)
        window = np.s_[:, rows[row] : rows[row + 1], columns[column] : columns[column + 1]]
        regions[name] = _area(clip.frames[window], names[window], luma[window], whole_lab)
    by_frame = luma.mean(axis=(1, 2))
    return Observation(
        frames=len(luma),
        picture=_area(clip.frames, names, luma, whole_lab),
        regions=regions,
        luma=(float(by_frame[0]), float(by_frame[len(by_frame) // 2]), float(by_frame[-1])),
        luma_range=float(np.ptp(by_frame)),
        luma_is_steady=_is_steady(by_frame),
        blobs=find_blobs(clip.frames, names, luma),
        pan=find_pan(luma),
        abrupt=_abrupt(clip.frames, clip.times_s),
    )


def _area(frames: Frames, names: npt.NDArray[np.uint8], luma: Luma, whole_lab: npt.NDArray[np.float64]) -> Area:
    third = max(1, len(luma) // 3)
    activity = _activity(frames)
    steps = max(1, len(activity) // 3)
    return Area(
        colours=_colours(names),
        begin=_colours(names[:third]),
        end=_colours(names[-third:]),
        luma=float(luma.mean()),
        edges=_edges(luma),
        distinctness=float(np.linalg.norm(_mean_lab(frames) - whole_lab)),
        changed=float((np.ptp(frames, axis=0).max(axis=-1) > _CHANGED).mean()),
        activity=_mean(activity),
        activity_begin=_mean(activity[:steps]),
        activity_end=_mean(activity[-steps:]),
    )


def _activity(frames: Frames) -> npt.NDArray[np.float64]:
    """Share of pixels that change from each frame to the next, [T - 1]."""
    differences = np.maximum(frames[1:], frames[:-1]) - np.minimum(frames[1:], frames[:-1])
    shares: npt.NDArray[np.float64] = (differences.max(axis=-1) > _CHANGED).mean(axis=(1, 2))
    return shares


def _mean(values: npt.NDArray[np.floating]) -> float:
    return float(values.mean()) if values.size else 0.0


def _mean_lab(frames: Frames) -> npt.NDArray[np.float64]:
    return to_oklab(frames.reshape(-1, 3).mean(axis=0))


def _colours(names: npt.NDArray[np.uint8]) -> Colours:
    counts = np.bincount(names.ravel(), minlength=len(NAMES))
    order = np.argsort(-counts, kind="stable")
    return Colours(tuple((NAMES[i], float(counts[i] / names.size)) for i in order if counts[i]))


def _edges(luma: Luma) -> float:
    across = np.abs(np.diff(luma, axis=2))[:, 1:, :]
    down = np.abs(np.diff(luma, axis=1))[:, :, 1:]
    return float((np.maximum(across, down) > _EDGE_LUMA).mean())


def _is_steady(by_frame: npt.NDArray[np.float32]) -> bool:
    """Whether the way from first to last is at least 0.8 of all the ways up and down together."""
    travelled = float(np.abs(np.diff(by_frame)).sum())
    return travelled > 0 and abs(float(by_frame[-1] - by_frame[0])) >= 0.8 * travelled


def _abrupt(frames: Frames, times_s: npt.NDArray[np.float64]) -> tuple[tuple[float, float], ...]:
    if len(frames) < 4:
        return ()
    activity = _activity(frames)
    abrupt = activity >= max(_ABRUPT_SHARE, _ABRUPT_RATIO * float(np.median(activity)))
    edges = np.diff(abrupt.astype(np.int8), prepend=0, append=0)
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return tuple((float(times_s[start]), float(times_s[end])) for start, end in zip(starts, ends, strict=True))
