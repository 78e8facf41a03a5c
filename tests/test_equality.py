"""What must come out the same: another engine, another way to run, a second run, and what a change may not touch."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from pipeline.engine.local import LocalEngine
from pipeline.engine.task import MapTask, StageFailed, Tally
from pipeline.plan import PLAN
from pipeline.runner import Runner
from pipeline.session import open_session
from pipeline.sources.listing import list_sources
from pipeline.store.lock import Lock
from tests.run_helpers import (
    KEEP_ALL,
    Command,
    Silent,
    copy_run,
    differences,
    draw_videos,
    export_bytes,
    measured,
    metrics_parts,
    read_tables,
    run_here,
    state,
)

STAGES = tuple(stage.name for stage in PLAN)
MAP_STAGES = tuple(name for name in STAGES if name not in ("select", "export"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_videos(tmp_path_factory.mktemp("equality") / "videos")


@pytest.fixture(scope="module")
def finished(videos: Path) -> Path:
    """A finished run on the local engine. Read only: tests share it."""
    run = videos.parent / "finished"
    run_here(run, videos)
    return run


def parts(run: Path) -> dict[str, set[str]]:
    """Metrics parts of every map stage: an item that is computed leaves one."""
    return {stage: metrics_parts(run, stage) for stage in MAP_STAGES}


def computed(run: Path, before: dict[str, set[str]]) -> Counter[str]:
    """Items computed since `before`, by map stage."""
    return Counter({stage: len(measured(run, stage, before[stage])) for stage in MAP_STAGES})


@pytest.mark.slow
def test_ray_gives_what_the_local_engine_gives(videos: Path, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "on-ray"
    Command(tmp_path / "faults").run("run", videos, "--out", run, "--set", KEEP_ALL[0])
    assert differences(read_tables(finished), read_tables(run)) == []
    assert export_bytes(run) == export_bytes(finished)


@pytest.mark.slow
def test_stage_by_stage_gives_what_run_gives(videos: Path, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "by-stage"
    for stage in STAGES:
        run_here(run, *([videos] if stage == "ingest" else []), stages=[stage])
    assert differences(read_tables(finished), read_tables(run)) == []
    assert export_bytes(run) == export_bytes(finished)


def test_a_finished_run_has_something_of_everything(finished: Path) -> None:
    """Else the comparisons of this file compare nothing."""
    tables = read_tables(finished)
    assert all(tables.rows.values()), {name: len(rows) for name, rows in tables.rows.items()}
    assert sorted(row["reason"] for row in tables.rows["rejects"]) == ["no_clip_left", "not_video", "too_short"]
    assert len(tables.rows["cut"]) == len(tables.rows["export"]) == 8


@pytest.mark.slow
def test_the_same_videos_elsewhere_give_the_same_export(videos: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(videos, tmp_path / "elsewhere" / videos.name)
    run_here(tmp_path / "run", tmp_path / "elsewhere" / videos.name)
    assert export_bytes(tmp_path / "run") == export_bytes(finished)


def test_run_again_does_nothing(videos: Path, finished: Path, tmp_path: Path) -> None:
    run = copy_run(finished, tmp_path / "run")
    before, said = state(run), (run / "run.yaml").read_bytes()
    # No cluster is at this address: the command succeeds because it asks for no engine.
    run_here(run, videos, engine="ray", address="127.0.0.1:1")
    assert state(run) == before
    assert (run / "run.yaml").read_bytes() == said


def test_what_a_stage_ran_on_is_noted_where_it_had_work(videos: Path, finished: Path, tmp_path: Path) -> None:
    run = copy_run(finished, tmp_path / "run")

    def ran_on() -> dict[str, Any]:
        noted: dict[str, Any] = yaml.safe_load((run / "run.yaml").read_text())["ran_on"]
        return noted

    record, here = yaml.safe_load((run / "run.yaml").read_text()), {"engine": "local", "cores": 1}
    assert record["ran_on"] == dict.fromkeys(STAGES, here)
    there = record["ran_on"] = {stage: {"engine": "ray", "cores": 96} for stage in STAGES}
    (run / "run.yaml").write_text(yaml.safe_dump(record))
    run_here(run, stages=["export"])
    assert ran_on() == there, "export had nothing to do"
    run_here(run, stages=["clean", "export"], sets=["clean.disabled_rules=[empty]"])
    assert ran_on() == {**there, "clean": here, "export": here}
    (run / "markers/generate.json").unlink()
    run_here(run, stages=["generate"])
    mixed = {"engine": "local", "cores": None}
    assert ran_on() == {**there, "generate": mixed, "clean": here, "export": here}, "begun there, ended here"


def test_a_moved_threshold_decodes_nothing_again_and_going_back_is_free(
    videos: Path, finished: Path, tmp_path: Path
) -> None:
    run = copy_run(finished, tmp_path / "run")
    before = parts(run)
    run_here(run, videos, sets=["split.threshold=30"])
    again = {"split": 6, "dedup": 6, "filter": 6, "cut": 5, "generate": 2, "clean": 2}
    assert computed(run, before) == {"ingest": 0, "embed": 0, "scan": 0, **again}
    [soft] = [row for row in measured(run, "cut", before["cut"]) if row["frames_decoded"]]
    tables = read_tables(run)
    [source] = [row for row in tables.rows["ingest"] if row["video_id"] == soft["id"]]
    assert source["source_key"].endswith("soft.mp4"), "only the new clips are cut"
    assert len(tables.rows["export"]) == 9
    after = parts(run)
    run_here(run, videos, sets=["split.threshold=45"])
    assert computed(run, after).total() == 0
    assert differences(read_tables(finished), read_tables(run)) == []
    assert export_bytes(run) == export_bytes(finished)


def test_more_and_fewer_inputs(videos: Path, finished: Path, tmp_path: Path) -> None:
    """Only new videos are computed; those that are gone leave the views and stay stored."""
    folder, run = tmp_path / videos.name, tmp_path / "run"
    shutil.copytree(videos, folder)
    later = [folder / "cuts.mp4", folder / "one shot.mp4"]
    for path in later:
        path.rename(tmp_path / path.name)
    run_here(run, folder)
    fewer, before = read_tables(run), parts(run)
    for path in later:
        (tmp_path / path.name).rename(path)
    run_here(run, folder)
    assert computed(run, before) == {name: 4 if name in ("generate", "clean") else 2 for name in MAP_STAGES}
    assert export_bytes(run) == export_bytes(finished)

    stored = parts(run)
    for path in later:
        path.unlink()
    run_here(run, folder)
    assert differences(fewer, read_tables(run)) == []
    assert parts(run) == stored
    assert len(read_tables(run).rows["export"]) == 4


class FirstThree:
    """An engine that works on three items and then fails: what a kill leaves."""

    name = "first three"

    def __init__(self) -> None:
        self._local = LocalEngine()

    def run_map(self, task: MapTask, pointers: pa.Table, progress: Callable[[Tally], None], *, batch_size: int) -> None:
        self._local.run_map(task, pointers.slice(0, 3), progress, batch_size=batch_size)
        raise StageFailed("stopped on purpose")

    def close(self) -> None:
        self._local.close()


def test_a_map_stage_takes_what_is_committed_before_the_marker(videos: Path, finished: Path, tmp_path: Path) -> None:
    session = open_session(str(tmp_path / "run"), sets=KEEP_ALL, create=True)
    rows = list(list_sources([str(videos)], session.config.sources).rows)
    with Lock(session.files) as lock:
        session.save()

        def runner(make_engine: Callable[[], Any]) -> Runner:
            return Runner(session, lock.epoch, make_engine, Silent())

        first = runner(FirstThree)
        first.list_sources(rows)
        with pytest.raises(StageFailed):
            first.run(["ingest"])
        assert session.live().marker("ingest") is None
        early = runner(LocalEngine).run_committed("embed")
        assert 0 < early.items_in < 6 and early.missing == 0
        assert session.live().marker("embed") is None
        runner(LocalEngine).run(STAGES)
    ids = Counter(row["id"] for row in measured(tmp_path / "run", "embed"))
    assert len(ids) == 6 and set(ids.values()) == {1}, "what was embedded early is not embedded again"
    assert differences(read_tables(finished), read_tables(tmp_path / "run")) == []


def test_a_video_whose_first_copy_is_gone_comes_back(videos: Path, finished: Path, tmp_path: Path) -> None:
    """Of two files with one content the first by name is kept; when it goes, the other is no duplicate any more."""
    folder, run = tmp_path / videos.name, tmp_path / "run"
    shutil.copytree(videos, folder)
    shutil.copyfile(folder / "hard.mp4", folder / "a copy.mp4")
    run_here(run, folder, stages=["ingest"])
    assert read_tables(run).rejected("ingest")[f"{videos.name}/hard.mp4"] == "duplicate_id"
    (folder / "a copy.mp4").unlink()
    run_here(run, folder)
    assert export_bytes(run) == export_bytes(finished)
