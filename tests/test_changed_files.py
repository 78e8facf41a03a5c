"""A file that changes under its name is a new video: ids come from content, and a rerun looks again."""

from __future__ import annotations

from pathlib import Path

from tests import clips
from tests.run_helpers import read_tables, run_here


def test_a_download_finished_later_is_taken_up_by_the_same_command(tmp_path: Path) -> None:
    whole = clips.write_clip(tmp_path / "whole.mp4", clips.disc(60)).read_bytes()
    videos = tmp_path / "videos"
    videos.mkdir()
    clips.write_clip(videos / "other.mp4", clips.disc(60, (0, 1)))
    (videos / "late.mp4").write_bytes(whole[: len(whole) // 2])
    run_here(tmp_path / "run", videos)
    before = read_tables(tmp_path / "run")
    assert before.rejected("ingest") == {"videos/late.mp4": "unreadable"}
    (videos / "late.mp4").write_bytes(whole)
    run_here(tmp_path / "run", videos)
    after = read_tables(tmp_path / "run")
    assert after.rejected("ingest") == {}
    assert before.ids("ingest") < after.ids("ingest")
    assert len(after.rows["export"]) == len(before.rows["export"]) + 1


def test_a_file_with_other_content_leaves_and_the_new_one_comes(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    clips.write_clip(videos / "a.mp4", clips.disc(60))
    run_here(tmp_path / "run", videos)
    (old,) = read_tables(tmp_path / "run").ids("ingest")
    clips.write_clip(videos / "a.mp4", clips.disc(54, (0, 1)))
    run_here(tmp_path / "run", videos)
    (new,) = read_tables(tmp_path / "run").ids("ingest")
    assert new != old
    assert {row["video_id"] for row in read_tables(tmp_path / "run").rows["cut"]} == {new}
