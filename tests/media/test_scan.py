"""The scan job: times, scores and grid pictures from one decode."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.media.guard import Guard
from pipeline.media.scan import Grid, scan
from pipeline.stage import Rejected
from tests import clips

ROOT = Path(__file__).resolve().parents[2]
SPEC = {"width": 64, "height": 48, "resize": "stretch", "interpolation": "area"}
PICTURE_BYTES = 64 * 48 * 3


@dataclass
class Result:
    chunk_pictures: list[int]
    pictures: np.ndarray
    pts: np.ndarray
    scores: np.ndarray
    grid: list[int]
    totals: dict[str, Any]

    @property
    def times_s(self) -> list[Fraction]:
        base = Fraction(self.totals["time_base_num"], self.totals["time_base_den"])
        return [int(pts) * base for pts in self.pts]


def run(path: Path | str, interval_s: float = 0.5, chunk_bytes: int = 1 << 20, spec: dict[str, Any] = SPEC) -> Result:
    chunks = list(scan(str(path), "fast", interval_s, spec, chunk_bytes))
    return Result(
        [len(chunk.arrays["frames"]) for chunk in chunks],
        np.concatenate([chunk.arrays["frames"] for chunk in chunks]),
        np.concatenate([chunk.info["frame_pts"] for chunk in chunks]),
        np.concatenate([chunk.info["frame_scores"] for chunk in chunks]),
        np.concatenate([chunk.info["grid_frames"] for chunk in chunks]).tolist(),
        {name: value for name, value in chunks[-1].info.items() if not isinstance(value, np.ndarray)},
    )


def on_grid(times_s: list[Fraction], interval: Fraction) -> list[int]:
    """The rule, spelled out: the first frame at or after each point, and the last frame."""
    last = int(times_s[-1] / interval)
    firsts = {next(i for i, time in enumerate(times_s) if time >= k * interval) for k in range(last + 1)}
    return sorted(firsts | {len(times_s) - 1})


@pytest.mark.parametrize("name", ["numbered.mp4", "uneven.mp4", "live.webm", "mpeg4.avi", "ten_bit.mp4", "turned.mp4"])
@pytest.mark.parametrize("interval", ["0.5", "0.1", "0.3", "2", "100"])
def test_every_frame_is_measured_and_the_grid_is_exact(name: str, interval: str, tiny_videos: Path) -> None:
    got = run(tiny_videos / name, float(interval))
    assert len(got.pts) == len(got.scores) == got.totals["frames_decoded"] == 60
    assert got.pts[0] == 0 and (np.diff(got.pts) > 0).all() and got.totals["end_pts"] > got.pts[-1]
    assert got.scores[0] == 0.0 and np.isfinite(got.scores).all()
    assert got.grid == on_grid(got.times_s, Fraction(interval))
    assert len(got.pictures) == len(got.grid)
    assert got.totals["decode_errors"] == 0 and got.totals["mended_times"] == 0


def test_grid_pictures_are_those_frames(tiny_videos: Path) -> None:
    got = run(tiny_videos / "numbered.mp4", 0.3)
    assert [clips.number(picture) for picture in got.pictures] == got.grid


def test_pictures_are_upright(tiny_videos: Path) -> None:
    """turned.mp4 is stored with a disc in the upper left; turned counter-clockwise it is in the lower left."""
    spec = {"width": 48, "height": 64, "resize": "stretch", "interpolation": "area"}
    first = run(tiny_videos / "turned.mp4", spec=spec).pictures[0].astype(int)
    gold = first[:, :, 0] - first[:, :, 2] > 60
    rows, columns = np.nonzero(gold)
    assert rows.mean() > 40 and columns.mean() < 24


@pytest.mark.parametrize("chunk_bytes", [1, PICTURE_BYTES, 3 * PICTURE_BYTES + 5, 1 << 30])
def test_chunks_are_bounded_and_lose_nothing(chunk_bytes: int, tiny_videos: Path) -> None:
    whole = run(tiny_videos / "cuts.mp4")
    got = run(tiny_videos / "cuts.mp4", chunk_bytes=chunk_bytes)
    assert max(got.chunk_pictures) == min(len(whole.grid), max(1, chunk_bytes // PICTURE_BYTES))
    assert got.grid == whole.grid and got.totals == whole.totals
    assert np.array_equal(got.pictures, whole.pictures) and np.array_equal(got.scores, whole.scores)


def test_numbers_are_handed_on_even_without_pictures(tiny_videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.media.scan._FRAMES_PER_CHUNK", 25)
    got = run(tiny_videos / "numbered.mp4", 100)
    assert got.chunk_pictures == [1, 0, 1] and got.grid == [0, 59]


def test_a_start_that_is_not_zero_is_kept_apart(tmp_path: Path) -> None:
    times = [Fraction(5) + Fraction(i, 10) for i in range(10)]
    got = run(clips.write_clip(tmp_path / "late.ts", clips.numbered(10), times_s=times))
    assert got.times_s == [Fraction(i, 10) for i in range(10)]
    assert got.totals["first_pts"] * Fraction(got.totals["time_base_num"], got.totals["time_base_den"]) >= 5


@pytest.mark.parametrize("size", [(10, 6), (34, 2), (258, 146)])
def test_odd_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    got = run(clips.write_clip(tmp_path / "odd.mp4", clips.shots(("red", 5), ("sky", 5), size_px=size)))
    assert int(np.argmax(got.scores)) == 5


def test_a_change_of_size_in_the_middle(tmp_path: Path) -> None:
    parts = [
        clips.write_clip(tmp_path / f"{side}.h264", clips.flat("gold", 10, (side, side))).read_bytes()
        for side in (320, 64)
    ]
    (tmp_path / "both.h264").write_bytes(b"".join(parts))
    got = run(tmp_path / "both.h264")
    assert got.totals["frames_decoded"] == 20 and got.scores.max() < 5


def test_one_frame(tmp_path: Path) -> None:
    got = run(clips.write_clip(tmp_path / "one.mp4", clips.flat("gold", 1)))
    assert got.grid == [0] and got.totals["end_pts"] > 0


def test_a_remote_video(tiny_videos: Path) -> None:
    import fsspec

    with fsspec.open("memory://scan/a.mp4", "wb") as file:
        file.write((tiny_videos / "numbered.mp4").read_bytes())
    assert run("memory://scan/a.mp4").totals == run(tiny_videos / "numbered.mp4").totals


def test_grid_points_are_exact_decimals() -> None:
    """A tenth of a second is no binary fraction; after a million points the frame at the point is still the one."""
    grid = Grid(0.1, Fraction(1, 90_000))
    assert all(grid.takes(9_000 * k) for k in range(0, 1_000_000, 999))
    assert not grid.takes(9_000 * 999_000 + 8_999)


# name: the reason of the outcome, or (frames, errors)
BROKEN: dict[str, str | tuple[int, int]] = {
    "audio_only.mp4": "no_video_stream",
    "bitflip_h264.mp4": (442, 141),
    "bogus_duration_fragmented.mp4": (30, 0),
    "corrupted_decord.mp4": (49, 2),
    "header_only.mp4": "decode_failed",
    "jpeg_named.mp4": "not_video",
    "moov_missing_streamio.mp4": "unreadable",
    "no_duration.webm": (74, 0),
    "one_frame.mp4": (1, 0),
    "text_named.mp4": "not_video",
    "truncated_moov_first.mp4": (517, 2),
    "truncated_no_moov.mp4": "unreadable",
    "vp9_invalid_bitstream.webm": "decode_failed",
    "zero_byte.mp4": "not_video",
}


def test_every_broken_file_has_its_outcome(shared_videos: Path) -> None:
    got: dict[str, str | tuple[int, int]] = {}
    for path in sorted((shared_videos / "broken").iterdir()):
        try:
            totals = run(path).totals
            got[path.name] = (totals["frames_decoded"], totals["decode_errors"])
        except Rejected as rejected:
            got[path.name] = rejected.reason
    assert got == BROKEN


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    """Peak memory of the guarded child and of the process that consumes, for a minute and for two hours."""
    program = (
        "import resource, sys\n"
        "from pipeline.media.guard import Guard\n"
        "args = {'uri': sys.argv[1], 'score': 'fast', 'grid_interval_s': 0.5, 'chunk_bytes': 1 << 20,\n"
        "        'frame_spec': {'width': 64, 'height': 48, 'resize': 'stretch', 'interpolation': 'area'}}\n"
        "with Guard() as guard:\n"
        "    frames = sum(len(chunk.info['frame_pts']) for chunk in guard.run('scan', args))\n"
        "print(frames, *(resource.getrusage(who).ru_maxrss // 1024 for who in (-1, 0)))\n"
    )
    peaks = []
    for seconds in (60, 7200):
        encoding = clips.h264(fps=4, gop=40)
        path = clips.write_clip(
            tmp_path / f"{seconds}.mp4", clips.shots(*[("gold", 20), ("navy", 20)] * (seconds // 10)), encoding
        )
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        run = subprocess.run(
            [sys.executable, "-c", program, str(path)], env=env, capture_output=True, text=True, check=True
        )
        frames, *peak_mb = (int(word) for word in run.stdout.split())
        assert frames == seconds * 4
        peaks.append(peak_mb)
    (short_child, short_parent), (long_child, long_parent) = peaks
    assert long_child < short_child + 15, peaks
    assert long_parent < short_parent + 15, peaks


def test_scan_through_the_guard_is_scan(tiny_videos: Path) -> None:
    args = {
        "uri": str(tiny_videos / "uneven.mp4"),
        "score": "fast",
        "grid_interval_s": 0.5,
        "frame_spec": SPEC,
        "chunk_bytes": 1 << 20,
    }
    with Guard() as guard:
        guarded = list(guard.run("scan", args))
    direct = list(scan(**args))
    for left, right in zip(guarded, direct, strict=True):
        assert np.array_equal(left.arrays["frames"], right.arrays["frames"])
        assert left.info.keys() == right.info.keys()
        assert all(np.array_equal(left.info[name], right.info[name]) for name in left.info)
