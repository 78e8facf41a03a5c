"""Split: where the shots of a video change, by PySceneDetect's rules on the content scores that `scan` stored.

No frame is decoded here, so another threshold costs an array pass. Two detectors, each equal to PySceneDetect's
detector of that name at the same settings:

- `content` (ContentDetector): a frame whose score reaches the threshold is a candidate; PySceneDetect's own
  FlashFilter (MERGE) joins candidates that lie closer than the minimum scene length;
- `adaptive` (AdaptiveDetector): a frame whose score stands out from the mean of its neighbours.

Frames carry their exact times, so a variable frame rate is no special case. As in PySceneDetect, a length given
in frames is a stretch of time: that many frames at the video's mean rate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass as plain_dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from pipeline.records import Grain
from pipeline.stage import MapStage, Output, Row, Workspace

Pts = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SplitConfig:
    """How shots are found."""

    detector: Literal["content", "adaptive"] = "content"
    """PySceneDetect's rule. The paper names PySceneDetect only (sec. 3.2); Panda-70M, whose splitting it loosens,
    uses the content rule."""
    threshold: Annotated[float, Field(gt=0, le=255)] = 45.0
    """`content`: score from which a frame is a cut. Our choice: the paper says much looser than Panda-70M's 25 and
    gives no number (sec. 3.2)."""
    min_scene_len_frames: Annotated[int, Field(ge=0)] = 15
    """Shortest shot, frames at the video's mean rate. 15 as in Panda-70M and PySceneDetect."""
    adaptive_threshold: Annotated[float, Field(gt=0)] = 3.0
    """`adaptive`: ratio of a frame's score to its neighbours' mean from which it is a cut. PySceneDetect's default."""
    window_width: Annotated[int, Field(ge=1)] = 2
    """`adaptive`: neighbours on each side. PySceneDetect's default."""
    min_content_val: Annotated[float, Field(ge=0)] = 15.0
    """`adaptive`: score below which a frame is never a cut. PySceneDetect's default."""


@plain_dataclass(frozen=True)
class Clock:
    """The exact times of a video's frames, as PySceneDetect wants them."""

    pts: Pts
    """Time of each frame, ticks from the first, rising."""
    end_pts: int
    """End of the last frame, ticks."""
    time_base: Fraction
    """Seconds a tick."""

    def __post_init__(self) -> None:
        assert len(self.pts) > 0, "a scanned video has at least one frame"
        assert self.pts[0] == 0 and bool(np.all(np.diff(self.pts) > 0)), "frame_pts must start at 0 and rise"
        assert self.end_pts > self.pts[-1], f"end_pts {self.end_pts} is not after the last frame at {self.pts[-1]}"

    @property
    def rate(self) -> Fraction:
        """Mean frames per second, by which PySceneDetect turns frames into time."""
        return len(self.pts) / (self.end_pts * self.time_base)

    def timecodes(self, frames: Iterable[int]) -> list[Any]:
        """The `scenedetect.FrameTimecode` of these frames."""
        from scenedetect.common import FrameTimecode, Timecode

        rate = self.rate
        return [FrameTimecode(Timecode(int(self.pts[i]), self.time_base), rate) for i in frames]


class Split(MapStage):
    """A scanned video to its shots."""

    name: ClassVar[str] = "split"
    grain_in: ClassVar[Grain] = Grain.VIDEO
    grain_out: ClassVar[Grain] = Grain.VIDEO
    reads: ClassVar[tuple[str, ...]] = (
        "scan.frame_pts",
        "scan.frame_scores",
        "scan.end_pts",
        "scan.time_base_num",
        "scan.time_base_den",
    )

    def __init__(self, config: SplitConfig) -> None:
        self.config = config

    def apply(self, row: Row, work: Workspace) -> Output:
        scores: Scores = np.asarray(row["frame_scores"], np.float64)
        clock = Clock(
            pts=np.asarray(row["frame_pts"], np.int64),
            end_pts=int(row["end_pts"]),
            time_base=Fraction(row["time_base_num"], row["time_base_den"]),
        )
        assert len(scores) == len(clock.pts), f"{len(scores)} scores for {len(clock.pts)} frames"
        assert bool(np.all(np.isfinite(scores))), "frame_scores must be finite"
        find = content_cuts if self.config.detector == "content" else adaptive_cuts
        return Output(rows=[{"shots": shots(clock, find(scores, clock, self.config))}])


