"""What users get wrong: arguments, settings, inputs, manifests, SQL. Each: one clear message, exit code 2, no harm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import clips
from tests.command_line import LOCAL, hicom, refused, sets
from tests.run_helpers import ROOT, Command, state


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one tiny video."""
    folder = tmp_path_factory.mktemp("videos")
    clips.write_clip(folder / "disc.mp4", clips.disc(60))
    return folder


@pytest.fixture(scope="module")
def finished(video: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder of one clip. Read only: tests share it."""
    run = tmp_path_factory.mktemp("finished") / "run"
    hicom("run", video, "--out", run, *LOCAL)
    return run


SETTINGS = {
    "split.treshold=30": ["unknown key split.treshold", "did you mean threshold?"],
    "splitt.threshold=30": ["unknown key splitt", "did you mean split?"],
    "split.wholly_other=1": ["unknown key split.wholly_other", "known keys: detector, threshold"],
    "models.frame.nam=x": ["unknown key models.frame.nam", "did you mean name?"],
    "models.frame={family: nowhere, name: x}": ["nowhere", "known: builtin"],
    "scan.model=x": ["set models.frame"],
    "split.threshold=high": ["split.threshold", "valid number", "'high'"],
    "split.threshold=-1": ["split.threshold", "greater than 0", "-1"],
    "split.threshold.more=1": ["split.threshold", "valid number"],
    "split.threshold=[": ["split.threshold", "valid number", "'['"],
    "split.threshold": ["--set split.threshold", "expected section.key=value"],
    "split=1": ["--set split=1", "expected section.key=value"],
    "=1": ["expected section.key=value"],
    "filter.min_s=200": ["min_s 200", "above max_s 120"],
    "scan.grid_interval_s=0.3": ["every 2 s", "0.3 s", "whole multiple"],
    "clean.disabled_rules=[none_such]": ["none_such", "known: empty"],
    "select.categories=none_such": ["none_such.yaml", "categories-demo.yaml"],
    "sources.adapter=youtube": ["sources.adapter", "'panda70m'", "'youtube'"],
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_that_does_not_fit(setting: str, video: Path, tmp_path: Path) -> None:
    said = refused("run", video, "--out", tmp_path / "run", *LOCAL, "--set", setting)
    assert all(words in said for words in SETTINGS[setting]), said
    assert not (tmp_path / "run").exists()


def test_one_fault_of_a_model_is_told_once(video: Path, tmp_path: Path) -> None:
    said = refused("run", video, "--out", tmp_path / "run", *LOCAL, "--set", "models.frame.nam=x")
    assert said.count("nam;") == 1, said


PROFILES: dict[str, tuple[bytes | None, list[str]]] = {
    "none_such": (None, ["no profile 'none_such'", "there are: ", "demo"]),
    "absent.yaml": (None, ["cannot read", "No such file"]),
    "broken.yaml": (b"split: [", ["not YAML"]),
    "list.yaml": (b"- split", ["must hold a mapping, got list"]),
    "binary.yaml": (b"\xff\xfe\x00", ["not YAML"]),
    "thin.yaml": (b"models: {}", ["models.video_text is missing"]),
    "numbers.yaml": (b"1: 2", ["models is missing", "unknown key 1"]),
}


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_that_is_none(name: str, video: Path, tmp_path: Path) -> None:
    content, words = PROFILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    profile = tmp_path / name if name.endswith(".yaml") else name
    said = refused("run", video, "--out", tmp_path / "run", *LOCAL, "--profile", profile)
    assert all(word in said for word in words), said
    assert not (tmp_path / "run").exists()


ARGUMENTS: dict[str, list[str]] = {
    "": [],
    "nonsense": ["No such command 'nonsense'"],
    "run VIDEO": ["--out RUN is missing"],
    "run --out RUN": ["not a run folder", "Make one with: hicom run INPUT"],
    "run VIDEO --out RUN --nonsense": ["--nonsense"],
    "run VIDEO --out RUN --limit 0": ["--limit", "greater than or equal to 1"],
    "run VIDEO --out RUN --limit few": ["--limit", "valid integer"],
    "run VIDEO --out RUN --max-reject-share 2": ["--max-reject-share", "less than or equal to 1"],
    "run VIDEO --out RUN --engine spark": ["no engine 'spark'", "ray, local"],
    "run VIDEO --out RUN --engine local --address 10.0.0.1:6379": ["--address names a Ray cluster"],
    "run VIDEO --out RUN --address nonsense": ["--address nonsense", "HOST:PORT"],
    "run VIDEO --out RUN --address 127.0.0.1:1": ["no Ray cluster at 127.0.0.1:1", "ray start --head"],
    "run --out FINISHED --engine spark": ["no engine 'spark'"],
    "run --out FINISHED --limit 2": ["--limit", "names none"],
    "run VIDEO --out VIDEO": ["is not empty and not a run folder", "disc.mp4", "Choose an empty or new folder"],
    "filter VIDEO": ["is not a run folder", "no run.yaml"],
    "filter FINISHED VIDEO": ["filter takes no inputs"],
    "status RUN": ["is not a run folder"],
    "stats VIDEO": ["is not a run folder"],
    "gc RUN": ["is not a run folder"],
    "rejects FINISHED --stage nonsense": ["no stage 'nonsense'", "ingest, embed"],
    "rejects FINISHED --reason nonsense": ["no reject reason 'nonsense'", "missing, not_video"],
    "rejects FINISHED --limit 0": ["--limit", "greater than or equal to 1"],
    "rejects FINISHED --format xml": ["--format xml", "table, csv, json or parquet"],
    "rejects FINISHED --format parquet": ["add --output"],
    "rejects FINISHED --output x.txt": ["add --format csv"],
    "rejects FINISHED --format csv --output RUN/none/x.csv": ["RUN/none/x.csv", "No such file or directory"],
    "retry FINISHED": ["--reason"],
    "retry FINISHED --reason nonsense": ["no reject reason 'nonsense'"],
    "retry FINISHED --reason too_short": ["too_short is a decision", "Change the config"],
    "retry FINISHED --reason timeout --engine spark": ["no engine 'spark'"],
}


@pytest.mark.parametrize("line", ARGUMENTS)
def test_arguments_that_do_not_fit(line: str, video: Path, finished: Path, tmp_path: Path) -> None:
    places = {"VIDEO": video, "FINISHED": finished, "RUN": tmp_path / "run"}

    def placed(text: str) -> str:
        return "/".join(str(places.get(part, part)) for part in text.split("/"))

    before = state(finished), sorted(video.iterdir())
    said = hicom(*map(placed, line.split()), code=2)
    assert all(placed(words) in said.err for words in ARGUMENTS[line]), said
    assert (state(finished), sorted(video.iterdir())) == before
    assert not (tmp_path / "run" / "tables" / "ingest").exists(), "no work was begun"


def test_a_stage_before_those_it_needs(video: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    hicom("ingest", run, video, *LOCAL)
    assert f"Run `hicom embed {run}` first" in refused("scan", run, *LOCAL)
    assert f"hicom run --out {run}" in refused("export", run, *LOCAL)


def test_too_many_failed_items_are_an_error(video: Path, tmp_path: Path) -> None:
    clips.text(tmp_path / "notes.mp4")
    command = ("ingest", tmp_path / "run", video, tmp_path / "notes.mp4", *LOCAL, "--max-reject-share")
    said = hicom(*command, "0.4", code=1)
    assert "ingest: 1 of 2 items failed, more than --max-reject-share 0.4" in said.err
    hicom(*command, "0.5")


INPUTS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "none_such": (lambda path: None, ["none_such' does not exist", "expected a folder, a glob, a video file"]),
    "none_such.mp4": (lambda path: None, ["none_such.mp4' does not exist"]),
    "empty": (Path.mkdir, ["holds no video", ".mp4", "a file named explicitly is always tried"]),
    "no_match/*.mp4": (lambda path: path.parent.mkdir(), ["no_match/*.mp4"]),
    "empty.csv": (Path.touch, ["is empty"]),
    "header.csv": (lambda path: path.write_text("path,id\n"), ["has no rows"]),
    "columns.csv": (lambda path: path.write_text("a,b\n1,2\n"), ["no column names the media", "it has a, b"]),
    "twice.csv": (lambda path: path.write_text("path,path\na,b\n"), ["names column 'path' twice"]),
    "utf16.csv": (lambda path: path.write_bytes("path\na\n".encode("utf-16")), ["is UTF-16; save it as UTF-8"]),
    "binary.csv": (lambda path: path.write_bytes(bytes(range(256))), ["is not text"]),
    "words.jsonl": (lambda path: path.write_text("nonsense\n"), ["hold no JSON object", "line 1"]),
    "broken.json": (lambda path: path.write_text("{"), ["is not JSON"]),
    "other.json": (lambda path: path.write_text("[]"), ["is not an ego4d.json"]),
    "hollow.json": (lambda path: path.write_text('{"videos": []}'), ["lists no videos"]),
    "words.parquet": (lambda path: path.write_bytes(b"PAR1 nonsense PAR1"), ["is not a Parquet file"]),
    "torn.parquet": (lambda path: _torn_parquet(path), ["cannot be read after row"]),
}


def _torn_parquet(path: Path) -> None:
    pq.write_table(pa.table({"path": [f"{i}.mp4" for i in range(9_000)]}), path)
    data = bytearray(path.read_bytes())
    data[100:2000] = bytes(1900)
    path.write_bytes(data)


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_that_is_none(name: str, video: Path, tmp_path: Path) -> None:
    make, words = INPUTS[name]
    make(tmp_path / name)
    said = refused("run", video, tmp_path / name, "--out", tmp_path / "run", *LOCAL)
    assert all(word in said for word in words), said
    hicom("ingest", tmp_path / "run", video, *LOCAL)  # what the refused command left does not stand in the way


def test_a_name_that_is_not_text_is_told_escaped(tmp_path: Path) -> None:
    """In a process of its own: the streams of a test take any text, those of a terminal do not."""
    line: list[str | bytes]
    line = [sys.executable, str(ROOT / "cli.py"), "run", b"/none/odd\xff.mp4", "--out", str(tmp_path / "run"), *LOCAL]
    done = subprocess.run(line, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"})
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    assert b"error: input '/none/odd" in done.stderr and b"udcff.mp4' does not exist" in done.stderr


SQL: dict[str, str] = {
    "": "one statement that reads",
    "SELEC 1": "syntax error",
    "SELECT * FROM nonsense": "nonsense does not exist",
    "SELECT error('by the query')": "by the query",
    "SELECT 1; SELECT 2": "one statement that reads",
    "DROP VIEW ingest": "one statement that reads",
    "CREATE TABLE t AS SELECT 1": "one statement that reads",
    "INSERT INTO ingest SELECT * FROM ingest": "one statement that reads",
    "COPY ingest TO 'PLACE/stolen.csv'": "one statement that reads",
    "EXPORT DATABASE 'PLACE/stolen'": "one statement that reads",
    "ATTACH 'PLACE/stolen.db'": "one statement that reads",
    "INSTALL httpfs": "one statement that reads",
    "SET enable_external_access = true": "one statement that reads",
    "EXPLAIN ANALYZE COPY ingest TO 'PLACE/stolen.csv'": "one statement that reads",
    "SELECT * FROM read_text('PLACE/secret.txt')": "Permission Error",
    "SELECT * FROM read_csv('PLACE/secret.txt')": "Permission Error",
    "SELECT * FROM 'PLACE/secret.csv'": "Permission Error",
    "SELECT * FROM glob('PLACE/*')": "Permission Error",
    "SELECT * FROM read_text('RUN/run.yaml')": "Permission Error",
    "SELECT * FROM read_text('RUN/tables/../run.yaml')": "Permission Error",
}


@pytest.mark.parametrize("sql", SQL)
def test_sql_that_is_broken_or_leaves_its_bounds(sql: str, finished: Path, tmp_path: Path) -> None:
    for name in ("secret.txt", "secret.csv"):
        (tmp_path / name).write_text("a,b\n1,2\n")
    before = state(finished), sorted(tmp_path.iterdir())
    said = refused("query", finished, sql.replace("PLACE", str(tmp_path)).replace("RUN", str(finished)))
    assert SQL[sql] in said
    assert (state(finished), sorted(tmp_path.iterdir())) == before


def test_ctrl_c_stops_and_the_same_command_goes_on(video: Path, tmp_path: Path) -> None:
    command = Command(tmp_path / "faults")
    command.rules({"decoder": "scan", "match": "", "how": "hang"})
    line = ("run", video, "--out", tmp_path / "run", *LOCAL, *sets("select.random_rest=9"))
    # A shell that runs the tests in the background has all their children ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = command.start(*line)
    signal.signal(signal.SIGINT, before)
    try:
        while ("scan", "disc.mp4") not in command.trace("job"):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    finally:
        command.kill("all")
    assert process.returncode == 130 and "stopped. What was committed is safe" in said and "Traceback" not in said, said
    command.rules()
    command.run(*line)
    assert [stage for stage, _ in command.trace("job")].count("probe") == 1, "what was committed is not done again"
