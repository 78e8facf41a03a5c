"""Panda-70M and Ego4D: rows of the published formats, and media found by id."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from pipeline.records import schema
from pipeline.sources.listing import SourcesConfig, list_sources
from pipeline.stage import Row, UserError

FIXTURES = Path(__file__).parent.parent / "fixtures"
PANDA_IDS = ["--dQ3kLm8Zs", "_7hVb2NxPqE", "Rk5w_ZtY-u0"]
EGO_IDS = [
    "0a1c5e6f-7b2d-4c3e-9f80-1a2b3c4d5e6f",
    "7f3b9d20-54aa-4e17-b6c8-0d9e8f7a6b5c",
    "c4d2e1f0-9a8b-4765-8321-fedcba987654",
]


def rows_of(path: Path, **options: str) -> dict[str, Row]:
    rows = list_sources([str(path)], SourcesConfig(**options)).rows  # type: ignore[arg-type]
    pa.Table.from_pylist(rows, schema("sources"))
    return {row["source_key"]: row for row in rows}


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A download folder: two of three videos of each dataset, in subfolders, with what a downloader leaves behind."""
    root = tmp_path / "media"
    for folder, names in {
        "00000": [f"{PANDA_IDS[0]}.mp4", f"{PANDA_IDS[0]}.json", f"{PANDA_IDS[1]}.webm", f"{PANDA_IDS[2]}.mp4.part"],
        "v2/full_scale": [f"{EGO_IDS[0]}.mp4", f"{EGO_IDS[1]}.mp4", "manifest.csv"],
    }.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).touch()
    return root


def test_panda70m(media: Path) -> None:
    rows = rows_of(FIXTURES / "panda70m.csv", adapter="panda70m", media_root=str(media))
    assert list(rows) == [f"panda70m/{i}" for i in sorted(PANDA_IDS)]
    row = rows[f"panda70m/{PANDA_IDS[0]}"]
    assert row["uri"] == f"{media}/00000/{PANDA_IDS[0]}.mp4"
    assert (row["dataset"], row["given_id"], row["problem"]) == ("panda70m", PANDA_IDS[0], None)
    assert json.loads(row["meta"]) == {"url": f"https://www.youtube.com/watch?v={PANDA_IDS[0]}"}
    missing = rows[f"panda70m/{PANDA_IDS[2]}"]
    assert (missing["problem"], missing["given_id"], missing["uri"]) == ("missing", PANDA_IDS[2], "")
    assert f"no video file named {PANDA_IDS[2]}.* under" in missing["problem_detail"]


def test_panda70m_without_the_later_columns(tmp_path: Path) -> None:
    with open(FIXTURES / "panda70m.csv", newline="") as old, open(tmp_path / "early.csv", "w", newline="") as new:
        csv.writer(new).writerows(fields[:5] for fields in csv.reader(old))
    shutil.copyfile(FIXTURES / "ego4d.json", tmp_path / f"{PANDA_IDS[0]}.mp4")
    assert sum(row["problem"] is None for row in rows_of(tmp_path / "early.csv").values()) == 1


def test_panda70m_rows_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "../x.mp4").touch()
    (tmp_path / "a.mp4").touch()
    head = "videoID,url,timestamp,caption,matching_score\n"
    (tmp_path / "p.csv").write_text(head + "../x,u,[],[],[]\n,u,[],[],[]\ncut off,u\na,u,[],[],[]\na,u,[],[],[]\n")
    assert {key: row["problem"] for key, row in rows_of(tmp_path / "p.csv").items()} == {
        "panda70m/../x": "bad_id",
        "panda70m/p.csv:3": "bad_id",
        "panda70m/p.csv:4": "bad_row",
        "panda70m/a": None,
        "panda70m/a #2": None,  # the same id twice: ingest rejects one as duplicate_id
    }