def content_cuts(scores: Scores, clock: Clock, config: SplitConfig) -> list[int]:
    """Frames that begin a new shot by ContentDetector's rule, rising.

    FlashFilter wants every frame, but only some can change its state: the first (it starts the clock), each frame
    at or above the threshold, and of a run of frames below it the last. In such a run the filter only waits until
    enough time has passed since the last frame above, emits that frame and is idle again; what it emits does not
    depend on which frame of the run came, and if any frame of it is late enough, the last one is.
    """
    from scenedetect.detector import FlashFilter

    above = scores >= config.threshold
    if not above.any():
        return []
    ends_run = ~above & np.append(above[1:], True)
    fed = np.flatnonzero(above | ends_run)
    if fed[0] != 0:
        fed = np.append(0, fed)
    flash_filter = FlashFilter(FlashFilter.Mode.MERGE, config.min_scene_len_frames)
    cuts: list[int] = []
    for frame, timecode in zip(fed.tolist(), clock.timecodes(fed), strict=True):
        emitted = flash_filter.filter(timecode, bool(above[frame]))
        cuts += [int(np.searchsorted(clock.pts, cut.pts)) for cut in emitted]
    return cuts


def adaptive_cuts(scores: Scores, clock: Clock, config: SplitConfig) -> list[int]:
    """Frames that begin a new shot by AdaptiveDetector's rule, rising.

    A frame without a whole window on both sides is never a cut.
    """
    stands_out = adaptive_ratios(scores, config) >= config.adaptive_threshold
    candidates = np.flatnonzero(stands_out & (scores >= config.min_content_val))
    times = clock.timecodes([0, *candidates])
    last, cuts = times[0], []
    for frame, time in zip(candidates.tolist(), times[1:], strict=True):
        if time - last >= config.min_scene_len_frames:
            cuts.append(frame)
            last = time
    return cuts


def adaptive_ratios(scores: Scores, config: SplitConfig) -> Scores:
    """Score of each frame over the mean of its neighbours', at most 255; -inf where the window is cut off.

    Neighbours are added in time order, which makes the mean equal to PySceneDetect's to the last bit.
    """
    width, count = config.window_width, len(scores)
    ratios = np.full(count, -np.inf)
    inner = count - 2 * width
    if inner <= 0:
        return ratios
    total = np.zeros(inner)
    for offset in range(2 * width + 1):
        if offset != width:
            total += scores[offset : offset + inner]
    mean, target = total / (2.0 * width), scores[width : width + inner]
    flat = np.abs(mean) < 0.00001  # PySceneDetect's bound for a division by nothing
    quotient = np.minimum(np.divide(target, mean, out=np.zeros(inner), where=~flat), 255.0)
    ratios[width : width + inner] = np.where(flat, np.where(target >= config.min_content_val, 255.0, 0.0), quotient)
    return ratios


def shots(clock: Clock, cuts: list[int]) -> list[dict[str, int]]:
    """Shots between cuts as records.SHOT: from the first frame to the video's end, without a gap."""
    frames = [0, *cuts, len(clock.pts)]
    times = [0, *(int(clock.pts[cut]) for cut in cuts), clock.end_pts]
    assert all(a < b for a, b in pairwise(frames)), f"cuts must rise within the video: {cuts}"
    return [
        {
            "index": i,
            "start_pts": times[i],
            "end_pts": times[i + 1],
            "start_frame": frames[i],
            "end_frame": frames[i + 1],
        }
        for i in range(len(frames) - 1)
    ]
