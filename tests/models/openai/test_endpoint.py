"""A server that fails: what is tried again, what stops the run, and what is waited for."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any

import pytest

from pipeline.models.protocols import Description
from pipeline.stage import ModelDied, Rejected, UserError
from tests.models.asked_server import VARIABLE, clip, described, loaded, on, rejected
from tests.models.misbehaving_server import (
    MODEL,
    Act,
    Asked,
    MisbehavingServer,
    fails,
    sound,
)

pytest.importorskip("openai")


@pytest.mark.parametrize(
    "act",
    [
        fails(429),
        fails(500),
        fails(503),
        fails(408),
        Act(send_bytes=-1),
        Act(body=b'{"choices": [', send_bytes=9),
        Act(body=b'{"choices": ['),
        Act(body=b"<html>busy</html>", headers={"Content-Type": "text/html"}),
        Act(body=b'{"choices": []}'),
        Act(body=b"[]"),
        Act(body=b"\xff\xfe"),
        Act(body=b"[" * 5000),
        Act(500, body=b"[" * 5000),
    ],
    ids=[
        "429",
        "500",
        "503",
        "408",
        "hang up",
        "cut",
        "half json",
        "html",
        "no choice",
        "list",
        "not text",
        "deep",
        "deep 500",
    ],
)
def test_what_passes_costs_a_try_and_no_clip(act: Act, server: MisbehavingServer) -> None:
    said = described(server, on("qa", act, times=2))
    assert server.turns() == ["caption", "qa", "qa", "qa"]
    assert len(said.pairs) == 3 and len(said.turns) == 2 and said.measured["requests"] == 4


def test_a_retry_after_is_waited_for(server: MisbehavingServer) -> None:
    described(server, on("caption", fails(429, Retry_After="0.5"), times=1))
    first, second, _ = server.asked
    assert second.at - first.at >= 0.5


def test_a_retry_after_is_for_every_request(server: MisbehavingServer) -> None:
    with loaded(server, on("caption", fails(429, Retry_After="0.5"), times=1)) as describer:

        async def one_then_the_other() -> None:
            first = asyncio.create_task(describer.describe(clip(0)))
            await asyncio.sleep(0.2)
            await asyncio.gather(first, describer.describe(clip(1)))

        describer.run(one_then_the_other())
    assert all(later.at - server.asked[0].at >= 0.5 for later in server.asked[1:])


def test_a_retry_after_of_days_is_not(server: MisbehavingServer) -> None:
    described(server, on("caption", fails(429, Retry_After="99999"), times=1), retry_after_max_s=0.1)
    assert len(server.asked) == 3


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_answers_few_at_a_time_costs_no_clip(status: int, server: MisbehavingServer) -> None:
    """24 clips, 3 requests in each window of 0.1 s, 3 tries; in all it takes longer than an outage may."""
    lock = threading.Lock()
    answered: Counter[int] = Counter()

    def script(asked: Asked) -> Act | None:
        window = int(asked.at / 0.1)
        with lock:
            answered[window] += 1
            return fails(status, Retry_After="0.1") if answered[window] > 3 else None

    with loaded(server, script, outage_s=1.2) as describer:

        async def all_of_them() -> list[Description]:
            return await asyncio.gather(*(describer.describe(clip(n)) for n in range(24)))

        assert all(len(said.pairs) == 3 for said in describer.run(all_of_them()))


@pytest.mark.parametrize("headers", [{}, {"Retry_After": "0"}, {"Retry_After": "0.05"}])
def test_a_server_that_turns_everyone_away_ends_the_model_and_no_clip(
    headers: dict[str, str], server: MisbehavingServer
) -> None:
    with loaded(server, lambda asked: fails(429, **headers), outage_s=0.5, backoff_s=0.1) as describer:

        async def some() -> list[Any]:
            asked = (describer.describe(clip(n)) for n in range(3))
            return await asyncio.gather(*asked, return_exceptions=True)

        errors = describer.run(some())
    assert [type(error) for error in errors] == [ModelDied] * 3
    assert "has not answered for" in str(errors[0]) and "429" in str(errors[0])
    assert len(server.asked) < 100


def test_a_server_that_hangs_is_given_up_after_the_time_limit(server: MisbehavingServer) -> None:
    reject = rejected(server, on("qa", lambda asked: Act(body=b"{}", wait_s=1.0)), timeout_s=0.2, tries=9)
    assert reject.reason == "timeout"
    assert reject.detail == "no answer within the time limit; asked 3 times, and the server is there"


def test_a_slow_server_is_waited_for(server: MisbehavingServer) -> None:
    assert len(described(server, lambda asked: Act(body=sound(asked).body, wait_s=0.3), timeout_s=5.0).pairs) == 3


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (fails(401, "expired"), f"turns down the key in the environment variable {VARIABLE}.*401: expired"),
        (fails(403, "not yours"), f"turns down the key in the environment variable {VARIABLE}.*403: not yours"),
        (fails(429, "pay", "insufficient_quota"), "has quota left .429: pay"),
        (fails(404, "gone"), f"does not know model {MODEL} .404: gone"),
    ],
)
def test_what_every_clip_would_meet_stops_the_run(act: Act, message: str, server: MisbehavingServer) -> None:
    with pytest.raises(UserError, match=message):
        described(server, on("caption", act))
    assert server.turns() == ["caption"]


def test_settings_under_which_every_clip_fails_stop_the_run(server: MisbehavingServer) -> None:
    with loaded(server, on("caption", fails(400, "no video here"))) as describer:

        async def one_after_the_other() -> None:
            for number in range(99):
                with pytest.raises(Rejected):
                    await describer.describe(clip(number))

        with pytest.raises(UserError, match="failed on each of the first 20 clips, the last with: 400: no video here"):
            describer.run(one_after_the_other())
    assert len(server.asked) == 20


def test_a_clip_that_fails_among_others_stops_nothing(server: MisbehavingServer) -> None:
    with loaded(server) as describer:

        async def one_then_many() -> None:
            await describer.describe(clip())
            server.script = on("caption", fails(400))
            for number in range(1, 30):
                with pytest.raises(Rejected):
                    await describer.describe(clip(number))

        describer.run(one_then_many())


def test_an_outage_is_waited_for_and_costs_no_clip(server: MisbehavingServer) -> None:
    with loaded(server, outage_s=30.0, backoff_max_s=0.1) as describer:

        async def through_an_outage() -> Description:
            server.stop()
            asked = asyncio.create_task(describer.describe(clip()))
            await asyncio.sleep(0.7)
            assert not asked.done()
            server.start()
            return await asked

        said = describer.run(through_an_outage())
    assert len(said.pairs) == 3
    assert server.turns() == ["trial", "caption", "qa"]


def test_all_clips_wait_for_one_look_at_the_server(server: MisbehavingServer) -> None:
    down = threading.Event()
    with loaded(server, lambda asked: fails(503) if down.is_set() else None, outage_s=30.0) as describer:

        async def through_an_outage() -> list[Description]:
            down.set()
            asked = [asyncio.create_task(describer.describe(clip(n))) for n in range(5)]
            await asyncio.sleep(0.7)
            down.clear()
            return await asyncio.gather(*asked)

        assert len(describer.run(through_an_outage())) == 5
    assert server.turns().count("caption") == 5 * 3 + 5


def test_a_server_that_stays_away_ends_the_model_and_no_clip(server: MisbehavingServer) -> None:
    with loaded(server) as describer:
        server.stop()

        async def both() -> list[Any]:
            asked = (describer.describe(clip(n)) for n in range(2))
            return await asyncio.gather(*asked, return_exceptions=True)

        errors = describer.run(both())
    assert [type(error) for error in errors] == [ModelDied, ModelDied]
    assert f"the endpoint {server.base_url} has not answered for" in str(errors[0])
    assert "no clip was rejected for that" in str(errors[0])


def test_a_clip_that_takes_the_server_down_again_and_again_is_rejected(server: MisbehavingServer) -> None:
    gone_until = 0.0

    def script(asked: Asked) -> Act | None:
        nonlocal gone_until
        if asked.turn == "caption":
            gone_until = asked.at + 0.1
        return Act(send_bytes=-1) if asked.at < gone_until else None

    reject = rejected(server, script, outage_s=30.0, backoff_max_s=0.05)
    assert reject.reason == "engine_error"
    assert server.turns().count("caption") == 3 * 3
