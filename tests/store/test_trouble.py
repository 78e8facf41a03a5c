"""What goes wrong with a run folder ends in one clear message, and nothing that was committed is lost."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.stage import UserError
from pipeline.store.files import TEMPORARY, DiskFull, Files, open_files

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
