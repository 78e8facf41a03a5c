"""Dedup: keyframes of the whole video from the embeddings that `scan` stored, then the shots that hold one.

Walking through the candidate frames in time, a frame is a keyframe when its cosine to the last keyframe is below
the embedder's threshold; the first frame always is. A shot without a keyframe looks like what came before it.
No frame is decoded here: another threshold or a coarser candidate interval costs an array pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass as plain_dataclass
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, field_validator
from pydantic.dataclasses import dataclass

from pipeline.models.cosine import cosines
from pipeline.records import Grain
from pipeline.stage import MapStage, Output, Row, ShotReject, UserError, Workspace

Indices = npt.NDArray[np.intp]

THRESHOLDS: dict[str, float] = {
    "open_clip:ViT-L-14-336@openai#cls": 0.93,  # ShareGPT4Video, which compares class tokens before the projection
    "builtin:visual": 0.92,  # ours: parts most same-shot from cross-cut frame pairs on annotated footage
}
"""Known keep thresholds by frame embedder, "family:name@revision#variant" or, for every revision, without "@revision".
A cosine means something else in each model's space, so there is no default for others."""

_BLOCKS = (4, 256)
"""Candidates compared with a keyframe at once: few after a new keyframe, then twice as many up to the most."""


@plain_dataclass(frozen=True)
class Preset:
    """A published way to choose candidates."""

    candidate_interval_s: float | None
    """Seconds between candidates; None: every frame on the dense grid."""
    keeps_tail: bool
    """Whether the video's last frame is kept too (see `Dedup`)."""


