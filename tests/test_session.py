"""A run folder and a command: whether they fit, and what a difference needs."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import load_profile
from pipeline.session import Session, open_session, read_session, versions
from pipeline.stage import UserError
from pipeline.stages.split import Split
from tests.store.rows import put_lock


def make(run: Path, *sets: str, profile: str | None = None) -> Session:
    """A fresh run folder."""
    session = open_session(str(run), profile=profile, sets=sets, create=True)
    session.record_inputs(["videos"], None)
    session.save()
    return session


def again(run: Path, *sets: str, **given: Any) -> Session:
    """The same folder opened by a later command, which saves it as `run` does."""
    session = open_session(str(run), sets=sets, create=True, **given)
    session.save()
    return session


def refusal(run: Path, *sets: str, **given: Any) -> str:
    before = (run / "run.yaml").read_bytes()
    with pytest.raises(UserError) as caught:
        open_session(str(run), sets=sets, **given)
    assert (run / "run.yaml").read_bytes() == before
    return str(caught.value)


def recorded(run: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((run / "run.yaml").read_text())
    return values


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def own_profile(tmp_path: Path) -> Path:
    """A profile that a user wrote."""
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**load_profile("demo"), "filter": {"min_s": 3}}))
    return path


# A fresh folder


def test_a_folder_that_is_no_run_is_told(run: Path) -> None:
    for look in (open_session, read_session):
        with pytest.raises(UserError, match=r"run is not a run folder: it has no run.yaml. Make one with: hicom run"):
            look(str(run))
    assert not run.exists()


def test_a_folder_with_other_things_in_it_is_left_alone(run: Path) -> None:
    run.mkdir()
    (run / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"is not empty and not a run folder \(it holds thesis.tex\)"):
        open_session(str(run), create=True)


def test_a_folder_that_was_only_locked_is_fresh(run: Path) -> None:
    """What a first run leaves that stopped at its inputs."""
    put_lock(make(run / "other").files)
    (run / "lock").mkdir(parents=True)
    (run / "lock/00000001.json").write_text("{}")
    (run / "other/run.yaml").unlink()
    for path in (run / "other/lock").iterdir():
        path.unlink()
    assert open_session(str(run), create=True).changed == {}


def test_a_run_file_tells_what_the_run_was_made_with(run: Path) -> None:
    session = make(run, "split.threshold=30")
    record = recorded(run)
    assert record["profile"] == "demo" and record["overrides"] == {"split.threshold": 30}
    assert record["inputs"] == ["videos"] and record["limit"] is None
    assert record["config"] == session.config.to_plain()
    assert record["stages"]["split"] == {
        "fingerprint": session.live().nodes["split"].fingerprint,
        "version": Split.version,
        "depends_on": {},
    }
    assert record["stages"]["embed"]["depends_on"] == {"model": "builtin:attributes@1"}
    assert record["versions"] == versions()
    assert record["versions"]["pyarrow"][0].isdigit()


def test_packages_of_real_models_are_recorded_where_they_are_and_may_change(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"torch": "2.9.1", "pyarrow": "21.0.0"}

    def version(name: str) -> str:
        if name not in there:
            raise importlib.metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    make(run)
    assert recorded(run)["versions"]["torch"] == "2.9.1" and "vllm" not in recorded(run)["versions"]
    assert recorded(run)["versions"]["ray"] == "not installed as a package"
    there["torch"] = "2.10.0"
    session = again(run)
    assert session.changed == {} and session.recompute == ()
    assert recorded(run)["versions"]["torch"] == "2.10.0"


def test_names_of_inputs_need_not_be_text(run: Path) -> None:
    session = make(run)
    session.record_inputs(["caf\udce9/*.mp4"], 3)
    session.save()
    assert recorded(run)["inputs"] == ["caf\\xe9/*.mp4"] and recorded(run)["limit"] == 3


# What goes through without asking


@pytest.mark.parametrize(
    "given", [{}, {"profile": "demo"}, {"sets": ["split.threshold=30"]}, {"profile": "demo", "sets": ["select.seed=7"]}]
)
def test_the_same_again_changes_nothing(run: Path, given: dict[str, Any]) -> None:
    first = make(run, "split.threshold=30", "select.seed=7")
    second = open_session(str(run), **given)
    assert second.changed == {} and second.recompute == ()
    assert second.config == first.config and second.nodes == first.nodes
    assert second.record["overrides"] == {"split.threshold": 30, "select.seed": 7}
    assert second.record["inputs"] == ["videos"], "inputs are kept until others are named"


def test_what_no_result_depends_on_may_change(run: Path, own_profile: Path) -> None:
    make(run, profile=str(own_profile))
    own_profile.write_text(own_profile.read_text() + "engine: {attempts: 7}\nsources: {adapter: files}\n")
    session = again(run, "engine.part_seconds=1", profile=str(own_profile))
    assert session.changed == {} and session.recompute == ()
    assert (session.config.engine.attempts, session.config.engine.part_seconds) == (7, 1)


# What needs consent


def test_an_explicit_set_consents(run: Path) -> None:
    make(run)
    session = again(run, "split.threshold=30")
    assert session.changed == {"split.threshold": (45.0, 30)}
    assert session.recompute == ("split", "dedup", "filter", "cut", "export")
    assert again(run, "split.threshold=30").recompute == (), "it is the run's config now"
    assert again(run).config.split.threshold == 30


def test_another_shipped_config_is_refused_key_by_key(run: Path, own_profile: Path) -> None:
    make(run)
    told = refusal(run, profile=str(own_profile))
    assert "filter.min_s: the run has 5.0, this command asks for 3" in told
    assert "name each with --set, or pass --accept-changes; to keep both, choose another --out" in told
    assert told.count("the run has") == 1
    session = again(run, "filter.min_s=3", profile=str(own_profile))
    assert session.changed == {"filter.min_s": (5.0, 3)} and session.record["profile"] == str(own_profile)


def test_consent_to_one_change_is_not_consent_to_another(run: Path, own_profile: Path) -> None:
    make(run)
    told = refusal(run, "split.threshold=30", profile=str(own_profile))
    assert "filter.min_s" in told and "split.threshold" not in told


def test_a_profile_that_was_edited_is_refused(run: Path, own_profile: Path) -> None:
    make(run, "split.threshold=30", profile=str(own_profile))
    own_profile.write_text(own_profile.read_text().replace("min_s: 3", "min_s: 4"))
    told = refusal(run, profile=str(own_profile))
    assert "filter.min_s: the run has 3.0, this command asks for 4" in told and "split" not in told
    assert again(run).config.filter.min_s == 3, "without a profile the run's config holds"
    accepted = again(run, profile=str(own_profile), accept=True)
    assert accepted.changed == {"filter.min_s": (3, 4)} and accepted.config.split.threshold == 30
    assert again(run, profile=str(own_profile)).changed == {}


def test_an_accepted_other_profile_leaves_the_old_overrides_behind(run: Path, own_profile: Path) -> None:
    make(run, "split.threshold=30")
    session = again(run, "select.seed=7", profile=str(own_profile), accept=True)
    assert session.config.split.threshold == 45 and session.config.filter.min_s == 3
    assert recorded(run)["overrides"] == {"select.seed": 7}
    assert again(run, profile=str(own_profile)).changed == {}, "the same command, again"


def test_a_place_that_changes_recomputes_nothing(run: Path) -> None:
    make(run)
    session = again(run, "models.frame.path=/weights")
    assert session.changed == {"models.frame.path": (None, "/weights")} and session.recompute == ()


# A program that changed


def test_a_newer_stage_is_refused_until_it_is_accepted(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(run)
    monkeypatch.setattr(Split, "version", Split.version + 1)
    told = refusal(run)
    assert "the program changed since this run was made" in told
    assert f"split: its version was {Split.version - 1}, is now {Split.version}" in told
    session = again(run, accept=True)
    # What stands behind clip_id no longer matters: the export runs again when the clips are others.
    assert session.recompute == ("split", "dedup", "filter", "cut") and session.changed == {}
    assert again(run).recompute == ()


def test_an_edited_category_table_is_refused_until_it_is_accepted(run: Path, tmp_path: Path) -> None:
    table = tmp_path / "categories.yaml"
    table.write_text("categories: [A dark video., A bright video.]")
    make(run, f"select.categories={table}")
    table.write_text("categories: [A dark video., A green video.]")
    assert "select: categories was" in refusal(run)
    assert again(run, accept=True).recompute == ("select", "export")


def test_a_category_table_that_is_chosen_needs_no_more_than_the_set(run: Path) -> None:
    make(run)
    assert again(run, "select.categories=categories").recompute == ("select", "export")


def test_a_run_of_another_program_can_still_be_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it holds is what it was made with."""
    made = make(run)
    monkeypatch.setattr(Split, "version", Split.version + 1)
    refusal(run)
    assert read_session(str(run)).nodes == made.nodes


