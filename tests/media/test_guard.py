"""The guarded child: what kills it, hangs it or fills its memory costs one attempt of one item."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.media.guard import Deadline, Guard
from pipeline.stage import Rejected, Retryable
from tests import clips

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="processes are looked up in /proc")

ROOT = Path(__file__).resolve().parents[2]
SPEC = {"width": 64, "height": 48, "resize": "stretch", "interpolation": "area"}
FAULTS = """
import ctypes, os, signal, sys, time
import av

opened = av.open

def broken(file, *args, **kwargs):
    name = os.path.basename(str(file))
    if name.startswith("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("segfault"):
        ctypes.string_at(0)
    if name.startswith("raises"):
        raise ZeroDivisionError("a mistake of ours")
    if name.startswith("hungry"):
        eaten = []
        while True:
            eaten.append(bytearray(1 << 24))
    if name.startswith("holds"):
        ctypes.PyDLL(None).sleep(3600)  # without giving Python's lock away
    if name.startswith("hangs"):
        time.sleep(3600)
    return opened(file, *args, **kwargs)

av.open = broken
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of one sound video; the names say what opening them does to the child."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "sitecustomize.py").write_text(FAULTS)
    sound = clips.write_clip(folder / "sound.mp4", clips.disc(60))
    for name in ("killed", "segfault", "raises", "hungry", "holds", "hangs"):
        (folder / f"{name}.mp4").write_bytes(sound.read_bytes())
    return folder


@pytest.fixture
def guard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    monkeypatch.setenv("PYTHONPATH", str(folder))
    with Guard(memory_mb=512, deadline=Deadline(base_s=20, per_media_s=0)) as guard:
        yield guard


def probe(guard: Guard, path: Path) -> dict[str, Any]:
    (chunk,) = guard.run("probe", {"uri": str(path)}, 6.0)
    return chunk.info


def scan_args(path: Path, chunk_bytes: int = 1 << 20) -> dict[str, Any]:
    return {"uri": str(path), "score": "fast", "grid_interval_s": 0.1, "frame_spec": SPEC, "chunk_bytes": chunk_bytes}


def child_pid(guard: Guard) -> int:
    (child,) = guard._children
    return child._process.pid


def gone(pid: int) -> bool:
    """True when there is no such process, not even a zombie."""
    return not Path(f"/proc/{pid}").exists()


def wait_until(true: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


def test_a_job_answers_and_the_child_is_used_again(guard: Guard, folder: Path) -> None:
    info = probe(guard, folder / "sound.mp4")
    pid = child_pid(guard)
    assert (info["width"], info["height"], info["codec"]) == (64, 48, "h264")
    assert probe(guard, folder / "sound.mp4") == info
    assert child_pid(guard) == pid


def test_arrays_come_whole(guard: Guard, folder: Path) -> None:
    chunks = list(guard.run("scan", scan_args(folder / "sound.mp4", chunk_bytes=4 * 64 * 48 * 3), 6.0))
    assert len(chunks) > 10
    frames = np.concatenate([chunk.arrays["frames"] for chunk in chunks])
    pts = np.concatenate([chunk.info["frame_pts"] for chunk in chunks])
    assert frames.shape == (60, 48, 64, 3) and frames.dtype == np.uint8
    assert pts.dtype == np.int64 and len(pts) == chunks[-1].info["frames_decoded"] == 60
    assert frames.std() > 10, "pictures, not empty memory"


@pytest.mark.parametrize(
    ("name", "said"),
    [("killed", "SIGKILL"), ("segfault", "SIGSEGV"), ("raises", "ZeroDivisionError: a mistake of ours")],
)
def test_a_death_is_a_failed_attempt(guard: Guard, folder: Path, name: str, said: str) -> None:
    probe(guard, folder / "sound.mp4")
    pid = child_pid(guard)
    with pytest.raises(Retryable, match=said) as caught:
        probe(guard, folder / f"{name}.mp4")
    assert caught.value.reason == "decoder_crashed"
    assert gone(pid)
    assert probe(guard, folder / "sound.mp4")["codec"] == "h264"


@pytest.mark.parametrize("name", ["hangs", "holds"])
def test_a_hang_ends_at_the_deadline(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("PYTHONPATH", str(folder))
    with Guard(deadline=Deadline(base_s=1.0, per_media_s=0.1)) as guard:
        list(guard.run("probe", {"uri": str(folder / "sound.mp4")}, 100.0))  # starting a child takes its time, too
        pid, start = child_pid(guard), time.monotonic()
        with pytest.raises(Retryable, match="after 2 s") as caught:
            list(guard.run("probe", {"uri": str(folder / f"{name}.mp4")}, 10.0))
        assert caught.value.reason == "timeout"
        assert 1.9 < time.monotonic() - start < 8
        assert gone(pid)
        assert list(guard.run("probe", {"uri": str(folder / "sound.mp4")}, 100.0))


def test_memory_is_limited(guard: Guard, folder: Path) -> None:
    with pytest.raises(Retryable, match="memory limit of 512 MiB") as caught:
        probe(guard, folder / "hungry.mp4")
    assert caught.value.reason == "decoder_crashed"
    assert probe(guard, folder / "sound.mp4")["codec"] == "h264"


def test_a_rejection_is_carried_over_and_the_child_lives(guard: Guard, folder: Path) -> None:
    probe(guard, folder / "sound.mp4")
    pid = child_pid(guard)
    with pytest.raises(Rejected) as caught:
        probe(guard, folder / "nothing_here.mp4")
    assert (caught.value.reason, type(caught.value)) == ("missing", Rejected)
    probe(guard, folder / "sound.mp4")
    assert child_pid(guard) == pid


def test_closing_early_ends_the_job(guard: Guard, folder: Path) -> None:
    chunks = guard.run("scan", scan_args(folder / "sound.mp4", chunk_bytes=1), 6.0)
    assert len(next(chunks).arrays["frames"]) == 1
    pid = child_pid(guard)
    chunks.close()
    assert gone(pid)
    assert probe(guard, folder / "sound.mp4")["codec"] == "h264"


def test_a_slow_consumer_is_not_timed_out(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(folder))
    # More than a pipe holds, so that the child does wait.
    long = clips.write_clip(tmp_path / "long.mp4", clips.noise(400))
    with Guard(deadline=Deadline(base_s=3, per_media_s=0)) as guard:
        start = time.monotonic()
        chunks = 0
        for _ in guard.run("scan", scan_args(long, chunk_bytes=50 * 64 * 48 * 3), 40.0):
            chunks += 1
            time.sleep(0.5)
        assert chunks >= 8
        assert time.monotonic() - start > 3, "the consumer alone took longer than the deadline"


def test_one_job_at_a_time(guard: Guard, folder: Path) -> None:
    chunks = guard.run("scan", scan_args(folder / "sound.mp4", chunk_bytes=1), 6.0)
    next(chunks)
    with pytest.raises(RuntimeError, match="runs a job already"):
        probe(guard, folder / "sound.mp4")
    chunks.close()


def test_a_child_that_died_while_idle_costs_nothing(guard: Guard, folder: Path) -> None:
    probe(guard, folder / "sound.mp4")
    os.kill(child_pid(guard), signal.SIGKILL)
    guard._children[0]._process.wait()
    assert probe(guard, folder / "sound.mp4")["codec"] == "h264"


def test_ctrl_c_does_not_reach_the_child(guard: Guard, folder: Path) -> None:
    probe(guard, folder / "sound.mp4")
    pid = child_pid(guard)
    os.kill(pid, signal.SIGINT)
    probe(guard, folder / "sound.mp4")
    assert child_pid(guard) == pid


def test_close_and_garbage_collection_leave_no_process(folder: Path) -> None:
    guard = Guard()
    probe(guard, folder / "sound.mp4")
    pid = child_pid(guard)
    guard.close()
    assert gone(pid)
    guard = Guard()
    probe(guard, folder / "sound.mp4")
    pid = child_pid(guard)
    del guard
    assert gone(pid)


@pytest.mark.parametrize("name", ["sound", "hangs"])
def test_the_child_goes_when_its_parent_is_killed(folder: Path, name: str) -> None:
    """Idle after a job, and in the middle of one."""
    program = (
        "import sys, threading, time\n"
        "from pipeline.media.guard import Guard\n"
        "guard = Guard()\n"
        "work = lambda: list(guard.run('probe', {'uri': sys.argv[1]}, 1.0))\n"
        "threading.Thread(target=work, daemon=True).start()\n"
        "time.sleep(1.5)\n"
        "print(guard._children[0]._process.pid, flush=True)\n"
        "time.sleep(3600)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(folder / f"{name}.mp4")], env=env, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert not gone(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_until(lambda: gone(pid), 2.0)


def test_deadlines_grow_with_the_media_and_not_without_bound() -> None:
    deadline = Deadline(base_s=10, per_media_s=2, unknown_media_s=100, max_media_s=1000)
    assert deadline.seconds(30.0) == 70
    assert deadline.seconds(None) == deadline.seconds(0.0) == 210
    assert deadline.seconds(143_165.6) == 2010
