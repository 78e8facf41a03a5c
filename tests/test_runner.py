"""Running stages in order: passes, duplicates, whole-set stages, markers, and what must not go unnoticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine.local import LocalEngine
from pipeline.engine.task import StageFailed
from pipeline.runner import MapEngine
from pipeline.session import Session
from pipeline.stage import UserError
from tests.store.rows import live_rejects, live_rows
from tests.tiny import (
    Deaths,
    Notes,
    TinyEmbed,
    TinyIngest,
    TinySelect,
    reject_on,
    run_tiny,
    source,
    sources,
    tiny_runner,
    tiny_session,
)


def ids(session: Session, name: str) -> list[str]:
    """Output ids of a stage's live rows."""
    return [out for _, out in live_rows(session.live(), name)]


def run_with(engine: MapEngine, session: Session, count: int, notes: Notes | None = None) -> None:
    with tiny_runner(session, lambda: engine, notes) as runner:
        runner.list_sources(sources(count))
        runner.run(["ingest"])


def test_an_item_that_kills_its_worker_costs_itself_only(tmp_path: Path) -> None:
    session, engine = tiny_session(tmp_path, TinyIngest(batch_size=32)), Deaths(["v010"])
    run_with(engine, session, 70)
    assert engine.batch_sizes == [32, 2, 1], "what is left runs in smaller batches, the last time one by one"
    live = session.live()
    assert live_rejects(live, "ingest") == [("v010", None, "worker_crashed")]
    assert len(ids(session, "ingest")) == 69
    [(attempts, detail)] = live.con.sql("SELECT attempts, detail FROM rejects_ingest").fetchall()
    assert attempts == 3 and "3 attempts" in detail


@pytest.mark.parametrize(("count", "works"), [(3, True), (1, False)])
def test_the_last_pass_knows_whether_an_item_may_be_to_blame(tmp_path: Path, count: int, works: bool) -> None:
    """It is not when nothing ever came of any item."""
    session, engine = tiny_session(tmp_path, TinyIngest()), Deaths(["v000"])
    run_with(engine, session, count)
    told = [(task.last_pass, task.earlier_passes, task.model_works) for task in engine.tasks]
    assert told == [(False, 0, True), (False, 1, True), (True, 2, works)]


def test_a_worker_that_dies_once_costs_nothing(tmp_path: Path) -> None:
    session, engine = tiny_session(tmp_path, TinyIngest()), Deaths(["v003"], times=1)
    run_with(engine, session, 8)
    assert engine.batch_sizes == [32, 2]
    assert len(ids(session, "ingest")) == 8 and live_rejects(session.live(), "ingest") == []


def test_a_stage_of_small_batches_gets_as_many_passes(tmp_path: Path) -> None:
    session, engine = tiny_session(tmp_path, TinyIngest(batch_size=4)), Deaths(["v001"])
    run_with(engine, session, 6)
    assert engine.batch_sizes == [4, 1, 1]
    assert live_rejects(session.live(), "ingest") == [("v001", None, "worker_crashed")]


def test_items_of_earlier_runs_are_not_worked_on_again(tmp_path: Path) -> None:
    session, notes = tiny_session(tmp_path, TinyIngest(reject_on("v001"))), Notes()
    run_with(LocalEngine(), session, 3)
    run_with(LocalEngine(), session, 5, notes)
    assert notes.begun == [("ingest", 5, 2)]
    assert [tally.items for tally in notes.tallies] == [2]


def no_engine() -> MapEngine:
    raise AssertionError("no engine is needed when nothing is pending")


def test_a_finished_stage_needs_no_engine(tmp_path: Path) -> None:
    session = tiny_session(tmp_path, TinyIngest())
    run_with(LocalEngine(), session, 3)
    with tiny_runner(session, no_engine) as runner:
        runner.list_sources(sources(3))
        assert runner.run(["ingest"])["ingest"].rows_out == 3


# Duplicates


def duplicates(session: Session) -> dict[str, str]:
    """Rejected source row and the words it was rejected with."""
    live = session.live()
    live.load("ingest")
    rows = live.con.sql("SELECT id, detail FROM rejects_ingest WHERE reason = 'duplicate_id'").fetchall()
    return dict(rows)


def kept(session: Session) -> dict[str, str]:
    """Video id and the source row that has it."""
    return {out: key for key, out in live_rows(session.live(), "ingest")}


