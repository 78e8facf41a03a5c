"""One writer: a lock by conditional create, with a heartbeat and an epoch.

The lock is the highest numbered file of RUN/lock. Taking it means creating the next number, which succeeds for
one process only: that is the compare-and-swap, and it works the same on a disk and on an object store. A holder
that lost its lock finds a higher number and stops; its workers look before each commit.

A holder on this machine is judged by the process table, one elsewhere by its heartbeat. Clocks need not agree: a
heartbeat that looks stale is watched before the lock is taken, and one that still moves is alive whatever time it
tells. A clock that runs ahead only makes its dead holder look fresh for as long as it is ahead.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

from pipeline.stage import UserError
from pipeline.store.files import Files

HEARTBEAT_S = 5.0
"""Seconds between two signs of life."""
STALE_S = 60.0
"""A lock whose last sign of life is older may be taken over: twelve missed heartbeats."""
WATCH_S = 15.0
"""Seconds a lock that looks stale is watched for another sign of life: three heartbeats."""


class LockLost(RuntimeError):
    """Another writer took the lock over; nothing more may be written."""


class Locked(UserError):
    """Another writer holds the run folder."""


@dataclass(frozen=True)
class Epoch:
    """A held lock's number, as the workers carry it."""

    number: int

    def check(self, files: Files) -> None:
        """Raises LockLost when a later writer has taken over."""
        names = files.list("lock")
        if not names or names[-1] != _path(self.number):
            raise LockLost(f"{files.root}: another writer has taken over; this process stops without writing")


class Lock:
    """Hold the run folder for writing; a context manager. Entering raises Locked while another process holds it."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._token = secrets.token_hex(8)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.epoch = Epoch(0)

    def __enter__(self) -> Lock:
        number, holder = _current(self._files)
        if holder is not None and _alive(self._files, number, holder):
            raise Locked(
                f"{self._files.root}: another process is writing here: pid {holder['pid']} on {holder['host']}, "
                f"last sign of life {max(0.0, time.time() - holder['heartbeat']):.0f} s ago. Wait for it or stop it; "
                f"a dead writer's lock is taken over {STALE_S:.0f} s after its last sign of life."
            )
        self.epoch = Epoch(number + 1)
        taken = self._files.create(_path(number + 1), self._body())
        if not taken or self._files.list("lock")[-1] != _path(number + 1):
            raise Locked(
                f"{self._files.root}: another process took the lock at this moment. Try again when it is done."
            )
        for old in self._files.list("lock"):
            if old < _path(number):
                self._files.remove(old)
        self._thread = threading.Thread(target=self._beat, name="lock-heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(Exception):  # an unreleased lock grows stale by itself
            self.epoch.check(self._files)
            self._files.put(_path(self.epoch.number), self._body(released=True))

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            try:
                self.epoch.check(self._files)
                self._files.put(_path(self.epoch.number), self._body())
            except LockLost:
                return  # the next commit finds it too, and stops the run
            except Exception:  # a missed beat, whatever the store's client raised; the next may work
                continue

    def _body(self, released: bool = False) -> bytes:
        return json.dumps(
            {
                "host": socket.gethostname(),
                "machine": _machine(),
                "pid": os.getpid(),
                "started": _process_start(os.getpid()),
                "token": self._token,
                "heartbeat": time.time(),
                "released": released,
            }
        ).encode()


_HOLDER = {"host", "machine", "pid", "started", "heartbeat", "released"}
"""What is read of a lock; one that lacks any was cut short."""


def _path(number: int) -> str:
    return f"lock/{number:08d}.json"


def _current(files: Files) -> tuple[int, dict[str, Any] | None]:
    """The highest lock's number and holder. No holder when it is released, gone or cut short."""
    names = files.list("lock")
    if not names:
        return 0, None
    try:
        number = int(names[-1].removeprefix("lock/").removesuffix(".json"))
    except ValueError as err:
        raise UserError(f"{files.url(names[-1])} is not a lock of this program. Remove it, then try again.") from err
    try:
        holder = json.loads(files.get(names[-1]) or b"{}")
    except ValueError:
        return number, None
    held = isinstance(holder, dict) and holder.keys() >= _HOLDER and holder["released"] is False
    return number, holder if held else None


def _alive(files: Files, number: int, holder: dict[str, Any]) -> bool:
    if holder["machine"] == _machine():
        # On this machine the process table is the truth; a dead holder need not be waited for.
        started = _process_start(holder["pid"])
        return started is not None and (holder["started"] is None or started == holder["started"])
    if time.time() - holder["heartbeat"] < STALE_S:
        return True
    time.sleep(WATCH_S)
    now, body = _current(files)
    return body is not None and (now, body["heartbeat"]) != (number, holder["heartbeat"])


def _machine() -> str:
    """What a pid belongs to: host, boot and pid namespace. Two containers of one host name are two machines."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as handle:
            parts.append(handle.read().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _process_start(pid: int) -> str | None:
    """When a process started, as the kernel counts it, so that a reused pid is not taken for the holder."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as handle:
            fields = handle.read().rpartition(")")[2].split()
    except OSError:
        return _alive_without_proc(pid)
    return None if fields[0] in "ZX" else fields[19]


def _alive_without_proc(pid: int) -> str | None:
    if os.path.isdir("/proc/self"):
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return "running"
    return "running"
