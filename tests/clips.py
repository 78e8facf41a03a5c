"""Tiny clips and broken files, drawn on the spot, whose content is known. For every test that needs a video.

    write_clip(path, numbered(40), h264(gop=10, b_frames=2))
    write_clip(path, shots(("red", 30), ("blue", 20)))

Sizes are tiny (64 x 48 pixels, ten frames a second), so that a clip costs milliseconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pipeline.demo.paint import COLORS
from pipeline.media.write import Encoding, write_video

WIDTH_PX, HEIGHT_PX = 64, 48
_BITS = 16


def h264(*, fps: int = 10, gop: int = 12, b_frames: int = 0, ten_bit: bool = False, rotation: int = 0) -> Encoding:
    """H.264 with a key frame every `gop` frames, at hard cuts only when asked for, and so many B-frames."""
    options = {"preset": "veryfast", "crf": "16", "g": str(gop), "bf": str(b_frames), "x264-params": "scenecut=0"}
    pixels = "yuv420p10le" if ten_bit else "yuv420p"
    return Encoding(fps=fps, pixel_format=pixels, options=options, rotation=rotation)


def vp9(*, fps: int = 10, gop: int = 12, live: bool = False) -> Encoding:
    """VP9 for a .webm or .mkv; a live one states no duration."""
    options = {"deadline": "realtime", "cpu-used": "8", "g": str(gop)}
    return Encoding(fps=fps, codec="libvpx-vp9", options=options, muxer_options={"live": "1"} if live else {})


def mpeg4(*, fps: int = 10, gop: int = 12) -> Encoding:
    """MPEG-4 part 2, which is neither H.264 nor HEVC."""
    return Encoding(fps=fps, codec="mpeg4", options={"g": str(gop), "qscale": "2"})


def write_clip(
    path: Path,
    frames: Iterable[np.ndarray],
    encoding: Encoding | None = None,
    times_s: Sequence[Fraction] | None = None,
    keyframes: Collection[int] = (),
) -> Path:
    """Write frames to a file, H.264 by default (see media.write.write_video), and return its path."""
    write_video(path, frames, encoding or h264(), times_s, keyframes)
    return path


def decoded(path: Path) -> list[av.VideoFrame]:
    """All frames of a file's first video stream, in display order."""
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def time_s(frame: av.VideoFrame) -> Fraction:
    """A decoded frame's own timestamp, seconds."""
    assert frame.pts is not None and frame.time_base is not None
    return frame.pts * frame.time_base


def flat(color: str, count: int, size_px: tuple[int, int] = (WIDTH_PX, HEIGHT_PX)) -> Iterator[np.ndarray]:
    """`count` frames in one colour of demo.paint.COLORS; size is width, height."""
    width, height = size_px
    for _ in range(count):
        yield np.full((height, width, 3), COLORS[color], np.uint8)


def shots(*parts: tuple[str, int], size_px: tuple[int, int] = (WIDTH_PX, HEIGHT_PX)) -> Iterator[np.ndarray]:
    """Hard cuts between flat colours, each for so many frames. ("red", 30), ("sky", 20) cuts at frame 30."""
    for color, count in parts:
        yield from flat(color, count, size_px)


def numbered(count: int, first: int = 0) -> Iterator[np.ndarray]:
    """Frames that carry their own index as 4 x 4 black and white fields, which survive any encoder; see `number`."""
    for index in range(first, first + count):
        bits = np.array([(index >> bit) & 1 for bit in range(_BITS)], np.uint8).reshape(4, 4) * 255
        field = np.kron(bits, np.ones((HEIGHT_PX // 4, WIDTH_PX // 4), np.uint8))
        yield np.repeat(field[:, :, None], 3, axis=2)


def number(frame: np.ndarray) -> int:
    """The index that a frame of `numbered` carries; the picture may have been resized by whole factors."""
    height, width = frame.shape[0] // 4, frame.shape[1] // 4
    means = frame.astype(np.float64).mean(axis=2).reshape(4, height, 4, width).mean(axis=(1, 3))
    return sum(int(mean > 127) << bit for bit, mean in enumerate(means.ravel()))


def disc(count: int, step_px: tuple[int, int] = (1, 0)) -> Iterator[np.ndarray]:
    """A golden disc on dark blue that starts in the upper left and moves right and down by `step_px` a frame."""
    y, x = np.mgrid[:HEIGHT_PX, :WIDTH_PX]
    back, front = (np.array(COLORS[name], np.uint8) for name in ("navy", "gold"))
    for index in range(count):
        center_x, center_y = 10 + index * step_px[0], 10 + index * step_px[1]
        inside = (x - center_x) ** 2 + (y - center_y) ** 2 <= 64
        yield np.where(inside[:, :, None], front, back)


def noise(count: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Frames of random pixels, each another."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        yield random.integers(0, 256, (HEIGHT_PX, WIDTH_PX, 3), np.uint8)


def uneven_times_s(count: int, gaps_ms: Sequence[int] = (50, 150)) -> list[Fraction]:
    """Times of a variable frame rate: the gaps over and over, from 0."""
    gaps = [gaps_ms[index % len(gaps_ms)] for index in range(count)]
    return [Fraction(sum(gaps[:index]), 1000) for index in range(count)]


def truncated(whole: Path, path: Path, share: float = 0.5) -> Path:
    """The first part of a file's bytes. Of an MP4 the index is lost with the rest; a WebM or TS still plays."""
    data = whole.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def overwritten(whole: Path, path: Path, start_share: float = 0.4, end_share: float = 0.6) -> Path:
    """A file with a stretch of its bytes replaced by noise, length kept."""
    data = bytearray(whole.read_bytes())
    start, end = int(len(data) * start_share), int(len(data) * end_share)
    data[start:end] = np.random.default_rng(1).integers(0, 256, end - start, np.uint8).tobytes()
    path.write_bytes(data)
    return path


def audio_only(path: Path, seconds: int = 1) -> Path:
    """A container with a sound stream (a tone) and no picture."""
    rate = 48_000
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("aac", rate=rate)
        tone = (0.1 * np.sin(np.arange(rate * seconds) * (2 * np.pi * 440 / rate))).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(tone[None, :], format="fltp", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def picture(path: Path) -> Path:
    """A still JPEG picture, whatever the name says."""
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = WIDTH_PX, HEIGHT_PX, "yuvj420p"
    encoder.time_base = Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(next(flat("green", 1)), format="rgb24").reformat(format="yuvj420p")
    path.write_bytes(b"".join(bytes(packet) for packet in (*encoder.encode(frame), *encoder.encode(None))))
    return path


def text(path: Path) -> Path:
    """Plain text, whatever the name says."""
    path.write_text("This is a note and not a video.\n", encoding="utf-8")
    return path


def empty(path: Path) -> Path:
    """A file of no bytes."""
    path.write_bytes(b"")
    return path
