"""What a model asks of a cluster, and what its process finds there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.engine import ray_models
from pipeline.engine.limits import EngineConfig
from pipeline.engine.ray_data import RayEngine, _share
from pipeline.engine.ray_models import _ModelActor, check_room
from pipeline.stage import Chunk, Resources, Row, UserError, Workspace
from tests.store.rows import live_rejects, live_rows
from tests.tiny import Kept, Levels, TinyEmbed, TinyIngest, sources, tiny_runner, tiny_session


def cluster(monkeypatch: pytest.MonkeyPatch, *nodes: tuple[float, float]) -> None:
    """A cluster of nodes with so many CPUs and GPUs."""
    known = [{"Alive": True, "Resources": {"CPU": cpus, "GPU": gpus}} for cpus, gpus in nodes]
    dead = {"Alive": False, "Resources": {"CPU": 999.0, "GPU": 999.0}}
    monkeypatch.setattr(ray_models.ray, "nodes", lambda: [*known, dead])


FITTING = (
    ([(8, 4), (8, 4)], Resources(model_gpus=4, model_replicas=2)),
    ([(2, 0)], Resources(model_cpus=0.2)),
    ([(16, 1)], Resources(model_gpus=0.25, model_cpus=1, model_replicas=4)),
    ([(2, 0)], Resources(model_cpus=1.5, num_cpus=0.5)),
)


@pytest.mark.parametrize(("nodes", "asked"), FITTING)
def test_a_model_that_fits_is_let_through(
    nodes: Sequence[tuple[float, float]], asked: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster(monkeypatch, *nodes)
    check_room("generate", asked)


def test_a_model_that_never_fits_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, (8, 2), (8, 2))
    with pytest.raises(UserError) as caught:
        check_room("generate", Resources(model_gpus=4, model_cpus=1, model_replicas=1))
    assert str(caught.value) == (
        "stage generate: its model asks for 1 x (4 GPUs and 1 CPUs, in one node). Ray has 2 nodes with 4 GPUs and 16 "
        "CPUs in all, at most 2 GPUs in one: room for 0. Change the model's options (replicas; gpus or "
        "tensor_parallel_size), choose a smaller model, or give Ray more."
    )
    with pytest.raises(UserError, match=r"asks for 3 x .* room for 2"):
        check_room("scan", Resources(model_gpus=2, model_replicas=3))
    with pytest.raises(UserError, match=r"asks for 1 x .* room for 0"):
        check_room("scan", Resources(model_cpus=9))


def test_a_model_that_leaves_no_core_for_its_workers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, (2, 0))
    with pytest.raises(UserError, match=r"Of Ray's 2 CPUs that leaves 0, and the workers that feed it need 0\.5 each"):
        check_room("scan", Resources(model_cpus=1, model_replicas=2))


class Waiting(Levels):
    """A model that answers nobody and cancels its open calls when it is closed."""

    async def infer(self, chunk: Chunk) -> Chunk:
        self._loop, self._waits = asyncio.get_running_loop(), asyncio.Event()
        self._open = asyncio.create_task(self._waits.wait())
        await self._open
        raise AssertionError("unreachable")

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._open.cancel)


def test_a_call_that_is_cancelled_when_the_model_ends_hears_what_it_died_of(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> object:
        actor = _ModelActor(TinyEmbed(load_with=Waiting), {}, {})
        call = asyncio.create_task(actor.infer(Chunk({})))
        while not hasattr(actor._model, "_open"):
            await asyncio.sleep(0.01)
        await actor.end("no answer within 1 s")
        return await call

    def close_only(actor: _ModelActor) -> None:
        assert actor._model is not None
        actor._model.close()

    monkeypatch.setattr(_ModelActor, "_exit", close_only)
    assert asyncio.run(scene()) == ("died", "", "no answer within 1 s")


def test_a_models_process_says_for_how_long_it_has_been_silent() -> None:
    async def scene() -> tuple[float, float]:
        actor = _ModelActor(TinyEmbed(load_with=Waiting), {}, {})
        before = await actor.silent_s()
        call = asyncio.create_task(actor.infer(Chunk({})))
        await asyncio.sleep(0.3)
        silent = await actor.silent_s()
        call.cancel()
        return before, silent

    before, silent = asyncio.run(scene())
    assert before == 0.0 and 0.0 < silent < 60


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    made = RayEngine()
    yield made
    made.close()


def embed(tmp_path: Path, engine: RayEngine, stage: TinyEmbed, count: int = 2) -> list[str]:
    session = tiny_session(tmp_path, TinyIngest(), stage)
    with tiny_runner(session, lambda: Kept(engine)) as runner:
        runner.list_sources(sources(count))
        runner.run(["ingest", "embed"])
        assert live_rejects(session.live(), "embed") == []
    return [key for key, _ in live_rows(session.live(), "embed")]


VARIABLES = ("HF_HUB_OFFLINE", "HF_HOME", "MY_KEY", "VLLM_TEST", "UNRELATED_TEST")


class Environment(Levels):
    """Says in a file which variables its process has."""

    def __init__(self, path: Path) -> None:
        path.write_text("".join(f"{name}={os.environ.get(name)}\n" for name in VARIABLES))


@pytest.mark.slow
def test_a_models_process_has_the_commands_variables(
    tmp_path: Path, engine: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it runs on another machine, which this one plays: its Ray was started before they were set."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "here")
    needs = Resources(num_cpus=0.4, model_environment=("MY_KEY",))
    embed(tmp_path / "run", engine, TinyEmbed(load_with=lambda: Environment(tmp_path / "seen"), needs=needs))
    seen = dict(line.split("=") for line in (tmp_path / "seen").read_text().split())
    assert seen == dict.fromkeys(VARIABLES, "here") | {"UNRELATED_TEST": "None"}


@pytest.mark.slow
def test_a_cluster_without_room_is_told_before_anything_waits(tmp_path: Path, engine: RayEngine) -> None:
    with pytest.raises(UserError, match=r"stage embed: its model asks for 1 x \(64 GPUs"):
        embed(tmp_path, engine, TinyEmbed(needs=Resources(model_gpus=64)))


def large(row: Row, work: Workspace) -> Iterator[Chunk]:
    """A clip of 240 frames for a large model."""
    level = int(row["video_id"].lstrip("v"))
    yield Chunk({"frames": np.full((240, 280 * 532 * 3), level, np.uint8)}, {"part": 0})


@pytest.mark.slow
def test_clips_larger_than_the_bound_travel_one_by_one(tmp_path: Path, engine: RayEngine) -> None:
    stage = TinyEmbed(large, needs=Resources(num_cpus=0.5, batch_size=4, in_flight=4))
    assert len(embed(tmp_path, engine, stage, count=8)) == 8


@pytest.mark.slow
def test_bytes_in_flight_fit_the_shared_memory(engine: RayEngine) -> None:
    """However many are asked for; and no more than are asked for."""
    everything = ray_models.ray.cluster_resources()["object_store_memory"]
    assert _share(EngineConfig(in_flight_bytes=1 << 40), workers=4).in_flight_bytes * 4 <= 0.5 * everything
    assert _share(EngineConfig(in_flight_bytes=1000), workers=4).in_flight_bytes == 1000
