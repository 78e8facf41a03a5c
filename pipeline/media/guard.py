"""Runs libav in a child process, so that what kills or hangs a decoder costs one attempt of one item.

A guard owns one child, starts it when first needed, uses it again, and starts another after a death. The pipe
between them is the back-pressure: a child that is ahead of its consumer waits, and that waiting is not counted
against the deadline.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pipeline
from pipeline.media import wire
from pipeline.records import REASONS
from pipeline.stage import Chunk, Rejected, Retryable, UserError

_BOOT = "import sys; sys.path.append(sys.argv.pop(1)); from pipeline.media.guard_child import main; main()"
_PIPE_BYTES = 1 << 20
_STDERR_TAIL_BYTES = 2000
MEMORY_MB = 4096
"""Memory a job may take beyond the child's libraries, MiB."""


@dataclass(frozen=True)
class Deadline:
    """How long a job may work, seconds. Time the child waits for a slow consumer does not count."""

    base_s: float = 60.0
    """For any job, however short the media."""
    per_media_s: float = 3.0
    """More for every second of media: a decoder slower than a third of real time is taken for hung."""
    unknown_media_s: float = 3_600.0
    """The length to reckon with when the media's is unknown, seconds: an hour, so that a hung decode of a live
    recording ends after three."""
    max_media_s: float = 86_400.0
    """The longest length to reckon with, seconds: containers claim absurd ones."""

    def seconds(self, media_s: float | None) -> float:
        """Seconds allowed for media of this length."""
        length = self.unknown_media_s if media_s is None or media_s <= 0 else min(media_s, self.max_media_s)
        return self.base_s + self.per_media_s * length


class _Died(Exception):
    """The child closed its end."""


class _TimedOut(Exception):
    """The deadline passed."""


class _Child:
    """One child process with its pipes."""

    def __init__(self, memory_mb: int, scratch_dir: str | None) -> None:
        package_root = str(Path(pipeline.__file__).resolve().parent.parent)
        self._stderr: IO[bytes] = tempfile.TemporaryFile(buffering=0, dir=scratch_dir)  # noqa: SIM115  end() closes it
        # One thread, one arena: address space is limited, and every arena or idle thread would reserve some of it.
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        # -P: the working folder is not searched for modules.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, package_root, str(memory_mb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            env=env,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdout.fileno(), False)
        _widen_pipe(self._stdout.fileno())
        self._poll = select.poll()
        self._poll.register(self._stdout.fileno(), select.POLLIN)

    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, request: Mapping[str, Any]) -> None:
        self._stderr.seek(0)  # the child writes where this file's one offset is
        self._stderr.truncate()
        left = memoryview(wire.pack(request))
        try:
            while left:
                left = left[self._stdin.write(left) :]
        except BrokenPipeError as error:
            raise _Died from error

    def receive(self, left_s: float) -> tuple[dict[str, Any], Chunk | None, float]:
        """The next message, its chunk if it has one, and the seconds left after the wait. Raises _Died, _TimedOut."""
        prefix = bytearray(wire.LENGTH.size)
        left_s = self._fill(prefix, left_s)
        text = bytearray(wire.header_length(bytes(prefix)))
        left_s = self._fill(text, left_s)
        header = wire.unpack(text)
        if header.get("kind") != "chunk":
            return header, None, left_s
        chunk, arrays = wire.empty_chunk(header)
        for array in arrays:
            if array.nbytes:
                left_s = self._fill(array.reshape(-1).view("uint8"), left_s)
        return header, chunk, left_s

    def _fill(self, buffer: Any, left_s: float) -> float:
        view, fd = memoryview(buffer), self._stdout.fileno()
        while view:
            try:
                got = os.readv(fd, [view])
            except BlockingIOError:
                start = time.monotonic()
                ready = self._poll.poll(max(0.0, left_s) * 1000)
                left_s -= time.monotonic() - start
                if not ready and left_s <= 0:
                    raise _TimedOut from None
                continue
            if not got:
                raise _Died
            view = view[got:]
        return left_s

    def death(self) -> str:
        """How the child ended, for people. Waits for it."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _STDERR_TAIL_BYTES))
        lines = self._stderr.read().decode("utf-8", "replace").strip().splitlines()
        return f"{how}: {' | '.join(lines[-5:])}" if lines else how

    def end(self) -> None:
        """Kill the child, wait for it, close the pipes."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._stdin, self._stdout, self._stderr):
            pipe.close()