def test_ego4d(media: Path) -> None:
    rows = rows_of(FIXTURES / "ego4d.json", media_root=str(media))
    row = rows[f"ego4d/{EGO_IDS[0]}"]
    assert row["uri"] == f"{media}/v2/full_scale/{EGO_IDS[0]}.mp4"
    assert (row["dataset"], row["given_id"], row["problem"]) == ("ego4d", EGO_IDS[0], None)
    assert json.loads(row["meta"]) == {
        "scenarios": ["Cooking"],
        "video_source": "unict",
        "device": "GoPro Hero 7",
        "is_stereo": False,
        "has_redacted_regions": False,
    }
    assert rows[f"ego4d/{EGO_IDS[2]}"]["problem"] == "missing"


def test_ego4d_entries_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    videos = [{"video_uid": "a"}, {"video_uid": "../a"}, {"duration_sec": 1.0}, "a", {"video_uid": 1.5}]
    (tmp_path / "e.json").write_text(json.dumps({"videos": videos}))
    assert {key: row["problem"] for key, row in rows_of(tmp_path / "e.json").items()} == {
        "ego4d/a": None,
        "ego4d/../a": "bad_id",
        "ego4d/e.json:videos[2]": "bad_id",
        "ego4d/e.json:videos[3]": "bad_row",
        "ego4d/1.5": "bad_id",
    }


def test_a_pattern_makes_places_without_a_look(media: Path) -> None:
    rows = rows_of(FIXTURES / "panda70m.csv", media_root="s3://bucket/panda", pattern="original/{videoID}.mkv")
    assert {row["uri"] for row in rows.values()} == {f"s3://bucket/panda/original/{i}.mkv" for i in PANDA_IDS}
    rows = rows_of(FIXTURES / "ego4d.json", media_root=str(media), pattern="v2/full_scale/{video_uid}.mp4")
    assert rows[f"ego4d/{EGO_IDS[2]}"]["uri"] == f"{media}/v2/full_scale/{EGO_IDS[2]}.mp4"


def test_two_files_of_one_id_ask_for_a_pattern(media: Path) -> None:
    (media / "v2" / "video_540ss").mkdir()
    (media / "v2" / "video_540ss" / f"{EGO_IDS[0]}.mp4").touch()
    with pytest.raises(UserError, match="more than one file is named"):
        rows_of(FIXTURES / "ego4d.json", media_root=str(media))
    rows = rows_of(FIXTURES / "ego4d.json", media_root=str(media), pattern="v2/full_scale/{video_uid}.*")
    assert [row["problem"] for row in rows.values()] == [None, None, "missing"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "x.mp4"}, "must hold {videoID}"),
        ({"pattern": "{video_uid}.mp4"}, "must hold {videoID} and no other"),
        ({"pattern": "*/{videoID}.mp4"}, "only wildcard"),
        ({"media_root": "/no/such/folder"}, "is not a folder"),
        ({"media_root": "ftp://host/"}, "cannot be used"),
        ({"media_root": "s3://bucket", "pattern": "../{videoID}.mp4"}, "does not fit media_root"),
    ],
)
def test_a_media_root_that_cannot_serve_is_the_users_mistake(options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rows_of(FIXTURES / "panda70m.csv", **options)


def test_a_media_root_without_videos_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no video is under the media_root"):
        rows_of(FIXTURES / "panda70m.csv", media_root=str(tmp_path))


def test_a_manifest_and_its_media_in_a_bucket() -> None:
    files = fsspec.filesystem("memory")
    files.pipe("/pandas/p.csv", (FIXTURES / "panda70m.csv").read_bytes())
    files.pipe(f"/pandas/00/{PANDA_IDS[1]}.mp4", b"x")
    listing = list_sources(["memory://pandas/p.csv"], SourcesConfig())
    files.rm("/pandas", recursive=True)
    assert [row["uri"] for row in listing.rows if row["problem"] is None] == [f"memory://pandas/00/{PANDA_IDS[1]}.mp4"]
    assert len(listing.rows) == 3
