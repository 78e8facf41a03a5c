"""The cut stage: rows and rejects, clip files with their records, and what a second run does not do again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from pipeline.media.cut import cut
from pipeline.records import clip_id, schema
from pipeline.stage import Chunk, Output, Rejected, Row
from pipeline.stages.cut import Cut, CutConfig
from tests.clips import numbered, truncated, write_clip
from tests.media.cutting import CLOSED_GOPS, Scanned, numbers, scanned


class Killed(BaseException):
    """The worker is gone."""


class Folder:
    """A workspace over a local folder that runs the job in this process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.jobs: list[Mapping[str, Any]] = []
        self.before_put_json: Callable[[str], None] = lambda relative: None

    def guarded(self, job: str, args: Mapping[str, Any], media_s: float | None) -> Iterator[Chunk]:
        assert job == "cut" and media_s is not None and media_s > 0
        self.jobs.append(json.loads(json.dumps(args)))
        yield from cut(**args)

    def put_file(self, local_path: str, relative: str) -> None:
        (self.root / relative).parent.mkdir(parents=True, exist_ok=True)
        os.rename(local_path, self.root / relative)

    def get_json(self, relative: str) -> dict[str, Any] | None:
        path = self.root / relative
        return json.loads(path.read_text()) if path.exists() else None

    def put_json(self, relative: str, value: Mapping[str, Any]) -> None:
        self.before_put_json(relative)
        (self.root / relative).write_text(json.dumps(value))

    def locate(self, relative: str) -> str:
        return str(self.root / relative)

    def scratch_dir(self) -> str:
        scratch = self.root / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        return str(scratch)

    def files(self) -> list[str]:
        """Clips and their records, by name."""
        return sorted(path.name for path in self.root.glob("clips/*/*/*"))


def row_of(video: Scanned, *shots: tuple[int, int]) -> Row:
    """A row as upstream stages leave it, with frames [start, end) as the kept shots; their indices are 3, 4, ..."""
    pts = [pts - video.pts[0] for pts in video.pts]
    ends = [*pts, video.end_pts - video.pts[0]]
    kept = [
        {"index": index, "start_pts": ends[start], "end_pts": ends[end], "start_frame": start, "end_frame": end}
        for index, (start, end) in enumerate(shots, 3)
    ]
    return {
        "video_id": "v1",
        "uri": str(video.path),
        "width": 64,
        "height": 48,
        "kept_shots": kept,
        "frame_pts": np.array(pts, np.int64),
        "first_pts": video.pts[0],
        "end_pts": ends[-1],
        "time_base_num": video.time_base.numerator,
        "time_base_den": video.time_base.denominator,
    }


def table(output: Output) -> list[Row]:
    """The output as it comes back from its table."""
    rows = [{"video_id": "v1", **row} for row in output.rows]
    return pa.Table.from_pylist(rows, schema("cut")).to_pylist()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Scanned:
    """60 numbered frames at 10 a second, a key frame every 12. The first frame's own timestamp is not 0."""
    path = tmp_path_factory.mktemp("video") / "v.ts"
    found = scanned(write_clip(path, numbered(60), CLOSED_GOPS))
    assert found.pts[0] != 0
    return found