def test_of_two_inputs_with_one_id_the_first_by_key_keeps_it(tmp_path: Path) -> None:
    session = tiny_session(tmp_path, TinyIngest())
    run_tiny(session, [source("b", "same"), source("a", "same"), source("c", "other")])
    assert kept(session) == {"same": "a", "other": "c"}
    assert duplicates(session) == {"b": "same is also the id of a, which is kept"}


def test_when_the_first_goes_the_other_comes_back(tmp_path: Path) -> None:
    session = tiny_session(tmp_path, TinyIngest(), TinyEmbed())
    a, b, c = source("a", "v1"), source("b", "v1"), source("c", "v1")
    run_tiny(session, [a, b, c])
    assert kept(session) == {"v1": "a"} and duplicates(session).keys() == {"b", "c"}
    notes = Notes()
    with tiny_runner(session, no_engine, notes) as runner:
        runner.list_sources([b, c])
        counts = runner.run(["ingest", "embed"])
    assert kept(session) == {"v1": "b"} and duplicates(session).keys() == {"c"}
    assert counts["ingest"].rejected == {"duplicate_id": 1} and counts["embed"].items_done == 1
    assert notes.begun == [("ingest", 2, 0), ("embed", 1, 0)], "nothing is computed again"


def test_a_first_that_comes_later_takes_the_id_over(tmp_path: Path) -> None:
    session = tiny_session(tmp_path, TinyIngest())
    run_tiny(session, [source("b", "same")])
    run_tiny(session, [source("b", "same"), source("a", "same")])
    assert kept(session) == {"same": "a"} and duplicates(session).keys() == {"b"}
    run_tiny(session, [source("b", "same")])
    assert kept(session) == {"same": "b"} and duplicates(session) == {}


# The listed inputs


def test_a_row_that_is_listed_no_longer_leaves_every_stage(tmp_path: Path) -> None:
    session = tiny_session(tmp_path, TinyIngest(), TinyEmbed())
    run_tiny(session, sources(3))
    run_tiny(session, sources(2))
    assert ids(session, "ingest") == ids(session, "embed") == ["v000", "v001"]
    run_tiny(session, sources(3))
    assert ids(session, "embed") == ["v000", "v001", "v002"]


def test_the_same_listing_is_not_written_again(tmp_path: Path) -> None:
    session = tiny_session(tmp_path, TinyIngest())
    run_tiny(session, sources(2))
    before = marker_file(tmp_path, "sources").stat().st_mtime_ns
    run_tiny(session, sources(2))
    assert marker_file(tmp_path, "sources").stat().st_mtime_ns == before


def test_a_row_that_is_not_what_it_was_is_ingested_again(tmp_path: Path) -> None:
    """A file that was moved, a manifest's row that was mended: the old outcome does not stick."""
    session = tiny_session(tmp_path, TinyIngest(reject_on("b"), batch_size=1), TinyEmbed())
    run_tiny(session, [source("a", "v1"), source("b", "v2"), source("c", "v3")])
    assert kept(session) == {"v1": "a", "v3": "c"}
    notes = Notes()
    with tiny_runner(tiny_session(tmp_path, TinyIngest(), TinyEmbed()), notes=notes) as runner:
        runner.list_sources([source("a", "v1"), source("b", "v2", dataset="mended"), source("c", "v4")])
        runner.run(["ingest", "embed"])
    assert kept(session) == {"v1": "a", "v2": "b", "v4": "c"}
    assert ids(session, "embed") == ["v1", "v2", "v4"]
    assert notes.begun == [("ingest", 3, 2), ("embed", 3, 2)]


# Whole-set stages


def test_a_whole_set_stage_runs_again_only_when_it_must(tmp_path: Path) -> None:
    select = TinySelect(unwanted=["v001"], files=["export/card.md"])
    session = tiny_session(tmp_path, TinyIngest(), select)
    run_tiny(session, sources(3))
    run_tiny(session, sources(3))
    assert select.runs == 1, "nothing changed"
    run_tiny(session, sources(4))
    assert select.runs == 2, "there is more input"
    (tmp_path / "export/card.md").unlink()
    run_tiny(session, sources(4))
    assert select.runs == 3, "a file that it wrote is gone"
    assert (tmp_path / "export/card.md").is_file()
    other = TinySelect(unwanted=["v002"])
    run_tiny(tiny_session(tmp_path, TinyIngest(), other), sources(4))
    assert other.runs == 1, "its config changed"


