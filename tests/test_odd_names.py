"""Names that break programs: of videos, of rows in manifests, of run folders. They work, or are refused cleanly."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests import clips
from tests.command_line import LOCAL, assert_balance, hicom, refused, sets
from tests.run_helpers import read_tables

NAMES: dict[str, str] = {
    "two words.mp4": "two words.mp4",
    'it\'s "quoted".mp4': 'it\'s "quoted".mp4',
    "new\nline.mp4": "new\\u000aline.mp4",
    "bell\x07 and \x1b[31mred.mp4": "bell\\u0007 and \\u001b[31mred.mp4",
    "back\\slash.mp4": "back\\\\slash.mp4",
    "[bold]markup[red].mp4": "[bold]markup[red].mp4",
    "<script>alert(1)<script>.mp4": "<script>alert(1)<script>.mp4",
    "'); DROP TABLE x; --.mp4": "'); DROP TABLE x; --.mp4",
    "$(touch stolen).mp4": "$(touch stolen).mp4",
    "--out.mp4": "--out.mp4",
    "%41 star*?[1].mp4": "%41 star*?[1].mp4",
    "concat:one|two.mp4": "concat:one|two.mp4",
    "日本 é.mp4": "日本 é.mp4",
    "odd \udcff\udcfe bytes.mp4": "odd \\xff\\xfe bytes.mp4",
    "x" * 251 + ".mp4": "x" * 251 + ".mp4",
}
"""Names of files, and how each stands in a source_key."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a folder with a sound video and a broken one of every name. Read only: tests share it."""
    folder = tmp_path_factory.mktemp("odd") / "videos"
    (folder / "broken").mkdir(parents=True)
    for index, name in enumerate(NAMES):
        clips.write_clip(folder / "whole.mp4", clips.numbered(52, first=index))
        (folder / "whole.mp4").rename(folder / name)
        clips.text(folder / "broken" / name)
    run = folder.parent / "run"
    hicom("run", folder, "--out", run, *LOCAL, *sets("select.random_rest=99"))
    return run


def test_videos_of_any_name_go_all_the_way(finished: Path) -> None:
    tables = read_tables(finished)
    assert_balance(tables)
    assert {row["source_key"] for row in tables.rows["ingest"]} == {f"videos/{name}" for name in NAMES.values()}
    assert set(tables.rejected("ingest")) == {f"videos/broken/{name}" for name in NAMES.values()}
    assert set(tables.rejected("ingest").values()) == {"not_video"}
    assert len(tables.rows["export"]) == len(NAMES)


def test_no_name_of_the_input_becomes_a_path(finished: Path) -> None:
    folder = finished.parent
    assert sorted(path.name for path in folder.iterdir()) == ["run", "videos"]
    assert len(list((folder / "videos").rglob("*.mp4"))) == 2 * len(NAMES)
    for path in finished.rglob("*"):
        assert str(path.relative_to(finished)).isascii() and " " not in path.name and "'" not in path.name
    assert not Path("stolen").exists()


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_names_are_shown_as_they_are(form: str, finished: Path) -> None:
    said = hicom("rejects", finished, "--limit", 99, "--format", form).out
    assert "\x1b" not in said and "\x07" not in said
    for name in NAMES.values():
        shown = {"csv": name.replace('"', '""'), "json": json.dumps(name, ensure_ascii=False)[1:-1]}.get(form, name)
        assert shown in said


def test_no_text_steers_the_terminal(finished: Path) -> None:
    said = hicom("query", finished, "SELECT 'a' || chr(27) || '[31m' || chr(8238) || 'b' AS said").out
    assert "a\\u001b[31m\\u202eb" in said and "\x1b" not in said


BAD_IDS = ["../../x", "/etc/passwd", "a b", "a\nb", ".hidden", "x" * 129, "é", "<b>", "a'b", ""]
SOUND_IDS = ["-", "--help", "a.b", "x" * 128]


def test_ids_of_a_manifest_are_sound_or_refused(tmp_path: Path) -> None:
    clips.write_clip(tmp_path / "disc.mp4", clips.disc(60))
    manifest = tmp_path / "rows.jsonl"
    rows = [{"path": "disc.mp4", "id": given} for given in (*BAD_IDS, *SOUND_IDS)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tmp_path / "run"
    hicom("run", manifest, "--out", run, *LOCAL, *sets("select.random_rest=99"))
    tables = read_tables(run)
    assert_balance(tables)
    assert tables.ids("ingest") == set(SOUND_IDS)
    assert list(tables.rejected("ingest").values()) == ["bad_id"] * len(BAD_IDS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disc.mp4", "rows.jsonl", "run"]


PATHS = {
    "../videos/disc.mp4": None,
    "file:///none/such.mp4": "missing",
    "/proc/self/mem": "missing",
    "/dev/zero": "not_video",
    "/etc": "not_video",
    "": "missing",
    "nul\0byte.mp4": "missing",
    "x" * 5000: "missing",
    "concat:disc.mp4": "missing",
    "ftp://127.0.0.1:1/disc.mp4": "missing",
    "http://user:secret@127.0.0.1:1/disc.mp4": "missing",
    "zip://disc.mp4::file:///x.zip": "missing",
    "playlist.m3u8": "not_video",
    "concat.txt": "not_video",
}


def test_paths_of_a_manifest_are_files_or_refused(tmp_path: Path) -> None:
    """A playlist names a real video: whoever opens it as one reads what it was not given."""
    folder = tmp_path / "videos"
    folder.mkdir()
    disc = clips.write_clip(folder / "disc.mp4", clips.disc(60))
    playlist = ("#EXTM3U", "#EXT-X-TARGETDURATION:6", "#EXTINF:6,", f"file://{disc}", "#EXT-X-ENDLIST")
    (folder / "playlist.m3u8").write_text("\n".join(playlist))
    (folder / "concat.txt").write_text("ffconcat version 1.0\nfile disc.mp4\n")
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({"path": path, "id": f"row{i}"}) + "\n" for i, path in enumerate(PATHS))
    )
    run = tmp_path / "run"
    hicom("ingest", run, folder / "rows.jsonl", *LOCAL)
    tables = read_tables(run)
    assert_balance(tables, "ingest")
    expected = {f"rows.jsonl/row{i}": reason for i, reason in enumerate(PATHS.values()) if reason}
    assert tables.rejected("ingest") == expected
    assert "secret" not in json.dumps(tables.rows["rejects"])


@pytest.mark.parametrize("name", ["two words", "it's [1]*?", "new\nline", "[bold]", "日本", "%41;#&", "x" * 200])
def test_a_run_folder_of_any_name(name: str, tmp_path: Path) -> None:
    clips.write_clip(tmp_path / "disc.mp4", clips.disc(52))
    run = tmp_path / name
    said = hicom("run", tmp_path / "disc.mp4", "--out", run, *LOCAL).out
    assert f"run folder {run}, profile demo" in said
    assert hicom("query", run, "SELECT count(*) AS n FROM clips", "--format", "csv").out == "n\n1\n"
    hicom("status", run)
    hicom("gc", run)
    assert_balance(read_tables(run))


def test_a_run_folder_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    clips.write_clip(tmp_path / "disc.mp4", clips.disc(10))
    run = os.fsdecode(os.fsencode(tmp_path) + b"/odd\xff")
    assert "its name is not UTF-8" in refused("run", tmp_path / "disc.mp4", "--out", run, *LOCAL)
    assert os.listdir(tmp_path) == ["disc.mp4"]
