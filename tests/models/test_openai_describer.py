"""The describer on an endpoint, against a server that misbehaves: what a clip, a run and a user get of it."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import pytest

from pipeline.models import registry
from pipeline.models.openai_describer import OpenAIDescriber
from pipeline.models.protocols import ClipFrames, Description
from pipeline.models.spec import ModelSpec
from pipeline.stage import ModelDied, Rejected, Retryable, UserError
from tests.models.misbehaving_server import (
    KEY,
    MODEL,
    Act,
    Asked,
    MisbehavingServer,
    Script,
    caption_of,
    fails,
    says,
    sound,
)

T = TypeVar("T")
VARIABLE = "HICOM_TEST_KEY"
QUICK = {"backoff_s": 0.01, "tries": 3, "timeout_s": 10.0, "outage_s": 0.2}


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The right key in the environment."""
    monkeypatch.setenv(VARIABLE, KEY)


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with MisbehavingServer() as running:
        yield running


def spec(server: MisbehavingServer, name: str = MODEL, **options: Any) -> ModelSpec:
    given = {"base_url": server.base_url, "api_key_env": VARIABLE, **QUICK, **options}
    return ModelSpec(family="openai", name=name, options=given)


def clip(number: int = 0, frames: int = 4) -> ClipFrames:
    pictures = np.random.default_rng(number).integers(0, 255, (frames, 28, 56, 3), dtype=np.uint8)
    return ClipFrames(f"c{number}", pictures, np.arange(frames) + 0.5, float(frames))


class Held:
    """A describer on an event loop of its own thread, as the engines hold it."""

    def __init__(self, describer: OpenAIDescriber) -> None:
        self.describe = describer.describe
        self.close = describer.close
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)


@contextmanager
def loaded(server: MisbehavingServer, script: Script | None = None, **options: Any) -> Iterator[Held]:
    """A describer whose server begins to misbehave once it is loaded."""
    describer = registry.load_describer(spec(server, **options))
    assert isinstance(describer, OpenAIDescriber)
    server.asked.clear()
    if script is not None:
        server.script = script
    held = Held(describer)
    yield held
    held.close()
    held.stop()


def described(server: MisbehavingServer, script: Script | None = None, **options: Any) -> Description:
    with loaded(server, script, **options) as describer:
        return describer.run(describer.describe(clip()))


def rejected(server: MisbehavingServer, script: Script, **options: Any) -> Rejected:
    with pytest.raises(Rejected) as caught:
        described(server, script, **options)
    assert not isinstance(caught.value, Retryable), "it was tried often enough here"
    return caught.value


def on(turn: str, act: Act | Callable[[Asked], Act], times: int | None = None) -> Script:
    """This turn goes so, every time or the first times; all else is sound."""

    def script(asked: Asked) -> Act | None:
        if asked.turn != turn or (times is not None and asked.times >= times):
            return None
        return act(asked) if callable(act) else act

    return script


# What a sound server gives


def test_a_clip_becomes_a_caption_and_three_pairs(server: MisbehavingServer) -> None:
    said = described(server)
    assert said.caption == caption_of(server.asked[0])
    assert len(said.pairs) == 3 and server.turns() == ["caption", "qa"]
    turns = [(t.turn, t.prompt_tokens, t.cached_tokens, t.output_tokens, t.finish_reason) for t in said.turns]
    assert turns == [("caption", 40, 32, 7, "stop"), ("qa", 40, 32, 7, "stop")]
    assert said.frames_used is None
    assert said.measured.keys() == {"caption_s", "qa_s", "encode_s", "requests"} and said.measured["requests"] == 2


def test_the_second_turn_holds_the_first_and_the_same_frames(server: MisbehavingServer) -> None:
    described(server)
    first, second = server.asked
    assert second.body["messages"][0] == first.body["messages"][0]
    assert second.body["messages"][1]["content"] == caption_of(first)
    assert first.body["model"] == MODEL and len(first.pictures) == 4


