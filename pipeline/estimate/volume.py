"""How many videos, frames and clips: from headers and rates, as plain arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.estimate.asked import Asked
from pipeline.estimate.headers import Header, Headers
from pipeline.estimate.rates import Rate, Rates


@dataclass(frozen=True)
class Video:
    """A readable video with what its header leaves out filled in."""

    seconds: float
    fps: float
    width: int
    height: int
    bytes: int

    @property
    def frames(self) -> float:
        return self.seconds * self.fps

    @property
    def megapixels(self) -> float:
        """Of all its frames."""
        return self.frames * self.width * self.height / 1e6


@dataclass(frozen=True)
class Volume:
    """How much video."""

    count: float
    """Videos or clips."""
    seconds: float
    frames: float
    megapixels: float
    bytes: float
    """Of the source files, sound and all."""


@dataclass(frozen=True)
class Clips(Volume):
    """How much clips."""

    mean_s: float
    """Mean length, seconds."""


@dataclass(frozen=True)
class Source:
    """The inputs: headers, and their readable videos."""

    headers: Headers
    videos: tuple[Video, ...]
    sampled: float
    """1; more or less where the sample of headers was not like the rest."""

    def total(self, amount: Callable[[Video], float]) -> float:
        """Sum of an amount that grows with length over the videos of all rows."""
        return self.headers.total([amount(video) for video in self.videos]) * self.sampled


def source(headers: Headers, rates: Rates) -> Source:
    """What a header leaves out is the mean of those that say it, or a rate where none does."""
    lengths = [video.duration_s for video in headers.videos if video.duration_s is not None]
    speeds = [video.fps for video in headers.videos if video.fps is not None]
    mean_s = sum(lengths) / len(lengths) if lengths else rates("unknown_video_s")
    mean_fps = sum(speeds) / len(speeds) if speeds else rates("unknown_fps")
    videos = tuple(_video(header, mean_s, mean_fps) for header in headers.videos)
    return Source(headers, videos, rates.find(SAMPLED) or 1.0)


SAMPLED = "sampled"
"""Name of the rate that says how well a sample of headers stands for all."""


def sampled_rate(headers: Headers) -> list[Rate]:
    """How well the headers read stand for all, where they are a sample."""
    error = headers.sampling_error([video.duration_s or 0.0 for video in headers.videos])
    if not error:
        return []
    name = f"{headers.probed} headers of {headers.rows} rows: two standard errors of their length"
    low, high = max(0.0, 1 - error), 1 + error
    return [Rate(SAMPLED, 1.0, low, high, "all videos / what the headers read make of them", name, measured=True)]


def _video(header: Header, mean_s: float, mean_fps: float) -> Video:
    return Video(header.duration_s or mean_s, header.fps or mean_fps, header.width, header.height, header.bytes)


def listed(inputs: Source) -> Volume:
    """All readable videos of the inputs."""
    return Volume(
        count=inputs.headers.total([1.0] * len(inputs.videos)),
        seconds=inputs.total(lambda video: video.seconds),
        frames=inputs.total(lambda video: video.frames),
        megapixels=inputs.total(lambda video: video.megapixels),
        bytes=inputs.total(lambda video: float(video.bytes)),
    )


def selected(videos: Volume, want: Asked, rates: Rates) -> Volume:
    """The videos that select takes of those that can be embedded."""
    if not videos.count:
        return videos
    able = videos.count * min(rates("embeddable"), 1.0)
    taken = selected_count(able, want)
    each = taken / videos.count * (rates("selected_length") if taken < able else 1.0)
    return Volume(taken, each * videos.seconds, each * videos.frames, each * videos.megapixels, each * videos.bytes)


def selected_count(videos: float, want: Asked) -> float:
    """Of so many videos, those that select takes."""
    places = want.quota * want.categories
    if want.exclusive or not videos:
        return min(videos, places + want.random_rest)
    # A video may serve several categories: as many as if each category drew its own by lot.
    served = videos * (1 - (1 - min(1.0, want.quota / videos)) ** want.categories)
    return min(videos, served + want.random_rest)


def clips(inputs: Source, chosen: Volume, want: Asked, rates: Rates) -> Clips:
    """The clips of the selected videos.

    A video shorter than the shortest clip gives none. Of the others a share of the length is kept, in clips of the
    mean length, or of the video's own where that is shorter.
    """
    everything = listed(inputs)
    lengths = [video.seconds for video in inputs.videos]
    usable = sum(usable_lengths(lengths, want.min_s))
    if not usable:
        return Clips(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    room_s = min(max(rates("clip_s"), want.min_s), want.max_s)
    mean_s = usable / clips_if_all_kept(lengths, want.min_s, room_s)
    seconds = chosen.seconds * (usable / sum(lengths)) * min(rates("clips_share"), 1.0)
    return Clips(
        count=seconds / mean_s,
        seconds=seconds,
        frames=seconds * everything.frames / everything.seconds,
        megapixels=seconds * everything.megapixels / everything.seconds,
        bytes=seconds * everything.bytes / everything.seconds,
        mean_s=mean_s,
    )


def usable_lengths(lengths: Sequence[float], min_s: float) -> list[float]:
    """Lengths of the videos that have room for a clip, seconds."""
    return [length for length in lengths if length >= min_s]


def clips_if_all_kept(lengths: Sequence[float], min_s: float, clip_s: float) -> float:
    """Clips of videos of these lengths if no second were dropped: each of `clip_s`, or of the whole video where that
    is shorter."""
    return sum(length / min(clip_s, length) for length in usable_lengths(lengths, min_s))
