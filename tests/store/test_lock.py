"""One writer at a time, on a disk and on an object store; a dead one is replaced, a replaced one stops."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.stage import UserError
from pipeline.store import lock as lock_module
from pipeline.store.files import Files, open_files
from pipeline.store.lock import HEARTBEAT_S, STALE_S, WATCH_S, Epoch, Lock, Locked, LockLost

HOLDER = """
import sys, time
from pipeline.store.files import open_files
from pipeline.store.lock import Lock
with Lock(open_files(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats of a tenth of a second."""
    monkeypatch.setattr(lock_module, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(lock_module, "WATCH_S", 0.5)


def body(files: Files) -> dict[str, Any]:
    """The lock as it lies in the run folder."""
    found = json.loads(files.get(files.list("lock")[-1]) or b"")
    assert isinstance(found, dict)
    return found


def write_foreign(files: Files, age_s: float, number: int = 7) -> None:
    """A lock of another machine whose last heartbeat is this old by our clock."""
    other = {"host": "elsewhere", "machine": "elsewhere 1 2", "pid": os.getpid(), "started": "1", "token": "t"}
    text = json.dumps({**other, "heartbeat": time.time() - age_s, "released": False})
    files.put(f"lock/{number:08d}.json", text.encode())


def hold_elsewhere(files: Files) -> subprocess.Popen[bytes]:
    """A process that holds the lock until it is killed."""
    child = subprocess.Popen([sys.executable, "-c", HOLDER, files.root], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"held\n"
    return child


def kill(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert child.stdout is not None
    child.stdout.close()


def test_exclusive_then_released(files: Files) -> None:
    with Lock(files) as first:
        with pytest.raises(Locked) as refused, Lock(files):
            pass
        message = str(refused.value)
        assert f"pid {os.getpid()} on {socket.gethostname()}" in message and files.root in message
        first.epoch.check(files)
    assert body(files)["released"] is True
    with Lock(files) as second:
        assert second.epoch.number == first.epoch.number + 1
        with pytest.raises(LockLost):
            first.epoch.check(files)


def test_released_on_an_error(local: Files) -> None:
    with pytest.raises(RuntimeError), Lock(local):
        raise RuntimeError("the run failed")
    with Lock(local):
        pass


def test_another_process_is_refused_and_its_death_is_seen_at_once(shared_files: Files) -> None:
    child = hold_elsewhere(shared_files)
    with pytest.raises(Locked, match=f"pid {child.pid} on {socket.gethostname()}"), Lock(shared_files):
        pass
    kill(child)
    started = time.monotonic()
    with Lock(shared_files) as lock:
        assert lock.epoch.number == 2
    assert time.monotonic() - started < 5


def test_a_reused_pid_is_not_the_holder(local: Files) -> None:
    with Lock(local):
        held = body(local)
    local.put("lock/00000001.json", json.dumps({**held, "released": False, "started": "1"}).encode())
    with Lock(local) as lock:
        assert lock.epoch.number == 2


def test_a_fresh_lock_of_another_machine_is_refused(local: Files) -> None:
    write_foreign(local, STALE_S - 10)
    with pytest.raises(Locked, match=r"on elsewhere, last sign of life 5\d s ago"), Lock(local):
        pass


def test_a_stale_lock_of_another_machine_is_taken_over(quick: None, files: Files) -> None:
    write_foreign(files, STALE_S + 1)
    with Lock(files) as lock:
        assert lock.epoch.number == 8
        with pytest.raises(LockLost):
            Epoch(7).check(files)


def test_a_beating_lock_is_alive_whatever_its_clock_says(quick: None, local: Files) -> None:
    """A holder whose clock is an hour behind ours looks stale and is not."""
    write_foreign(local, 3600)
    beat = threading.Timer(0.2, write_foreign, (local, 3600))
    beat.start()
    with pytest.raises(Locked, match="on elsewhere"), Lock(local):
        pass
    beat.join()


def test_containers_of_one_host_name_are_two_machines(local: Files) -> None:
    """The pid of another namespace says nothing here, though the host's name is the same."""
    with Lock(local):
        held = body(local)
    other = {"machine": f"{socket.gethostname()} another", "pid": 2**22 + 1, "released": False}
    local.put("lock/00000001.json", json.dumps({**held, **other}).encode())
    with pytest.raises(Locked), Lock(local):
        pass


TAKERS = 4


def take(root: str, tried: str) -> str:
    """In a process of its own: take the lock and hold it until all have tried."""
    lock_module.WATCH_S = 0.5
    files, notes = open_files(root), open_files(tried)
    try:
        with Lock(files) as lock:
            notes.put(str(os.getpid()), b"")
            deadline = time.monotonic() + 60
            while len(notes.list("")) < TAKERS and time.monotonic() < deadline:
                time.sleep(0.05)
            lock.epoch.check(files)
            return "held"
    except Locked:
        notes.put(str(os.getpid()), b"")
        return "refused"


@pytest.mark.slow
@pytest.mark.parametrize("stale", [False, True], ids=["free", "stale"])
def test_of_racing_takers_one_wins(shared_files: Files, tmp_path: Path, stale: bool) -> None:
    if stale:
        write_foreign(shared_files, 2 * STALE_S)
    with ProcessPoolExecutor(TAKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        outcomes = list(pool.map(take, [shared_files.root] * TAKERS, [str(tmp_path / "tried")] * TAKERS))
    assert sorted(outcomes) == ["held", "refused", "refused", "refused"]


def test_a_late_create_of_an_old_number_is_not_the_lock(local: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """A taker that slept between looking and creating finds that others have come and gone meanwhile."""
    for _ in range(3):
        with Lock(local):
            pass
    current = lock_module._current
    monkeypatch.setattr(lock_module, "_current", lambda files: (0, None))
    with pytest.raises(Locked, match="at this moment"), Lock(local):
        pass
    monkeypatch.setattr(lock_module, "_current", current)
    with Lock(local) as lock:
        assert lock.epoch.number == 4


def test_a_zombie_stops_after_one_and_after_many_takeovers(local: Files) -> None:
    child = hold_elsewhere(local)
    zombie = Epoch(1)
    zombie.check(local)
    kill(child)
    for number in (2, 3, 4, 5):
        with Lock(local) as lock:
            assert lock.epoch.number == number
            lock.epoch.check(local)
            with pytest.raises(LockLost, match="another writer has taken over"):
                zombie.check(local)
    with pytest.raises(LockLost):
        zombie.check(local)
    assert len(local.list("lock")) <= 2


def test_a_removed_lock_stops_the_holder(local: Files) -> None:
    with Lock(local) as lock:
        local.remove(local.list("lock")[0])
        with pytest.raises(LockLost):
            lock.epoch.check(local)
    assert local.list("lock") == []


def test_the_heart_beats(quick: None, files: Files) -> None:
    with Lock(files):
        first = body(files)
        deadline = time.monotonic() + 20
        while body(files)["heartbeat"] == first["heartbeat"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert {**body(files), "heartbeat": 0} == {**first, "heartbeat": 0}


def test_a_heart_survives_trouble(quick: None, local: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """A beat that fails, whatever the store's client raises, is a missed beat and no more."""
    put, fails = local.put, [True]

    def sometimes(relative: str, data: bytes) -> None:
        if fails:
            fails.pop()
            raise RuntimeError("the store's client stumbled")
        put(relative, data)

    with Lock(local):
        monkeypatch.setattr(local, "put", sometimes)
        first = body(local)["heartbeat"]
        deadline = time.monotonic() + 20
        while fails or body(local)["heartbeat"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_holder_that_lost_its_lock_leaves_the_next_alone(quick: None, local: Files) -> None:
    with Lock(local) as old:
        write_foreign(local, 0, number=old.epoch.number + 1)
        taken = body(local)
        time.sleep(0.5)
        assert body(local) == taken
    assert body(local) == taken
    assert json.loads(local.get("lock/00000001.json") or b"")["released"] is False


@pytest.mark.parametrize("text", [b"", b'{"host": "a", "pi', b"[]"], ids=["empty", "cut short", "no object"])
def test_a_lock_cut_short_is_nobodys(local: Files, text: bytes) -> None:
    local.put("lock/00000004.json", text)
    with Lock(local) as lock:
        assert lock.epoch.number == 5


def test_a_foreign_file_in_the_lock_folder_is_named(local: Files) -> None:
    local.put("lock/notes.txt", b"")
    with pytest.raises(UserError, match=r"notes\.txt is not a lock of this program"), Lock(local):
        pass


def test_an_unwritable_folder_cannot_be_locked(tmp_path: Path) -> None:
    (tmp_path / "run").write_bytes(b"")
    with pytest.raises(UserError, match="must be a folder"), Lock(open_files(str(tmp_path / "run"))):
        pass


def test_the_watch_covers_several_heartbeats() -> None:
    assert 2 * HEARTBEAT_S < WATCH_S < STALE_S
