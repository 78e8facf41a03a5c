"""The child side of guard.py: runs the jobs of `pipeline.media`, one at a time, and sends back what they yield."""

from __future__ import annotations

import importlib
import os
import queue
import resource
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from pipeline.media import wire
from pipeline.stage import NO_ROOM, Chunk, Rejected, Retryable

JOBS: dict[str, str] = {
    "probe": "pipeline.media.probe:probe",
    "sample": "pipeline.media.sample:sample",
    "scan": "pipeline.media.scan:scan",
    "cut": "pipeline.media.cut:cut",
}
"""Every job, as module:function. A job is a generator function of keyword arguments that yields Chunks."""

Job = Callable[..., Iterator[Chunk]]


def main() -> None:
    """Serve jobs until the parent goes. The one argument is the memory limit in MiB."""
    memory_mb = int(sys.argv[1])
    answers = os.dup(1)
    os.dup2(2, 1)  # nothing that a library prints may mix with the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, os.getppid()), daemon=True).start()
    _load_libraries()
    _limit_memory(memory_mb)
    while True:
        _serve(requests.get(), answers, memory_mb)


def _listen(requests: queue.SimpleQueue[dict[str, Any]], parent: int) -> NoReturn:
    """Pass requests on; leave at once when the parent closes the pipe or is gone (a process that the parent
    forked may hold the pipe open)."""
    try:
        while os.getppid() == parent:
            if select.select([0], [], [], 1.0)[0]:
                prefix = _read(wire.LENGTH.size)
                requests.put(wire.unpack(_read(wire.header_length(prefix))))
    finally:
        os._exit(0)
    raise AssertionError("unreachable")


def _read(size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(0, size - len(data))
        if not part:
            os._exit(0)
        data += part
    return data


def _load_libraries() -> None:
    """Load what jobs need before the memory limit is measured."""
    import av
    import cv2

    av.logging.set_level(None)
    cv2.setNumThreads(1)


def _limit_memory(memory_mb: int) -> None:
    """Limit the address space to what is in use now and `memory_mb` more. Systems without /proc have no limit."""
    try:
        with open("/proc/self/statm") as statm:
            pages = int(statm.read().split()[0])
    except FileNotFoundError:
        return
    limit = pages * resource.getpagesize() + (memory_mb << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _serve(request: dict[str, Any], answers: int, memory_mb: int) -> None:
    import av

    try:
        module, _, function = JOBS[request["job"]].partition(":")
        job: Job = getattr(importlib.import_module(module), function)
        for chunk in job(**request["args"]):
            _write(answers, wire.pack_chunk(chunk))
        answer: dict[str, Any] = {"kind": "done"}
    except Rejected as rejected:
        answer = {
            "kind": "rejected",
            "reason": rejected.reason,
            "detail": rejected.detail,
            "retry": isinstance(rejected, Retryable),
        }
    except av.FFmpegError as error:
        if isinstance(error, MemoryError):
            _out_of_memory(answers, memory_mb)
        answer = {"kind": "rejected", "reason": "decode_failed", "detail": str(error), "retry": False}
    except BaseException as error:
        if _is_memory_error(error):
            _out_of_memory(answers, memory_mb)
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            _write(answers, [wire.pack({"kind": "no_room", "detail": error.strerror})])
            os._exit(1)
        traceback.print_exc()  # the guard reads it from stderr: to the item this is a crash like any other
        sys.stderr.flush()
        os._exit(1)
    _write(answers, [wire.pack(answer)])


def _is_memory_error(error: BaseException) -> bool:
    import cv2

    return isinstance(error, MemoryError) or (isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem)


def _out_of_memory(answers: int, memory_mb: int) -> NoReturn:
    _write(answers, [wire.pack({"kind": "crashed", "detail": f"needs more than the memory limit of {memory_mb} MiB"})])
    os._exit(1)


def _write(fd: int, buffers: list[Any]) -> None:
    try:
        for buffer in buffers:
            left = memoryview(buffer)
            while left:
                left = left[os.write(fd, left) :]
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main()
