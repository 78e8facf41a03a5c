"""Forgetting a reject tries its item again and touches nothing else, however it is interrupted."""

from __future__ import annotations

from contextlib import suppress

import pyarrow.parquet as pq
import pytest

from pipeline.stage import Row
from pipeline.store.files import Files
from pipeline.store.live import AMENDMENT, Live
from pipeline.store.lock import Epoch, LockLost
from pipeline.store.retry import forget, forget_items
from pipeline.store.tables import ItemResult, from_arrow
from tests.store.rows import (
    CHAIN,
    CUT,
    EMBED,
    INGEST,
    SCAN,
    SELECT,
    commit,
    done,
    failed,
    list_sources,
    live_rejects,
    live_rows,
    pending,
    put_lock,
    random_row,
    reject,
    write_whole,
)


def fill(files: Files) -> Live:
    """Two parts of ingest with timeouts among others, one part without."""
    list_sources(files, list("abcdefg"))
    commit(files, INGEST, [done(INGEST, "a", ["va"], seed=1), failed("b", "timeout"), failed("c", "missing")])
    commit(files, INGEST, [failed("d", "timeout")])
    commit(files, INGEST, [done(INGEST, "e", ["ve"], seed=5), failed("f", "not_video"), failed("g", "missing")])
    files.put("markers/ingest.json", b'{"stage": "ingest", "fingerprint": "f0ingest", "input_fingerprint": "7"}')
    return Live(files, CHAIN)


def rows_of(files: Files, folder: str) -> dict[str, Row]:
    """Every row of every part of ingest, by id."""
    found: dict[str, Row] = {}
    for path in files.list(f"{folder}/ingest"):
        with files.open(path) as handle:
            for row in from_arrow(pq.read_table(handle)):
                key = row.get("source_key") or row["id"]
                assert key not in found
                found[key] = row
    return found


def test_only_those_items_are_pending_again(files: Files) -> None:
    live = fill(files)
    assert pending(live, "ingest") == []
    before = {folder: rows_of(files, folder) for folder in ("tables", "rejects", "metrics")}
    assert forget(live, "timeout", put_lock(files, 2)) == 2
    assert pending(live, "ingest") == ["b", "d"]
    assert live_rows(live, "ingest") == [("a", "va"), ("e", "ve")]
    assert live_rejects(live, "ingest") == [("c", None, "missing"), ("f", None, "not_video"), ("g", None, "missing")]
    assert live.marker("ingest") is None
    for folder, rows in before.items():
        assert rows_of(files, folder) == {key: row for key, row in rows.items() if key not in "bd"}


def test_a_part_without_such_a_reject_is_left_alone(local: Files) -> None:
    live = fill(local)
    (untouched,) = (path for path in live.parts("ingest") if "e" in keys_of(local, path))
    body = local.get(untouched)
    forget(live, "timeout", put_lock(local, 2))
    assert local.get(untouched) == body and len(live.parts("ingest")) == 2


def keys_of(files: Files, part: str) -> list[str]:
    with files.open(part) as handle:
        keys: list[str] = pq.read_table(handle)["source_key"].to_pylist()
    return keys


def test_nothing_to_forget(local: Files) -> None:
    live = fill(local)
    before = local.list("")
    assert forget(live, "decoder_crashed", put_lock(local)) == 0
    assert local.list("") == before and live.marker("ingest") is not None


