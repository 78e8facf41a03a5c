"""Folders, globs, single files, buckets: which files become rows, and under which names."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from pipeline.media.open import local_path
from pipeline.records import schema
from pipeline.resources import resource
from pipeline.sources.files import HIDDEN, RUN_FOLDER, SEEN, VIDEO_EXTENSIONS
from pipeline.sources.listing import Listing, SourcesConfig, list_sources
from pipeline.stage import UserError


def listed(*inputs: object, adapter: str = "files") -> Listing:
    listing = list_sources([os.fsdecode(i) if isinstance(i, Path | bytes) else str(i) for i in inputs], config(adapter))
    pa.Table.from_pylist(listing.rows, schema("sources"))  # no surrogate, no missing column
    return listing


def config(adapter: str) -> SourcesConfig:
    return SourcesConfig(adapter=adapter)  # type: ignore[arg-type]


def keys(listing: Listing) -> list[str]:
    return [row["source_key"] for row in listing.rows]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_a_folder_means_its_files_of_known_extensions_however_deep(tmp_path: Path) -> None:
    root = tmp_path / "holiday"
    touch(
        root / "b.mp4", root / "a.MKV", root / "day 1" / "c.webm", root / "notes.txt", root / "x.TXT", root / "README"
    )
    listing = listed(root)
    assert keys(listing) == ["holiday/a.MKV", "holiday/b.mp4", "holiday/day 1/c.webm"]
    assert listing.rows[2]["uri"] == str(root / "day 1" / "c.webm")
    assert {row["dataset"] for row in listing.rows} == {"holiday"}
    assert {row["given_id"] for row in listing.rows} == {None}
    assert listing.ignored == {".txt": 2, "(no extension)": 1}
    assert listing.found == 3


def test_hidden_names_and_run_folders_are_ignored_and_counted(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4", tmp_path / "._a.mp4", tmp_path / ".trash" / "b.mp4")
    touch(
        tmp_path / "RUN" / "run.yaml", tmp_path / "RUN" / "tables" / "x.parquet", tmp_path / "RUN" / "clips" / "c.mp4"
    )
    listing = listed(tmp_path)
    assert keys(listing) == [f"{tmp_path.name}/a.mp4"]
    assert listing.ignored == {HIDDEN: 2, RUN_FOLDER: 1}


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: touch(path / "notes.txt")])
def test_a_folder_without_a_video_is_the_users_mistake(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "empty")
    with pytest.raises(UserError, match=r"empty' holds no video"):
        listed(tmp_path / "empty")


def test_names_of_any_bytes_become_rows(tmp_path: Path) -> None:
    names = [b"a b.mp4", b'it\'s "q".mp4', b"new\nline.mp4", b"\xff\xfe.mp4", b"back\\slash.mp4", b"n" * 251 + b".mp4"]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
            pass
    listing = listed(tmp_path)
    found = {os.fsencode(local_path(row["uri"]) or "") for row in listing.rows}
    assert found == {os.path.join(os.fsencode(tmp_path), name) for name in names}
    assert len(set(keys(listing))) == len(names)
    assert f"{tmp_path.name}/new\\u000aline.mp4" in keys(listing)
    assert f"{tmp_path.name}/\\xff\\xfe.mp4" in keys(listing)


def test_a_root_and_a_file_named_explicitly_may_have_any_name(tmp_path: Path) -> None:
    root = os.path.join(os.fsencode(tmp_path), b"r\xff\n")
    os.mkdir(root)
    for name in (b"a.mp4", b"\xfe.bin"):
        with open(os.path.join(root, name), "wb"):
            pass
    listing = listed(root, os.path.join(root, b"\xfe.bin"))
    assert keys(listing) == ["\\xfe.bin", "r\\xff\\u000a/a.mp4"]
    assert {row["dataset"] for row in listing.rows} == {"r\\xff\\u000a"}


def test_links_are_followed_each_real_folder_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    touch(root / "real" / "a.mp4", tmp_path / "outside" / "b.mp4")
    (root / "z_again").symlink_to(root / "real")
    (root / "loop").symlink_to(root)
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "dangling.mp4").symlink_to(tmp_path / "nowhere")
    (root / "self.mp4").symlink_to(root / "self.mp4")
    listing = listed(root)
    assert keys(listing) == ["root/dangling.mp4", "root/out/b.mp4", "root/real/a.mp4", "root/self.mp4"]
    assert listing.ignored == {SEEN: 2}


def test_pipes_and_sockets_are_listed_and_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # a socket's path is short
        server.bind("socket.mp4")
        assert len(listed(tmp_path).rows) == 2


def test_a_folder_named_like_a_video_is_a_folder(tmp_path: Path) -> None:
    touch(tmp_path / "x.mp4" / "y.mp4")
    assert keys(listed(tmp_path)) == [f"{tmp_path.name}/x.mp4/y.mp4"]
    assert keys(listed(tmp_path / "x.mp4")) == ["x.mp4/y.mp4"]


def test_a_folder_that_cannot_be_listed_is_a_row_with_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "a.mp4", tmp_path / "locked" / "b.mp4")
    scandir = os.scandir

    def refuse(folder: str) -> Iterator[os.DirEntry[str]]:
        if str(folder).rstrip("/").endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    rows = listed(tmp_path).rows
    assert [row["source_key"].removeprefix(tmp_path.name) for row in rows] == ["/a.mp4", "/locked/"]
    assert rows[1]["problem"] == "missing"
    assert rows[1]["problem_detail"] == "the folder cannot be listed: Permission denied"
    with pytest.raises(UserError, match="cannot be listed: Permission denied"):
        listed(tmp_path / "locked")


def test_a_file_named_explicitly_is_always_tried(tmp_path: Path) -> None:
    touch(tmp_path / "data" / "movie.bin", tmp_path / "data" / "other.mp4")
    (listing,) = [listed(tmp_path / "data" / "movie.bin", adapter="auto")]
    assert [(row["source_key"], row["dataset"], row["uri"]) for row in listing.rows] == [
        ("movie.bin", "data", str(tmp_path / "data" / "movie.bin"))
    ]
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    assert keys(listed(tmp_path / "gone.mp4")) == ["gone.mp4"]


def test_a_manifest_is_a_video_only_under_the_files_adapter(tmp_path: Path) -> None:
    touch(tmp_path / "clips.csv")
    assert keys(listed(tmp_path / "clips.csv", adapter="files")) == ["clips.csv"]
    with pytest.raises(UserError, match="is empty"):
        listed(tmp_path / "clips.csv", adapter="auto")


def test_equal_names_of_roots_and_files_are_told_apart_by_the_full_path(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "videos" / "x.mp4", tmp_path / "b" / "videos" / "x.mp4", tmp_path / "c" / "y.mp4")
    both = listed(tmp_path / "a" / "videos", tmp_path / "b" / "videos", tmp_path / "c")
    assert keys(both) == sorted([f"{tmp_path}/a/videos/x.mp4", f"{tmp_path}/b/videos/x.mp4", "c/y.mp4"])
    files = listed(tmp_path / "a" / "videos" / "x.mp4", tmp_path / "b" / "videos" / "x.mp4", tmp_path / "c" / "y.mp4")
    assert keys(files) == sorted([f"{tmp_path}/a/videos/x.mp4", f"{tmp_path}/b/videos/x.mp4", "y.mp4"])


def test_a_glob_takes_known_extensions_and_folders_like_a_shell_would(tmp_path: Path) -> None:
    root = tmp_path / "in"
    touch(root / "a1.mp4", root / "a2.txt", root / "a3" / "deep.mp4", root / "b.mp4")
    listing = listed(root / "a*")
    assert keys(listing) == ["in/a1.mp4", "in/a3/deep.mp4"]
    assert {row["dataset"] for row in listing.rows} == {"in"}
    assert listing.ignored == {".txt": 1}
    assert keys(listed(root / "**")) == ["in/a1.mp4", "in/a3/deep.mp4", "in/b.mp4"]
    assert keys(listed(root / "**" / "*.mp4")) == ["in/a1.mp4", "in/a3/deep.mp4", "in/b.mp4"]


def test_a_glob_that_spells_its_extension_out_is_explicit(tmp_path: Path) -> None:
    touch(tmp_path / "a.dat", tmp_path / "b.dat")
    assert len(listed(tmp_path / "*.dat").rows) == 2
    with pytest.raises(UserError, match="holds no video"):
        listed(tmp_path / "*.d?t")


def test_a_file_with_brackets_in_its_name_is_not_a_glob(tmp_path: Path) -> None:
    touch(tmp_path / "take [1].mp4", tmp_path / "take 1.mp4")
    assert keys(listed(tmp_path / "take [1].mp4")) == ["take [1].mp4"]


@pytest.mark.parametrize("text", ["nothing_here.mp4", "", "no/such/folder", "s3x://bucket/a", "file://host/a.mp4"])
def test_an_input_that_is_not_there_is_the_users_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        listed(text)


@pytest.fixture
def bucket() -> Iterator[str]:
    files = fsspec.filesystem("memory")
    for name in ("videos/a.mp4", "videos/deep/b.webm", "videos/notes.txt", "videos/.hidden.mp4", "other.mp4"):
        files.pipe(f"/bucket/{name}", b"x")
    for name in ("run.yaml", "tables/ingest/p.parquet", "clips/c.mp4"):
        files.pipe(f"/bucket/videos/RUN/{name}", b"x")
    yield "memory://bucket"
    files.rm("/bucket", recursive=True)


def test_a_bucket_prefix_is_a_folder(bucket: str) -> None:
    listing = listed(f"{bucket}/videos")
    assert [(row["source_key"], row["uri"]) for row in listing.rows] == [
        ("videos/a.mp4", "memory://bucket/videos/a.mp4"),
        ("videos/deep/b.webm", "memory://bucket/videos/deep/b.webm"),
    ]
    assert listing.ignored == {".txt": 1, HIDDEN: 1, RUN_FOLDER: 3}


def test_an_object_and_a_glob_of_a_bucket(bucket: str) -> None:
    assert keys(listed(f"{bucket}/other.mp4", adapter="auto")) == ["other.mp4"]
    assert keys(listed(f"{bucket}/videos/*", adapter="auto")) == ["videos/a.mp4"]
    assert keys(listed(f"{bucket}/videos/**/*.webm")) == ["videos/deep/b.webm"]
    with pytest.raises(UserError, match="does not exist"):
        listed(f"{bucket}/nothing")


def test_an_object_whose_name_would_chain_file_systems_is_a_row_with_a_problem(bucket: str) -> None:
    fsspec.filesystem("memory").pipe("/bucket/odd/a::b.mp4", b"x")
    (row,) = listed(f"{bucket}/odd").rows
    assert (row["source_key"], row["problem"], row["uri"]) == ("odd/a::b.mp4", "missing", "")


def test_an_http_url_is_one_file(tmp_path: Path) -> None:
    url = "https://example.org/videos/a.mp4?sig=secret"
    (row,) = listed(url).rows
    assert (row["source_key"], row["dataset"], row["uri"]) == ("a.mp4", "videos", url)


def test_the_documentation_lists_the_extensions() -> None:
    text = resource("manifests", "SOURCES.md").read_text(encoding="utf-8")
    listed_there = text[text.index("extensions, however deep:") : text.index("in upper or lower")]
    assert set(re.findall(r"\.\w+", listed_there)) == VIDEO_EXTENSIONS
