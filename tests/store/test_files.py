"""Every kind of run folder gives the same promises: whole objects, exclusive create, clear errors."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.stage import UserError
from pipeline.store.files import TEMPORARY, DiskFull, Files, LocalFiles, RemoteFiles, open_files
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


KILLED_WRITER = """
import sys, time
from pipeline.store import files
def half(path, data):
    with open(path, "wb") as handle:
        handle.write(data[: len(data) // 2])
        handle.flush()
        print("half", flush=True)
        time.sleep(60)
files._write = half
files.open_files(sys.argv[1]).put("tables/scan/part.parquet", b"x" * 100_000)
"""


def test_a_killed_writer_leaves_no_committed_file(local: Files) -> None:
    local.put("tables/scan/part.parquet", b"before")
    child = subprocess.Popen([sys.executable, "-c", KILLED_WRITER, local.root], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"half\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert local.list("") == ["tables/scan/part.parquet"]
    assert local.get("tables/scan/part.parquet") == b"before"
    (left,) = local.list_temporary()
    assert Path(left).name.startswith(TEMPORARY) and local.size(left) == 50_000


def test_a_limited_file_size_is_a_full_disk(local: Files, tmp_path: Path) -> None:
    local.put("a", b"before")
    source = tmp_path / "clip.mp4"
    source.write_bytes(b"x" * 200_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(DiskFull, match=r"no room to write .* run the same command again"):
            local.put("a", b"x" * 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert local.get("a") == b"before" and local.list_temporary() == []


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small tmpfs; skips where one may not be mounted."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    if done.returncode != 0:
        pytest.skip("mounting a tmpfs takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    big = tmp_path / "big.mp4"
    big.write_bytes(b"x" * (2 << 20))
    with mounted(tmp_path / "disk", "size=1m") as folder:
        files = open_files(str(folder / "run"))
        files.put("tables/a", b"a" * 300_000)
        for write in (
            lambda: files.put("tables/b", b"b" * (2 << 20)),
            lambda: files.put("tables/a", b"b" * (2 << 20)),
            lambda: files.put_file(str(big), "clips/big.mp4"),
            lambda: files.create("lock/1", b"b" * (2 << 20)),
        ):
            with pytest.raises(DiskFull):
                write()
        assert files.list("") == ["tables/a"] and files.list_temporary() == []
        assert files.get("tables/a") == b"a" * 300_000
        files.put("tables/b", b"b" * 300_000)
        assert files.size("tables/b") == 300_000


DENIED = """
import os, sys
from pipeline.stage import UserError
from pipeline.store.files import open_files
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
files = open_files(sys.argv[1])
for call in (lambda: files.put("a", b""), lambda: files.create("lock/1", b""), lambda: files.remove("there")):
    try:
        call()
    except UserError as err:
        print(err)
"""


def test_a_read_only_folder_is_one_clear_message(tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    (root / "there").write_bytes(b"")
    root.chmod(0o555)
    try:
        done = subprocess.run([sys.executable, "-c", DENIED, str(root)], capture_output=True, text=True)
    finally:
        root.chmod(0o755)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stderr
    assert all(line.startswith(f"{root}: ") and "choose another --out" in line for line in lines)
    assert (root / "there").exists()


def test_a_read_only_disk_is_one_clear_message(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=1m,ro") as folder, pytest.raises(UserError, match="Read-only file system"):
        open_files(str(folder / "run")).put("a", b"")


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    place = tmp_path / "video.mp4"
    place.write_bytes(b"video")
    for root in (place, place / "run"):
        files = open_files(str(root))
        with pytest.raises(UserError, match="must be a folder"):
            files.get("run.yaml")
        with pytest.raises(UserError, match="must be a folder"):
            files.put("run.yaml", b"")
        with pytest.raises(UserError, match="must be a folder"):
            files.create("lock/1", b"")
    assert place.read_bytes() == b"video"


def test_which_kind(tmp_path: Path) -> None:
    assert isinstance(open_files("s3://bucket/run"), RemoteFiles)
    for text in (str(tmp_path), f"file://{tmp_path}", f"local://{tmp_path}"):
        files = open_files(text)
        assert isinstance(files, LocalFiles) and files.root == str(tmp_path)
    assert open_files("some/run").root == str(Path.cwd() / "some" / "run")


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("nothing://a/run", "Give a local folder, or a URL that fsspec opens"),
        ("https://127.0.0.1:9/run", "cannot be reached"),
    ],
)
def test_a_url_that_cannot_hold_a_run(root: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        open_files(root).put("run.yaml", b"")


def test_a_bucket_that_is_not_there(s3: str) -> None:
    files = open_files("s3://no-such-bucket/run")
    assert files.get("run.yaml") is None
    with pytest.raises(UserError, match="bucket must be there"):
        files.create("lock/1", b"")


NO_STORE = """
import sys
from pipeline.stage import UserError
from pipeline.store.files import open_files
try:
    open_files("s3://videos/run").get("run.yaml")
except UserError as err:
    print(err)
"""


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}, id="no server"),
        pytest.param({"AWS_ACCESS_KEY_ID": "", "AWS_EC2_METADATA_DISABLED": "true"}, id="no credentials"),
    ],
)
def test_a_store_that_cannot_be_reached(s3: str, tmp_path: Path, environment: dict[str, str]) -> None:
    env = {**os.environ, "HOME": str(tmp_path), **environment}
    if not env["AWS_ACCESS_KEY_ID"]:
        del env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"]
    done = subprocess.run([sys.executable, "-c", NO_STORE], env=env, capture_output=True, text=True, timeout=120)
    assert "s3://videos/run: " in done.stdout and "credentials in the environment" in done.stdout, done.stderr


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
