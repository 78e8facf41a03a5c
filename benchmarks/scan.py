"""CPU time of `scan` over a bare decode of the same files, and of PySceneDetect over it.

    python benchmarks/scan.py [FOLDER] [--repeats 5]

Each way runs over all files in a fresh process, the ways take turns, and a round's ratios are taken within that
round; the median over the rounds is printed. CPU time is user + system of the whole process tree, imports and the
guarded child included. Models are left out: sampled frames are made, handed over and dropped.

- bare: PyAV decodes every frame, one thread like scan's, and does nothing with them;
- scan fast, scan exact: the scan job through the guard, with a picture every half second as the built-in embedder
  of the default profile wants it (64 x 64 pixels, area filter);
- scan fast CLIP: the same with pictures as CLIP ViT-B-32 wants them (224 x 224 pixels, bicubic, cropped);
- scenedetect: `scenedetect.detect(path, ContentDetector())`.

Without FOLDER it encodes three clips of its own. Files that one of the ways cannot read are left out.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

BUILTIN = {"width": 64, "height": 64, "resize": "stretch", "interpolation": "area"}
CLIP = {"width": 224, "height": 224, "resize": "shortest_side_center_crop", "interpolation": "bicubic"}
SCANS = {"scan fast": ("fast", BUILTIN), "scan exact": ("exact", BUILTIN), "scan fast CLIP": ("fast", CLIP)}
WAYS = ("bare", *SCANS, "scenedetect")
ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU time of scan and of PySceneDetect over a bare decode.")
    parser.add_argument("folder", nargs="?", help="folder of videos; without it three clips are made")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # set for the processes that it starts
    parser.add_argument("--files", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        run_way(args.way, args.files)
        return
    with tempfile.TemporaryDirectory() as made:
        files = readable(sorted(Path(args.folder).iterdir()) if args.folder else make_clips(Path(made)))
        rounds = [measure_round(files) for _ in range(args.repeats)]
    report(files, rounds)


def run_way(way: str, files: list[str]) -> None:
    """One way over all files, in this process."""
    if way == "bare":
        for file in files:
            bare(file)
    elif way == "scenedetect":
        import scenedetect

        for file in files:
            scenedetect.detect(file, scenedetect.ContentDetector())
    else:
        scan_all(files, *SCANS[way])


def bare(file: str) -> int:
    """Frames decoded."""
    from pipeline.media.open import open_media, video_stream

    with open_media(file) as container:
        return sum(1 for _ in container.decode(video_stream(container)))


def scan_all(files: list[str], mode: str, spec: dict[str, Any]) -> None:
    from pipeline.media.guard import Guard

    with Guard() as guard:
        for file in files:
            job = {"uri": file, "score": mode, "grid_interval_s": 0.5, "frame_spec": spec, "chunk_bytes": 4 << 20}
            for _ in guard.run("scan", job):
                pass


def measure_round(files: list[str]) -> dict[str, float]:
    """CPU seconds of each way, one after another."""
    return {way: cpu_seconds(way, files) for way in WAYS}


def cpu_seconds(way: str, files: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, __file__, "--way", way, "--files", *files]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, env=env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def readable(paths: list[Path]) -> list[str]:
    """Files that PyAV and OpenCV both read."""
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    found = []
    for path in paths:
        capture = cv2.VideoCapture(str(path)) if path.is_file() else None
        if capture is not None and capture.read()[0]:
            found.append(str(path))
    return found


def make_clips(folder: Path) -> list[Path]:
    """Three H.264 clips of moving noise and shapes: 360p, 720p and 1080p, 20 s at 25 frames a second."""
    import av

    paths = []
    for height in (360, 720, 1080):
        path = folder / f"{height}p.mp4"
        paths.append(path)
        width = height * 16 // 9
        noise = np.random.default_rng(height).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        picture = noise.repeat(8, axis=0).repeat(8, axis=1)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"preset": "fast", "crf": "23"})
            stream.width, stream.height, stream.pix_fmt = picture.shape[1], picture.shape[0], "yuv420p"
            for i in range(500):
                shown = np.roll(picture if i // 100 % 2 == 0 else 255 - picture, 3 * i, axis=1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(shown), "rgb24")))
            container.mux(stream.encode(None))
    return paths


def report(files: list[str], rounds: list[dict[str, float]]) -> None:
    print(f"{len(files)} files, {len(rounds)} rounds; CPU time over a bare decode of the same files")
    print(f"{'way':<15} {'median':>7} {'lowest':>7} {'highest':>8}")
    for way in WAYS:
        ratios = [one[way] / one["bare"] for one in rounds]
        print(f"{way:<15} {statistics.median(ratios):>7.3f} {min(ratios):>7.3f} {max(ratios):>8.3f}")


if __name__ == "__main__":
    main()
