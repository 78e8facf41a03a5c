"""Models that die, hang or refuse to go on: which items pay for it, and what the user is told. On both engines."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from pipeline.engine.limits import EngineConfig
from pipeline.engine.local import LocalEngine
from pipeline.engine.task import StageFailed
from pipeline.runner import MapEngine
from pipeline.session import Session
from pipeline.stage import Chunk, ModelDied, Resources, UserError
from tests.store.rows import live_rejects, live_rows
from tests.tiny import Kept, Levels, TinyEmbed, TinyIngest, sources, tiny_runner, tiny_session

COUNT = 12
"""Items of a run; each has two chunks, of its number and of its number plus 100."""
NEEDS = Resources(num_cpus=0.4, batch_size=6, in_flight=3)
ALL_AT_ONCE = replace(NEEDS, batch_size=64, in_flight=16)


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest) -> Iterator[MapEngine]:
    if request.param == "local":
        yield LocalEngine()
        return
    from pipeline.engine.ray_data import RayEngine

    made = RayEngine()
    yield made
    made.close()


@dataclass
class Fragile(Levels):
    """A model that goes wrong on some items, and notes in a folder when it is loaded, asked and closed."""

    folder: Path
    on: tuple[int, ...]
    how: Callable[[], None]
    times: int = 99
    """Times it goes wrong, over all its lives."""
    takes_s: float = 0.0
    """Seconds for an answer."""

    def __post_init__(self) -> None:
        self.note("load")
        self._open: dict[asyncio.Task[None], asyncio.AbstractEventLoop] = {}

    def note(self, what: str) -> None:
        (self.folder / f"{what} {os.getpid()} {time.monotonic_ns()}").touch()

    async def infer(self, chunk: Chunk) -> Chunk:
        level = int(chunk.arrays["frames"][0, 0])
        if level in self.on and len(list(self.folder.glob("wrong *"))) < self.times:
            self.note("wrong")
            await asyncio.sleep(0.1)  # others are in the model by then
            self.how()
            await asyncio.sleep(3600)
        waits = asyncio.create_task(asyncio.sleep(self.takes_s))
        self._open[waits] = asyncio.get_running_loop()
        waits.add_done_callback(self._open.pop)
        await waits
        return await super().infer(chunk)

    def close(self) -> None:
        """As an engine does: what is open is cancelled."""
        self.note("close")
        for waits, loop in list(self._open.items()):
            loop.call_soon_threadsafe(waits.cancel)
        time.sleep(0.2 if self._open else 0)


def noted(folder: Path, what: str) -> int:
    return len(list(folder.glob(f"{what} *")))


def die() -> None:
    raise ModelDied("EngineCore is gone")


def hang() -> None:
    """It goes on to sleep."""


def exit_process() -> None:
    os._exit(1)


def run(
    tmp_path: Path,
    engine: MapEngine,
    load: Callable[[], Levels],
    *,
    count: int = COUNT,
    needs: Resources = NEEDS,
    **limits: float,
) -> Session:
    stages = (TinyIngest(), TinyEmbed(load_with=load, needs=needs))
    session = tiny_session(tmp_path / "run", *stages, engine=EngineConfig(**limits))  # type: ignore[arg-type]
    with tiny_runner(session, lambda: Kept(engine)) as runner:
        runner.list_sources(sources(count))
        runner.run(["ingest", "embed"])
    return session


def told(session: Session) -> list[tuple[str, int]]:
    """Detail and attempts of every rejected item."""
    live = session.live()
    live.load("embed")
    return live.con.execute("SELECT detail, attempts FROM rejects_embed ORDER BY id").fetchall()


def test_a_model_that_dies_once_costs_nobody_anything(tmp_path: Path, engine: MapEngine) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    how = die if engine.name == "local" else exit_process
    session = run(tmp_path, engine, partial(Fragile, notes, (4,), how, times=1), needs=replace(NEEDS, model_replicas=2))
    assert live_rejects(session.live(), "embed") == []
    assert len(live_rows(session.live(), "embed")) == COUNT
    assert noted(notes, "load") >= (2 if engine.name == "local" else 3), "it was loaded again"


def test_an_item_that_kills_the_model_goes_alone(tmp_path: Path, engine: MapEngine) -> None:
    """Its neighbours are in the model at each of its deaths but the last ones."""
    (tmp_path / "notes").mkdir()
    session = run(tmp_path, engine, partial(Fragile, tmp_path / "notes", (4, 109), die))
    assert live_rejects(session.live(), "embed") == [("v004", None, "engine_error"), ("v009", None, "engine_error")]
    assert len(live_rows(session.live(), "embed")) == COUNT - 2
    words = "the model died each of 2 times that it had this item alone; the last time: EngineCore is gone"
    assert told(session) == [(words, 2 + 2)] * 2, "among others in two passes, alone twice"


def test_a_model_that_hangs_is_ended_and_the_item_alone_is_too_slow(tmp_path: Path, engine: MapEngine) -> None:
    (tmp_path / "notes").mkdir()
    session = run(tmp_path, engine, partial(Fragile, tmp_path / "notes", (4,), hang), infer_timeout_s=2.0)
    assert live_rejects(session.live(), "embed") == [("v004", None, "timeout")]
    assert "no answer within 2 s" in told(session)[0][0]
    assert len(live_rows(session.live(), "embed")) == COUNT - 1
    assert noted(tmp_path / "notes", "load") > 2, "it was loaded again"


class OneByOne(Fragile):
    """A model that lets its callers wait for each other."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._turn = asyncio.Lock()

    async def infer(self, chunk: Chunk) -> Chunk:
        async with self._turn:
            return await super().infer(chunk)


