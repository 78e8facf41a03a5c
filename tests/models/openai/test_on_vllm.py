"""The describer on an endpoint against vLLM's own server: one server for all tests of this file."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.models import registry
from pipeline.models.protocols import ClipFrames, Description
from pipeline.models.spec import ModelSpec
from pipeline.stage import Rejected, UserError

pytest.importorskip("vllm")
from tests.models import tiny_qwen2vl
from tests.models.vllm_server import KEY, NAME, VllmServer

pytestmark = pytest.mark.slow

VARIABLE = "HICOM_TEST_KEY"
BLOCK = 128
"""Tokens of a block of the KV cache on vLLM's CPU build."""
SAMPLING = {name: tiny_qwen2vl.OPTIONS[name] for name in ("temperature", "top_p", "caption_tokens", "qa_tokens")}
IN_PROCESS = {**tiny_qwen2vl.OPTIONS, "dtype": "float32"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen2vl.build(tmp_path_factory.mktemp("qwen2vl"))


@pytest.fixture(scope="module")
def started(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    log = tmp_path_factory.mktemp("server") / "log"
    server = VllmServer(checkpoint, log, "--dtype", "float32", "--mm-processor-kwargs", '{"do_resize": false}')
    yield server
    server.stop()


@pytest.fixture(scope="module")
def in_process(started: VllmServer, checkpoint: Path) -> dict[str, Description]:
    """What the describer in this process says of `CLIPS`, by clip; the server starts meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in tiny_qwen2vl.ENVIRONMENT.items():
            patch.setenv(name, value)
        spec = ModelSpec(family="vllm", name="tiny", path=str(checkpoint), options=IN_PROCESS)
        return dict(zip((clip.clip_id for clip in CLIPS), described(spec, *CLIPS), strict=True))


@pytest.fixture
def server(started: VllmServer, monkeypatch: pytest.MonkeyPatch) -> VllmServer:
    monkeypatch.setenv(VARIABLE, KEY)
    started.wait()
    return started


def clip(name: str, frames: int = 16, height: int = 112, width: int = 140) -> ClipFrames:
    """Noise, another for each name."""
    noise = np.random.default_rng(list(name.encode())).integers(0, 256, (frames, height, width, 3), np.uint8)
    return ClipFrames(name, noise, np.arange(frames) / 2.0, frames / 2)


CLIPS = [clip(f"same {n}", frames) for n, frames in enumerate((16, 16, 8, 2, 5, 12))]


def endpoint(server: VllmServer, **options: Any) -> ModelSpec:
    """The sampling that the in-process describer has, said outright: else the checkpoint's own is the server's."""
    same = {"extra_body": {"top_k": 0, "repetition_penalty": 1.0}, "frames_as": "video", "frame_format": "png"}
    where = {"base_url": server.base_url, "api_key_env": VARIABLE, "outage_s": 5.0}
    return ModelSpec(family="openai", name=NAME, options={**where, **SAMPLING, **same, **options})


def described(spec: ModelSpec, *clips: ClipFrames) -> list[Any]:
    """Descriptions of clips that are in flight together; exceptions as values."""
    describer: Any = registry.load_describer(spec)

    async def all_of_them() -> list[Any]:
        said = await asyncio.gather(*map(describer.describe, clips), return_exceptions=True)
        if spec.family == "openai":
            describer.close()
            await asyncio.sleep(0.05)
        return said

    said = asyncio.run(all_of_them())
    describer.close()
    return said


def prompts(said: Description) -> list[tuple[str, int]]:
    """Tokens of each turn's prompt."""
    return [(turn.turn, turn.prompt_tokens) for turn in said.turns]


def test_it_says_what_the_engine_in_this_process_says(in_process: dict[str, Description], server: VllmServer) -> None:
    """Frames sent without loss, the same seed, float32: the same words.

    Over the endpoint the caption goes back as text. Where the model had cut that text into tokens otherwise than its
    tokenizer does, as a model of random weights now and then does, turn 2 begins from other tokens.
    """
    own, theirs = list(in_process.values()), described(endpoint(server), *CLIPS)
    assert [one.caption for one in theirs] == [one.caption for one in own]
    assert len({one.caption for one in own}) == len(CLIPS)
    same_tokens = [(a, b) for a, b in zip(own, theirs, strict=True) if prompts(a) == prompts(b)]
    assert len(same_tokens) > len(CLIPS) / 2
    assert [(b.pairs, b.turns) for _, b in same_tokens] == [(a.pairs, a.turns) for a, _ in same_tokens]


def test_another_seed_says_something_else(in_process: dict[str, Description], server: VllmServer) -> None:
    (said,) = described(endpoint(server, seed=1), CLIPS[0])
    assert said.caption != in_process[CLIPS[0].clip_id].caption


def test_turn_2_finds_the_blocks_of_turn_1_in_the_cache(server: VllmServer) -> None:
    (said,) = described(endpoint(server), clip("cached"))
    first, second = said.turns
    assert second.cached_tokens == first.prompt_tokens // BLOCK * BLOCK > 0


def test_frames_as_pictures_take_twice_the_tokens(server: VllmServer) -> None:
    about = clip("pictures")
    video, pictures = (
        described(endpoint(server, frames_as=how, frame_format="jpeg"), about)[0] for how in ("video", "images")
    )
    assert len(pictures.pairs) == 3
    a_frame = 112 * 140 // 28**2
    assert pictures.turns[0].prompt_tokens - video.turns[0].prompt_tokens > 8 * a_frame


def test_a_clip_that_is_too_long_for_the_context_gets_fewer_frames(server: VllmServer) -> None:
    (said,) = described(endpoint(server), clip("long", 16, 448, 952))
    assert said.frames_used == 8 and len(said.pairs) == 3


def test_a_clip_with_too_few_frames_to_leave_any_out_is_rejected_with_the_servers_words(server: VllmServer) -> None:
    (said,) = described(endpoint(server, min_frames=16), clip("long", 16, 448, 952))
    assert isinstance(said, Rejected)
    assert said.detail.startswith("too long for the server even with 16 frames: 400: ")


def test_frames_that_the_server_would_leave_out_are_found_at_start(server: VllmServer) -> None:
    with pytest.raises(UserError, match=r"does not look at all frames of a video of 40: .*--media-io-kwargs"):
        described(endpoint(server, max_frames=40))


def test_what_the_server_is_not_to_be_told_is_said_in_its_words(server: VllmServer) -> None:
    with pytest.raises(UserError, match=r"takes no request of this form .*--trust-request-mm-kwargs.*media_io_kwargs"):
        described(endpoint(server, media_io_kwargs=True))


def test_a_wrong_key(server: VllmServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "sk-wrong-1")
    with pytest.raises(UserError, match=f"turns down the key in the environment variable {VARIABLE}.*401") as caught:
        described(endpoint(server))
    assert "sk-wrong-1" not in str(caught.value)


def test_a_model_that_is_not_served(server: VllmServer) -> None:
    with pytest.raises(UserError, match=f"does not know model other .*it serves {NAME}"):
        described(replace(endpoint(server), name="other"))
