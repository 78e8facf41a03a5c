"""What an endpoint is asked: frames as data URLs, both turns as one conversation."""

from __future__ import annotations

import base64
import json
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.models.openai.options import Options
from pipeline.models.openai.requests import caption_request, frames_request, pairs_request, sampled, trial_request
from pipeline.models.prompts import load_prompt
from pipeline.models.protocols import ClipFrames


def options(**given: Any) -> Options:
    return Options(base_url="http://127.0.0.1:1/v1", **given)


def clip(count: int = 3) -> ClipFrames:
    """Frames of a smooth picture that differ in colour, one every 2 s."""
    rows, columns = np.mgrid[0:56, 0:84].astype(np.uint8)
    frames = [np.stack([rows, columns, np.full_like(rows, 6 * i)], axis=-1) for i in range(count)]
    return ClipFrames("c1", np.stack(frames), np.arange(count) * 2 + 1.0, 2.0 * count)


def decoded(data: str) -> np.ndarray:
    """RGB of a picture in base64."""
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(data, validate=True), np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return np.asarray(picture[..., ::-1])


def parts(request: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = request["messages"][0]["content"]
    return found


@pytest.mark.parametrize(("frame_format", "largest_error"), [("png", 0), ("jpeg", 6)])
def test_each_frame_is_a_picture_after_its_time(frame_format: str, largest_error: int) -> None:
    sent = parts(frames_request(clip(), options(frame_format=frame_format)))
    assert [part["text"] for part in sent[::2]] == ["<1.0 seconds>", "<3.0 seconds>", "<5.0 seconds>"]
    for part, frame in zip(sent[1::2], clip().frames, strict=True):
        kind, _, data = part["image_url"]["url"].partition(",")
        assert kind == f"data:image/{frame_format};base64"
        assert np.abs(decoded(data).astype(int) - frame).max() <= largest_error


def test_a_video_is_its_pictures_after_each_other_all_of_them_to_be_taken() -> None:
    request = frames_request(clip(40), options(frames_as="video", frame_format="png", media_io_kwargs=True))
    (video,) = parts(request)
    kind, _, data = video["video_url"]["url"].partition(",")
    assert kind == "data:video/jpeg;base64"
    assert np.array_equal(np.stack([decoded(one) for one in data.split(",")]), clip(40).frames)
    assert request["extra_body"]["media_io_kwargs"]["video"] == {
        "num_frames": -1,
        "fps": 0.5,
        "duration": 80.0,
        "total_num_frames": 40,
        "frames_indices": list(range(40)),
        "do_sample_frames": False,
    }


def test_a_server_that_is_asked_nothing_more_is_told_nothing_more() -> None:
    assert frames_request(clip(), options(frames_as="video")).keys() == {"messages"}


def test_better_jpeg_is_larger() -> None:
    small, large = (len(str(frames_request(clip(), options(jpeg_quality=quality)))) for quality in (50, 95))
    assert small < large


def test_the_first_turn_is_the_frames_and_the_prompt() -> None:
    (asked,) = caption_request(frames_request(clip(), options()))["messages"]
    assert asked["role"] == "user"
    assert asked["content"][-1] == {"type": "text", "text": load_prompt("caption").render()}
    assert len(asked["content"]) == 7


def test_the_second_turn_goes_on_with_the_first() -> None:
    frames = frames_request(clip(), options())
    first, second = caption_request(frames), pairs_request(frames, "A slope.", options())
    assert second["messages"][:1] == first["messages"]
    assert second["messages"][1] == {"role": "assistant", "content": "A slope."}
    assert second["messages"][2] == {"role": "user", "content": load_prompt("qa").render(pairs=3)}
    schema = second["response_format"]["json_schema"]
    assert schema["strict"] is True and schema["schema"] == load_prompt("qa").schema(pairs=3)
    assert "response_format" not in first
    json.dumps(second)


def test_without_a_schema_only_the_prompt_asks_for_json() -> None:
    assert "response_format" not in pairs_request(frames_request(clip(), options()), "A", options(json_schema=False))


def test_how_an_answer_is_drawn_is_sent() -> None:
    asked = sampled({"messages": []}, options(temperature=0.5, top_p=0.9), 64, 7)
    assert asked == {"messages": [], "temperature": 0.5, "top_p": 0.9, "seed": 7, "max_tokens": 64, "extra_body": {}}


def test_what_is_null_is_not_sent() -> None:
    asked = sampled({}, options(temperature=None, top_p=None, limit_field="max_completion_tokens"), 64, None)
    assert asked == {"max_completion_tokens": 64, "extra_body": {}}


def test_further_fields_join_those_of_the_frames() -> None:
    chosen = options(frames_as="video", media_io_kwargs=True, extra_body={"top_k": 1})
    extra = sampled(frames_request(clip(), chosen), chosen, 64, 0)["extra_body"]
    assert extra.keys() == {"media_io_kwargs", "top_k"}


@pytest.mark.parametrize("frames_as", ["images", "video"])
@pytest.mark.parametrize("media_io_kwargs", [False, True])
def test_the_trial_has_everything_that_requests_have(frames_as: str, media_io_kwargs: bool) -> None:
    chosen = options(frames_as=frames_as, media_io_kwargs=media_io_kwargs, extra_body={"top_k": 1})
    request = sampled(pairs_request(frames_request(clip(), chosen), "A", chosen), chosen, 64, 0)
    assert trial_request(chosen).keys() == request.keys()
    assert len(json.dumps(trial_request(chosen))) < 20_000