def test_a_run_can_be_read_without_the_files_it_was_made_from(run: Path, tmp_path: Path) -> None:
    table = tmp_path / "categories.yaml"
    table.write_text("categories: [A dark video., A bright video.]")
    made = make(run, f"select.categories={table}")
    table.unlink()
    assert read_session(str(run)).nodes == made.nodes


def test_a_stage_that_the_run_does_not_know_is_new(run: Path) -> None:
    make(run)
    record = recorded(run)
    del record["stages"]["clean"]
    (run / "run.yaml").write_text(yaml.safe_dump(record))
    assert "clean: its version was None" in refusal(run)
    assert again(run, accept=True).recompute == ("clean",)
    assert read_session(str(run)).live().counts("clean").rows_out == 0


# What a stage and the store are told


def test_nodes_tell_the_store_what_a_stage_is(run: Path) -> None:
    nodes = {node.name: node for node in make(run).nodes}
    assert list(nodes)[:2] == ["sources", "ingest"]
    assert {name for name, node in nodes.items() if node.whole_set} == {"sources", "select", "export"}
    assert nodes["select"].extra_tables == ("select_scores",)
    assert nodes["select"].reads == ("embed",) and nodes["scan"].reads == ()
    assert (nodes["cut"].grain_in, nodes["cut"].grain_out) == ("video_id", "clip_id")


def test_a_stage_is_found_by_name(run: Path) -> None:
    assert make(run, "split.threshold=30").stage("split").config.threshold == 30