PRESETS: dict[str, Preset] = {
    "sharegpt4video": Preset(candidate_interval_s=2.0, keeps_tail=True),
    "dense": Preset(candidate_interval_s=None, keeps_tail=False),
}


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DedupConfig:
    """How keyframes are chosen."""

    preset: Literal["sharegpt4video", "dense"] = "sharegpt4video"
    """`sharegpt4video`: a candidate every 2 s and the tail rule, as ShareGPT4Video publishes them. `dense`: every
    frame on the grid, no tail rule, the paper's "densely sampled frames" (sec. 3.2)."""
    candidate_interval_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds between candidates instead of the preset's. The grid is subsampled: a multiple of its interval gives
    what a grid of that interval would have given."""
    thresholds: dict[str, Annotated[float, Field(gt=-1, le=1)]] = Field(default_factory=dict, validate_default=True)
    """Keep thresholds by frame embedder, added to the known ones (THRESHOLDS)."""

    @field_validator("thresholds")
    @classmethod
    def _with_known(cls, given: dict[str, float]) -> dict[str, float]:
        return {**THRESHOLDS, **given}

    @property
    def interval_s(self) -> float | None:
        """Seconds between candidates; None: every frame on the grid."""
        own = self.candidate_interval_s
        return PRESETS[self.preset].candidate_interval_s if own is None else own


@plain_dataclass(frozen=True)
class Grid:
    """A video's dense grid of embedded frames."""

    frames: npt.NDArray[np.int64]
    """Frame index of each grid frame, [N], rising, the first 0."""
    pts: npt.NDArray[np.int64]
    """Their times, ticks from the first frame, [N]."""
    end_pts: int
    """End of the video, ticks."""
    time_base: Fraction
    """Seconds a tick."""
    vectors_ND: npt.NDArray[np.float32]
    """Their embeddings, unit length, [N, D]."""

    def ticks(self, interval_s: float) -> Fraction:
        """An interval in ticks, exact: 0.1 s means 1/10 s."""
        return Fraction(str(interval_s)) / self.time_base

    def candidates(self, interval_s: float | None) -> Indices:
        """Grid positions of the candidates: for each k the first at or after k intervals; None: all."""
        if interval_s is None:
            return np.arange(len(self.pts))
        step = self.ticks(interval_s)
        slots = int(int(self.pts[-1]) / step) + 1
        due = [-(-k * step.numerator // step.denominator) for k in range(slots)]  # k steps, up to whole ticks
        return np.unique(np.searchsorted(self.pts, due))


@plain_dataclass(frozen=True)
class Keyframes:
    """Which grid frames are keyframes, and what each candidate looked like."""

    kept: list[tuple[int, float | None]]
    """Grid position, and cosine to the keyframe before (None for the first), rising."""
    candidates: Indices
    """Grid positions of the candidates, rising."""
    nearest: npt.NDArray[np.float32]
    """Cosine of each candidate to the last keyframe before it; NaN for the first."""


class Dedup(MapStage):
    """A video's shots to those that hold a keyframe.

    The tail rule of `sharegpt4video` keeps the video's last frame, which is always on the grid, when only the first
    frame was kept, or when the last keyframe is an interval or more away from the video's end.
    """

    name: ClassVar[str] = "dedup"
    grain_in: ClassVar[Grain] = Grain.VIDEO
    grain_out: ClassVar[Grain] = Grain.VIDEO
    reads: ClassVar[tuple[str, ...]] = (
        "split.shots",
        "scan.frame_pts",
        "scan.end_pts",
        "scan.grid_frames",
        "scan.grid_embeddings",
        "scan.embedding_dim",
        "scan.frame_model",
        "scan.time_base_num",
        "scan.time_base_den",
    )

    def __init__(self, config: DedupConfig) -> None:
        self.config = config

    def apply(self, row: Row, work: Workspace) -> Output:
        grid = grid_of(row)
        threshold = threshold_for(row["frame_model"], self.config.thresholds)
        found = find_keyframes(grid, threshold, self.config)
        kept, outcomes, rejects = [], [], []
        for shot, reject in judge_shots(row["shots"], grid, found, threshold):
            outcomes.append({"shot": shot["index"], "outcome": reject.reason if reject else "kept"})
            if reject is None:
                kept.append(shot)
            else:
                rejects.append(reject)
        keyframes = [
            {"frame": int(grid.frames[i]), "pts": int(grid.pts[i]), "similarity": similarity}
            for i, similarity in found.kept
        ]
        columns = {"keyframes": keyframes, "distinct_shots": kept, "dedup_outcomes": outcomes}
        return Output(rows=[columns], shot_rejects=rejects)

    def shots_in(self, row: Row) -> int:
        return len(row["shots"])

    def shots_out(self, output: Output) -> int:
        return sum(len(row["distinct_shots"]) for row in output.rows)


def threshold_for(model: str, thresholds: dict[str, float]) -> float:
    """The keep threshold of a frame embedder "family:name@revision#variant". Raises UserError for an unknown one."""
    base, _, rest = model.partition("@")
    base += "".join(rest.partition("#")[1:])
    for key in (model, base):
        if key in thresholds:
            return thresholds[key]
    raise UserError(
        f"dedup: no keep threshold for the frame embedder {model}; a cosine means something else for each model. "
        f"Measure one on a few videos and set it: dedup: {{thresholds: {{'{base}': 0.9}}}}. "
        f"Known: {', '.join(thresholds)}"
    )


def grid_of(row: Row) -> Grid:
    """The dense grid of a row of `scan`."""
    frames = np.asarray(row["grid_frames"], np.int64)
    vectors = np.asarray(row["grid_embeddings"], np.float32).reshape(-1, row["embedding_dim"])
    assert len(frames) > 0 and frames[0] == 0, "the first frame is always on the grid"
    assert len(vectors) == len(frames), f"{len(vectors)} embeddings for {len(frames)} grid frames"
    assert bool(np.all(np.isfinite(vectors))), "grid_embeddings must be finite"
    return Grid(
        frames=frames,
        pts=np.asarray(row["frame_pts"], np.int64)[frames],
        end_pts=int(row["end_pts"]),
        time_base=Fraction(row["time_base_num"], row["time_base_den"]),
        vectors_ND=vectors,
    )


def find_keyframes(grid: Grid, threshold: float, config: DedupConfig) -> Keyframes:
    """Keyframes by the last-kept rule, and the tail rule where the preset has it."""
    interval_s = config.interval_s
    candidates = grid.candidates(interval_s)
    chosen, nearest = last_kept(grid.vectors_ND[candidates], threshold)
    kept = [(int(candidates[i]), float(nearest[i]) if i else None) for i in chosen]
    if PRESETS[config.preset].keeps_tail and interval_s is not None:
        last, tail = kept[-1][0], len(grid.pts) - 1
        far = grid.end_pts - int(grid.pts[last]) >= grid.ticks(interval_s)
        if tail > last and (len(kept) == 1 or far):
            similarity = cosines(grid.vectors_ND[tail:], grid.vectors_ND[last : last + 1])[0, 0]
            kept.append((tail, float(similarity)))
    return Keyframes(kept, candidates, nearest)


def last_kept(vectors_ND: npt.NDArray[np.float32], threshold: float) -> tuple[list[int], npt.NDArray[np.float32]]:
    """Positions kept by the rule "cosine to the last kept below the threshold", and each one's cosine to the last
    kept before it (NaN for the first, which is always kept)."""
    nearest = np.full(len(vectors_ND), np.nan, np.float32)
    kept, start, block = [0], 1, _BLOCKS[0]
    while start < len(vectors_ND):
        stop = min(start + block, len(vectors_ND))
        similar = cosines(vectors_ND[start:stop], vectors_ND[kept[-1]][None])[:, 0]
        below = np.flatnonzero(similar < threshold)
        block = min(2 * block, _BLOCKS[1])
        if len(below):
            stop = start + int(below[0]) + 1
            kept.append(stop - 1)
            block = _BLOCKS[0]
        nearest[start:stop] = similar[: stop - start]
        start = stop
    return kept, nearest


def judge_shots(
    shots: list[dict[str, Any]], grid: Grid, found: Keyframes, threshold: float
) -> Iterator[tuple[dict[str, Any], ShotReject | None]]:
    """Each shot with its reject, or None when it holds a keyframe."""
    key_frames = grid.frames[[i for i, _ in found.kept]]
    sampled = grid.frames[found.candidates]
    for shot in shots:
        first_key, next_key = np.searchsorted(key_frames, (shot["start_frame"], shot["end_frame"]))
        first, after = np.searchsorted(sampled, (shot["start_frame"], shot["end_frame"]))
        if next_key > first_key:
            yield shot, None
        elif after == first:
            span = f"frames {shot['start_frame']} to {shot['end_frame'] - 1}"
            yield shot, ShotReject(shot["index"], "no_sample", f"no candidate frame among {span}")
        else:
            lowest = float(found.nearest[first:after].min())
            detail = (
                f"looks like the keyframe at frame {key_frames[first_key - 1]}: "
                f"candidate frames {after - first}, their lowest cosine {lowest:.4f}, threshold {threshold}"
            )
            yield shot, ShotReject(shot["index"], "redundant", detail)
