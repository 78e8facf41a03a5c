"""Headers are read as ingest reads them: broken files are counted, many rows are sampled."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import pytest

from pipeline.estimate import headers as under_test
from pipeline.estimate.headers import read_headers
from pipeline.stage import UserError
from tests.estimate.inputs import config, header, headers


def test_every_readable_header_is_read(tiny_videos: Path) -> None:
    found = read_headers([str(tiny_videos)], config())
    assert (found.rows, found.probed, len(found.videos), found.is_sample) == (9, 9, 9, False)
    assert sorted(round(video.duration_s, 1) for video in found.videos if video.duration_s) == [
        *(2.0, 5.4, 6.0, 6.0, 6.0, 6.0, 6.0, 18.0)
    ]
    assert {(video.width, video.height) for video in found.videos} == {(64, 48)}
    assert sum(video.bytes for video in found.videos) == sum(path.stat().st_size for path in tiny_videos.iterdir())


def test_a_header_that_states_no_length_is_known_to_state_none(tiny_videos: Path) -> None:
    found = read_headers([str(tiny_videos / "live.webm")], config())
    assert [video.duration_s for video in found.videos] == [None]


def test_broken_files_are_counted_by_the_reason_that_ingest_would_give(broken_videos: dict[str, Path]) -> None:
    folder = broken_videos["unreadable"].parent
    dead_link = folder / "dead.mp4"
    if not dead_link.is_symlink():
        dead_link.symlink_to("nowhere")
    found = read_headers([str(folder)], config())
    dead_link.unlink()
    assert len(found.videos) == 1, "whole.mp4"
    assert found.broken == {"unreadable": 1, "no_video_stream": 1, "not_video": 3, "missing": 1}


def test_a_named_pipe_holds_nothing_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "list.csv").write_text("path\npipe.mp4\n")
    assert read_headers([str(tmp_path / "list.csv")], config()).broken == {"not_video": 1}


def test_a_length_that_cannot_be_counts_as_none(tiny_videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "BELIEVED_S", 5.0)
    found = read_headers([str(tiny_videos / "short.mp4"), str(tiny_videos / "cuts.mp4")], config())
    assert sorted(str(video.duration_s) for video in found.videos) == ["2.0", "None"]


def manifest(folder: Path, rows: int) -> Path:
    """A manifest of videos none of which is there."""
    path = folder / "videos.csv"
    path.write_text("path\n" + "".join(f"clip {i}.mp4\n" for i in range(rows)))
    return path


def test_of_many_rows_only_a_sample_is_probed(tmp_path: Path) -> None:
    found = read_headers([str(manifest(tmp_path, 100_000))], config(), most=20)
    assert (found.rows, found.probed, found.is_sample) == (100_000, 20, True)
    assert found.broken == {"missing": 20}, "the rest was not looked at"


def test_the_sample_is_the_same_each_time_and_part_of_a_larger_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = str(manifest(tmp_path, 1000))
    probed: list[set[str]] = []

    def probe(rows: list[dict[str, str]], _: object) -> list[str]:
        probed.append({row["uri"] for row in rows})
        return ["missing"] * len(rows)

    monkeypatch.setattr(under_test, "_probe", probe)
    for most in (20, 20, 50):
        read_headers([listed], config(), most=most)
    assert probed[0] == probed[1] and probed[0] < probed[2]


def test_a_limit_is_the_sample_that_a_run_would_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "_probe", lambda rows, _: ["missing"] * len(rows))
    listed = str(manifest(tmp_path, 1000))
    limited = read_headers([listed], config(), limit=30, most=20)
    assert (limited.rows, limited.found, limited.probed) == (30, 1000, 20)
    assert read_headers([listed], config(), limit=10, most=20).probed == 10


def test_a_folder_without_a_video_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no video"):
        read_headers([str(tmp_path)], config())
    with pytest.raises(UserError, match="no input is given"):
        read_headers([], config())


def test_totals_are_of_all_rows() -> None:
    found = headers([header(10), header(30)], rows=400, broken=2)
    assert found.total([10.0, 30.0]) == 4000


def test_the_error_of_a_sample_is_two_standard_errors_and_none_for_all_rows() -> None:
    lengths = [10.0, 30.0, 50.0]
    videos = [header(length) for length in lengths]
    assert headers(videos).sampling_error(lengths) == 0
    sample = headers(videos, rows=10_000, broken=1)
    expected = 2 * statistics.stdev([*lengths, 0.0]) / 4**0.5 / statistics.mean([*lengths, 0.0])
    assert sample.sampling_error(lengths) == pytest.approx(expected, rel=1e-3)
