"""Cut: a video's kept shots to clips, each a file of its own or, virtual, a stretch of the source.

A clip's file is followed by a small JSON file beside it with what was measured. That one is the clip's commit: when
it is there, from a run that was killed or from one whose other thresholds gave the same clip, the clip is not made
again.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from pipeline.records import Grain, clip_id, seconds
from pipeline.stage import MapStage, Output, Rejected, Row, ShotReject, Workspace

Preset = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"]

MEASURED = (
    "start_error_s",
    "end_error_s",
    "clip_frames",
    "clip_width",
    "clip_height",
    "clip_bytes",
    "clip_sha256",
)
"""Columns measured on a clip's file; null for a virtual clip."""

ENCODED_PIXELS_PER_S = 10_000_000
"""Pixels whose encoding counts as a second of media for the deadline. Our choice: a core encodes about three times as
many a second at the default preset, and the deadline allows several seconds for each."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class CutConfig:
    """How clips are made. The paper says nothing of it: every default is our choice."""

    mode: Literal["auto", "exact", "copy", "virtual"] = "auto"
    """`copy`: the source's own packets (H.264 and HEVC), trimmed inward to where they can be cut. `exact`: the shot's
    very frames, encoded anew as H.264. `auto`: a copy where it fits within the tolerance, else exact. `virtual`: no
    file; readers open the source."""
    tolerance_s: Annotated[float, Field(ge=0)] = 0.1
    """`auto` copies when the clip's first and last frame are no further than this from the shot's, seconds."""
    crf: Annotated[int, Field(ge=0, le=51)] = 18
    """x264's constant rate factor. 18 is close to what the eye takes for lossless."""
    preset: Preset = "veryfast"
    """x264's preset: a slower one makes smaller files of the same look."""


class Cut(MapStage):
    """A video to its clips."""

    name: ClassVar[str] = "cut"
    grain_in: ClassVar[Grain] = Grain.VIDEO
    grain_out: ClassVar[Grain] = Grain.CLIP
    names_content: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = (
        "filter.kept_shots",
        "scan.frame_pts",
        "scan.first_pts",
        "scan.end_pts",
        "scan.time_base_num",
        "scan.time_base_den",
        "ingest.uri",
        "ingest.width",
        "ingest.height",
    )

    def __init__(self, config: CutConfig) -> None:
        self.config = config

    def apply(self, row: Row, work: Workspace) -> Output:
        clips = {shot["index"]: _describe(row, shot) for shot in row["kept_shots"]}
        if self.config.mode == "virtual":
            return Output(rows=[{**clip, **_VIRTUAL} for clip in clips.values()], frames_decoded=0)
        files = {shot: work.get_json(self._path(clip, "json")) for shot, clip in clips.items()}
        rejects: list[ShotReject] = []
        decoded = 0
        missing = [shot for shot in row["kept_shots"] if files[shot["index"]] is None]
        if missing:
            for chunk in work.guarded("cut", self._job(row, missing, work.scratch_dir()), _media_s(row, missing)):
                shot, failed = chunk.info["shot"], chunk.info.get("failed")
                decoded += chunk.info["frames_decoded"]
                if failed is not None:
                    rejects.append(ShotReject(shot, "cut_failed", failed))
                else:
                    files[shot] = self._commit(clips[shot], chunk.info, work)
        rows = [{**clip, **file} for shot, clip in clips.items() if (file := files[shot]) is not None]
        if not rows:
            raise Rejected("cut_failed", f"none of its {len(rejects)} kept shots could be cut", rejects)
        return Output(rows=rows, shot_rejects=rejects, frames_decoded=decoded)

    def shots_in(self, row: Row) -> int:
        return len(row["kept_shots"])

    def shots_out(self, output: Output) -> int:
        return len(output.rows)

    def _path(self, clip: Row, ending: str) -> str:
        name = clip["clip_id"]
        return f"clips/{self.own_hash()[:8]}/{name[:2]}/{name}.{ending}"

    def _job(self, row: Row, shots: list[dict[str, Any]], out_dir: str) -> dict[str, Any]:
        """Arguments of the guarded job (see pipeline.media.cut)."""
        return {
            "uri": row["uri"],
            "shots": [_frames_of(row, shot) for shot in shots],
            "mode": self.config.mode,
            "tolerance_s": self.config.tolerance_s,
            "quality": {"crf": self.config.crf, "preset": self.config.preset},
            "out_dir": out_dir,
        }

    def _commit(self, clip: Row, info: dict[str, Any], work: Workspace) -> dict[str, Any]:
        """Put a clip's file into the run folder and then what was measured beside it."""
        uri = self._path(clip, "mp4")
        work.put_file(info["path"], uri)
        with suppress(FileNotFoundError):  # the store may have moved it
            os.unlink(info["path"])
        file = {"clip_uri": uri, "method": info["method"], **{name: info[name] for name in MEASURED}}
        work.put_json(self._path(clip, "json"), file)
        return file


_VIRTUAL: dict[str, Any] = {"clip_uri": None, "method": "virtual", **dict.fromkeys(MEASURED)}


def _describe(row: Row, shot: dict[str, Any]) -> Row:
    """The columns of a clip that do not depend on its file."""
    num, den = row["time_base_num"], row["time_base_den"]
    start, end = (seconds(shot[name], num, den) for name in ("start_pts", "end_pts"))
    return {
        "clip_id": clip_id(row["video_id"], start, end),
        "shot": shot["index"],
        "start_pts": shot["start_pts"],
        "end_pts": shot["end_pts"],
        "clip_time_base_num": num,
        "clip_time_base_den": den,
        "start_s": float(start),
        "end_s": float(end),
        "clip_s": float(end - start),
    }


def _frames_of(row: Row, shot: dict[str, Any]) -> dict[str, Any]:
    """A shot as the job takes it: its first frame, and how long each of its frames shows."""
    pts = row["frame_pts"][shot["start_frame"] : shot["end_frame"]]
    return {
        "shot": shot["index"],
        "start_frame": shot["start_frame"],
        "start_pts": row["first_pts"] + shot["start_pts"],
        "durations": np.diff(pts, append=shot["end_pts"]).tolist(),
    }


def _media_s(row: Row, shots: list[dict[str, Any]]) -> float:
    """Length of media, in seconds, that is as much work as the job: the deadline is made from it.

    The source is read once, each clip is read twice (to write and to check it), and encoding takes what its pixels
    take."""
    ticks = row["end_pts"] + 2 * sum(shot["end_pts"] - shot["start_pts"] for shot in shots)
    frames = sum(shot["end_frame"] - shot["start_frame"] for shot in shots)
    encoding_s: float = frames * row["width"] * row["height"] / ENCODED_PIXELS_PER_S
    return float(seconds(ticks, row["time_base_num"], row["time_base_den"])) + encoding_s
