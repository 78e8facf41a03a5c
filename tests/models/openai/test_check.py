"""What is found out about a server before the first clip."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.models import registry
from pipeline.models.openai.describer import OpenAIDescriber
from pipeline.models.protocols import Description
from pipeline.stage import UserError
from tests.models.asked_server import clip, described, on, spec
from tests.models.misbehaving_server import (
    Act,
    MisbehavingServer,
    Script,
    fails,
    says,
)

pytest.importorskip("openai")


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
