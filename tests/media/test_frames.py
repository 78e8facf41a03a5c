"""Pictures as models want them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from pipeline.media.frames import (
    FrameSizer,
    FrameSpec,
    PixelBounds,
    picture_view,
    quarter_turns,
    scaled_size,
    spec_from_json,
)
from tests import clips

CROP = FrameSpec(width=24, height=24)
ONE = Fraction(1)


def test_a_spec_travels_as_json_and_refuses_nonsense() -> None:
    spec = FrameSpec(width=336, height=224, resize="pad", interpolation="area")
    assert FrameSpec.from_json(spec.to_json()) == spec
    assert spec.nbytes == 336 * 224 * 3
    for wrong in ({"width": 0}, {"width": 10_000}, {"resize": "zoom"}, {"interpolation": "magic"}):
        with pytest.raises(ValueError, match=r"frame size|unknown"):
            FrameSpec(**{"width": 8, "height": 8, **wrong})  # type: ignore[arg-type]


def test_bounds_travel_as_json_and_refuse_nonsense() -> None:
    bounds = PixelBounds(784, 10_000.5, 28)
    assert spec_from_json(bounds.to_json()) == bounds
    assert spec_from_json(CROP.to_json()) == CROP
    for wrong in ((783, 10_000, 28), (9000, 8000, 28)):
        with pytest.raises(ValueError, match="max_pixels"):
            PixelBounds(*wrong)


@pytest.mark.parametrize(
    ("width", "height", "aspect", "expected"),
    [
        (1920, 1080, ONE, (398, 224)),  # 398.2: the longer side is rounded down
        (1080, 1920, ONE, (224, 398)),
        (320, 240, ONE, (298, 224)),  # enlarged
        (224, 224, ONE, (224, 224)),
        (720, 576, Fraction(16, 15), (298, 224)),  # 4:3 shown, by pixels that are not square
        (100_000, 2, ONE, (32 * 224, 224)),  # squeezed
    ],
)
def test_the_shorter_side_fits_the_crop(width: int, height: int, aspect: Fraction, expected: tuple[int, int]) -> None:
    assert scaled_size(FrameSpec(width=224, height=224), width, height, aspect) == expected


def test_padding_fits_the_longer_side() -> None:
    spec = FrameSpec(width=100, height=50, resize="pad")
    assert scaled_size(spec, 400, 100, ONE) == (100, 25)
    assert scaled_size(spec, 100, 400, ONE) == (12, 50)
    assert scaled_size(spec, 9000, 1, ONE) == (100, 1)


def left_is_red(height: int = 48, width: int = 96) -> np.ndarray:
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, : width // 2] = (255, 0, 0)
    picture[:, width // 2 :] = (0, 0, 255)
    return picture


def sized(spec: FrameSpec, picture: np.ndarray, aspect: Fraction | None = None) -> np.ndarray:
    return FrameSizer(spec, aspect).picture(av.VideoFrame.from_ndarray(picture, "rgb24"))


def test_the_crop_is_from_the_middle() -> None:
    picture = np.zeros((24, 72, 3), np.uint8)
    picture[:, 24:48] = 255
    assert np.array_equal(sized(CROP, picture), np.full((24, 24, 3), 255, np.uint8))


def test_padding_is_black_and_in_equal_parts() -> None:
    got = sized(FrameSpec(width=24, height=24, resize="pad", interpolation="area"), np.full((12, 48, 3), 255, np.uint8))
    assert got.shape == (24, 24, 3)
    assert (got[:9] == 0).all() and (got[15:] == 0).all() and (got[9:15] == 255).all()
    tall = sized(FrameSpec(width=24, height=24, resize="pad"), np.full((48, 12, 3), 255, np.uint8))
    assert (tall[:, :9] == 0).all() and (tall[:, 9:15] == 255).all()


def test_stretching_keeps_all_of_the_picture() -> None:
    got = sized(FrameSpec(width=24, height=24, resize="stretch", interpolation="area"), left_is_red())
    assert (got[:, 2] == (255, 0, 0)).all() and (got[:, 21] == (0, 0, 255)).all()


def test_pixels_that_are_not_square_are_shown_as_a_player_shows_them() -> None:
    spec = FrameSpec(width=24, height=24, resize="pad", interpolation="area")
    got = sized(spec, np.full((24, 12, 3), 255, np.uint8), Fraction(2))
    assert (got == 255).all(), "12 wide pixels of aspect 2 fill the square"


@pytest.mark.parametrize("degrees", [0, 90, 180, 270, -90])
def test_a_turned_video_is_upright_as_opencv_shows_it(degrees: int, tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "turned.mp4", [left_is_red()] * 2, clips.h264(rotation=degrees))
    shown = cv2.VideoCapture(str(path)).read()[1][:, :, ::-1].astype(int)
    frame = clips.decoded(path)[0]
    assert quarter_turns(frame.rotation) == degrees // 90 % 4
    height, width = shown.shape[:2]
    got = FrameSizer(FrameSpec(width=width, height=height, resize="stretch"), None).picture(frame)
    assert np.abs(got - shown).mean() < 8 and np.abs(np.rot90(got, 2) - shown).mean() > 50


def test_within_bounds_the_shown_shape_decides_the_size(tmp_path: Path) -> None:
    bounds = PixelBounds(28 * 28, 40 * 28 * 28, 28)
    frame = clips.decoded(clips.write_clip(tmp_path / "a.mp4", [left_is_red(280, 560)] * 2, clips.h264(rotation=90)))[0]
    assert FrameSizer(bounds, None).picture(frame).shape == (224, 112, 3), "8 by 4 multiples: upright, not as coded"
    wide = FrameSizer(bounds, Fraction(1, 2)).picture(frame)
    assert wide.shape == (168, 168, 3), "a pixel aspect of the stored picture, which is turned with it"
    assert (wide[:80, :, 0] < 60).all() or (wide[:80, :, 0] > 200).all()


def test_all_pictures_of_a_stream_have_the_first_ones_size() -> None:
    sizer = FrameSizer(PixelBounds(28 * 28, 8 * 28 * 28, 28), None)
    shapes = {sizer.picture(av.VideoFrame(*size, "rgb24")).shape for size in ((112, 56), (640, 640))}
    assert shapes == {(56, 112, 3)}


def test_the_view_of_a_frame_is_its_pixels() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)  # rows of 21 bytes are padded
    assert np.array_equal(picture_view(av.VideoFrame.from_ndarray(picture, "rgb24")), picture)


KINDS = ["yuv420p10le", "yuvj420p", "gray", "nv12", "gbrp", "rgba64le", "yuv444p16le", "ya8"]


def of_kind(pixels: str, picture: np.ndarray) -> av.VideoFrame:
    """The picture as a frame of some pixel format. In one thread: to more than 8 bits a channel, and without
    ACCURATE_RND, libswscale's threads now and then get whole rows wrong (FFmpeg 8.1)."""
    return av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pixels, threads=1)


@pytest.mark.parametrize("pixels", KINDS)
def test_any_kind_of_pixel_becomes_rgb(pixels: str) -> None:
    got = FrameSizer(CROP, None).picture(of_kind(pixels, np.full((40, 40, 3), 200, np.uint8)))
    assert got.shape == (24, 24, 3)
    assert np.abs(got.astype(int) - 200).max() < 4


@pytest.mark.parametrize("pixels", KINDS)
def test_the_same_frame_gives_the_same_picture_every_time(pixels: str) -> None:
    frame = of_kind(pixels, np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8))
    sizer = FrameSizer(CROP, None)
    pictures = {one.picture(frame).tobytes() for _ in range(200) for one in (sizer, FrameSizer(CROP, None))}
    assert len(pictures) == 1
