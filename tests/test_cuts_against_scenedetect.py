"""Shots of scan and split beside `scenedetect.detect()` on real videos, and beside hard cuts marked by hand.

`-m slow -o log_cli=true --log-level=INFO` shows the figures and every disagreement. Each video is decoded three times:
by PySceneDetect, for the fast scores and for the exact ones.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
import scenedetect
from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode
from scenedetect.detector import SceneDetector

from pipeline.media.scan import scan
from pipeline.models.spec import ModelSpec
from pipeline.stage import Chunk, Row, Workspace
from pipeline.stages.scan import Scan, ScanConfig
from pipeline.stages.split import Split, SplitConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

log = logging.getLogger(__name__)

SETTINGS = {
    "27": SplitConfig(threshold=27.0),
    "45": SplitConfig(threshold=45.0),
    "adaptive": SplitConfig(detector="adaptive"),
}
MODES: tuple[Literal["fast", "exact"], ...] = ("fast", "exact")
FRAME_MODEL = ModelSpec(family="builtin", name="visual", revision="1")


def reference_detector(config: SplitConfig) -> SceneDetector:
    if config.detector == "content":
        return ContentDetector(threshold=config.threshold, min_scene_len=config.min_scene_len_frames)
    return AdaptiveDetector(
        adaptive_threshold=config.adaptive_threshold,
        min_scene_len=config.min_scene_len_frames,
        window_width=config.window_width,
        min_content_val=config.min_content_val,
    )


class Several(SceneDetector):  # type: ignore[misc]  # PySceneDetect ships no types
    """Passes `scenedetect.detect()`'s frames on to several detectors, scoring each frame once."""

    def __init__(self, detectors: dict[str, SceneDetector]) -> None:
        super().__init__()
        self.detectors = detectors
        self.scores: list[float] = []
        self.times: list[FrameTimecode] = []
        self.cuts: dict[str, list[FrameTimecode]] = {name: [] for name in detectors}
        self._scorer = ContentDetector()
        for detector in detectors.values():
            cast(Any, detector)._calculate_frame_score = lambda *_: self.scores[-1]

    def process_frame(self, timecode: FrameTimecode, frame_img: np.ndarray) -> list[FrameTimecode]:
        self.scores.append(self._scorer._calculate_frame_score(timecode, frame_img))
        self.times.append(timecode)
        for name, detector in self.detectors.items():
            self.cuts[name] += detector.process_frame(timecode, frame_img)
        return []

    def post_process(self, timecode: FrameTimecode) -> list[FrameTimecode]:
        for name, detector in self.detectors.items():
            self.cuts[name] += detector.post_process(timecode)
        return []


@dataclass
class Measured:
    """One video: frame indices of cuts by setting, and the scores of all frames."""

    name: str
    reference: dict[str, list[int]] = field(default_factory=dict)
    ours: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    """By mode and setting."""
    reference_scores: list[float] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)
    """By mode."""


class Direct:
    """A workspace that runs the scan job in this process."""

    def guarded(self, job: str, args: Mapping[str, Any], media_s: float | None) -> Iterator[Chunk]:
        assert job == "scan"
        return scan(**args)


def scan_row(path: Path, mode: Literal["fast", "exact"]) -> Row:
    """The row that scan makes of a video; the grid's embeddings, which no cut depends on, are left zero."""
    stage = Scan(ScanConfig(model=FRAME_MODEL, score=mode, grid_interval_s=60.0))
    row = {"video_id": path.name, "uri": str(path), "duration_s": None}
    chunks = list(stage.prepare(row, cast(Workspace, Direct())))
    answers = [Chunk({"embeddings": np.zeros((len(chunk.arrays["frames"]), 2), np.float32)}) for chunk in chunks]
    return stage.finish(row, [chunk.info for chunk in chunks], answers).rows[0]


def measure(path: Path) -> Measured:
    result = Measured(path.name)
    several = Several({name: reference_detector(config) for name, config in SETTINGS.items()})
    scenedetect.detect(str(path), several)
    result.reference_scores = several.scores
    for name, cuts in several.cuts.items():
        result.reference[name] = [several.times.index(cut) for cut in sorted(set(cuts))]
    for mode in MODES:
        row = scan_row(path, mode)
        result.scores[mode] = row["frame_scores"].tolist()
        for name, config in SETTINGS.items():
            (out,) = Split(config).apply(row, cast(Workspace, None)).rows
            result.ours[mode, name] = [shot["start_frame"] for shot in out["shots"][1:]]
    return result


def readable(folder: Path) -> Iterator[Path]:
    """The videos that OpenCV reads: of the others PySceneDetect returns no scene and no error."""
    import cv2

    for path in sorted(folder.iterdir()):
        if path.suffix in {".mp4", ".mov", ".webm", ".ogv", ".wmv", ".3gp"}:
            capture = cv2.VideoCapture(str(path))
            if capture.isOpened() and capture.read()[0]:
                yield path
            capture.release()