@pytest.fixture
def work(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_a_row_says_what_the_clip_is(video: Scanned, work: Folder) -> None:
    stage = Cut(CutConfig())
    row = row_of(video, (12, 36), (40, 60))
    output = stage.apply(row, work)
    copy, encode = table(output)
    assert (copy["shot"], copy["method"], encode["shot"], encode["method"]) == (3, "copy", 4, "encode")
    assert copy["clip_id"] == clip_id("v1", Fraction(12, 10), Fraction(36, 10))
    assert (copy["start_s"], copy["end_s"], copy["clip_s"]) == (1.2, 3.6, 2.4)
    assert (copy["clip_time_base_num"], copy["clip_time_base_den"]) == (1, 90_000)
    assert (copy["start_pts"], copy["end_pts"]) == (108_000, 324_000)
    assert (encode["start_error_s"], encode["end_error_s"]) == (0.0, 0.0)
    for clip, (start, end) in ((copy, (12, 36)), (encode, (40, 60))):
        assert clip["clip_uri"] == f"clips/{stage.own_hash()[:8]}/{clip['clip_id'][:2]}/{clip['clip_id']}.mp4"
        assert numbers({"path": work.locate(clip["clip_uri"])}) == list(range(start, end))
    assert (stage.shots_in(row), stage.shots_out(output), output.shot_rejects) == (2, 2, [])
    assert output.frames_decoded == 24 + 60 + 20, "both clips were measured, and the source was decoded once"
    assert not os.listdir(work.scratch_dir())


def test_virtual_clips_have_no_file(video: Scanned, work: Folder) -> None:
    output = Cut(CutConfig(mode="virtual")).apply(row_of(video, (12, 36), (40, 60)), work)
    first, second = table(output)
    assert first["clip_id"] == clip_id("v1", Fraction(12, 10), Fraction(36, 10))
    assert second["shot"] == 4
    assert {first["method"], second["method"]} == {"virtual"}
    assert all(first[name] is None for name in ("clip_uri", "clip_frames", "clip_sha256", "start_error_s"))
    assert (work.jobs, work.files(), output.frames_decoded) == ([], [], 0)


def test_clips_that_are_there_are_not_made_again(video: Scanned, work: Folder) -> None:
    stage = Cut(CutConfig())
    first = stage.apply(row_of(video, (0, 24), (24, 40)), work)
    again = stage.apply(row_of(video, (0, 24), (24, 40)), work)
    assert table(again) == table(first)
    assert (len(work.jobs), again.frames_decoded) == (1, 0)
    moved = stage.apply(row_of(video, (0, 24), (24, 48)), work)
    assert table(moved)[0] == table(first)[0]
    assert [shot["shot"] for shot in work.jobs[1]["shots"]] == [4], "only the shot that is another one now"


def test_a_moved_threshold_may_renumber_a_shot(video: Scanned, work: Folder) -> None:
    stage = Cut(CutConfig())
    (first,) = table(stage.apply(row_of(video, (24, 40)), work))
    _, second = table(stage.apply(row_of(video, (0, 24), (24, 40)), work))
    assert {name for name in first if first[name] != second[name]} == {"shot"}


def test_a_kill_between_file_and_record_costs_that_clip(video: Scanned, work: Folder) -> None:
    stage = Cut(CutConfig(mode="exact"))
    row = row_of(video, (0, 24), (24, 40), (40, 60))
    undisturbed = table(stage.apply(row, Folder(work.root / "other")))

    def kill_at_second(relative: str) -> None:
        if len(work.files()) == 3:  # the first clip with its record, and the second clip
            raise Killed

    work.before_put_json = kill_at_second
    with pytest.raises(Killed):
        stage.apply(row, work)
    work.before_put_json = lambda relative: None
    assert table(stage.apply(row, work)) == undisturbed
    assert [shot["shot"] for shot in work.jobs[1]["shots"]] == [4, 5]
    assert work.files() == Folder(work.root / "other").files()


def test_another_config_writes_beside(video: Scanned, work: Folder) -> None:
    row = row_of(video, (0, 24))
    (a,) = table(Cut(CutConfig(mode="exact")).apply(row, work))
    (b,) = table(Cut(CutConfig(mode="exact", crf=30)).apply(row, work))
    assert a["clip_id"] == b["clip_id"]
    assert a["clip_uri"] != b["clip_uri"]
    assert a["clip_bytes"] > b["clip_bytes"]


def test_a_shot_that_cannot_be_cut_is_a_reject(video: Scanned, work: Folder) -> None:
    stage = Cut(CutConfig(mode="copy"))
    row = row_of(video, (13, 20), (24, 48))
    output = stage.apply(row, work)
    assert [clip["shot"] for clip in table(output)] == [4]
    (reject,) = output.shot_rejects
    assert (reject.shot, reject.reason) == (3, "cut_failed")
    assert reject.detail == "copy: no keyframe in the shot to start at"
    assert stage.shots_in(row) == (stage.shots_out(output) or 0) + len(output.shot_rejects)


def test_a_video_none_of_whose_shots_can_be_cut(video: Scanned, work: Folder, tmp_path: Path) -> None:
    torn = Scanned(truncated(video.path, tmp_path / "torn.ts", 0.3), video.pts, video.end_pts, video.time_base)
    with pytest.raises(Rejected) as caught:
        Cut(CutConfig()).apply(row_of(torn, (40, 48), (48, 60)), work)
    assert (caught.value.reason, caught.value.detail) == ("cut_failed", "none of its 2 kept shots could be cut")
    assert [(reject.shot, reject.reason) for reject in caught.value.shot_rejects] == [
        (3, "cut_failed"),
        (4, "cut_failed"),
    ]
    assert work.files() == []


@pytest.mark.parametrize(
    "wrong", [{"mode": "fast"}, {"tolerance_s": -0.1}, {"crf": 52}, {"preset": "placebo"}, {"audio": True}]
)
def test_a_wrong_config_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CutConfig(**wrong)
