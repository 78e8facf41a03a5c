"""DuckDB reads parts behind a URL with few requests and few bytes."""

from __future__ import annotations

from typing import Any

import duckdb
import numpy as np
import pytest

from pipeline.store.files import RemoteFiles, open_files
from pipeline.store.live import Live, connect, parquet_sql
from pipeline.store.tables import ItemResult
from tests.store.rows import CHAIN, INGEST, SCAN, commit, done, list_sources, random_row


class Requests:
    """Counts what goes to the store."""

    def __init__(self, files: RemoteFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.bytes = 0
        for name in ("info", "find", "glob", "exists", "open", "modified"):
            monkeypatch.setattr(files.fs, name, self._counted(name, getattr(files.fs, name)))
        monkeypatch.setattr(files.fs, "cat_file", self._counted("cat_file", files.fs.cat_file))

    def _counted(self, name: str, call: Any) -> Any:
        def counted(*args: Any, **options: Any) -> Any:
            self.calls.append(name)
            result = call(*args, **options)
            self.bytes += len(result) if name == "cat_file" else 0
            return result

        return counted


def remote(s3: str, name: str) -> RemoteFiles:
    files = open_files(f"{s3}/{name}")
    assert isinstance(files, RemoteFiles)
    return files


def test_a_small_part_costs_two_requests(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = remote(s3, "small parts")
    list_sources(files, [f"s{i}" for i in range(20)])
    for i in range(20):
        commit(files, INGEST, [done(INGEST, f"s{i}", [f"v{i}"])])
    live = Live(files, CHAIN)
    live.load("sources")
    requests = Requests(files, monkeypatch)
    assert live.counts("ingest").items_done == 20
    assert requests.calls.count("cat_file") <= 2 * 20 + 2
    assert requests.calls.count("find") <= 4
    assert set(requests.calls) <= {"cat_file", "find"}


def test_ids_are_read_without_the_rest_of_a_part(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = remote(s3, "large part")
    noise = np.random.default_rng(1).standard_normal(4_000_000).astype(np.float32)
    row = random_row("scan", 1, video_id="v", grid_embeddings=noise)
    name = commit(files, SCAN, [ItemResult("v", [row])])
    path = f"tables/scan/{name}"
    assert (files.size(path) or 0) > 10 << 20
    requests = Requests(files, monkeypatch)
    con = connect(files)
    query = f"SELECT video_id, file_row_number, file_index FROM {parquet_sql(files, [path])}"
    assert con.execute(query).fetchall() == [("v", 0, 0)]
    assert requests.bytes < 5 << 20
    assert len(requests.calls) < 12


def test_a_part_that_is_gone(s3: str) -> None:
    files = remote(s3, "gone")
    with pytest.raises(duckdb.Error, match=r"none\.parquet"):
        connect(files).execute(f"FROM {parquet_sql(files, ['tables/scan/none.parquet'])}")
