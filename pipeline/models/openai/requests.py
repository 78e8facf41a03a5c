"""What an OpenAI-compatible endpoint is asked about a clip, and its answer: frames as data URLs, two turns of one
conversation.

A request is a dict with the fields of the API's chat completions; `extra_body` holds those that only some servers know.
"""

from __future__ import annotations

import base64
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.models.openai.faults import MalformedAnswer
from pipeline.models.openai.options import Options
from pipeline.models.prompts import PAIRS_PER_CLIP, Prompt, load_prompt
from pipeline.models.protocols import ClipFrames, Frames
from pipeline.models.two_turns import storable

Request = dict[str, Any]

_TRIAL_SIDE = 112
"""Width and height of the grey frames that a server is tried with, pixels: four of Qwen2-VL's tokens each way."""
_TRIAL_TOKENS = 16
"""Tokens of the answer to them, which nobody reads."""


@dataclass(frozen=True)
class Answer:
    """The first choice of a chat completion."""

    text: str
    refusal: str
    """OpenAI's field for what a model says instead of constrained output; else empty."""
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    """0 where the server does not tell; vLLM's does with --enable-prompt-tokens-details."""
    output_tokens: int
    tries: int
    """Times the request was sent."""


def frames_request(clip: ClipFrames, options: Options) -> Request:
    """The part that both turns share: the frames, uint8 [T, H, W, 3] RGB, encoded. Takes CPU time."""
    pictures = [_encoded(frame, options) for frame in clip.frames]
    if options.frames_as == "images":
        timed = zip(clip.times_s, pictures, strict=True)
        parts = [part for time_s, picture in timed for part in _image(float(time_s), picture, options)]
        return {"messages": [{"role": "user", "content": parts}]}
    # vLLM's form of a video that is decoded already: pictures after each other. The media type is the same for all
    # formats; what a picture is, its own bytes say.
    video = {"type": "video_url", "video_url": {"url": "data:video/jpeg;base64," + ",".join(pictures)}}
    request: Request = {"messages": [{"role": "user", "content": [video]}]}
    if options.media_io_kwargs:
        request["extra_body"] = {"media_io_kwargs": {"video": _metadata(clip, options)}}
    return request


def caption_request(frames: Request) -> Request:
    """Turn 1."""
    (asked,) = frames["messages"]
    text = {"type": "text", "text": _prompt("caption").render()}
    return {**frames, "messages": [{**asked, "content": [*asked["content"], text]}]}


def pairs_request(frames: Request, caption: str, options: Options) -> Request:
    """Turn 2: turn 1, its answer, and the question."""
    prompt = _prompt("qa")
    first = caption_request(frames)
    second = [
        {"role": "assistant", "content": caption},
        {"role": "user", "content": prompt.render(pairs=PAIRS_PER_CLIP)},
    ]
    request = {**first, "messages": first["messages"] + second}
    if options.json_schema:
        schema = {"name": "pairs", "strict": True, "schema": prompt.schema(pairs=PAIRS_PER_CLIP)}
        request["response_format"] = {"type": "json_schema", "json_schema": schema}
    return request


def sampled(request: Request, options: Options, max_tokens: int, seed: int | None) -> Request:
    """The request with how its answer is drawn."""
    given = {"temperature": options.temperature, "top_p": options.top_p, "seed": seed, options.limit_field: max_tokens}
    extra = {**request.get("extra_body", {}), **options.extra_body}
    return {**request, **{name: value for name, value in given.items() if value is not None}, "extra_body": extra}


def trial_request(options: Options, frames: int = 2) -> Request:
    """A small request that has everything the others have."""
    grey = np.full((frames, _TRIAL_SIDE, _TRIAL_SIDE, 3), 128, np.uint8)
    clip = ClipFrames("trial", frames=grey, times_s=np.arange(frames, dtype=np.float64) + 0.5, duration_s=float(frames))
    request = pairs_request(frames_request(clip, options), "A grey picture.", options)
    return sampled(request, options, _TRIAL_TOKENS, options.seed)


def read_answer(found: Any, tried: int) -> Answer:
    """Read a chat completion, which the client has not checked. Raises MalformedAnswer."""
    try:
        choice = found.choices[0]
        text, refusal = choice.message.content, getattr(choice.message, "refusal", None)
    except (AttributeError, IndexError, KeyError, TypeError):
        raise MalformedAnswer(repr(found)[:200]) from None
    usage = getattr(found, "usage", None)
    return Answer(
        text=storable(text) if isinstance(text, str) else "",
        refusal=storable(refusal) if isinstance(refusal, str) else "",
        finish_reason=storable(str(choice.finish_reason)),
        prompt_tokens=_count(usage, "prompt_tokens"),
        cached_tokens=_count(getattr(usage, "prompt_tokens_details", None), "cached_tokens"),
        output_tokens=_count(usage, "completion_tokens"),
        tries=tried,
    )


@functools.cache
def _prompt(name: str) -> Prompt:
    """Read once: it is asked for with every request."""
    return load_prompt(name)


def _image(time_s: float, picture: str, options: Options) -> list[Request]:
    """A picture after its time, which nothing else tells the model."""
    url = f"data:image/{options.frame_format};base64,{picture}"
    return [{"type": "text", "text": f"<{time_s:.1f} seconds>"}, {"type": "image_url", "image_url": {"url": url}}]


def _encoded(frame: Frames, options: Options) -> str:
    """A frame as base64 of a PNG or JPEG."""
    import cv2

    # 4:4:4: halved colour would blur what is small and bright, such as signs.
    jpeg = [cv2.IMWRITE_JPEG_QUALITY, options.jpeg_quality]
    jpeg += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    ok, data = cv2.imencode(
        f".{options.frame_format}", frame[..., ::-1], jpeg if options.frame_format == "jpeg" else []
    )
    assert ok, frame.shape
    return base64.b64encode(data.tobytes()).decode("ascii")


def _metadata(clip: ClipFrames, options: Options) -> Request:
    """What vLLM is to know of the frames. `num_frames` -1: take them all, and not options.SEEN_UNASKED."""
    count, span_s = len(clip.frames), float(clip.times_s[-1] - clip.times_s[0])
    return {
        "num_frames": -1,
        "fps": (count - 1) / span_s if span_s > 0 else options.fps,
        "duration": clip.duration_s,
        "total_num_frames": count,
        "frames_indices": list(range(count)),
        "do_sample_frames": False,
    }


def _count(holder: Any, name: str) -> int:
    value = getattr(holder, name, None)
    return value if isinstance(value, int) else 0
