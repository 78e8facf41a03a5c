"""Memory of scan on a three-hour video against a three-minute one: the worker's and the guarded decoder's peak.

    python benchmarks/long_video.py

Draws both videos (small pictures, 10 frames a second), runs ingest to scan on each in a fresh process and prints the
peaks and their ratio. What grows with length is 12 bytes a frame of times and scores, and the grid's embeddings.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.commands import RunRequest, run
from pipeline.media.write import Encoding, write_video
from pipeline.show import TerminalReporter

FPS = 10
MINUTES = (3, 180)
STAGES = ("ingest", "embed", "select", "scan")


def main() -> None:
    peaks = []
    with tempfile.TemporaryDirectory(prefix="hicom-bench-") as folder:
        for minutes in MINUTES:
            place = Path(folder) / f"{minutes}"
            place.mkdir()
            write_video(
                place / "video.mp4", _frames(minutes * 60 * FPS), Encoding(fps=FPS, options={"preset": "ultrafast"})
            )
            out = subprocess.run([sys.executable, __file__, str(place)], stdout=subprocess.PIPE, text=True, check=True)
            peaks.append([int(n) for n in out.stdout.split()[-2:]])
            print(f"{minutes:4d} min: worker {peaks[-1][0]} MiB, guarded decoder {peaks[-1][1]} MiB")
    (worker_0, child_0), (worker_1, child_1) = peaks
    times = MINUTES[1] // MINUTES[0]
    print(f"{times} times the length: worker x {worker_1 / worker_0:.2f}, decoder x {child_1 / child_0:.2f}")


def _frames(count: int) -> Iterator[np.ndarray]:
    """A slow drift of stripes with a hard cut every minute, uint8 [48, 64, 3]."""
    columns = np.arange(64)
    for i in range(count):
        shade = ((columns + i // 5) % 32 * 8).astype(np.uint8)
        yield np.stack(
            np.broadcast_arrays(shade[None, :], np.uint8(i // 600 * 40 % 256), np.full((48, 64), 90, np.uint8)), -1
        )


def _scan(folder: str) -> None:
    """In a process of its own: run the stages, then print the peaks in MiB."""
    from rich.console import Console

    run(
        RunRequest(f"{folder}/run", stages=STAGES, inputs=(f"{folder}/video.mp4",), engine="local"),
        TerminalReporter(Console(file=sys.stderr)),
    )
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        print(resource.getrusage(who).ru_maxrss // 1024)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        _scan(sys.argv[1])
    else:
        main()
