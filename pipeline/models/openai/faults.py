"""What a failed request to an OpenAI-compatible endpoint means: whether it may pass, and whose fault it is."""

from __future__ import annotations

import email.utils
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pipeline.models.openai.options import Options
from pipeline.models.two_turns import storable
from pipeline.stage import UserError

Kind = Literal["passing", "everyone", "too_long", "refused", "clip"]
"""passing: another try may succeed. everyone: every request would fail so (key, model, quota). too_long: this request
does not fit the model's context or the server's limits. refused: a filter of content said no. clip: the server
says that this request is wrong, and will say so again."""

_PASSING = {408, 409, 425, 429}
"""4xx that may pass: time-out, conflict, too early, too many requests."""
_WORDS = 400
"""Most characters of a server's words that are kept."""
_NAMED = 10
"""Most models that a message names."""
_TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size|maximum context length|maximum model length|max_model_len|"
    r"context (?:length|size|window)|encoder cache size|too many (?:tokens|images)|at most \d+ (?:image|video)",
    re.IGNORECASE,
)
"""How servers say that a request is too long, or has too many pictures: OpenAI's code, and the words of vLLM, SGLang
and llama.cpp."""
_FILTER = re.compile(r"content_filter|content_policy|content management policy|moderation|flagged", re.IGNORECASE)
"""How servers say that they will not look at a clip; some with 403, which otherwise means the key."""
_TOO_LARGE = re.compile(r"request too large", re.IGNORECASE)
"""How a 429 begins for a request that is above the limit of tokens a minute all by itself (OpenAI's, Groq's)."""
_NO_QUOTA = re.compile(r"insufficient_quota|billing_hard_limit", re.IGNORECASE)
"""OpenAI's 429 that no waiting cures."""


class MalformedAnswer(Exception):
    """A 200 whose body is not what the API promises."""


@dataclass(frozen=True)
class Fault:
    """A failed request."""

    kind: Kind
    words: str
    """What happened, in the server's words where it had any; never with the key."""
    status: int | None = None
    """HTTP status; None where no answer came."""
    wait_s: float | None = None
    """Seconds that the server asks to wait."""
    timed_out: bool = False
    malformed: bool = False
    """An answer came that is none."""

    @property
    def turned_away(self) -> bool:
        """Whether the server is there and wants the same request later."""
        return self.kind == "passing" and (self.status == 429 or (self.status == 503 and self.wait_s is not None))

    @property
    def no_answer(self) -> bool:
        """Whether nothing came back at all."""
        return self.status is None and not self.malformed


def judge(error: Exception, secret: str) -> Fault | None:
    """What an exception of the client means; None when it is not one that a request can cause."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return _of_status(error, secret)
    if isinstance(error, (TimeoutError, openai.APITimeoutError)):
        return Fault("passing", "no answer within the time limit", timed_out=True)
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__
        why = f"{type(cause).__name__}: {cause}" if cause is not None else error.message
        return Fault("passing", hidden(f"no connection, or it was cut ({why.rstrip(': ')})", secret))
    # RecursionError: JSON of a thousand levels.
    if isinstance(error, (MalformedAnswer, openai.APIResponseValidationError, json.JSONDecodeError, RecursionError)):
        return Fault("passing", hidden(f"an answer that is no chat completion: {error}", secret), malformed=True)
    return None


def _of_status(error: Any, secret: str) -> Fault:
    status = int(error.status_code)
    words = f"{status}: {_message(error, secret)}"
    about = f"{error.body} {error.message}"  # the code is in the body, the message may be too
    if _FILTER.search(about) and status in (400, 403):
        return Fault("refused", words, status)
    too_long = _TOO_LONG if status in (400, 422) else _TOO_LARGE if status == 429 else None
    if status == 413 or (too_long is not None and too_long.search(about)):
        return Fault("too_long", words, status)
    if status in (401, 402, 403, 404, 405) or (status == 429 and _NO_QUOTA.search(about)):
        return Fault("everyone", words, status)
    if status in _PASSING or status >= 500:
        return Fault("passing", words, status, wait_s=retry_after(error.response.headers))
    return Fault("clip", words, status)


def _message(error: Any, secret: str) -> str:
    """The server's words, without the key, shortened."""
    body = error.body
    if isinstance(body, Mapping):
        body = body.get("message") or body.get("detail") or body.get("error") or body
    text = hidden(storable(" ".join(str(body or error.response.reason_phrase).split())), secret)
    return text if len(text) <= _WORDS else text[:_WORDS] + "..."


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds that a server asks to wait: Retry-After as seconds or as a date, retry-after-ms first; None if it says
    nothing that can be read."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit_s
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())


def hidden(text: str, secret: str) -> str:
    """The text without the key, should a server repeat it."""
    return re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text) if secret else text


def turned_down(fault: Fault, model: str, options: Options) -> UserError:
    """What it means to the user that the server turns down everyone who asks so."""
    where, variable = f"the endpoint {options.base_url}", options.api_key_env
    if fault.status in (404, 405):
        return unknown_model(fault.words, [], model, options)
    if fault.status == 401 and not options.key():
        mend = f"set the environment variable {variable}" if variable else "name its variable in api_key_env"
        return UserError(f"{where} wants a key, and there is none: {mend} ({fault.words})")
    return UserError(
        f"{where} turns down the key in the environment variable {variable}: see that it is valid, may use model "
        f"{model} and has quota left ({fault.words})"
    )


def unknown_model(words: str, served: list[str], model: str, options: Options) -> UserError:
    """The same for a model that the server does not have; `served`: those it has, as far as known."""
    more = f" and {len(served) - _NAMED} more" if len(served) > _NAMED else ""
    listed = f"it serves {', '.join(served[:_NAMED])}{more}; " if served else ""
    return UserError(
        f"the endpoint {options.base_url} does not know model {model} ({words}): {listed}set the describer's name to "
        "one that it serves, or see to options.base_url, which mostly ends in /v1"
    )