def test_a_clips_seed_is_its_own_and_the_same_every_time(server: MisbehavingServer) -> None:
    with loaded(server) as describer:

        async def twice() -> None:
            for number in (0, 1, 0):
                await describer.describe(clip(number))

        describer.run(twice())
    seeds = [asked.body["seed"] for asked in server.asked if asked.turn == "caption"]
    assert seeds[0] == seeds[2] != seeds[1]


def test_a_server_that_counts_no_tokens_gives_none(server: MisbehavingServer) -> None:
    said = described(server, on("caption", says("A dog.", usage=False)))
    assert (said.turns[0].prompt_tokens, said.turns[0].cached_tokens, said.turns[0].output_tokens) == (0, 0, 0)


def test_many_clips_are_under_way_at_once_and_no_more_than_asked_for(server: MisbehavingServer) -> None:
    with loaded(server, lambda asked: Act(body=sound(asked).body, wait_s=0.05), max_concurrency=3) as describer:

        async def all_of_them() -> list[Description]:
            return await asyncio.gather(*(describer.describe(clip(n)) for n in range(8)))

        said = describer.run(all_of_them())
    assert len({one.caption for one in said}) == 8
    assert server.most_open == 3


# What may pass is tried again


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
    ],
    ids=["429", "500", "503", "408", "hang up", "cut", "half json", "html", "no choice", "list", "not text"],
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


def test_a_server_that_hangs_is_given_up_after_the_time_limit(server: MisbehavingServer) -> None:
    reject = rejected(server, on("qa", lambda asked: Act(body=b"{}", wait_s=1.0)), timeout_s=0.2)
    assert reject.reason == "timeout"
    assert reject.detail == "no answer within the time limit; asked 2 times, and the server is there"


def test_a_slow_server_is_waited_for(server: MisbehavingServer) -> None:
    assert len(described(server, lambda asked: Act(body=sound(asked).body, wait_s=0.3), timeout_s=5.0).pairs) == 3


# A clip's own fault


@pytest.mark.parametrize(
    ("act", "detail"),
    [
        (fails(500, "CUDA error"), "500: CUDA error; asked 3 times, and the server is there"),
        (Act(send_bytes=-1), "no connection, or it was cut (RemoteProtocolError: Server disconnected"),
        (Act(body=b"{"), "an answer that is no chat completion: Expecting property name"),
    ],
)
def test_a_clip_that_the_server_fails_on_every_time_is_rejected_with_its_words(
    act: Act, detail: str, server: MisbehavingServer
) -> None:
    reject = rejected(server, on("caption", act))
    assert reject.reason == "engine_error" and reject.detail.startswith(detail)
    assert server.turns() == ["caption", "caption", "caption", "trial"]


@pytest.mark.parametrize("status", [400, 422])
def test_a_request_that_is_wrong_is_not_repeated(status: int, server: MisbehavingServer) -> None:
    reject = rejected(server, on("caption", fails(status, "image is broken")))
    assert (reject.reason, reject.detail) == ("engine_error", f"{status}: image is broken")
    assert server.turns() == ["caption"]


@pytest.mark.parametrize(
    ("act", "detail"),
    [
        (fails(400, "no", "content_filter"), "400: no"),
        (says("A", "content_filter"), "the caption turn was stopped by the engine's content filter"),
        (says(None, refusal="I won't."), 'the caption turn was refused: "I won\'t."'),
        (says("I'm sorry, but I can't."), "the caption is a refusal"),
        (says(""), "the caption is empty"),
        (says(None), "the caption is empty"),
    ],
)
def test_a_refusal_is_the_clips(act: Act, detail: str, server: MisbehavingServer) -> None:
    reject = rejected(server, on("caption", act))
    assert reject.reason == "refused" and reject.detail.startswith(detail)


