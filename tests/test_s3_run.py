"""A whole run on an object store: the same tables, clips and export as on a disk; killed and continued; one writer."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from pipeline.store.files import open_files
from pipeline.store.lock import Lock
from tests.run_helpers import KEEP_ALL, Command, differences, draw_videos, export_bytes, read_tables, run_here

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_videos(tmp_path_factory.mktemp("s3") / "videos")


@pytest.fixture(scope="module")
def on_disk(videos: Path) -> Path:
    run = videos.parent / "on disk"
    run_here(run, videos)
    return run


def remote_bytes(url: str, folder: str) -> dict[str, bytes | None]:
    files = open_files(url)
    return {path.removeprefix(folder + "/"): files.get(path) for path in files.list(folder)}


def test_a_run_on_s3_is_killed_continued_and_equal_to_one_on_a_disk(
    s3: str, videos: Path, on_disk: Path, tmp_path: Path
) -> None:
    url = f"{s3}/{uuid.uuid4().hex}/run"
    command = Command(tmp_path / "faults")
    options = ("run", videos, "--out", url, "--engine", "local", "--set", KEEP_ALL[0])
    command.rules({"kill": "put", "match": "tables/cut/", "nth": 1, "when": "before", "who": "all"})
    process = command.start(*options)
    process.communicate(timeout=120)
    assert process.returncode == -9, "the command was to die in cut"
    command.rules()
    command.run(*options)
    assert differences(read_tables(on_disk), read_tables(url)) == []
    assert remote_bytes(url, "export") == export_bytes(on_disk)
    clips = {str(p.relative_to(on_disk / "clips")): p.read_bytes() for p in (on_disk / "clips").rglob("*.mp4")}
    assert {k: v for k, v in remote_bytes(url, "clips").items() if k.endswith(".mp4")} == clips


def test_inputs_come_from_s3(s3: str, videos: Path, on_disk: Path, tmp_path: Path) -> None:
    bucket = f"{s3}/{uuid.uuid4().hex}/videos"
    files = open_files(bucket)
    for path in sorted(videos.iterdir()):
        files.put(path.name, path.read_bytes())
    run_here(tmp_path / "run", bucket)
    ours, theirs = read_tables(tmp_path / "run"), read_tables(on_disk)
    assert {r["source_key"] for r in ours.rows["ingest"]} == {r["source_key"] for r in theirs.rows["ingest"]}
    assert all(row["identity"].startswith("size+etag:") for row in ours.rows["ingest"])
    assert len(ours.rows["cut"]) == len(theirs.rows["cut"])


def test_a_second_writer_is_refused(s3: str, videos: Path, tmp_path: Path) -> None:
    url = f"{s3}/{uuid.uuid4().hex}/run"
    with Lock(open_files(url)):
        printed = Command(tmp_path / "faults").run("run", videos, "--out", url, "--engine", "local", code=2)
    assert "another process is writing here" in printed
    assert open_files(url).get("run.yaml") is None
