"""The `cut` job: a video's shots to clip files, each measured by decoding what was written.

A clip is trimmed inward only: it never holds a frame of a neighbour. Copies are made in one pass over the source's
packets, encodes in one decode of it; both jump over long gaps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from itertools import accumulate
from typing import Any, Literal

from pipeline.media.cut_clip import CutFailed, Wanted, Written, measure
from pipeline.media.cut_copy import copy_shots
from pipeline.media.cut_encode import Quality, encode_shots
from pipeline.media.cut_source import Source
from pipeline.stage import Chunk

CutMode = Literal["auto", "exact", "copy"]


def cut(
    uri: str,
    shots: Sequence[Mapping[str, Any]],
    mode: CutMode,
    tolerance_s: float,
    quality: Mapping[str, Any],
    out_dir: str,
) -> Iterator[Chunk]:
    """Cut shots to MP4 files in `out_dir`, without sound.

    `shots`, without overlap: shot (its index), start_frame (index of its first frame as `scan` counts), start_pts
    (that frame's time on the stream's own clock, ticks), durations (ticks from each of its frames to the next, of the
    last to the shot's end). `mode`: `copy`, `exact` (re-encode), or `auto`: copy where the first and the last frame
    are within `tolerance_s` seconds of the shot's, else re-encode. `quality`: crf and preset of x264.

    Yields one Chunk a shot, as they get done, info only: shot, frames_decoded, and either `failed` (why there is no
    clip) or path, method (`copy` or `encode`) and what `cut_clip.measure` returns. Raises Rejected when the source
    does not open.
    """
    todo = sorted((_wanted(shot, out_dir) for shot in shots), key=lambda wanted: wanted.start_frame)
    if mode != "exact":
        not_copied: list[Wanted] = []
        for wanted, chunk in _copies(uri, todo, tolerance_s if mode == "auto" else None):
            if mode == "auto" and "failed" in chunk.info:
                not_copied.append(wanted)
            else:
                yield chunk
        todo = not_copied
    if todo:
        for written in encode_shots(uri, todo, Quality(**quality)):
            yield _measured("encode", written)


def _wanted(shot: Mapping[str, Any], out_dir: str) -> Wanted:
    *pts, end_pts = accumulate(shot["durations"], initial=shot["start_pts"])
    index = int(shot["shot"])
    return Wanted(index, os.path.join(out_dir, f"{index}.mp4"), shot["start_frame"], pts, end_pts)


def _copies(uri: str, shots: Sequence[Wanted], tolerance_s: float | None) -> Iterator[tuple[Wanted, Chunk]]:
    with Source(uri) as source:
        most_lost = None if tolerance_s is None else Fraction(str(tolerance_s)) / source.time_base
        for written in copy_shots(source, shots, most_lost):
            yield written.wanted, _measured("copy", written)


def _measured(method: str, written: Written) -> Chunk:
    """What a shot came to: its measured clip, or why there is none."""
    wanted = written.wanted
    info: dict[str, Any] = {"shot": wanted.shot, "frames_decoded": written.frames_decoded}
    try:
        if written.problem is not None:
            raise CutFailed(written.problem)
        info |= measure(written) | {"path": wanted.path, "method": method}
        info["frames_decoded"] += info["clip_frames"]
    except CutFailed as failed:
        info["failed"] = f"{method}: {failed}"
        with suppress(FileNotFoundError):
            os.unlink(wanted.path)
    return Chunk(arrays={}, info=info)