def test_a_whole_set_stage_runs_again_when_rows_changed_under_their_ids(tmp_path: Path) -> None:
    """The same video from another place: what an export tells of it has changed."""
    select = TinySelect()
    session = tiny_session(tmp_path, TinyIngest(), select)
    run_tiny(session, [source("a", "v1"), source("b", "v1")])
    run_tiny(session, [source("b", "v1")])
    assert ids(session, "ingest") == ["v1"] and select.runs == 2


def test_a_whole_set_stage_that_loses_an_item_is_told(tmp_path: Path) -> None:
    session = tiny_session(tmp_path, TinyIngest(), TinySelect(unwanted=["v000"], lost=["v002"]))
    message = "stage select does not balance: of 4 items 1 have no outcome and 0 have two; without one: v002"
    for _ in range(2):  # again, although the stage itself does not run again
        with pytest.raises(StageFailed, match=message):
            run_tiny(session, sources(4))


class Loses:
    """An engine that works on nothing, and a store that is not told: what a bug would look like."""

    name = "loses"

    def run_map(self, task: Any, pointers: Any, progress: Any, *, batch_size: int) -> None: ...

    def close(self) -> None: ...


def test_a_map_stages_items_without_an_outcome_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.runner.Runner._reject_deadly", lambda *_: None)
    session = tiny_session(tmp_path, TinyIngest())
    with pytest.raises(StageFailed, match=r"of 3 items 3 have no outcome .* without one: v000, v001, v002"):
        run_with(Loses(), session, 3)
    assert not marker_file(tmp_path, "ingest").exists()


# Markers and order


def marker_file(root: Path, name: str) -> Path:
    return root / "markers" / f"{name}.json"


def test_the_marker_tells_the_balance(tmp_path: Path) -> None:
    session = tiny_session(tmp_path, TinyIngest(reject_on("v001", "v003")))
    run_tiny(session, sources(5))
    marker = json.loads(marker_file(tmp_path, "ingest").read_text())
    assert marker == {
        "stage": "ingest",
        "fingerprint": session.nodes[1].fingerprint,
        "input_fingerprint": session.live().input_fingerprint("ingest"),
        "items_in": 5,
        "items_done": 3,
        "rows_out": 3,
        "rejected": {"unreadable": 2},
        "shots_rejected": {},
        "missing": 0,
        "both": 0,
    }


def test_a_marker_that_still_holds_is_not_written_again(tmp_path: Path) -> None:
    session = tiny_session(tmp_path, TinyIngest())
    run_tiny(session, sources(2))
    before = marker_file(tmp_path, "ingest").stat().st_mtime_ns
    run_tiny(session, sources(2))
    assert marker_file(tmp_path, "ingest").stat().st_mtime_ns == before
    run_tiny(session, sources(3))
    assert marker_file(tmp_path, "ingest").stat().st_mtime_ns > before


def run_only(session: Session, *names: str) -> None:
    with tiny_runner(session) as runner:
        runner.run(names)


def test_a_stage_needs_inputs(tmp_path: Path) -> None:
    session = tiny_session(tmp_path, TinyIngest(), TinyEmbed())
    with pytest.raises(UserError, match=r"no inputs are listed\. Name them: hicom ingest"):
        run_only(session, "embed")


def test_a_stage_needs_all_before_it(tmp_path: Path) -> None:
    session = tiny_session(tmp_path, TinyIngest(), TinyEmbed(), TinySelect())
    run_tiny(session, sources(2), ["ingest"])
    with pytest.raises(UserError, match=r"select needs embed, which has not run with this config. Run `hicom embed"):
        run_only(session, "select")
    run_only(session, "embed", "select")


def test_a_stage_needs_the_ones_before_it_to_know_the_new_inputs(tmp_path: Path) -> None:
    """Also when the one right before it is as it was."""
    session = tiny_session(tmp_path, TinyIngest(), TinyEmbed(), TinySelect())
    run_tiny(session, sources(2))
    run_tiny(session, sources(3), ["ingest"])
    with pytest.raises(UserError, match="select needs embed, which has not run since its own input changed"):
        run_only(session, "select")
    run_only(session, "embed", "select")
    assert ids(session, "select") == ["v000", "v001", "v002"]


def test_another_config_of_an_earlier_stage_is_not_passed_over(tmp_path: Path) -> None:
    run_tiny(tiny_session(tmp_path, TinyIngest(), TinyEmbed()), sources(2))
    changed = tiny_session(tmp_path, TinyIngest(config={"seed": 1}), TinyEmbed())
    with pytest.raises(UserError, match="embed needs ingest, which has not run with this config"):
        run_only(changed, "embed")
