"""No process of an engine outlives its holder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.models.vllm import engine_guard
from pipeline.models.vllm.engine_guard import EngineGuard, marked

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found through /proc")

CHILD = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
time.sleep(99)
"""
"""An engine with a worker, as far as processes go."""
HOLDER = f"""
import subprocess, sys, time
sys.path.insert(0, {str(Path(engine_guard.__file__).resolve().parents[3])!r})
from pipeline.models.vllm.engine_guard import EngineGuard
guard = EngineGuard()
with guard.marking():
    subprocess.Popen([sys.executable, "-c", {CHILD!r}])
while len(guard.pids()) < 2:
    time.sleep(0.02)
print(guard._mark, flush=True)
time.sleep(99)
"""


def wait_for(count: int, mark: str) -> list[int]:
    give_up = time.monotonic() + 20
    while len(pids := marked(mark)) != count and time.monotonic() < give_up:
        time.sleep(0.02)
    return pids


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_holder_is_killed_its_engine_and_the_engines_workers_end(how: signal.Signals) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    mark = holder.stdout.readline().strip()
    assert len(marked(mark)) == 2
    holder.send_signal(how)
    holder.wait()
    assert wait_for(0, mark) == []


def test_a_guard_that_is_closed_leaves_nothing_and_ends_itself() -> None:
    guard = EngineGuard()
    with guard.marking():
        child = subprocess.Popen([sys.executable, "-c", CHILD])
    assert len(wait_for(2, guard._mark)) == 2
    guard.close()
    assert marked(guard._mark) == []
    assert child.wait() == -signal.SIGKILL
    assert guard._process.returncode == 0


def test_even_a_stopped_process_is_killed() -> None:
    guard = EngineGuard()
    with guard.marking():
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
    wait_for(1, guard._mark)
    child.send_signal(signal.SIGSTOP)
    guard.close()
    assert child.wait() == -signal.SIGKILL


def test_others_are_left_alone() -> None:
    before = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
    one, other = EngineGuard(), EngineGuard()
    with one.marking():
        mine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
    after = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
    wait_for(1, one._mark)
    try:
        other.close()
        assert one.pids() == [mine.pid]
        one.close()
        assert (mine.wait(), before.poll(), after.poll()) == (-signal.SIGKILL, None, None)
        assert engine_guard.MARK not in os.environ
    finally:
        for process in (before, after):
            process.kill()
            process.wait()
