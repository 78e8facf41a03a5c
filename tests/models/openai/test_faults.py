"""What a failed request means: the words of servers, and how long they ask to wait."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.models.openai.faults import Fault, hidden, judge, retry_after

openai: Any = pytest.importorskip("openai")

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
SECRET = "sk-secret-1"
OVERLONG = "This model's maximum context length is 4096 tokens."


def fault(status: int, message: str = "no", code: str | None = None, headers: dict[str, str] | None = None) -> Fault:
    response: Any = SimpleNamespace(status_code=status, headers=headers or {}, request=None, reason_phrase="Bad")
    body: Any = {"message": message, "code": code}
    found = judge(openai.APIStatusError(f"Error code: {status} - {message}", response=response, body=body), SECRET)
    assert found is not None
    return found


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_what_may_pass(status: int) -> None:
    assert fault(status).kind == "passing"


@pytest.mark.parametrize("status", [400, 415, 418, 422])
def test_what_is_the_requests_own_fault(status: int) -> None:
    assert fault(status).kind == "clip"


@pytest.mark.parametrize(
    ("status", "headers", "away"),
    [(429, {}, True), (503, {"retry-after": "1"}, True), (503, {}, False), (500, {"retry-after": "1"}, False)],
)
def test_who_is_to_come_back_later(status: int, headers: dict[str, str], away: bool) -> None:
    assert fault(status, headers=headers).turned_away == away


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405])
def test_what_every_request_would_meet(status: int) -> None:
    assert fault(status).kind == "everyone"


def test_a_used_up_quota_is_no_rate_limit() -> None:
    assert fault(429, "You exceeded your current quota", "insufficient_quota").kind == "everyone"


@pytest.mark.parametrize(
    ("status", "message", "code"),
    [
        (400, "no", "context_length_exceeded"),
        (400, OVERLONG, None),
        (400, "The decoder prompt (length 900) is longer than the maximum model length of 512.", None),
        (400, "The input (900 tokens) is longer than the model's context length (512 tokens).", None),
        (400, "the request exceeds the available context size", None),
        (400, "a video item with length 900, which exceeds the pre-allocated encoder cache size 512", None),
        (400, "At most 4 image(s) may be provided in one prompt.", None),
        (422, OVERLONG, None),
        (413, "Request Entity Too Large", None),
        (429, "Request too large for m on tokens per min (TPM): Limit 30000, Requested 48636.", "rate_limit_exceeded"),
    ],
)
def test_what_is_too_long(status: int, message: str, code: str | None) -> None:
    assert fault(status, message, code).kind == "too_long"


@pytest.mark.parametrize(
    ("status", "message", "code"),
    [(400, "no", "content_filter"), (403, "Your input was flagged by moderation", None), (400, "content_policy", None)],
)
def test_what_a_filter_refused(status: int, message: str, code: str | None) -> None:
    assert fault(status, message, code).kind == "refused"


def test_other_errors_are_not_judged() -> None:
    assert judge(KeyError("ours"), SECRET) is None
    assert judge(ValueError("ours"), SECRET) is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after": "Sun, 01 Mar 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Sun, 01 Mar 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
    ],
)
def test_how_long_a_server_asks_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == seconds


def test_a_rate_limit_carries_its_wait() -> None:
    assert fault(429, headers={"retry-after": "7"}).wait_s == 7.0


def test_the_servers_words_are_kept_short_and_without_the_key() -> None:
    assert fault(400, f"bad\n request of {SECRET}.").words == "400: bad request of ***."
    words = fault(400, "x" * 396 + f" {SECRET}").words
    assert len(words) < 420 and SECRET[:4] not in words


def test_the_servers_words_can_be_stored() -> None:
    assert fault(400, "no \ud83d here").words == "400: no \ufffd here"


@pytest.mark.parametrize("text", ["Bearer sk-secret-1", "key=sk-secret-1;", "'sk-secret-1'"])
def test_the_key_is_hidden(text: str) -> None:
    assert SECRET not in hidden(text, SECRET)


def test_no_key_hides_nothing() -> None:
    assert hidden("all of it", "") == "all of it"
