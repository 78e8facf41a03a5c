"""What counts: one outcome per item, of this fingerprint, reachable from what is live upstream."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from pipeline.records import Grain
from pipeline.stage import UserError
from pipeline.store.files import Files, RemoteFiles, open_files
from pipeline.store.live import AMENDMENT, Counts, Live, Node
from pipeline.store.tables import ItemResult, PartReader
from tests.store.conftest import make_root
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
    live_rejects,
    live_rows,
    pending,
    random_row,
    reject,
    write_whole,
)


def select(files: Files, videos: list[str], not_selected: list[str] | None = None, node: Node = SELECT) -> None:
    rows = [random_row("select", i, video_id=video) for i, video in enumerate(videos)]
    write_whole(files, node, rows, dict.fromkeys(not_selected or [], "not_selected"))


def fill(files: Files) -> Live:
    """Four sources: two become videos with two clips and one, one is not selected, one is missing."""
    list_sources(files, ["a", "b", "c", "d"])
    commit(files, INGEST, [done(INGEST, "a", ["va"]), done(INGEST, "b", ["vb"])])
    commit(files, INGEST, [done(INGEST, "c", ["vc"]), failed("d", "missing")])
    commit(files, EMBED, [done(EMBED, video) for video in ("va", "vb", "vc")])
    select(files, ["va", "vb"], ["vc"])
    commit(files, SCAN, [done(SCAN, "va"), done(SCAN, "vb")])
    cut_a = done(CUT, "va", ["ca1", "ca2"])
    cut_a.rejects = [reject("va", "cut_failed", shot=1), reject("va", "cut_failed", shot=4)]
    commit(files, CUT, [cut_a, done(CUT, "vb", ["cb1"])])
    commit(files, GENERATE, [done(GENERATE, "ca1"), failed("ca2", "bad_output"), done(GENERATE, "cb1")])
    return Live(files, CHAIN)


def test_a_chain_balances(files: Files) -> None:
    live = fill(files)
    assert live.counts("sources") == Counts(4, 4, 4, {}, {}, 0, 0)
    assert live.counts("ingest") == Counts(4, 3, 3, {"missing": 1}, {}, 0, 0)
    assert live.counts("embed") == Counts(3, 3, 3, {}, {}, 0, 0)
    assert live.counts("select") == Counts(3, 2, 2, {"not_selected": 1}, {}, 0, 0)
    assert live.counts("scan") == Counts(2, 2, 2, {}, {}, 0, 0)
    assert live.counts("cut") == Counts(2, 2, 3, {}, {"cut_failed": 2}, 0, 0)
    assert live.counts("generate") == Counts(3, 2, 2, {"bad_output": 1}, {}, 0, 0)
    assert live_rows(live, "cut") == [("va", "ca1"), ("va", "ca2"), ("vb", "cb1")]
    assert live_rejects(live, "cut") == [("va", 1, "cut_failed"), ("va", 4, "cut_failed")]
    assert [live.upstream(node.name) for node in CHAIN] == [None, *(node.name for node in CHAIN[:-1])]


def test_an_empty_folder_balances(files: Files) -> None:
    live = Live(files, CHAIN)
    for node in CHAIN:
        assert live.counts(node.name) == Counts(0, 0, 0, {}, {}, 0, 0)
    assert live.input_fingerprint("ingest") == "0-" + 32 * "0"
    assert live.pointers("SELECT key FROM pending_ingest", Grain.SOURCE, ["sources"]).num_rows == 0


@pytest.mark.parametrize("kind", ["local", "memory", "s3"])
@pytest.mark.parametrize("name", ["run[1]", "r*n ?", "a 'quoted' \"run\"", "run{a,b}#%20"])
def test_any_name_of_the_run_folder(request: pytest.FixtureRequest, kind: str, name: str) -> None:
    """DuckDB takes some characters of a path for a pattern: the neighbour that fits it must not be read."""
    root = make_root(kind, request, name)
    neighbour = open_files(root.replace("[1]", "1").replace("*", "u").replace("?", "x"))
    if neighbour.root != root:
        fill(neighbour)
        commit(neighbour, INGEST, [done(INGEST, "d", ["not ours"])])
    live = fill(open_files(root))
    assert live.counts("ingest") == Counts(4, 3, 3, {"missing": 1}, {}, 0, 0)
    assert live.counts("generate").rows_out == 2


def test_fingerprints_are_apart(local: Files) -> None:
    fill(local)
    other = replace(EMBED, fingerprint="f0embed2")
    commit(local, other, [done(other, "va", seed=5)])
    shorter = replace(EMBED, fingerprint="f0emb")
    live = Live(local, [*CHAIN[:2], other, *CHAIN[3:]])
    assert live_rows(live, "embed") == [("va", "va")]
    assert pending(live, "embed") == ["vb", "vc"]
    assert Live(local, [*CHAIN[:2], shorter, *CHAIN[3:]]).counts("embed").items_done == 0
    assert Live(local, CHAIN).counts("embed").items_done == 3


def test_a_whole_set_stage_of_another_config_has_no_rows(local: Files) -> None:
    fill(local)
    other = replace(SELECT, fingerprint="f0select2")
    live = Live(local, [*CHAIN[:3], other, *CHAIN[4:]])
    assert live.marker("select") is None and live.counts("select").missing == 3
    select(local, ["vc"], ["va", "vb"], other)
    live.refresh("select")
    assert live_rows(live, "select") == [("vc", "vc")]
    assert live_rows(live, "scan") == [] and pending(live, "scan") == ["vc"]


def test_rejects_count_only_with_their_committed_part(local: Files) -> None:
    list_sources(local, ["a", "b"])
    name = commit(local, INGEST, [failed("a", "missing")])
    local.remove(f"tables/ingest/{name}")
    live = Live(local, CHAIN)
    assert live_rejects(live, "ingest") == [] and pending(live, "ingest") == ["a", "b"]
    commit(local, INGEST, [done(INGEST, "a", ["va"])])
    live.refresh("ingest")
    assert live.counts("ingest") == Counts(2, 1, 1, {}, {}, 1, 0)


def test_a_part_committed_during_the_look_harms_nothing(local: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hicom status` while a run goes on: rejects of a part that was not there a moment ago."""
    list_sources(local, ["a", "b"])
    list_ = local.list

    def then_commit(prefix: str) -> list[str]:
        found = list_(prefix)
        if prefix == "tables/ingest":
            monkeypatch.setattr(local, "list", list_)
            commit(local, INGEST, [failed("a", "missing")])
        return found

    monkeypatch.setattr(local, "list", then_commit)
    live = Live(local, CHAIN)
    assert live.counts("ingest").missing == 2
    live.refresh("ingest")
    assert live.counts("ingest").missing == 1