@pytest.mark.parametrize("act", [says("{"), says(""), says(json.dumps({"pairs": []})), says("{}", "length")])
def test_pairs_that_are_none_are_asked_for_once_more(act: Act, server: MisbehavingServer) -> None:
    said = described(server, on("qa", act, times=1))
    assert len(said.pairs) == 3 and server.turns() == ["caption", "qa", "qa"]
    first, second = (asked.body for asked in server.asked[1:])
    assert second["max_tokens"] == 2 * first["max_tokens"] and second["seed"] != first["seed"]
    assert rejected(server, on("qa", act)).reason == "bad_output"


def test_a_clip_that_is_too_long_is_described_from_fewer_frames(server: MisbehavingServer) -> None:
    too_long = fails(400, "This model's maximum context length is 512 tokens.")
    with loaded(server, lambda asked: too_long if len(asked.pictures) > 5 else None, min_frames=2) as describer:
        said = describer.run(describer.describe(clip(frames=20)))
    assert said.frames_used == 5 and len(said.pairs) == 3
    assert [len(asked.pictures) for asked in server.asked] == [20, 10, 5, 5]


def test_a_conversation_that_grows_too_long_starts_over_and_counts_what_it_cost(server: MisbehavingServer) -> None:
    too_long = fails(400, "maximum context length")
    script = on("qa", lambda asked: too_long if len(asked.pictures) > 2 else sound(asked))
    said = described(server, script, min_frames=2, frames_as="video")
    assert said.frames_used == 2
    assert [turn.turn for turn in said.turns] == ["caption", "caption", "qa"]
    assert said.measured["requests"] == 4


def test_a_clip_that_is_too_long_even_with_the_fewest_frames_is_rejected(server: MisbehavingServer) -> None:
    reject = rejected(server, on("caption", fails(413, "too large")), min_frames=2)
    assert (reject.reason, reject.detail) == (
        "engine_error",
        "too long for the server even with 2 frames: 413: too large",
    )


# Every clip's fault


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


# A server that goes away


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


# At start


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (lambda asked: fails(503, "loading"), "does not answer model tiny-eyes .503: loading.. Try again when it does"),
        (
            lambda asked: fails(400, "no json_schema"),
            "takes no request of this form .*400: no json_schema.*json_schema",
        ),
        (lambda asked: Act(body=b"<html>"), "does not answer model tiny-eyes .an answer that is no chat completion"),
    ],
)
def test_a_server_that_will_not_do_is_found_before_any_clip(
    script: Script, message: str, server: MisbehavingServer
) -> None:
    server.script = script
    with pytest.raises(UserError, match=message):
        registry.load_describer(spec(server))
    assert set(server.turns()) == {"trial"}


def test_no_server_is_the_users_to_start(server: MisbehavingServer) -> None:
    server.stop()
    with pytest.raises(UserError, match=r"no connection.*ConnectError.*Start the server, or set .*base_url"):
        registry.load_describer(spec(server))


def test_a_model_that_is_not_served_names_those_that_are(server: MisbehavingServer) -> None:
    with pytest.raises(UserError, match=r"does not know model huge .* it serves tiny-eyes; set the describer's name"):
        registry.load_describer(spec(server, name="huge"))
    assert server.asked == []


def test_a_server_without_a_list_of_models_is_asked_for_the_model(server: MisbehavingServer) -> None:
    server.models = []
    assert len(described(server).pairs) == 3


def test_a_list_that_does_not_name_the_model_may_be_overruled(server: MisbehavingServer) -> None:
    with pytest.raises(UserError, match="404: The model `huge` does not exist"):
        registry.load_describer(spec(server, name="huge", must_be_listed=False))


