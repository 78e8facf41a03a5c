"""Ends an engine's own processes when the process that started them is gone, however it went.

vLLM runs its engine in processes of its own. A holder that is killed outright (SIGKILL, out of memory) leaves them
behind, and with them all the memory of their GPUs. So the holder first starts this very file as a small process apart,
and has the engine's processes inherit a mark in their environment. As soon as the pipe between holder and guard breaks,
the guard kills every process with the mark. Where there is no /proc (any system but Linux) nothing is found or killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

MARK = "HICOM_ENGINE_MARK"
"""Environment variable that the engine's processes inherit."""
PATIENCE_S = 10.0
"""Seconds until processes that were killed have to be gone; one in the middle of a GPU call takes a while."""


class EngineGuard:
    """The holder's side: marks, finds and kills the processes of one engine."""

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        # A session of its own: what ends the holder's whole group, such as Ctrl-C, must not end the guard first.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, self._mark], stdin=subprocess.PIPE, start_new_session=True
        )

    @contextlib.contextmanager
    def marking(self) -> Iterator[None]:
        """Processes that are started meanwhile bear the mark. They must not be forked: a fork keeps its parent's
        environment for /proc."""
        os.environ[MARK] = self._mark
        try:
            yield
        finally:
            del os.environ[MARK]

    def pids(self) -> list[int]:
        """The engine's processes that live."""
        return marked(self._mark)

    def kill(self) -> None:
        """Kill the engine's processes, and wait until they are gone."""
        kill_marked(self._mark)

    def close(self) -> None:
        """Kill what is left, and end the guard."""
        self.kill()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


def marked(mark: str) -> list[int]:
    """Processes of this machine with the mark."""
    wanted = f"{MARK}={mark}".encode()
    return [pid for pid in _all_pids() if wanted in _environment(pid)]


def kill_marked(mark: str) -> None:
    """Kill every process with the mark, and those that they start meanwhile."""
    give_up = time.monotonic() + PATIENCE_S
    while (pids := marked(mark)) and time.monotonic() < give_up:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _all_pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except FileNotFoundError:
        return []


def _environment(pid: int) -> list[bytes]:
    """Of a process that is there, is ours and is no zombie; else nothing."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def main() -> None:
    """The guard's process: wait for the end of the pipe, which nobody writes to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdin.buffer.read()
    kill_marked(sys.argv[1])


if __name__ == "__main__":
    main()
