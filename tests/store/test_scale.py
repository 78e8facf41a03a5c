"""Many items and many parts: the time grows with them, and not faster."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.records import Grain
from pipeline.store.files import Files, open_files
from pipeline.store.live import Live
from pipeline.store.tables import ItemResult
from pipeline.store.whole_set import WholeSetReader
from tests.store.rows import CHAIN, EMBED, INGEST, SELECT, SOURCES, commit, done, list_sources, random_row


def many(files: Files, items: int, per_part: int) -> float:
    """Seconds to see what is live of so many items."""
    list_sources(files, [f"s{i}" for i in range(items)])
    base = done(INGEST, "s", ["v"])
    for start in range(0, items, per_part):
        numbers = range(start, start + per_part)
        commit(
            files,
            INGEST,
            [ItemResult(f"s{i}", [{**base.rows[0], "source_key": f"s{i}", "video_id": f"v{i}"}]) for i in numbers],
        )
    live = Live(files, [SOURCES, INGEST, EMBED])
    started = time.perf_counter()
    assert live.counts("ingest").items_done == items
    assert live.pending("embed") == items
    pointers: pa.Table = live.pointers("SELECT key FROM pending_embed", Grain.VIDEO, ["ingest"])
    assert pointers.num_rows == items
    return time.perf_counter() - started


@pytest.mark.slow
def test_a_hundred_thousand_items(local: Files) -> None:
    assert many(local, 100_000, 2_000) < 20


@pytest.mark.slow
def test_thousands_of_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time grows with the number of parts, not with its square."""
    monkeypatch.setattr("os.fsync", lambda handle: None)
    few = many(open_files(str(tmp_path / "few")), 200, 1)
    more = many(open_files(str(tmp_path / "many")), 2_000, 1)
    assert more < 25 * few + 2


@pytest.mark.slow
def test_an_ordered_stream_reads_every_part_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids scattered over many parts: the time does not grow with batches times parts."""
    monkeypatch.setattr("os.fsync", lambda handle: None)

    def seconds(name: str, parts: int) -> float:
        files = open_files(str(tmp_path / name))
        base = random_row("embed", 1)
        ids = random.Random(3).sample(range(parts * 20), parts * 20)
        list_sources(files, [f"s{i}" for i in ids])
        row = random_row("ingest", 1)
        commit(files, INGEST, [ItemResult(f"s{i}", [{**row, "source_key": f"s{i}", "video_id": f"v{i}"}]) for i in ids])
        for part in range(parts):
            commit(files, EMBED, [ItemResult(f"v{i}", [{**base, "video_id": f"v{i}"}]) for i in ids[part::parts]])
        live = Live(files, CHAIN)
        started = time.perf_counter()
        rows = sum(map(len, WholeSetReader(live, SELECT).batches(["embed.embedding", "embed.model"], ordered=True)))
        assert rows == parts * 20
        return time.perf_counter() - started

    few = seconds("few", 100)
    assert seconds("many", 1_000) < 25 * few + 2