@pytest.mark.parametrize(("seen", "fits"), [(32, False), (34, False), (40, True)])
def test_a_server_that_leaves_frames_of_a_video_out_is_found(seen: int, fits: bool, server: MisbehavingServer) -> None:
    server.script = lambda asked: says("{}", prompt_tokens=10 + min(len(asked.pictures), seen) // 2)
    if fits:
        registry.load_describer(spec(server, frames_as="video", max_frames=40))
    else:
        with pytest.raises(UserError, match=r"does not look at all frames of a video of 40: .*num_frames"):
            registry.load_describer(spec(server, frames_as="video", max_frames=40))
    assert [len(asked.pictures) for asked in server.asked] == [2, 38, 40]


def test_a_passing_failure_at_start_is_tried_again(server: MisbehavingServer) -> None:
    server.script = on("trial", fails(503), times=2)
    assert len(described(server).pairs) == 3


def test_a_describer_loads_inside_a_running_event_loop_too(server: MisbehavingServer) -> None:
    async def load() -> Description:
        describer = registry.load_describer(spec(server))
        assert isinstance(describer, OpenAIDescriber)
        said = await describer.describe(clip())
        describer.close()
        await asyncio.sleep(0.05)
        return said

    assert len(asyncio.run(load()).pairs) == 3


# The key


def test_a_wrong_key_says_which_variable_and_not_what_it_holds(
    server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = "sk-wrong-0123456789"
    monkeypatch.setenv(VARIABLE, wrong)
    caplog.set_level(logging.DEBUG)
    with pytest.raises(UserError, match=rf"{VARIABLE}.*401: Incorrect API key provided: \*\*\*") as caught:
        registry.load_describer(spec(server))
    assert wrong not in str(caught.value) and wrong not in caplog.text
    assert wrong.encode() not in pickle.dumps(caught.value)


def test_a_key_that_is_wanted_and_not_set_says_which_variable(
    server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(UserError, match=rf"wants a key, and there is none: set the environment variable {VARIABLE}"):
        registry.load_describer(spec(server))


def test_a_server_that_wants_no_key_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    with MisbehavingServer(key="") as server:
        assert len(described(server).pairs) == 3
        assert len(described(server, api_key_env="").pairs) == 3


@pytest.mark.parametrize("key", ["two words", "k\u00e9y", "tab\tbed"])
def test_a_key_that_cannot_be_one_is_not_shown(
    key: str, server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, key)
    with pytest.raises(UserError, match=f"{VARIABLE} holds characters that no key can have") as caught:
        registry.load_describer(spec(server))
    assert key not in str(caught.value)


def test_white_space_around_a_key_is_not_part_of_it(server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"{KEY}\n")
    assert len(described(server).pairs) == 3


def test_nothing_of_a_request_is_logged(server: MisbehavingServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    described(server, on("qa", fails(500), times=1))
    assert KEY not in caplog.text and "base64" not in caplog.text


# Ends


def test_closing_from_another_thread_closes_the_connections(server: MisbehavingServer) -> None:
    describer = registry.load_describer(spec(server))
    assert isinstance(describer, OpenAIDescriber)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(describer.describe(clip()), loop).result(10)
    describer.close()
    describer.close()
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()
    assert describer._endpoint._client.is_closed()


def test_closing_within_the_loop_does_not_wait_for_itself(server: MisbehavingServer) -> None:
    describer = registry.load_describer(spec(server))
    assert isinstance(describer, OpenAIDescriber)

    async def describe_and_close() -> None:
        await describer.describe(clip())
        describer.close()
        await asyncio.sleep(0.05)

    asyncio.run(describe_and_close())
    assert describer._endpoint._client.is_closed()


def test_encoding_leaves_the_event_loop_free(server: MisbehavingServer) -> None:
    """A tick every 10 ms keeps coming while 24 large frames are encoded."""
    big = np.random.default_rng(0).integers(0, 255, (24, 448, 448, 3), dtype=np.uint8)
    with loaded(server, frame_format="png") as describer:

        async def longest_gap_s() -> tuple[float, float]:
            gaps, done = [0.0], asyncio.create_task(describer.describe(ClipFrames("c", big, np.arange(24.0), 24.0)))
            while not done.done():
                before = time.monotonic()
                await asyncio.sleep(0.01)
                gaps.append(time.monotonic() - before)
            return max(gaps), (await done).measured["encode_s"]

        gap_s, encode_s = describer.run(longest_gap_s())
    assert gap_s < encode_s