class Guard:
    """Runs jobs of `pipeline.media.guard_child.JOBS`, one at a time. Close it when done (or use `with`)."""

    def __init__(
        self, memory_mb: int = MEMORY_MB, deadline: Deadline | None = None, scratch_dir: str | None = None
    ) -> None:
        """`memory_mb`: what a job may use beyond the child's libraries, MiB. `scratch_dir`: for the child's stderr."""
        self._memory_mb = memory_mb
        self._deadline = deadline or Deadline()
        self._scratch_dir = scratch_dir
        self._busy = threading.Lock()
        self._children: list[_Child] = []  # none or one; a list so that the finalizer can share it
        weakref.finalize(self, _end_all, self._children)

    def run(self, job: str, args: Mapping[str, Any], media_s: float | None = None) -> Iterator[Chunk]:
        """Run a job in the child and stream back its chunks. Closing the iterator early ends the job.

        `args`: JSON values. `media_s`: the media's length in seconds, None when unknown; the deadline grows with it.
        Raises Retryable `decoder_crashed` (the child died, or needed too much memory), Retryable `timeout`, and the
        Rejected that the job raised. The guard is usable after each of them. Raises UserError when the disk of
        temporary files is full.
        """
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("this guard runs a job already: exhaust or close its iterator, or use a second guard")
        idle = False
        try:
            child = self._child()
            allowed_s = left_s = self._deadline.seconds(media_s)
            try:
                child.send({"job": job, "args": dict(args)})
                while True:
                    header, chunk, left_s = child.receive(left_s)
                    if chunk is None:
                        break
                    yield chunk
            except _TimedOut:
                raise Retryable("timeout", f"{job}: no end after {allowed_s:.0f} s of work") from None
            except _Died:
                raise Retryable("decoder_crashed", f"{job}: {child.death()}") from None
            except wire.WireError as error:
                raise Retryable("decoder_crashed", f"{job}: the child sent nonsense: {error}") from error
            idle = header.get("kind") in ("done", "rejected")
            _raise_answer(job, header)
        finally:
            if not idle:
                self._end_child()
            self._busy.release()

    def close(self) -> None:
        """End the child. A later job would start another."""
        self._end_child()

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _child(self) -> _Child:
        if self._children and not self._children[0].alive():
            self._end_child()  # died while idle: no item's fault
        if not self._children:
            self._children.append(_Child(self._memory_mb, self._scratch_dir))
        return self._children[0]

    def _end_child(self) -> None:
        _end_all(self._children)


def _raise_answer(job: str, header: Mapping[str, Any]) -> None:
    kind, reason, detail = (header.get(name) for name in ("kind", "reason", "detail"))
    if kind == "done":
        return
    if kind == "rejected" and reason in REASONS:
        raise (Retryable if header.get("retry") else Rejected)(str(reason), str(detail))
    if kind == "no_room":
        raise no_scratch_room(f"{job}: {detail}")
    raise Retryable("decoder_crashed", f"{job}: {detail}")


def no_scratch_room(detail: str) -> UserError:
    """A full disk of temporary files, in words."""
    return UserError(
        f"no room for temporary files in {tempfile.gettempdir()} ({detail}). Make room there, or name another folder "
        "with TMPDIR, and run the same command again: what was committed is safe."
    )


def _end_all(children: list[_Child]) -> None:
    while children:
        children.pop().end()


def _widen_pipe(fd: int) -> None:
    """Let the child write a chunk ahead. Best effort: the limit on pipes is the system's."""
    import fcntl

    if hasattr(fcntl, "F_SETPIPE_SZ"):
        try:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        except OSError:
            return
