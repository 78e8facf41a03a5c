"""The cut job: which clips are copied and which encoded, what is measured, what a failure costs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import pytest

from pipeline.media import cut_encode, cut_source
from pipeline.media.cut import CutMode
from pipeline.media.decode import Decoder
from pipeline.media.guard import Guard
from pipeline.media.open import open_media
from pipeline.stage import Rejected
from tests.clips import h264, numbered, truncated, write_clip
from tests.media.cutting import (
    CLOSED_GOPS,
    OPEN_GOPS,
    QUALITY,
    Scanned,
    cut_clips,
    hashes,
    numbers,
    opencv_count,
    scanned,
    x264,
)

if TYPE_CHECKING:
    from av.container import InputContainer


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Scanned:
    """60 numbered frames at 10 a second, a key frame every 12, no B-frames."""
    path = tmp_path_factory.mktemp("plain") / "plain.mp4"
    return scanned(write_clip(path, numbered(60), h264(gop=12)))


@pytest.mark.parametrize(
    ("shot", "tolerance_s", "method"),
    [
        ((12, 36), 0.1, "copy"),
        ((12, 31), 0.1, "copy"),  # an end needs no key frame
        ((11, 36), 0.1, "copy"),  # one frame lost: the tolerance itself fits
        ((11, 36), 0.09, "encode"),
        ((10, 36), 0.1, "encode"),
        ((10, 36), 0.2, "copy"),
        ((12, 36), 0.0, "copy"),
        ((13, 20), 0.1, "encode"),  # no key frame at all
    ],
)
def test_auto_copies_within_the_tolerance(
    plain: Scanned, tmp_path: Path, shot: tuple[int, int], tolerance_s: float, method: str
) -> None:
    (clip,) = cut_clips(plain, [shot], tmp_path / "out", "auto", tolerance_s)
    assert clip["method"] == method
    first = 12 if method == "copy" else shot[0]
    assert numbers(clip) == list(range(first, shot[1]))
    assert clip["start_error_s"] == pytest.approx((first - shot[0]) / 10)
    assert clip["end_error_s"] == 0.0


def test_auto_looks_at_the_end_too(tmp_path: Path) -> None:
    video = scanned(write_clip(tmp_path / "v.mp4", numbered(60), x264("bframes=3:b-adapt=0")))
    (copy,) = cut_clips(video, [(12, 23)], tmp_path / "out", "copy")
    lost = 23 - 1 - numbers(copy)[-1]
    assert copy["end_error_s"] == pytest.approx(lost / 10)
    assert lost > 0, "the frames before the end need one after it"
    within = cut_clips(video, [(12, 23)], tmp_path / "out", "auto", tolerance_s=lost / 10)
    beyond = cut_clips(video, [(12, 23)], tmp_path / "out", "auto", tolerance_s=lost / 10 - 0.05)
    assert (within[0]["method"], beyond[0]["method"]) == ("copy", "encode")
    assert numbers(beyond[0]) == list(range(12, 23))


@pytest.mark.parametrize("mode", ["auto", "copy"])
def test_no_clip_holds_a_frame_of_its_neighbour(tmp_path: Path, mode: CutMode) -> None:
    """Every place to cut, against every structure of frames."""
    for name, encoding in {"open": OPEN_GOPS, "closed": CLOSED_GOPS}.items():
        video = scanned(write_clip(tmp_path / f"{name}.mp4", numbered(40), encoding))
        for cut_at in range(1, 40):
            clips = cut_clips(video, [(0, cut_at), (cut_at, 40)], tmp_path / "out", mode)
            for clip, (start, end) in zip(clips, [(0, cut_at), (cut_at, 40)], strict=True):
                if "failed" in clip:
                    assert mode == "copy"
                    assert not set(range(start, end)) & {0, 12, 24, 36}, "there was a key frame to start at"
                    continue
                held = numbers(clip)
                assert held == list(range(held[0], held[-1] + 1))
                assert start <= held[0] <= held[-1] < end
                assert clip["start_error_s"] == pytest.approx((held[0] - start) / 10)
                assert clip["end_error_s"] == pytest.approx((end - 1 - held[-1]) / 10)


@pytest.mark.parametrize("mode", ["auto", "exact"])
def test_what_is_measured_is_what_the_file_holds(plain: Scanned, tmp_path: Path, mode: CutMode) -> None:
    (clip,) = cut_clips(plain, [(12, 30)], tmp_path / "out", mode)
    data = Path(clip["path"]).read_bytes()
    assert clip["clip_sha256"] == hashlib.sha256(data).hexdigest()
    assert clip["clip_bytes"] == len(data)
    assert clip["clip_frames"] == opencv_count(clip["path"]) == len(hashes(clip["path"])) == 18
    assert (clip["clip_width"], clip["clip_height"]) == (64, 48)
    with open_media(clip["path"]) as container:
        assert [stream.type for stream in container.streams] == ["video"]


@pytest.mark.parametrize("mode", ["auto", "exact"])
def test_the_same_input_gives_the_same_bytes(plain: Scanned, tmp_path: Path, mode: CutMode) -> None:
    first, second = (cut_clips(plain, [(12, 30), (31, 60)], tmp_path / out, mode) for out in ("a", "b"))
    alone = cut_clips(plain, [(31, 60)], tmp_path / "c", mode)
    assert [clip["clip_sha256"] for clip in first] == [clip["clip_sha256"] for clip in second]
    assert alone[0]["clip_sha256"] == first[1]["clip_sha256"], "a clip does not depend on the others"
    for clip in first:
        data = Path(clip["path"]).read_bytes()
        assert not any(name in data for name in (b"x264", b"Lavf", b"Lavc")), "no version of the software"


def test_a_clip_that_fails_leaves_the_others(tmp_path: Path) -> None:
    whole = scanned(write_clip(tmp_path / "whole.ts", numbered(60), CLOSED_GOPS))
    torn = replace(whole, path=truncated(whole.path, tmp_path / "torn.ts", 0.7))
    ranges = [(0, 20), (20, 36), (55, 60), (36, 59)]
    clips = cut_clips(torn, ranges, tmp_path / "out", "exact")
    assert [numbers(clip) for clip in clips[:2]] == [list(range(20)), list(range(20, 36))]
    assert clips[2]["failed"] == "encode: 0 of the shot's 5 frames decode from the source"
    assert "of the shot's 23 frames decode from the source" in clips[3]["failed"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.mp4", "1.mp4"]


def test_a_clip_whose_frames_are_not_the_shots_is_not_kept(plain: Scanned, tmp_path: Path) -> None:
    moved = replace(plain, pts=[pts + 3 for pts in plain.pts], end_pts=plain.end_pts + 3)
    (clip,) = cut_clips(moved, [(12, 30)], tmp_path / "out", "copy")
    assert "frames of the file are not an unbroken run of the shot's 18" in clip["failed"]
    assert not list((tmp_path / "out").iterdir())


def test_a_source_that_is_gone_rejects_the_video(plain: Scanned, tmp_path: Path) -> None:
    for mode in ("auto", "exact"):
        with pytest.raises(Rejected) as caught:
            cut_clips(replace(plain, path=tmp_path / "gone.mp4"), [(0, 60)], tmp_path / "out", mode)
        assert caught.value.reason == "missing"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shots", "methods"),
    [
        ("google_paris_office.mp4", [(0, 17), (17, 36), (980, 1026)], "copy encode encode"),  # its first pts is 0.834 s
        ("mapillary_london_hevc.mp4", [(0, 12), (60, 66), (140, 146)], "copy encode encode"),
        ("webcam_vfr.mov", [(0, 41), (41, 60), (119, 123)], "copy encode copy"),
        ("popcorn_10x6.webm", [(0, 100), (700, 740), (1500, 1549)], "encode encode encode"),
        ("rooftop_hdr_av1_short.mp4", [(0, 5), (100, 104), (124, 127)], "encode encode encode"),
        ("fishes_vc1.wmv", [(0, 30), (111, 140), (290, 310)], "encode encode encode"),
        ("desk_h263.3gp", [(0, 23), (30, 50), (60, 71)], "encode encode encode"),
        ("rotated_dog_phone.mp4", [(0, 30), (31, 50), (140, 149)], "copy encode encode"),
    ],
)
def test_real_videos(
    shared_videos: Path, tmp_path: Path, name: str, shots: list[tuple[int, int]], methods: str
) -> None:
    video = scanned(shared_videos / name)
    clips = cut_clips(video, shots, tmp_path / "out", "auto")
    assert " ".join(clip["method"] for clip in clips) == methods
    for clip, (start, end) in zip(clips, shots, strict=True):
        held = scanned(Path(clip["path"]))
        lost = round(clip["start_error_s"] / video.time_base)
        first = video.pts.index(video.pts[start] + lost)
        assert held.times_s(0, len(held.pts)) == video.times_s(first, first + len(held.pts))
        assert start <= first < first + len(held.pts) <= end
        assert max(clip["start_error_s"], clip["end_error_s"]) <= 0.1
        assert opencv_count(clip["path"]) == clip["clip_frames"] == len(held.pts)
        if clip["method"] == "copy":
            assert hashes(clip["path"]) == hashes(video.path)[first : first + len(held.pts)]


class Opened:
    """Counts how often the source is opened, and packets read for copies."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = 0
        self.packets = 0
        for module in (cut_source, cut_encode):
            monkeypatch.setattr(module, "open_media", self._open)
        monkeypatch.setattr(cut_source.Source, "read", self._counted(cut_source.Source.read))

    def _open(self, uri: str) -> Any:
        self.times += 1
        return open_media(uri)

    def _counted(self, read: Callable[[cut_source.Source], Any]) -> Callable[[cut_source.Source], Any]:
        def counted(source: cut_source.Source) -> Any:
            self.packets += 1
            return read(source)

        return counted