def test_trying_again_can_succeed_or_fail_again(local: Files) -> None:
    live = fill(local)
    forget(live, "timeout", put_lock(local, 2))
    commit(local, INGEST, [done(INGEST, "b", ["vb"]), failed("d", "timeout")], epoch=2)
    live.refresh("ingest")
    counts = live.counts("ingest")
    assert counts.items_done == 3 and counts.missing == counts.both == 0
    assert counts.rejected == {"missing": 2, "not_video": 1, "timeout": 1}
    assert forget(live, "timeout", put_lock(local, 3)) == 1
    assert pending(live, "ingest") == ["d"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("step", range(12))
def test_a_kill_between_two_steps_changes_no_view(local: Files, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """After any number of writes and removals the other items are as they were, and the same command goes on."""
    live = fill(local)
    rows, rejects = live_rows(live, "ingest"), live_rejects(live, "ingest")
    others = [row for row in rejects if row[2] != "timeout"]
    left = step

    def counted(name: str) -> None:
        method = getattr(local, name)

        def step_of(*args: object) -> None:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            method(*args)

        monkeypatch.setattr(local, name, step_of)

    epoch = put_lock(local, 2)
    counted("put")
    counted("remove")
    with suppress(Killed):
        forget(live, "timeout", epoch)
    monkeypatch.undo()
    after = Live(local, CHAIN)
    assert live_rows(after, "ingest") == rows
    assert [row for row in live_rejects(after, "ingest") if row[2] != "timeout"] == others
    counts = after.counts("ingest")
    assert counts.both == 0
    again = [row[0] for row in live_rejects(after, "ingest") if row[2] == "timeout"]
    assert sorted([*again, *pending(after, "ingest")]) == ["b", "d"]

    # An item whose reject was half taken back succeeds now: the leftovers of its old part must not join it.
    commit(local, INGEST, [done(INGEST, key, [f"v{key}"]) for key in pending(after, "ingest")], epoch=3)
    forget(Live(local, CHAIN), "timeout", put_lock(local, 4))
    last = Live(local, CHAIN)
    for key in pending(last, "ingest"):
        commit(local, INGEST, [done(INGEST, key, [f"v{key}"])], epoch=4)
    last.refresh("ingest")
    counts = last.counts("ingest")
    assert counts.missing == counts.both == 0 and counts.items_done == 4
    assert live_rejects(last, "ingest") == others


def test_a_video_is_forgotten_with_all_its_clips(local: Files) -> None:
    list_sources(local, ["a", "b"])
    commit(local, INGEST, [done(INGEST, "a", ["va"]), done(INGEST, "b", ["vb"])])
    commit(local, EMBED, [done(EMBED, "va"), done(EMBED, "vb")])
    write_whole(local, SELECT, [random_row("select", 0, video_id=video) for video in ("va", "vb")])
    commit(local, SCAN, [done(SCAN, "va"), done(SCAN, "vb")])
    half = done(CUT, "va", ["ca1", "ca2"])
    half.rejects = [reject("va", "cut_failed", shot=3)]
    commit(local, CUT, [half, done(CUT, "vb", ["cb1"])])
    live = Live(local, CHAIN)
    assert forget(live, "cut_failed", put_lock(local, 2)) == 1
    assert live_rows(live, "cut") == [("vb", "cb1")] and live_rejects(live, "cut") == []
    assert pending(live, "cut") == ["va"] and pending(live, "scan") == []


def test_a_twin_in_another_part_is_forgotten_too(local: Files) -> None:
    """An orphan's part holds the same timeout: the item must not come back with it."""
    list_sources(local, ["a", "b"])
    commit(local, INGEST, [failed("a", "timeout"), done(INGEST, "b", ["vb"])])
    commit(local, INGEST, [failed("a", "timeout")], epoch=2)
    live = Live(local, CHAIN)
    assert forget(live, "timeout", put_lock(local, 3)) == 1
    assert pending(live, "ingest") == ["a"] and live_rows(live, "ingest") == [("b", "vb")]


def test_an_amendment_stands(local: Files) -> None:
    list_sources(local, ["a", "b", "c"])
    commit(local, INGEST, [done(INGEST, "a", ["same"]), done(INGEST, "b", ["same"]), failed("c", "timeout")])
    commit(local, INGEST, [ItemResult("b", [], [reject("b", "duplicate_id")])], 1, AMENDMENT)
    live = Live(local, CHAIN)
    assert forget(live, "timeout", put_lock(local, 2)) == 1
    assert live_rows(live, "ingest") == [("a", "same")]
    assert live_rejects(live, "ingest") == [("b", None, "duplicate_id")]


def test_an_amendment_of_others_is_not_made_lasting(local: Files) -> None:
    """One amendment rejects two twins; one of them is forgotten. The other's reject still ends with its reason."""
    list_sources(local, ["a", "b", "d"])
    commit(local, INGEST, [done(INGEST, key, ["same"]) for key in "abd"])
    amended = [ItemResult(key, [], [reject(key, "duplicate_id")]) for key in "bd"]
    commit(local, INGEST, amended, 1, AMENDMENT)
    forget_items(Live(local, CHAIN), "ingest", ["b"], put_lock(local, 2))
    assert all(AMENDMENT in path for path in local.list("rejects"))
    list_sources(local, ["d"])
    assert live_rows(Live(local, CHAIN), "ingest") == [("d", "same")]


def test_an_item_with_rows_is_forgotten(local: Files) -> None:
    live = fill(local)
    forget_items(live, "ingest", ["e", "d"], put_lock(local, 2))
    assert pending(live, "ingest") == ["d", "e"] and live_rows(live, "ingest") == [("a", "va")]
    before = local.list("")
    forget_items(live, "ingest", [], put_lock(local, 2))
    assert local.list("") == before


def test_a_whole_set_stage_runs_again(local: Files) -> None:
    list_sources(local, ["a"])
    commit(local, INGEST, [done(INGEST, "a", ["va"])])
    commit(local, EMBED, [done(EMBED, "va")])
    write_whole(local, SELECT, [], {"va": "not_selected"})
    live = Live(local, CHAIN)
    assert forget(live, "not_selected", put_lock(local, 2)) == 1
    assert live.marker("select") is None and pending(live, "select") == ["va"]


def test_a_zombie_forgets_nothing(local: Files) -> None:
    live = fill(local)
    put_lock(local, 5)
    before = local.list("")
    with pytest.raises(LockLost):
        forget(live, "timeout", Epoch(4))
    assert local.list("") == before
