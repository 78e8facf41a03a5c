"""Starts Ray in this process, or connects to a cluster."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from pipeline.stage import UserError

KNOCK_S = 10.0
"""Seconds in which something at a cluster's address must answer."""
OBJECT_STORE_BYTES_PER_CPU = 256 << 20
"""Least shared memory of an in-process Ray, by core: pointers and tallies are small."""
STORE_PER_FLIGHT = 4
"""Shared memory by core, in multiples of EngineConfig.in_flight_bytes: two workers of a core each have so many bytes of
frames on their way, and as many again while an item larger than that travels alone or old frames are being freed."""
SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_SHARE = 0.8
"""Most of the machine's free shared memory that Ray is given: beyond it Ray works on files, many times slower."""


def start(address: str | None, in_flight_bytes: int) -> None:
    """Start Ray in this process, or connect to a cluster. Raises UserError."""
    if address is not None:
        _knock(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's core calls it an error that an actor which restarts has its arguments in the object store, which is how Ray
    # Data makes every actor. Set RAY_BACKEND_LOG_LEVEL yourself to see all it says.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": object_store_bytes(in_flight_bytes)}
        # Workers on this machine find the package where this process found it, installed or not.
        here = str(Path(__file__).resolve().parents[2])
        paths = dict.fromkeys([here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
        options["runtime_env"] = {"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}}
    try:
        with _silent_stderr():  # Ray's core announces the log level itself, past every logger
            # "local": without it Ray joins any cluster that it finds started on this machine.
            ray.init(address=address or "local", **options)
    except ConnectionError as err:
        raise UserError(
            f"no Ray cluster at {address}: {err}. Start one with `ray start --head`, or leave --address out."
        ) from err


def object_store_bytes(in_flight_bytes: int) -> int:
    """Shared memory for an in-process Ray."""
    cores = os.cpu_count() or 1
    least, wanted = cores * OBJECT_STORE_BYTES_PER_CPU, cores * STORE_PER_FLIGHT * in_flight_bytes
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
    return max(least, min(wanted, int(free * SHARED_MEMORY_SHARE)))


def _knock(address: str) -> None:
    """Ray tries an address for minutes, so look first whether anything answers there. Raises UserError."""
    scheme, _, place = address.rpartition("://")
    if address == "auto" or scheme not in ("", "ray"):
        return
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--address {address}: expected HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()
    except (OSError, OverflowError) as err:
        raise UserError(
            f"no Ray cluster at {address}: {err}. Start one with `ray start --head`, or leave --address out."
        ) from err


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Nothing that this process's libraries write to file descriptor 2 shows. Exceptions still tell what failed."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