@pytest.mark.parametrize("second_fails", [False, True])
@pytest.mark.parametrize("late", [1, 3], ids=["orphan's part", "later epoch's part"])
def test_one_outcome_per_item(local: Files, second_fails: bool, late: int) -> None:
    """Overlapping parts: the later epoch's counts, also when an orphan's part lands after it."""
    list_sources(local, ["a", "b", "c"])
    first = commit(local, INGEST, [done(INGEST, "a", ["va"]), done(INGEST, "b", ["vb"])], epoch=2)
    second = failed("b", "timeout") if second_fails else done(INGEST, "b", ["vb"], seed=9)
    later = commit(local, INGEST, [second, done(INGEST, "c", ["vc"])], epoch=late)
    live = Live(local, CHAIN)
    counts = live.counts("ingest")
    rejected = second_fails and late == 3
    assert counts == Counts(3, 2 if rejected else 3, 2 if rejected else 3, {"timeout": 1} if rejected else {}, {}, 0, 0)
    winner = live.con.execute(
        "SELECT part FROM live_ingest WHERE in_key = 'b' UNION ALL SELECT part FROM rejects_ingest WHERE id = 'b'"
    ).fetchall()
    folder = "rejects" if rejected else "tables"
    assert winner == [(f"{folder}/ingest/{later if late == 3 else first}",)]


def test_outcomes_of_one_epoch_do_not_mix(local: Files) -> None:
    """Two attempts of the same items in one run: one has shots rejected, the other has none."""
    list_sources(local, ["a"])
    commit(local, INGEST, [done(INGEST, "a", ["va"])])
    commit(local, EMBED, [done(EMBED, "va")])
    select(local, ["va"])
    commit(local, SCAN, [done(SCAN, "va")])
    part = done(CUT, "va", ["c1"])
    part.rejects = [reject("va", "cut_failed", shot=1)]
    commit(local, CUT, [part])
    commit(local, CUT, [done(CUT, "va", ["c1", "c2"])])
    counts = Live(local, CHAIN).counts("cut")
    assert (counts.rows_out, counts.shots_rejected) in [(1, {"cut_failed": 1}), (2, {})]


def test_shots_alone_are_no_outcome_of_their_video(local: Files) -> None:
    list_sources(local, ["a"])
    commit(local, INGEST, [done(INGEST, "a", ["va"])])
    commit(local, EMBED, [done(EMBED, "va")])
    select(local, ["va"])
    commit(local, SCAN, [done(SCAN, "va")])
    commit(local, CUT, [ItemResult("va", [], [reject("va", "cut_failed", shot=0)])])
    counts = Live(local, CHAIN).counts("cut")
    assert counts.missing == 1 and counts.items_done == 0


