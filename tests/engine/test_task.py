"""What is sent to workers."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import cast

import pytest

from pipeline.engine.limits import EngineConfig
from pipeline.engine.task import MODEL_DEATHS, MapTask, OnceAnswer, Patience, Silence, StageFailed
from pipeline.stage import Chunk
from pipeline.store.files import Files, LocalFiles
from pipeline.store.tables import PartWriter
from tests.tiny import TinyEmbed, TinyIngest


class TwoTables(TinyIngest):
    reads = ("ingest.uri", "scan.frame_pts", "ingest.bytes")


def test_columns_are_asked_for_by_table() -> None:
    task = MapTask(TwoTables(), LocalFiles("/nowhere"), cast(PartWriter, None), EngineConfig())
    assert task.tables_read == ["ingest", "scan"]
    assert task.columns_of("ingest") == ["uri", "bytes"]
    assert task.columns_of("scan") == ["frame_pts"]


def test_a_failure_is_told_without_its_trace_and_carries_it() -> None:
    failure = StageFailed("stage scan failed on v1", "Traceback: ...")
    assert str(failure) == "stage scan failed on v1"
    assert failure.trace == "Traceback: ..."
    assert str(pickle.loads(pickle.dumps(failure))) == str(failure)


class Call(OnceAnswer):
    """An answer that counts how often it is waited for."""

    def __init__(self, outcome: Chunk | Exception) -> None:
        self._outcome = outcome
        self.waits = 0

    def _wait(self) -> Chunk:
        self.waits += 1
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


def test_an_answer_is_waited_for_once_and_stays_what_it_was() -> None:
    """Else a failure that an item meets while it waits for room would be lost to the item it belongs to."""
    sound, failed = Call(Chunk({})), Call(StageFailed("gone for good"))
    assert sound.result() is sound.result()
    for _ in range(2):
        with pytest.raises(StageFailed, match="gone for good"):
            failed.result()
    assert (sound.waits, failed.waits) == (1, 1)


def patience(**more: bool) -> Patience:
    return Patience(MapTask(TinyEmbed(), cast(Files, None), cast(PartWriter, None), EngineConfig(), **more))


def test_deaths_in_a_row_end_the_stage() -> None:
    tired = patience()
    for number in range(MODEL_DEATHS):
        tired.died(str(number))
    with pytest.raises(StageFailed, match=r"^stage embed: its model died 4 times without one answer; the last time: x"):
        tired.died("x")


def test_an_answer_in_between_makes_up_for_them() -> None:
    tired = patience()
    for _ in range(5 * MODEL_DEATHS):
        tired.died("x")
        tired.answered()


def test_items_that_kill_one_by_one_do_not_end_the_stage() -> None:
    tired = patience(last_pass=True)
    for _ in range(5 * MODEL_DEATHS):
        tired.died("x")


def test_silence_lasts_from_the_last_answer_to_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("pipeline.engine.task.time", SimpleNamespace(monotonic=lambda: clock.now))
    silence = Silence()
    assert silence.seconds() == 0.0, "nobody has asked"
    with silence.call():
        clock.now += 5
        with silence.call():
            clock.now += 2
            assert silence.seconds() == 7.0, "a further call is no answer"
        clock.now += 1
        assert silence.seconds() == 1.0
    clock.now += 50
    assert silence.seconds() == 0.0, "nobody waits"
    with silence.call():
        assert silence.seconds() == 0.0
