"""The demo's input: a dozen small videos and two broken files, each there for one thing that the pipeline does.

What is in them is known, so tests compare against this table and not against yesterday's output.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import cycle
from pathlib import Path

import numpy as np

from pipeline.demo.paint import LOOKS, colored
from pipeline.media.write import Encoding, write_video

HEIGHT_PX, WIDTH_PX = 144, 256
FPS = 10


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One shot: what is drawn, how it moves, and what becomes of it in the demo."""

    seconds: int
    look: str
    """A key of paint.LOOKS."""
    colors: tuple[str, str]
    """The look's first and second colour."""
    drift: tuple[int, int] = (0, 0)
    """Movement to the right and down, pixels a second."""
    start: tuple[int, int] = (0, 0)
    """Where the look begins: moved right and down by so many pixels."""
    outcome: str = "kept"
    """`kept`, or the reason its shot is dropped for, if the video is selected."""


@dataclass(frozen=True, kw_only=True)
class Video:
    """One readable video. Shots follow each other by hard cuts."""

    name: str
    shows: str
    """What it is there for."""
    shots: tuple[Shot, ...]
    gaps_ms: tuple[int, ...] = (1000 // FPS,)
    """Milliseconds from one frame to the next, over and over; a second holds whole rounds."""
    rotation: int = 0
    """Degrees counter-clockwise that a player is asked to turn it."""
    intra_at_cuts: bool = True
    """Whether each shot begins with a frame coded on its own: then its clip can be copied instead of encoded."""

    @property
    def seconds(self) -> int:
        return sum(shot.seconds for shot in self.shots)

    def times_s(self) -> list[Fraction]:
        """Time of every frame, seconds."""
        times: list[Fraction] = []
        now_ms = 0
        for gap_ms in cycle(self.gaps_ms):
            if now_ms >= self.seconds * 1000:
                return times
            times.append(Fraction(now_ms, 1000))
            now_ms += gap_ms
        raise AssertionError("a video has at least one gap")

    def cut_frames(self) -> list[int]:
        """Index of the first frame of every shot but the first."""
        times, cuts, start_s = self.times_s(), [], 0
        for shot in self.shots[:-1]:
            start_s += shot.seconds
            cuts.append(times.index(Fraction(start_s)))
        return cuts

    def frames(self) -> Iterator[np.ndarray]:
        """Every frame in order, uint8 [H, W, 3] RGB."""
        times, start_s = iter(self.times_s()), 0
        for shot in self.shots:
            tile = LOOKS[shot.look](HEIGHT_PX, WIDTH_PX)
            for _ in range(_frames_in(shot.seconds, self.gaps_ms)):
                shot_s = next(times) - start_s
                right, down = (round(at + speed * shot_s) for at, speed in zip(shot.start, shot.drift, strict=True))
                yield colored(tile, shot.colors, right, down)
            start_s += shot.seconds


def _frames_in(seconds: int, gaps_ms: tuple[int, ...]) -> int:
    return seconds * 1000 * len(gaps_ms) // sum(gaps_ms)


VIDEOS: tuple[Video, ...] = (
    Video(
        name="red_disc.mp4",
        shows="a disc that moves right, then left, with a hard cut between",
        shots=(
            Shot(seconds=8, look="disc", colors=("red", "cream"), start=(-90, -20), drift=(22, 0)),
            Shot(seconds=9, look="disc", colors=("cream", "red"), start=(90, 30), drift=(-20, 0)),
        ),
    ),
    Video(
        name="red_stripes.mp4",
        shows="a second red video",
        shots=(
            Shot(seconds=7, look="stripes", colors=("red", "maroon"), drift=(8, 0)),
            Shot(seconds=8, look="clouds", colors=("orange", "cream"), drift=(0, 6)),
        ),
    ),
    Video(
        name="green_pan.mp4",
        shows="a pan over a texture, without a cut",
        shots=(Shot(seconds=14, look="clouds", colors=("forest", "lime"), drift=(-12, 0)),),
    ),
    Video(
        name="green_hills.mp4",
        shows="a second green video",
        shots=(
            Shot(seconds=6, look="glow", colors=("lime", "green")),
            Shot(seconds=9, look="disc", colors=("forest", "gold"), start=(0, 40), drift=(0, -9)),
        ),
    ),
    Video(
        name="blue_waves.mp4",
        shows="waves that move left, then a texture that moves up; the cut lies inside a group of pictures",
        shots=(
            Shot(seconds=9, look="stripes", colors=("blue", "sky"), drift=(-10, 0)),
            Shot(seconds=7, look="clouds", colors=("black", "blue"), drift=(0, -8)),
        ),
        intra_at_cuts=False,
    ),
    Video(
        name="blue_night.mp4",
        shows="a dark video with one light that moves down",
        shots=(Shot(seconds=12, look="disc", colors=("black", "sky"), start=(-60, -45), drift=(0, 7)),),
    ),
    Video(
        name="grey_texture.mp4",
        shows="fine texture without colour",
        shots=(
            Shot(seconds=8, look="checker", colors=("slate", "silver")),
            Shot(seconds=8, look="clouds", colors=("black", "grey"), drift=(6, 6)),
        ),
    ),
    Video(
        name="bright_day.mp4",
        shows="a bright video with hardly anything in it",
        shots=(
            Shot(seconds=8, look="glow", colors=("white", "cream")),
            Shot(seconds=6, look="plain", colors=("sky", "sky")),
        ),
    ),
    Video(
        name="again.mp4",
        shows="a repeated shot: the second is the first moved by one field, and looks like it; the fourth is the first "
        "again, and stays, since a frame is compared with the last keyframe and not with all",
        shots=(
            Shot(seconds=7, look="checker", colors=("navy", "gold")),
            Shot(seconds=6, look="checker", colors=("navy", "gold"), start=(8, 0), outcome="redundant"),
            Shot(seconds=8, look="disc", colors=("white", "green"), start=(-80, 0), drift=(18, 0)),
            Shot(seconds=6, look="checker", colors=("navy", "gold")),
        ),
    ),
    Video(
        name="interrupted.mp4",
        shows="a shot of two seconds between two longer ones",
        shots=(
            Shot(seconds=8, look="clouds", colors=("purple", "sky"), drift=(14, 0)),
            Shot(seconds=2, look="plain", colors=("gold", "gold"), outcome="too_short"),
            Shot(seconds=9, look="stripes", colors=("black", "purple"), drift=(11, 0)),
        ),
    ),
    Video(
        name="blink.mp4",
        shows="a whole video of three seconds: too short to give a clip",
        shots=(Shot(seconds=3, look="disc", colors=("white", "cream"), outcome="too_short"),),
    ),
    Video(
        name="phone_clock.mp4",
        shows="a variable frame rate, and a tag that asks the player to turn the picture",
        shots=(
            Shot(seconds=8, look="disc", colors=("slate", "gold"), start=(-70, 0), drift=(16, 0)),
            Shot(seconds=7, look="glow", colors=("gold", "white")),
        ),
        gaps_ms=(50, 150),
        rotation=90,
    ),
    Video(
        name="long_take.mp4",
        shows="one long shot",
        shots=(Shot(seconds=30, look="clouds", colors=("slate", "silver"), drift=(5, 2)),),
    ),
)

BROKEN: dict[str, str] = {
    "cut_off.mp4": "unreadable",
    "notes.mp4": "not_video",
}
"""Files that are no videos any more, or never were, and the reason they are rejected for."""


def write_demo_videos(folder: Path) -> list[Path]:
    """Write all videos and broken files into a folder; the same bytes every time. Returns their paths, by name.

    A file that is there with these bytes is left as it is: a run over the folder sees no change.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="hicom-demo-") as scratch:
        made: dict[str, bytes] = {}
        for video in VIDEOS:
            path = Path(scratch) / video.name
            _write(video, path)
            made[video.name] = path.read_bytes()
    whole = made[VIDEOS[0].name]
    # An MP4's index stands at its end, so the first half alone cannot be read.
    made["cut_off.mp4"] = whole[: len(whole) // 2]
    made["notes.mp4"] = b"This is a note and not a video.\n"
    for name, content in made.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)
    return sorted(folder / name for name in made)


def _write(video: Video, path: Path) -> None:
    options = {"preset": "veryfast", "g": "40", "x264-params": "scenecut=0"}
    even = len(set(video.gaps_ms)) == 1
    write_video(
        path,
        video.frames(),
        Encoding(fps=FPS, options=options, rotation=video.rotation),
        times_s=None if even else video.times_s(),
        keyframes=video.cut_frames() if video.intra_at_cuts else (),
    )
