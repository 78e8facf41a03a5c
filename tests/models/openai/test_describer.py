"""The describer on an endpoint: what a clip gets of a server, sound or not; the key; the end."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import threading
import time

import numpy as np
import pytest

from pipeline.models import registry
from pipeline.models.openai.describer import OpenAIDescriber
from pipeline.models.protocols import ClipFrames, Description
from pipeline.stage import UserError
from tests.models.asked_server import VARIABLE, clip, described, loaded, on, rejected, spec
from tests.models.misbehaving_server import (
    KEY,
    MODEL,
    Act,
    MisbehavingServer,
    caption_of,
    fails,
    says,
    sound,
)

pytest.importorskip("openai")


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


def test_half_a_character_of_a_server_is_replaced(server: MisbehavingServer) -> None:
    assert described(server, on("caption", says("A \ud83d dog."))).caption == "A \ufffd dog."
    assert rejected(server, on("caption", says(None, refusal="No \ud83d."))).detail.endswith("'No \ufffd.'")
    assert rejected(server, on("caption", fails(400, "bad \ud83d"))).detail == "400: bad \ufffd"


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
    monkeypatch.delenv(VARIABLE, raising=False)
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
