"""Every kind of run folder gives the same promises: whole objects, exclusive create, clear errors."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from pipeline.store.files import Files, LocalFiles, RemoteFiles, open_files
from tests.store.conftest import make_root

ODD_NAMES = (
    "with space.txt",
    "quote's.txt",
    'double"quote.txt',
    "brackets[1].txt",
    "star*.txt",
    "hash#a%20b.txt",
    "ü.txt",
)


def test_put_get_size_remove(files: Files) -> None:
    assert files.get("tables/scan/a.parquet") is None
    assert files.size("tables/scan/a.parquet") is None
    files.put("tables/scan/a.parquet", b"first")
    files.put("tables/scan/a.parquet", b"second one")
    assert files.get("tables/scan/a.parquet") == b"second one"
    assert files.size("tables/scan/a.parquet") == 10
    files.put("empty", b"")
    assert files.get("empty") == b"" and files.size("empty") == 0
    files.remove("tables/scan/a.parquet")
    files.remove("tables/scan/a.parquet")
    assert files.get("tables/scan/a.parquet") is None


def test_a_large_object(files: Files) -> None:
    """Object stores take more than 5 MB in several requests."""
    data = os.urandom(1 << 20) * 12
    files.put("large", data)
    assert files.size("large") == len(data)
    assert files.get("large") == data


def test_put_file(files: Files, tmp_path: Path) -> None:
    source = tmp_path / "clip.mp4"
    source.write_bytes(b"x" * (6 << 20))
    files.put_file(str(source), "clips/ab/clip.mp4")
    assert files.size("clips/ab/clip.mp4") == 6 << 20
    with pytest.raises(FileNotFoundError):
        files.put_file(str(tmp_path / "not there"), "clips/other.mp4")
    assert files.list("") == ["clips/ab/clip.mp4"]


def test_put_file_from_another_disk(local: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "clip.mp4"
    source.write_bytes(b"clip")
    rename = os.rename

    def no_rename(a: str, b: str) -> None:
        if a == str(source):
            raise OSError(18, "Invalid cross-device link")
        rename(a, b)

    monkeypatch.setattr(os, "rename", no_rename)
    local.put_file(str(source), "clips/clip.mp4")
    assert local.get("clips/clip.mp4") == b"clip"


def test_list_is_sorted_and_of_that_folder_only(files: Files) -> None:
    names = ["rejects/scan/a", "tables/scan/b", "tables/scan/a", "tables/scan/deeper/c", "tables/scan2/d", "run.yaml"]
    for name in names:
        files.put(name, b"")
    assert files.list("") == sorted(names)
    assert files.list("tables/scan") == ["tables/scan/a", "tables/scan/b", "tables/scan/deeper/c"]
    assert files.list("tables") == sorted(n for n in names if n.startswith("tables/"))
    assert files.list("markers") == []


def test_a_listing_is_never_stale(files: Files) -> None:
    """A second reader of the same root sees what the first one wrote, at once."""
    other = open_files(files.root)
    assert other.list("lock") == []
    for i in range(3):
        files.put(f"lock/{i}", b"")
        assert len(other.list("lock")) == i + 1
        assert other.size(f"lock/{i}") == 0
    files.remove("lock/0")
    assert other.list("lock") == ["lock/1", "lock/2"] and other.get("lock/0") is None


def test_a_folder_that_appears_while_it_is_listed(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """s3fs finds nothing below the folder, looks whether it is a file, and then finds a folder."""
    files = open_files(f"{s3}/appearing")
    assert isinstance(files, RemoteFiles)
    monkeypatch.setattr(files.fs, "find", lambda path, detail: {path.rstrip("/"): {"size": 0}})
    assert files.list("lock") == []


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names(files: Files, name: str) -> None:
    files.put(f"logs/{name}", name.encode())
    assert files.get(f"logs/{name}") == name.encode()
    assert files.list("logs") == [f"logs/{name}"]
    files.remove(f"logs/{name}")
    assert files.list("logs") == []


@pytest.mark.parametrize("kind", ["local", "memory", "s3"])
@pytest.mark.parametrize("name", ["run[1]", "r*n ?", "run#1 %20"])
def test_odd_roots(request: pytest.FixtureRequest, kind: str, name: str) -> None:
    root = make_root(kind, request, name)
    plain = open_files(root.replace("[1]", "1"))
    plain.put("a", b"a pattern's catch")
    files = open_files(root)
    if plain.root != root:
        assert files.list("") == []
    files.put("a", b"ours")
    assert files.list("") == ["a"] and files.get("a") == b"ours"


def test_open_is_seekable(files: Files) -> None:
    files.put("a", bytes(range(200)))
    with files.open("a") as handle:
        handle.seek(100)
        assert handle.read(3) == bytes([100, 101, 102])
        handle.seek(-1, os.SEEK_END)
        assert handle.read() == bytes([199])
    with pytest.raises(FileNotFoundError):
        files.open("b").read()


def test_link_or_copy(files: Files) -> None:
    files.put("clips/a", b"clip")
    files.link_or_copy("clips/a", "export/split_videos/a")
    assert files.get("export/split_videos/a") == b"clip"
    files.put("export/half", b"cl")
    files.link_or_copy("clips/a", "export/half")
    assert files.get("export/half") == b"clip"
    files.link_or_copy("clips/a", "export/half")
    with pytest.raises(FileNotFoundError):
        files.link_or_copy("clips/none", "export/none")
    assert files.list("export") == ["export/half", "export/split_videos/a"]


def test_a_local_link_shares_the_disk(local: Files) -> None:
    local.put("clips/a", b"clip")
    local.link_or_copy("clips/a", "export/a")
    assert os.stat(local.url("clips/a")).st_ino == os.stat(local.url("export/a")).st_ino


def test_a_disk_without_links(local: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    local.put("clips/a", b"clip")
    local.link_or_copy("clips/a", "export/a")
    assert local.get("export/a") == b"clip"
    assert local.create("lock/1", b"mine") and not local.create("lock/1", b"yours")
    assert local.get("lock/1") == b"mine"
    assert local.list_temporary() == []


def test_travels_to_workers(files: Files) -> None:
    files.put("a", b"x")
    there: Files = pickle.loads(pickle.dumps(files))
    assert there.get("a") == b"x"
    assert there.root == files.root


def test_a_path_never_leaves_the_root(files: Files) -> None:
    for path in ("../outside", "tables/../../outside"):
        with pytest.raises(AssertionError):
            files.put(path, b"")


def test_create_is_exclusive(files: Files) -> None:
    assert files.create("lock/1", b"mine")
    assert not files.create("lock/1", b"yours")
    assert files.get("lock/1") == b"mine"
    files.remove("lock/1")
    assert files.create("lock/1", b"yours")
    assert files.list_temporary() == []


def test_one_of_eight_threads_creates(shared_files: Files) -> None:
    for round_ in range(10):
        won: list[int] = []
        start = threading.Barrier(8)

        def race(me: int, path: str, start: threading.Barrier, won: list[int]) -> None:
            start.wait()
            if shared_files.create(path, b"%d" % me):
                won.append(me)

        path = f"lock/{round_}"
        threads = [threading.Thread(target=race, args=(i, path, start, won)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert shared_files.get(path) == b"%d" % won[0]


def create_all(root: str, names: list[str]) -> list[bool]:
    """In a process of its own."""
    files = open_files(root)
    return [files.create(name, b"%d" % os.getpid()) for name in names]


@pytest.mark.slow
def test_one_of_four_processes_creates(shared_files: Files) -> None:
    names = [f"lock/{i}" for i in range(40)]
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        outcomes = list(pool.map(create_all, [shared_files.root] * 4, [names] * 4))
    assert [sum(won) for won in zip(*outcomes, strict=True)] == [1] * len(names)


def test_which_kind(tmp_path: Path) -> None:
    assert isinstance(open_files("s3://bucket/run"), RemoteFiles)
    for text in (str(tmp_path), f"file://{tmp_path}", f"local://{tmp_path}"):
        files = open_files(text)
        assert isinstance(files, LocalFiles) and files.root == str(tmp_path)
    assert open_files("some/run").root == str(Path.cwd() / "some" / "run")


def test_only_the_asked_for_bytes_cross_the_network(s3: str) -> None:
    """Ids are read from parts of many megabytes: a read must not fetch the whole part."""
    files = open_files(f"{s3}/reading")
    assert isinstance(files, RemoteFiles)
    files.put("part", os.urandom(1 << 20) * 20)
    with files.open("part") as handle:
        fetched: list[int] = []
        fetch = handle.cache.fetcher  # type: ignore[attr-defined]

        def counted(start: int, end: int) -> bytes:
            fetched.append(end - start)
            data: bytes = fetch(start, end)
            return data

        handle.cache.fetcher = counted  # type: ignore[attr-defined]
        handle.seek(-8, os.SEEK_END)
        handle.read(8)
        handle.seek(100)
        handle.read(1000)
    assert 1008 <= sum(fetched) < 2 << 20