def source_frames(clips: list[dict[str, Any]]) -> int:
    """Frames of the source decoded for clips; the rest was decoded to measure them."""
    return sum(clip["frames_decoded"] - clip["clip_frames"] for clip in clips)


def test_all_shots_of_a_video_cost_one_pass(plain: Scanned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Opened(monkeypatch)
    shots = [(start, start + 3) for start in range(0, 57, 3)]
    clips = cut_clips(plain, shots, tmp_path / "out", "exact")
    assert (opened.times, source_frames(clips)) == (1, 57)
    clips = cut_clips(plain, shots, tmp_path / "out", "auto")
    assert {clip["method"] for clip in clips} == {"copy", "encode"}
    assert opened.times == 3, "once for the copies, once for the rest"
    assert opened.packets <= 61
    assert source_frames(clips) <= 57


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("mode", ["copy", "exact"])
def test_long_gaps_are_jumped_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, mode: CutMode) -> None:
    video = scanned(write_clip(tmp_path / f"v.{ending}", numbered(200), CLOSED_GOPS))
    shots = [(12, 24), (120, 132), (156, 180)]
    unhurried = [numbers(clip) for clip in cut_clips(video, shots, tmp_path / "out", mode)]
    opened = Opened(monkeypatch)
    for module in (cut_source, cut_encode):
        monkeypatch.setattr(module, "JUMP_S", 1)
    clips = cut_clips(video, shots, tmp_path / "out", mode)
    assert [numbers(clip) for clip in clips] == unhurried == [list(range(*shot)) for shot in shots]
    assert opened.times == 1
    assert opened.packets + source_frames(clips) < 120, "most of the 200 frames lie in the gaps"


