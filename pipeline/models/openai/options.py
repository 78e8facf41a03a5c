"""Settings of the describer on an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
import re
from dataclasses import field
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, field_validator
from pydantic.dataclasses import dataclass

from pipeline.media.budget import QWEN_TOKEN_PIXELS, VideoBudget
from pipeline.models.two_turns import TurnLimits
from pipeline.stage import UserError

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLACE = {"place": True}

SEEN_UNASKED = 32
"""Frames of a video that vLLM's server looks at unless told otherwise (vLLM 0.31)."""

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Options:
    """How an endpoint is reached and asked. Where no source is named, a default is our choice."""

    base_url: str = field(metadata=_PLACE)
    """Where the API is, such as https://api.openai.com/v1 or http://127.0.0.1:8000/v1. Without a default: the clips'
    frames are sent there."""
    api_key_env: str = field(default="OPENAI_API_KEY", metadata=_PLACE)
    """Environment variable that holds the key, set where the describer runs (on a cluster: on its nodes). Empty, or a
    variable that is not set: no key is sent. The key itself has no place in a config."""
    must_be_listed: bool = field(default=True, metadata=_PLACE)
    """Whether the model's name must be in the server's list of models, where it has one: some servers answer to any
    name with the model they have. False for servers that list other names than they take (Azure's deployments)."""

    max_concurrency: Count = field(default=32, metadata=_PLACE)
    """Clips whose conversation is under way at once; a conversation has one request open at a time."""
    timeout_s: Seconds = field(default=300.0, metadata=_PLACE)
    """A request without an answer after so many seconds is given up; so is its clip, after the third time."""
    connect_timeout_s: Seconds = field(default=10.0, metadata=_PLACE)
    """Seconds to reach the server."""
    tries: Count = field(default=6, metadata=_PLACE)
    """Times a request is sent when its failure may pass (5xx, no connection, time-out), the first included. Being told
    to come back later (429, or 503 with Retry-After) costs no try."""
    backoff_s: Seconds = field(default=1.0, metadata=_PLACE)
    """Longest wait before the second try; it doubles with every further one. The wait is drawn between 0 and this."""
    backoff_max_s: Seconds = field(default=60.0, metadata=_PLACE)
    """Where doubling ends, seconds."""
    retry_after_max_s: Seconds = field(default=300.0, metadata=_PLACE)
    """Most seconds that a server's Retry-After is waited for."""
    outage_s: Seconds = field(default=900.0, metadata=_PLACE)
    """Seconds without an answer to any clip after which the server is taken for dead and the stage ends. Until then no
    clip is rejected for it: a server may restart, which takes a large model minutes, or turn everyone away for a while
    (429)."""

    frames_as: Literal["images", "video"] = "images"
    """images: one picture for each frame, its time before it; every endpoint with eyes takes that. video: one video of
    ready frames, which vLLM's server takes: the model gets what it gets in-process, for half the tokens (Qwen2-VL)."""
    media_io_kwargs: bool = False
    """Whether a video's length and rate, and that all its frames are meant, are told to vLLM's server, which must be
    started with --trust-request-mm-kwargs. Untold, it takes frames to be a second apart (Qwen2-VL does not mind, later
    models do) and looks at the first SEEN_UNASKED, at all when started with
    --media-io-kwargs '{"video": {"num_frames": -1}}'."""
    frame_format: Literal["jpeg", "png"] = "jpeg"
    """png loses nothing and takes 3.5 times the bytes: 310 KiB a frame of 588 x 336 from real footage, JPEG 87."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 95
    """libjpeg's scale. 95 is 48 dB from the frame (median of the same footage), 90 is 46 dB for 61 KiB."""
    json_schema: bool = True
    """Ask for the pairs with `response_format: json_schema`, strict. False for servers that refuse it: the prompt asks
    for JSON anyway, and the answer is checked in either case."""
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the limit of an answer is called; OpenAI's reasoning models take max_completion_tokens only."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Further fields of every request, for what one server has and others have not, such as top_k."""

    caption_tokens: Count = TurnLimits.caption_tokens
    """This and the next two: see `models.two_turns.TurnLimits`."""
    qa_tokens: Count = TurnLimits.qa_tokens
    retry_factor: Annotated[int, Field(ge=2)] = TurnLimits.retry_factor
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 0.01
    """As in Qwen2-VL-72B-Instruct's generation_config.json; null: not sent, the server's own."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = 0.001
    """As in Qwen2-VL-72B-Instruct's generation_config.json; null: not sent."""
    seed: Annotated[int, Field(ge=0)] | None = 0
    """With the clip's id it gives the seed of the clip's answers; an answer that is asked for again has the next. null:
    not sent. What a server makes of it is its own affair."""

    fps: Seconds = 1.0
    """Frames for each second of a clip; half of Qwen2-VL's rate, since endpoints are paid by the token."""
    min_frames: Count = 4
    """Fewest frames (Qwen2-VL's FPS_MIN_FRAMES)."""
    max_frames: Count = SEEN_UNASKED
    """Most frames."""
    min_pixels: Count = 128 * QWEN_TOKEN_PIXELS
    """Fewest pixels of a frame (Qwen2-VL's VIDEO_MIN_PIXELS)."""
    max_pixels: Count = 256 * QWEN_TOKEN_PIXELS
    """Most pixels of a frame: a third of Qwen2-VL's, 448 x 448."""
    total_pixels: Count = 8192 * QWEN_TOKEN_PIXELS
    """Pixels of all frames together; as a video, two frames count once."""

    @field_validator("base_url")
    @classmethod
    def _without_secrets(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.username or parts.password or parts.query:
            raise UserError(
                "describer's options.base_url holds a user, a password or a query, which would be written into "
                "run.yaml: give the plain URL, and the key in the environment variable that api_key_env names"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected a URL such as http://127.0.0.1:8000/v1")
        return url.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, name: str) -> str:
        if name and not _ENV_NAME.fullmatch(name):  # said without the value, which may be the key itself
            raise UserError(
                "describer's options.api_key_env: expected the name of an environment variable, such as "
                "OPENAI_API_KEY (what it holds is read when the describer starts, and is written nowhere)"
            )
        return name

    def budget(self) -> VideoBudget:
        """Frames and pixels of a clip. Raises UserError for numbers that do not fit together."""
        return VideoBudget(
            fps=self.fps,
            min_frames=self.min_frames,
            max_frames=self.max_frames,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
            total_pixels=self.total_pixels,
            frame_multiple=self.frame_multiple,
        )

    @property
    def frame_multiple(self) -> int:
        """Frames that share their tokens: two neighbours of a video; pictures stand alone."""
        return 2 if self.frames_as == "video" else 1

    def key(self) -> str:
        """The key, from the environment; empty when there is none. Raises UserError for what cannot be one."""
        found = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""
        if not found.isascii() or not found.isprintable() or " " in found:
            raise UserError(f"the environment variable {self.api_key_env} holds characters that no key can have")
        return found
