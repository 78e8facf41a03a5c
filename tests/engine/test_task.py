"""What is sent to workers."""

from __future__ import annotations

import pickle
from typing import cast

from pipeline.engine.limits import EngineConfig
from pipeline.engine.task import MapTask, StageFailed
from pipeline.store.files import LocalFiles
from pipeline.store.tables import PartWriter
from tests.tiny import TinyIngest


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