def test_a_broken_part_is_noticed(local: Files) -> None:
    list_sources(local, ["a"])
    broken = done(INGEST, "a", ["va"])
    broken.rejects = [reject("a", "missing")]
    commit(local, INGEST, [broken])
    assert Live(local, CHAIN).counts("ingest").both == 1


def amend(files: Files, key: str, first: str) -> None:
    commit(files, INGEST, [ItemResult(key, [], [reject(key, "duplicate_id", detail=f"like {first}")])], 1, AMENDMENT)


def test_an_amendment_overrules_and_only_while_it_is_true(local: Files) -> None:
    list_sources(local, ["a", "b", "c"])
    commit(local, INGEST, [done(INGEST, key, ["same"]) for key in ("b", "a")], epoch=5)
    commit(local, INGEST, [done(INGEST, "c", ["vc"])], epoch=5)
    live = Live(local, CHAIN)
    assert live.counts("ingest").items_done == 3
    amend(local, "b", "a")
    live.refresh("ingest")
    assert live.counts("ingest") == Counts(3, 2, 2, {"duplicate_id": 1}, {}, 0, 0)
    assert live_rows(live, "ingest") == [("a", "same"), ("c", "vc")]

    list_sources(local, ["b", "c"])  # the run goes on without a: now b is the video
    live.refresh("sources")
    assert live.counts("ingest") == Counts(2, 2, 2, {}, {}, 0, 0)
    assert live_rows(live, "ingest") == [("b", "same"), ("c", "vc")]

    list_sources(local, ["a", "b", "c"])
    live.refresh("sources")
    assert live_rejects(live, "ingest") == [("b", None, "duplicate_id")]


def test_an_amendment_of_three(local: Files) -> None:
    list_sources(local, ["a", "b", "c"])
    commit(local, INGEST, [done(INGEST, key, ["same"]) for key in "cab"])
    amend(local, "b", "a")
    amend(local, "c", "a")
    live = Live(local, CHAIN)
    assert live_rows(live, "ingest") == [("a", "same")]
    list_sources(local, ["b", "c"])
    live.refresh("sources")
    assert live_rows(live, "ingest") == [("b", "same")]
    assert live_rejects(live, "ingest") == [("c", None, "duplicate_id")]


def test_twins_not_yet_amended_are_read_once(local: Files) -> None:
    """A map stage that runs over what ingest has committed so far meets one row of an id, the first's."""
    list_sources(local, ["a", "b"])
    commit(local, INGEST, [done(INGEST, "b", ["same"])])
    commit(local, INGEST, [done(INGEST, "a", ["same"])])
    live = Live(local, CHAIN)
    assert live.pending("embed") == 1
    pointers = live.pointers("SELECT key FROM pending_embed", Grain.VIDEO, ["ingest"]).to_pylist()
    assert len(pointers) == 1
    row = PartReader(local).take(pointers[0]["ingest__part"], [pointers[0]["ingest__row"]], ["source_key"])
    assert row == [{"source_key": "a"}]


def test_what_leaves_upstream_leaves_downstream(local: Files) -> None:
    live = fill(local)
    live.load("generate")
    list_sources(local, ["b", "c", "d", "e"])
    live.refresh("sources")
    assert live.counts("ingest") == Counts(4, 2, 2, {"missing": 1}, {}, 1, 0)
    assert live_rows(live, "cut") == [("vb", "cb1")] and live_rejects(live, "cut") == []
    assert live_rows(live, "generate") == [("cb1", "cb1")] and live_rejects(live, "generate") == []
    list_sources(local, ["a", "b", "c", "d"])
    live.refresh("sources")
    assert live.counts("generate") == Counts(3, 2, 2, {"bad_output": 1}, {}, 0, 0)


def test_pending_is_what_has_no_outcome(files: Files) -> None:
    live = fill(files)
    list_sources(files, ["a", "b", "c", "d", "e", "f"])
    commit(files, EMBED, [failed("v-nobody", "timeout")])
    live.refresh("sources")
    assert pending(live, "ingest") == ["e", "f"]
    assert pending(live, "embed") == []
    commit(files, INGEST, [done(INGEST, "e", ["ve"])])
    live.refresh("ingest")
    assert pending(live, "ingest") == ["f"] and pending(live, "embed") == ["ve"]