def test_a_slow_model_with_a_long_queue_does_not_hang(tmp_path: Path, engine: MapEngine) -> None:
    """The last call waits for twice the limit, but the model answers somebody all the time."""
    (tmp_path / "notes").mkdir()
    load = partial(OneByOne, tmp_path / "notes", (), hang, takes_s=0.15)
    session = run(tmp_path, engine, load, needs=ALL_AT_ONCE, infer_timeout_s=1.5)
    assert live_rejects(session.live(), "embed") == []
    assert len(live_rows(session.live(), "embed")) == COUNT
    assert noted(tmp_path / "notes", "load") == 1


def test_calls_that_a_dying_model_cancels_cost_nobody_anything(tmp_path: Path, engine: MapEngine) -> None:
    (tmp_path / "notes").mkdir()
    load = partial(Fragile, tmp_path / "notes", (1,), die, times=1, takes_s=1.5)
    session = run(tmp_path, engine, load, count=3, needs=ALL_AT_ONCE)
    assert live_rejects(session.live(), "embed") == []
    assert len(live_rows(session.live(), "embed")) == 3


@pytest.mark.parametrize("killer", range(3))
def test_an_item_that_kills_is_found_in_a_run_that_never_had_a_row(
    tmp_path: Path, engine: MapEngine, killer: int
) -> None:
    """Wherever it stands: the others are answered when it does not take them along."""
    (tmp_path / "notes").mkdir()
    load = partial(Fragile, tmp_path / "notes", (killer,), die, takes_s=1.0)
    session = run(tmp_path, engine, load, count=3, needs=ALL_AT_ONCE)
    assert live_rejects(session.live(), "embed") == [(f"v00{killer}", None, "engine_error")]
    assert len(live_rows(session.live(), "embed")) == 2
    assert told(session)[0][0].endswith("this item alone; the last time: EngineCore is gone")


def test_a_model_that_dies_on_each_of_a_few_items_ends_the_stage(tmp_path: Path, engine: MapEngine) -> None:
    (tmp_path / "notes").mkdir()
    with pytest.raises(StageFailed, match=r"^stage embed: its model died 2 times without one answer; .*is gone$"):
        run(tmp_path, engine, partial(Fragile, tmp_path / "notes", (0, 1, 2), die), count=3, needs=ALL_AT_ONCE)
    session = tiny_session(tmp_path / "run", TinyIngest(), TinyEmbed())
    assert live_rejects(session.live(), "embed") == []


def test_a_model_that_dies_whatever_it_is_asked_ends_the_stage(tmp_path: Path, engine: MapEngine) -> None:
    (tmp_path / "notes").mkdir()
    with pytest.raises(StageFailed, match=r"^stage embed: its model died \d times without one answer; .*is gone$"):
        run(tmp_path, engine, partial(Fragile, tmp_path / "notes", tuple(range(COUNT)), die))
    assert noted(tmp_path / "notes", "load") < 2 * COUNT, "not for every item in every pass"


class Refusing(Levels):
    """An endpoint that knows its user no more after some items."""

    async def infer(self, chunk: Chunk) -> Chunk:
        if int(chunk.arrays["frames"][0, 0]) == 8:
            raise UserError("the endpoint refuses the key in OPENAI_API_KEY (401)")
        return await super().infer(chunk)


def test_a_users_mistake_that_the_model_meets_is_told_and_what_was_done_is_kept(
    tmp_path: Path, engine: MapEngine
) -> None:
    with pytest.raises(UserError, match=r"^the endpoint refuses the key in OPENAI_API_KEY \(401\)$"):
        run(tmp_path, engine, Refusing)
    session = tiny_session(tmp_path / "run", TinyIngest(), TinyEmbed())
    assert live_rejects(session.live(), "embed") == []
    kept = [key for key, _ in live_rows(session.live(), "embed")]
    assert "v008" not in kept and (kept or engine.name == "ray")


def test_a_model_is_closed_when_its_stage_is_done(tmp_path: Path, engine: MapEngine) -> None:
    (tmp_path / "notes").mkdir()
    run(tmp_path, engine, partial(Fragile, tmp_path / "notes", (), hang))
    assert noted(tmp_path / "notes", "load") == noted(tmp_path / "notes", "close") == 1