@pytest.fixture(scope="module")
def measured(shared_videos: Path) -> list[Measured]:
    logging.getLogger("pyscenedetect").setLevel(logging.WARNING)
    return [measure(path) for path in readable(shared_videos)]


@dataclass
class Matches:
    """How two lists of cuts agree; a cut matches one cut of the other within a frame."""

    both: int = 0
    only_found: list[int] = field(default_factory=list)
    only_true: list[int] = field(default_factory=list)

    @property
    def f1(self) -> float:
        wrong = len(self.only_found) + len(self.only_true)
        return 2 * self.both / (2 * self.both + wrong) if self.both + wrong else 1.0


def match(found: list[int], true: list[int], tolerance: int = 1) -> Matches:
    left = list(true)
    result = Matches()
    for cut in found:
        near = [t for t in left if abs(t - cut) <= tolerance]
        if near:
            left.remove(near[0])
            result.both += 1
        else:
            result.only_found.append(cut)
    result.only_true = left
    return result


def total(matches: Iterable[Matches]) -> Matches:
    result = Matches()
    for one in matches:
        result.both += one.both
        result.only_found += one.only_found
        result.only_true += one.only_true
    return result


def test_harness_sees_what_detect_returns(shared_videos: Path) -> None:
    path = shared_videos / "google_paris_office.mp4"
    several = Several({name: reference_detector(config) for name, config in SETTINGS.items()})
    scenedetect.detect(str(path), several)
    for name, config in SETTINGS.items():
        scenes = scenedetect.detect(str(path), reference_detector(config))
        assert [start for start, _ in scenes[1:]] == several.cuts[name]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_cuts_equal_pyscenedetect(measured: list[Measured], setting: str, mode: str) -> None:
    matches = {video.name: match(video.ours[mode, setting], video.reference[setting]) for video in measured}
    for video in measured:
        for side, frames in (
            ("ours", matches[video.name].only_found),
            ("PySceneDetect's", matches[video.name].only_true),
        ):
            for frame in frames:
                scores = f"{video.scores[mode][frame]:.3f} ours, {video.reference_scores[frame]:.3f} theirs"
                log.info("%s %s: %s: frame %d only %s; score %s", mode, setting, video.name, frame, side, scores)
    whole = total(matches.values())
    log.info("%s %s: F1 %.4f, %d cuts in common, %d videos", mode, setting, whole.f1, whole.both, len(measured))
    assert whole.both > 40
    assert whole.f1 >= (1.0 if mode == "exact" else 0.99)


@pytest.mark.parametrize(("mode", "bound"), [("fast", 5.0), ("exact", 1e-9)])
def test_scores_are_near_pyscenedetect_s(measured: list[Measured], mode: str, bound: float) -> None:
    largest = {}
    for video in measured:
        assert len(video.scores[mode]) == len(video.reference_scores), video.name
        largest[video.name] = float(np.abs(np.subtract(video.scores[mode], video.reference_scores)).max())
    worst = max(largest, key=lambda name: largest[name])
    log.info("%s: largest difference of a frame's score %.6f, in %s", mode, largest[worst], worst)
    assert largest[worst] <= bound


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("setting", "least_precision", "least_recall"), [("27", 0.85, 0.9), ("45", 0.93, 0.72)])
def test_hard_cuts_marked_by_hand(
    measured: list[Measured],
    shared_videos: Path,
    mode: str,
    setting: str,
    least_precision: float,
    least_recall: float,
) -> None:
    with (shared_videos / "groundtruth.csv").open(newline="", encoding="utf-8") as file:
        marked = [(row["file"], int(row["frame"])) for row in csv.DictReader(file) if row["kind"] == "cut"]
    with (shared_videos / "MANIFEST.csv").open(newline="", encoding="utf-8") as file:
        annotated = {row["file"] for row in csv.DictReader(file) if row["n_cuts_known"]}
    videos = [video for video in measured if video.name in annotated]
    matches = [match(v.ours[mode, setting], [f for n, f in marked if n == v.name]) for v in videos]
    whole = total(matches)
    precision = whole.both / (whole.both + len(whole.only_found))
    recall = whole.both / (whole.both + len(whole.only_true))
    log.info("%s %s: precision %.3f, recall %.3f, %d videos", mode, setting, precision, recall, len(videos))
    for video, one in zip(videos, matches, strict=True):
        if one.only_found or one.only_true:
            log.info("%s: not marked %s, not found %s", video.name, one.only_found, one.only_true)
    assert precision >= least_precision
    assert recall >= least_recall
