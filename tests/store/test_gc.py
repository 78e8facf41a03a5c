"""gc removes what no view reaches, and nothing that one does."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.store.files import TEMPORARY, Files
from pipeline.store.gc import collect_garbage
from pipeline.store.live import AMENDMENT, Live, Node
from pipeline.store.tables import ItemResult
from tests.store.rows import (
    CHAIN,
    CUT,
    EMBED,
    GENERATE,
    INGEST,
    SCAN,
    SELECT,
    commit,
    done,
    failed,
    list_sources,
    random_row,
    reject,
    write_whole,
)


def clip(files: Files, name: str) -> str:
    """A clip's file and its sidecar; its path."""
    files.put(f"clips/0a/{name[:2]}/{name}.mp4", b"clip")
    files.put(f"clips/0a/{name[:2]}/{name}.json", b"{}")
    return f"clips/0a/{name[:2]}/{name}.mp4"


def fill(files: Files) -> tuple[Node, ...]:
    """A finished run of two videos, one of them with a virtual clip. Everything in it is reachable."""
    list_sources(files, ["a", "b", "c"])
    commit(files, INGEST, [done(INGEST, "a", ["va"]), done(INGEST, "b", ["vb"])])
    commit(files, INGEST, [failed("c", "missing")])
    commit(files, EMBED, [done(EMBED, "va"), done(EMBED, "vb")])
    write_select(files, ["va", "vb"])
    commit(files, SCAN, [done(SCAN, "va")])
    commit(files, SCAN, [done(SCAN, "vb")])
    commit(files, CUT, [done(CUT, "va", ["ca1"], clip_uri=clip(files, "ca1"))])
    part = done(CUT, "vb", ["cb1"], clip_uri=None)
    part.rejects = [reject("vb", "cut_failed", shot=2)]
    commit(files, CUT, [part])
    commit(files, GENERATE, [done(GENERATE, "ca1"), failed("cb1", "bad_output")])
    for path in ("run.yaml", "export/README.md", "logs/a.log", "report/index.html", "markers/ingest.json"):
        files.put(path, b"null")
    return CHAIN


def write_select(files: Files, videos: list[str]) -> None:
    writer = write_whole(files, SELECT, [], given=f"{len(videos)}-x")
    for i, video in enumerate(videos):
        writer.row("select", random_row("select", i, video_id=video))
        writer.row("select_scores", random_row("select_scores", i, video_id=video))
    writer.reject("vz", "not_selected", "so")
    writer.finish()


def all_files(files: Files) -> list[str]:
    return [path for path in (*files.list(""), *files.list_temporary()) if not path.startswith("lock/")]


def views(files: Files, nodes: tuple[Node, ...] = CHAIN) -> list[object]:
    live = Live(files, nodes)
    return [live.counts(node.name) for node in nodes]


def remaining(files: Files, kept: list[str], nodes: tuple[Node, ...] = CHAIN) -> dict[str, int]:
    """Collect, dry first: nothing goes; then the same goes, and `kept` is what is left."""
    before, seen = all_files(files), views(files, nodes)
    planned = collect_garbage(Live(files, nodes), dry_run=True)
    assert all_files(files) == before
    done_ = collect_garbage(Live(files, nodes), dry_run=False)
    assert done_ == planned
    assert all_files(files) == kept
    assert views(files, nodes) == seen
    assert collect_garbage(Live(files, nodes), dry_run=False) == {}
    return done_


def test_a_tidy_folder_stays_as_it_is(files: Files) -> None:
    fill(files)
    assert remaining(files, all_files(files)) == {}


def test_parts_of_other_fingerprints_go(files: Files) -> None:
    fill(files)
    kept = all_files(files)
    old = replace(EMBED, fingerprint="0ther")
    commit(files, old, [done(old, "va"), failed("vb", "timeout")])
    size = sum(files.size(path) or 0 for path in set(all_files(files)) - set(kept))
    assert remaining(files, kept) == {"tables": 1, "rejects": 1, "metrics": 1, "bytes": size}