class Straying:
    """A container whose seek fails, or lands too far on."""

    def __init__(self, container: InputContainer, lands_late_by: int | None) -> None:
        self._container = container
        self._lands_late_by = lands_late_by

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def seek(self, pts: int, *, stream: Any) -> None:
        if self._lands_late_by is None:
            raise av.FFmpegError(1, "this container cannot seek")
        self._container.seek(pts + self._lands_late_by, stream=stream)


@pytest.mark.parametrize("lands_late_by", [None, 40 * 1024])
@pytest.mark.parametrize("mode", ["copy", "exact"])
def test_a_jump_that_fails_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lands_late_by: int | None, mode: CutMode
) -> None:
    video = scanned(write_clip(tmp_path / "v.mp4", numbered(200), CLOSED_GOPS))
    opened = []

    def open_straying(uri: str) -> Any:
        opened.append(uri)
        return Straying(open_media(uri), lands_late_by)

    for module in (cut_source, cut_encode):
        monkeypatch.setattr(module, "JUMP_S", 1)
        monkeypatch.setattr(module, "open_media", open_straying)
    shots = [(12, 24), (120, 132), (156, 180)]
    clips = cut_clips(video, shots, tmp_path / "out", mode)
    assert [numbers(clip) for clip in clips] == [list(range(*shot)) for shot in shots]
    assert len(opened) == 2, "read from the beginning once more, and not again for the third"


class Misdated(Decoder):
    """After a jump, gives frame 125 the time of frame 126 and mends what follows, as can happen with VC-1 in ASF."""

    jumped = False

    def seek(self, pts: int) -> None:
        super().seek(pts)
        self.jumped = True

    def __iter__(self) -> Iterator[tuple[av.VideoFrame, int]]:
        for frame, pts in super().__iter__():
            late = {125 * 1024: 1024, 126 * 1024: 1}.get(pts, 0) if self.jumped else 0
            yield frame, pts + late


def test_a_jump_after_which_times_differ_is_made_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = scanned(write_clip(tmp_path / "v.mp4", numbered(150), CLOSED_GOPS))
    assert video.pts[126] == 126 * 1024
    opened = Opened(monkeypatch)
    monkeypatch.setattr(cut_encode, "Decoder", Misdated)
    monkeypatch.setattr(cut_encode, "JUMP_S", 1)
    (clip,) = cut_clips(video, [(126, 132)], tmp_path / "out", "exact")
    assert numbers(clip) == list(range(126, 132))
    assert opened.times == 2


def test_runs_in_the_guarded_process(plain: Scanned, tmp_path: Path) -> None:
    shots = [plain.shot(4, 12, 30)]
    args = {"uri": str(plain.path), "shots": shots, "mode": "auto", "tolerance_s": 0.1, "quality": QUALITY}
    with Guard() as guard:
        (chunk,) = guard.run("cut", {**args, "out_dir": str(tmp_path)}, 6.0)
    assert (chunk.info["shot"], chunk.info["method"]) == (4, "copy")
    assert numbers(chunk.info) == list(range(12, 30))