def test_pointers_join_a_clip_to_its_video(files: Files) -> None:
    live = fill(files)
    live.load("generate")
    tables = ["cut", "ingest", "scan", "generate"]
    found = live.pointers("SELECT out_key AS key FROM live_generate", Grain.CLIP, tables, ordered=True).to_pylist()
    assert [row["key"] for row in found] == ["ca1", "cb1"]
    reader = PartReader(files)
    for row, video, source in zip(found, ("va", "vb"), ("a", "b"), strict=True):
        (cut,) = reader.take(row["cut__part"], [row["cut__row"]], ["clip_id", "video_id"])
        assert cut == {"clip_id": row["key"], "video_id": video}
        (scan,) = reader.take(row["scan__part"], [row["scan__row"]], ["video_id"])
        (ingest,) = reader.take(row["ingest__part"], [row["ingest__row"]], ["video_id", "source_key"])
        assert scan["video_id"] == ingest["video_id"] == video and ingest["source_key"] == source


def test_pointers_come_in_reading_order_or_by_key(local: Files) -> None:
    live = fill(local)
    keys = "SELECT DISTINCT out_key AS key FROM live_ingest"
    live.load("ingest")
    by_key = live.pointers(keys, Grain.VIDEO, ["ingest"], ordered=True)
    assert by_key["key"].to_pylist() == ["va", "vb", "vc"]
    reading = live.pointers(keys, Grain.VIDEO, ["ingest"]).to_pylist()
    places = [(row["ingest__part"], row["ingest__row"]) for row in reading]
    assert places == sorted(places) and len(places) == 3
    assert live.pointers(keys, Grain.VIDEO, []).column_names == ["key"]


def test_scan_sql_says_which_rows_are_live(local: Files) -> None:
    live = fill(local)
    list_sources(local, ["b"])
    live.refresh("sources")
    for name, expected in (("cut", [("cb1",)]), ("ingest", [("vb",)])):
        key = live.nodes[name].grain_out
        query = (
            f"SELECT {key} FROM {live.scan_sql(name)} d "
            f"SEMI JOIN live_{name} l ON l.file = d.file_index AND l.row = d.file_row_number"
        )
        assert live.con.execute(query).fetchall() == expected
    empty = Live(local, [*CHAIN[:2], replace(EMBED, fingerprint="none")])
    assert empty.con.sql(f"SELECT * FROM {empty.scan_sql('embed')}").columns[:3] == ["video_id", "embedding", "model"]


def test_the_input_fingerprint_is_of_the_set_of_ids(local: Files) -> None:
    def fingerprint(videos: list[str], epoch: int) -> str:
        for folder in ("tables/ingest", "metrics/ingest"):
            for path in local.list(folder):
                local.remove(path)
        for video in videos:
            commit(local, INGEST, [done(INGEST, f"s-{video}", [video], seed=epoch)], epoch)
        return Live(local, CHAIN).input_fingerprint("embed")

    ids = [f"v{i}" for i in range(10)]
    list_sources(local, [f"s-v{i}" for i in range(12)])
    whole = fingerprint(ids, 1)
    shuffled = random.Random(1).sample(ids, len(ids))
    assert fingerprint(shuffled, 2) == whole
    assert fingerprint(ids[1:], 3) != whole
    assert fingerprint([*ids, "v10"], 3) != whole
    assert fingerprint([*ids[1:], "v10"], 3) != whole
    assert fingerprint(["v1", "v2"], 3) != fingerprint(["v1"], 3)


def test_markers_of_another_fingerprint_do_not_count(local: Files) -> None:
    live = fill(local)
    assert live.marker("embed") is None
    marker = live.marker("select")
    assert marker is not None and marker["rows"] == 2
    assert live.parts("select") == marker["parts"] and live.reject_parts("select") == marker["reject_parts"]


def test_a_damaged_part_is_named(files: Files) -> None:
    list_sources(files, ["a"])
    name = commit(files, INGEST, [done(INGEST, "a", ["va"])])
    files.put(f"tables/ingest/{name}", b"not Parquet at all")
    with pytest.raises(UserError, match=rf"cannot be read: .*{name}.* Restore it"):
        Live(files, CHAIN).counts("ingest")


def test_a_store_that_cannot_be_reached_is_no_damage(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody must be told to remove a part because the network is down."""
    files = open_files(f"{s3}/outage")
    assert isinstance(files, RemoteFiles)
    list_sources(files, ["a"])

    def outage(*_: object) -> bytes:
        raise UserError("s3://videos/outage: cannot be reached: so")

    monkeypatch.setattr(files, "get_range", outage)
    with pytest.raises(UserError) as caught:
        Live(files, CHAIN).counts("sources")
    assert str(caught.value) == "s3://videos/outage: cannot be reached: so"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"fingerprint": "f0select"}'])
def test_a_marker_cut_short_is_no_marker(local: Files, body: bytes) -> None:
    live = fill(local)
    local.put("markers/select.json", body)
    assert live.marker("select") is None and live.counts("select").missing == 3
