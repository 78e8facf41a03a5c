"""The engine without Ray."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.engine.task import StageFailed
from pipeline.stage import Chunk, Model, Output, Rejected, Resources, Retryable, Row, UserError, Workspace
from tests.store.rows import live_rejects, live_rows
from tests.tiny import Levels, TinyEmbed, TinyIngest, frames, run_tiny, sources, take_uri_for_id, tiny_session


def model_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.endswith("-model")]


def test_a_model_is_loaded_once_and_ended(tmp_path: Path) -> None:
    loaded = []

    def load() -> Model:
        loaded.append(1)
        return Levels()

    session = tiny_session(tmp_path, TinyIngest(), TinyEmbed(load_with=load, needs=Resources(batch_size=2)))
    counts = run_tiny(session, sources(5))
    assert (counts["embed"].items_done, counts["embed"].missing) == (5, 0)
    assert loaded == [1]
    assert model_threads() == []


def test_answers_are_those_of_the_items_frames(tmp_path: Path) -> None:
    session = tiny_session(tmp_path, TinyIngest(), TinyEmbed())
    run_tiny(session, sources(4))
    live = session.live()
    rows = live.con.sql(f"SELECT video_id, embedding FROM {live.scan_sql('embed')} ORDER BY 1").fetchall()
    assert rows == [(f"v{i:03d}", [i, i, i + 100, i + 100]) for i in range(4)]


class Three(Levels):
    """A model that answers only when three callers are there at once."""

    def __init__(self) -> None:
        self._barrier = asyncio.Barrier(3)

    async def infer(self, chunk: Chunk) -> Chunk:
        await asyncio.wait_for(self._barrier.wait(), 10)
        return await Levels().infer(chunk)


def test_many_callers_are_in_the_model_at_once(tmp_path: Path) -> None:
    session = tiny_session(tmp_path, TinyIngest(), TinyEmbed(load_with=Three, needs=Resources(in_flight=3)))
    assert run_tiny(session, sources(6))["embed"].items_done == 6


def test_a_models_rejection_is_the_items(tmp_path: Path) -> None:
    class Shy(Levels):
        async def infer(self, chunk: Chunk) -> Chunk:
            level = int(chunk.arrays["frames"][0, 0]) % 100
            if level == 1:
                raise Rejected("refused", "no words")
            if level == 2:
                raise Retryable("engine_error", "busy")
            return await Levels().infer(chunk)

    session = tiny_session(tmp_path, TinyIngest(), TinyEmbed(load_with=Shy))
    run_tiny(session, sources(4))
    live = session.live()
    assert live_rejects(live, "embed") == [("v001", None, "refused"), ("v002", None, "engine_error")]
    assert [key for key, _ in live_rows(live, "embed")] == ["v000", "v003"]


def test_a_model_that_does_not_load_is_the_users_mistake_when_it_says_so(tmp_path: Path) -> None:
    def load() -> Model:
        raise UserError("no weights at /models")

    with pytest.raises(UserError, match="no weights"):
        run_tiny(tiny_session(tmp_path, TinyIngest(), TinyEmbed(load_with=load)), sources(1))


class Stuck(Levels):
    """A model that never answers."""

    async def infer(self, chunk: Chunk) -> Chunk:
        await asyncio.sleep(3600)
        raise AssertionError("unreachable")


def test_a_failure_leaves_no_unanswered_call_behind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """asyncio complains on the terminal about tasks that were dropped."""

    def prepare(row: Row, work: Workspace) -> Iterator[Chunk]:
        if row["video_id"] == "v001":
            raise ValueError("a defect")
        yield Chunk({"frames": frames(1, 0)}, {"part": 0})

    session = tiny_session(tmp_path, TinyIngest(), TinyEmbed(prepare, Stuck))
    with contextlib.suppress(StageFailed):
        run_tiny(session, sources(2))
        pytest.fail("the defect was not told")
    assert model_threads() == []
    gc.collect()
    assert caplog.messages == []


def test_an_early_batch_is_committed_before_a_later_one_fails(tmp_path: Path) -> None:
    def fails_late(row: Row, work: Workspace) -> Output:
        if row["source_key"] == "v005":
            raise ValueError("a defect")
        return take_uri_for_id(row, work)

    session = tiny_session(tmp_path, TinyIngest(fails_late, batch_size=2))
    with pytest.raises(StageFailed, match="v005"):
        run_tiny(session, sources(8))
    assert len(live_rows(session.live(), "ingest")) == 5
