"""A run folder that cannot be written, is damaged, is another's, is held by another, or has no room left.

Each is one clear message with exit code 2; what is committed stays, and what can be healed is.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.media import guard
from tests import clips
from tests.command_line import LOCAL, assert_balance, hicom, refused, sets
from tests.run_helpers import ROOT, copy_run, differences, export_bytes, read_tables, state


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny video whose clip is larger than every table of its run."""
    folder = tmp_path_factory.mktemp("videos")
    clips.write_clip(folder / "noise.mp4", clips.noise(60))
    return folder


@pytest.fixture(scope="module")
def finished(video: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder of one clip. Read only: tests take copies."""
    run = tmp_path_factory.mktemp("finished") / "run"
    hicom("run", video, "--out", run, *LOCAL)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return copy_run(finished, tmp_path / "run")


def assert_as(run: Path, finished: Path) -> None:
    """The run holds what the finished one holds."""
    tables = read_tables(run)
    assert differences(tables, read_tables(finished)) == []
    assert export_bytes(run) == export_bytes(finished)
    assert_balance(tables)


def rewrite(run: Path, old: str, new: str) -> None:
    text = (run / "run.yaml").read_text()
    assert old in text
    (run / "run.yaml").write_text(text.replace(old, new, 1))


def to_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


RUN_FILES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "gone": (lambda run: (run / "run.yaml").unlink(), ["not a run folder"]),
    "empty": (lambda run: (run / "run.yaml").write_bytes(b""), ["run.yaml is not a run file"]),
    "cut short": (lambda run: os.truncate(run / "run.yaml", 300), ["run.yaml is not whole", "stages", "versions"]),
    "noise": (lambda run: (run / "run.yaml").write_bytes(bytes(range(256))), ["run.yaml is not YAML", "Restore it"]),
    "a list": (lambda run: (run / "run.yaml").write_text("- 1"), ["run.yaml is not a run file"]),
    "of the future": (lambda run: rewrite(run, "format: 1", "format: 9"), ["has run folder format 9", "reads 1"]),
    "of a stranger": (
        lambda run: (run / "run.yaml").write_text('!!python/object/apply:os.system ["touch stolen"]'),
        ["run.yaml is not YAML"],
    ),
    "edited": (lambda run: rewrite(run, "threshold:", "treshold:"), ["unknown key split.treshold", "threshold?"]),
    "a folder": (lambda run: to_folder(run / "run.yaml"), ["run.yaml: Is a directory"]),
}


@pytest.mark.parametrize("kind", RUN_FILES)
def test_a_run_file_that_is_damaged_is_refused(kind: str, video: Path, run: Path) -> None:
    damage, words = RUN_FILES[kind]
    damage(run)
    before = state(run)
    for command in (("run", video, "--out", run, *LOCAL), ("status", run), ("query", run, "SELECT 1"), ("gc", run)):
        said = hicom(*command, code=2).err
        assert all(word in said for word in words) or (kind == "gone" and "is not empty" in said), said
    assert state(run) == before and not (run / "stolen").exists() and not Path("stolen").exists()


def part(run: Path, folder: str) -> Path:
    [path] = (run / folder).iterdir()
    return path


PARTS: dict[str, Callable[[Path], object]] = {
    "tables/scan": lambda run: part(run, "tables/scan").write_bytes(b"noise"),
    "tables/scan cut short": lambda run: os.truncate(part(run, "tables/scan"), 3000),
    "tables/ingest": lambda run: part(run, "tables/ingest").write_bytes(b""),
    "tables/select": lambda run: part(run, "tables/select").write_bytes(b"PAR1"),
    "tables/sources": lambda run: part(run, "tables/sources").write_bytes(b"noise" * 99),
}


@pytest.mark.parametrize("kind", PARTS)
def test_a_damaged_part_is_named_and_heals_once_removed(kind: str, video: Path, run: Path, finished: Path) -> None:
    folder = kind.partition(" ")[0]
    PARTS[kind](run)
    damaged, before = part(run, folder), state(run)
    for command in (("run", video, "--out", run, *LOCAL), ("status", run), ("query", run, "SELECT * FROM clips")):
        said = refused(*command)
        assert damaged.name in said and "Restore it. Or remove it" in said and "\n" not in said.strip(), said
    assert state(run) == before
    damaged.unlink()
    (run / "markers" / f"{folder.removeprefix('tables/')}.json").unlink()
    hicom("run", video, "--out", run, *LOCAL)
    assert_as(run, finished)


def test_a_part_that_is_gone_is_made_again(video: Path, run: Path, finished: Path) -> None:
    shutil.rmtree(run / "tables" / "scan")
    hicom("run", video, "--out", run, *LOCAL)
    assert_as(run, finished)
    shutil.rmtree(run / "tables" / "select")
    assert "tables/select" in refused("run", video, "--out", run, *LOCAL)


def test_damaged_measurements_are_named(run: Path) -> None:
    part(run, "metrics/scan").write_bytes(b"noise")
    assert part(run, "metrics/scan").name in refused("query", run, "SELECT * FROM metrics")


@pytest.mark.parametrize("noise", [b"", b'{"stage', b"[1]", b'{"a": 1}', b"\xff\xfe"], ids=repr)
@pytest.mark.parametrize("stage", ["scan", "select", "sources"])
def test_a_damaged_marker_counts_as_none(stage: str, noise: bytes, video: Path, run: Path, finished: Path) -> None:
    (run / "markers" / f"{stage}.json").write_bytes(noise)
    hicom("status", run)
    hicom("run", video, "--out", run, *LOCAL)
    assert (run / "markers" / f"{stage}.json").read_bytes() == (finished / "markers" / f"{stage}.json").read_bytes()
    assert_as(run, finished)


@pytest.mark.parametrize(
    "noise", [b"", b"\xff\xfe", b"[]", b'{"released": false}', b'{"released": false, "pid'], ids=repr
)
def test_a_damaged_lock_holds_nobody_off(noise: bytes, run: Path) -> None:
    max((run / "lock").iterdir()).write_bytes(noise)
    hicom("run", "--out", run, *LOCAL)


def test_a_lock_of_something_else_is_refused(run: Path) -> None:
    (run / "lock" / "zzz.json").write_text("{}")
    assert "zzz.json is not a lock of this program" in refused("run", "--out", run, *LOCAL)


HOLDER = """
import sys, time
from pipeline.store.files import open_files
from pipeline.store.lock import Lock
with Lock(open_files(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_writer_is_refused_and_readers_are_not(run: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        before = state(run)
        for command in (("run", "--out", run), ("clean", run), ("retry", run, "--reason", "timeout"), ("gc", run)):
            said = refused(*command, *(() if command[0] == "gc" else LOCAL))
            assert f"another process is writing here: pid {holder.pid} " in said and "Wait for it or stop it" in said
        for reading in (("status", run), ("stats", run), ("rejects", run), ("query", run, "SELECT * FROM clips")):
            hicom(*reading)
        assert state(run) == before
    finally:
        holder.kill()
        holder.communicate()
    hicom("run", "--out", run, *LOCAL)


def test_a_run_of_another_config_is_refused_until_consent(video: Path, run: Path, tmp_path: Path) -> None:
    profile = yaml.safe_load((ROOT / "manifests" / "demo.profile.yaml").read_text())
    profile["select"]["quota"] = 7
    profile["split"] = {"threshold": 30}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(profile))
    before = state(run), (run / "run.yaml").read_bytes()
    command = ("run", video, "--out", run, *LOCAL, "--profile", tmp_path / "mine.yaml")
    said = refused(*command)
    assert "select.quota: the run has 1, this command asks for 7" in said
    assert "split.threshold: the run has 45.0, this command asks for 30" in said
    assert "--set" in said and "--accept-changes" in said and "another --out" in said
    assert (state(run), (run / "run.yaml").read_bytes()) == before
    assert "split.threshold" not in refused(*command, *sets("split.threshold=30")), "what is named is consented to"
    said = hicom(*command, "--accept-changes").out
    assert "to be recomputed: select, split" in said and "select.quota was 1, is now 7" in said


def test_a_run_of_another_version_is_refused_until_consent(run: Path) -> None:
    rewrite(run, "    version: 1\n", "    version: 0\n")
    said = refused("run", "--out", run, *LOCAL)
    assert "the program changed" in said and "ingest: its version was 0, is now 1" in said
    hicom("query", run, "SELECT * FROM clips")  # to look at it needs no consent
    hicom("run", "--out", run, *LOCAL, "--accept-changes")


def test_a_folder_that_cannot_be_written(video: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    forbidden = [tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("x" * 300)]
    if os.geteuid() != 0:  # root may write everywhere
        (tmp_path / "shut").mkdir(mode=0o500)
        forbidden.append(tmp_path / "shut" / "run")
    for out in forbidden:
        said = refused("run", video, "--out", out, *LOCAL)
        assert str(out) in said and "change its permissions, or choose another --out" in said
    assert (tmp_path / "file").read_text() == "precious"


def hicom_with_room(largest_file_bytes: int, *args: object) -> tuple[int, str]:
    """Run a command in a process that may write no larger file: the error is that of a full disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file_bytes, resource.RLIM_INFINITY))

    line = [sys.executable, str(ROOT / "cli.py"), *map(str, args)]
    done = subprocess.run(line, capture_output=True, text=True, preexec_fn=limit)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


def test_a_full_disk_stops_the_run_and_costs_nothing(video: Path, finished: Path, tmp_path: Path) -> None:
    """First no room for a table, then none for a clip in the scratch folder."""
    run = tmp_path / "run"
    table_bytes, clip_bytes = (part(finished, "tables/scan").stat().st_size, (video / "noise.mp4").stat().st_size)
    code, said = hicom_with_room(table_bytes - 1, "run", video, "--out", run, *LOCAL)
    assert code == 2 and f"{run}: no room to write" in said and "run the same command again" in said, said
    tables = read_tables(run)
    assert tables.rows["select"] and not tables.rows["scan"] and not tables.rows["rejects"]
    assert not list(run.rglob(".tmp-*"))
    code, said = hicom_with_room(clip_bytes // 2, "run", video, "--out", run, *LOCAL)
    assert code == 2 and "no room for temporary files" in said and "TMPDIR" in said, said
    tables = read_tables(run)
    assert tables.rows["filter"] and not tables.rows["cut"] and not tables.rows["rejects"], "a full disk is no reject"
    hicom("run", video, "--out", run, *LOCAL)
    assert_as(run, finished)


def test_no_room_for_the_export_is_told_too(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    said = refused("export", run, *LOCAL, *sets("export.rows_per_shard=7"))
    assert str(guard.no_scratch_room("No space left on device")) in said