def test_parts_that_a_later_one_overrules_go(local: Files) -> None:
    fill(local)
    before = set(all_files(local))
    commit(local, SCAN, [done(SCAN, "va", seed=4)], epoch=0)
    commit(local, SCAN, [failed("vb", "timeout")], epoch=0)
    assert remaining(local, sorted(before))["tables"] == 2


def test_a_part_with_one_live_row_stays(local: Files) -> None:
    fill(local)
    list_sources(local, ["b"])
    assert any("/ingest/" in path for path in all_files(local))
    collect_garbage(Live(local, CHAIN), dry_run=False)
    assert Live(local, CHAIN).counts("ingest").items_done == 1
    assert len(local.list("tables/ingest")) == 1 and local.list("rejects/ingest") == []
    assert local.list("clips") == [] and len(local.list("tables/cut")) == 1


def test_a_part_of_rejects_alone_stays_while_they_are_live(local: Files) -> None:
    fill(local)
    list_sources(local, ["c"])
    collect_garbage(Live(local, CHAIN), dry_run=False)
    assert Live(local, CHAIN).counts("ingest").rejected == {"missing": 1}
    assert len(local.list("tables/ingest")) == len(local.list("rejects/ingest")) == 1


def test_earlier_runs_of_a_whole_set_stage_go(local: Files) -> None:
    fill(local)
    before = set(all_files(local))
    write_select(local, ["vb"])
    new = set(all_files(local)) - before
    assert {path.split("/")[1] for path in new} == {"select", "select_scores"}
    removed = collect_garbage(Live(local, CHAIN), dry_run=False)
    assert removed["tables"] > 2 and new < set(all_files(local))
    assert Live(local, CHAIN).counts("select").rows_out == 1
    assert local.list("clips") == []


def test_clips_without_a_live_row_go(local: Files) -> None:
    fill(local)
    kept = all_files(local)
    clip(local, "gone")
    old = replace(CUT, fingerprint="0ther")
    commit(local, old, [done(old, "va", ["old"], clip_uri=clip(local, "old"))])
    removed = remaining(local, kept)
    assert removed["clips"] == 4 and removed["tables"] == 1


def test_a_voided_amendment_goes_and_a_true_one_stays(local: Files) -> None:
    list_sources(local, ["a", "b"])
    commit(local, INGEST, [done(INGEST, "a", ["same"])])
    commit(local, INGEST, [done(INGEST, "b", ["same"])])
    commit(local, INGEST, [ItemResult("b", [], [reject("b", "duplicate_id")])], 1, AMENDMENT)
    collect_garbage(Live(local, CHAIN), dry_run=False)
    assert Live(local, CHAIN).counts("ingest").rejected == {"duplicate_id": 1}
    list_sources(local, ["b"])
    collect_garbage(Live(local, CHAIN), dry_run=False)
    assert not any(AMENDMENT in path for path in all_files(local))
    assert Live(local, CHAIN).counts("ingest").items_done == 1  # its own row was kept for this


def test_leftovers_of_kills_go(local: Files) -> None:
    fill(local)
    kept = all_files(local)
    for folder in ("tables/scan", "clips/0a/ca", "export/data", "lock"):
        path = Path(local.root, folder, f"{TEMPORARY}0123")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    part = commit(local, EMBED, [failed("va", "timeout")], epoch=9)
    local.remove(f"tables/embed/{part}")
    removed = remaining(local, kept)
    assert (removed["tables"], removed["clips"], removed["export"], removed["lock"]) == (1, 1, 1, 1)
    assert (removed["rejects"], removed["metrics"]) == (1, 1)


def test_a_kill_in_the_middle_changes_no_view(local: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that was overruled must not come back when half of its files are gone."""
    fill(local)
    half = done(CUT, "va", ["ca1"], clip_uri=None)
    half.rejects = [reject("va", "cut_failed", shot=7)]
    commit(local, CUT, [half], epoch=0)
    seen, remove = views(local), local.remove
    for step in range(5):
        left = step

        def counted(path: str) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            remove(path)

        monkeypatch.setattr(local, "remove", counted)
        with suppress(KeyboardInterrupt):
            collect_garbage(Live(local, CHAIN), dry_run=False)
        assert views(local) == seen
