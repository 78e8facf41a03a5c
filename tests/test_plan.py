"""The order of the stages, what it proves, and what a change recomputes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RunConfig, load_profile, parse
from pipeline.models.registry import card as real_card
from pipeline.plan import PLAN, check, fingerprints, tables_read
from pipeline.records import Grain
from pipeline.stage import Stage
from pipeline.stages.cut import Cut
from pipeline.stages.embed import Embed
from pipeline.stages.generate import Generate
from pipeline.stages.ingest import Ingest
from pipeline.stages.scan import Scan
from pipeline.stages.select import Select
from pipeline.stages.split import Split


def test_the_plan_is_that_of_the_paper() -> None:
    assert [stage.name for stage in PLAN] == [
        *("ingest", "embed", "select", "scan", "split", "dedup", "filter", "cut", "generate", "clean", "export")
    ]
    check(PLAN)


class ReadsAhead(Scan):
    reads = ("ingest.uri", "split.shots")


class ReadsNothingKnown(Scan):
    reads = ("ingest.url",)


class ReadsExtra(Scan):
    reads = ("ingest.uri", "select_scores.similarity")


class ReadsTwo(Scan):
    reads = ("ingest.uri", "sources.uri")


class TakesClips(Scan):
    grain_in = Grain.CLIP


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([Ingest, Embed, Select, ReadsAhead, Split], r"scan reads \['split.shots'\], which no stage before it writes"),
        ([Ingest, ReadsNothingKnown], r"scan reads \['ingest.url'\]"),
        ([Ingest, Embed, Select, ReadsExtra], r"scan reads \['select_scores.similarity'\]"),
        ([Ingest, Split], r"split reads \['scan.frame_pts', .*\], which no stage before it writes"),
        ([Ingest, ReadsTwo], r"scan reads two columns named \['uri'\]"),
        ([Ingest, TakesClips], "scan takes rows by clip_id, but the stage before it writes video_id"),
        ([Embed], "embed takes rows by video_id, but the stage before it writes source_key"),
        ([*PLAN[:8], Scan], "scan takes rows by video_id, but the stage before it writes clip_id"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(plan: Sequence[type[Stage]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(plan)


def test_a_key_may_be_read_by_two_names() -> None:
    """The key of a row is in every table."""

    class ReadsKeys(Cut):
        reads = (*Cut.reads, "filter.video_id", "scan.video_id")

    check([*PLAN[:7], ReadsKeys])


def config(**overrides: Any) -> RunConfig:
    return parse(load_profile("demo"), {path.replace("__", "."): value for path, value in overrides.items()})


def prints(made: RunConfig) -> dict[str, str]:
    return dict(fingerprints(made.stages()))


def recomputed(**overrides: Any) -> set[str]:
    """Stages whose fingerprint another config changes."""
    before, after = prints(config()), prints(config(**overrides))
    return {name for name in before if before[name] != after[name]}


SHOTS = {"split", "dedup", "filter", "cut"}


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ({"split__threshold": 30.0}, {*SHOTS, "export"}),
        ({"dedup__preset": "dense"}, {*SHOTS, "export"} - {"split"}),
        ({"filter__min_s": 4.0}, {"filter", "cut", "export"}),
        ({"scan__grid_interval_s": 0.25}, {"scan", *SHOTS, "export"}),
        ({"cut__crf": 20}, {"cut", "generate", "clean", "export"}),
        ({"embed__frames": 4}, {"embed", "select", "export"}),
        ({"select__quota": 2}, {"select", "export"}),
        ({"select__categories": "categories"}, {"select", "export"}),
        ({"generate__frames": 4}, {"generate", "clean", "export"}),
        ({"clean__min_answer_words": 4}, {"clean", "export"}),
        ({"export__title": "Mine"}, {"export"}),
        ({"engine__attempts": 5}, set()),
        ({"engine__max_workers": 1, "engine__part_seconds": 1.0}, set()),
        ({"sources__adapter": "table", "sources__media_root": "/media"}, set()),
        ({"models__frame__path": "/weights"}, set()),
        ({"models__describer__path": "/weights", "models__video_text__path": "/weights"}, set()),
    ],
    ids=lambda value: next(iter(value), None) if isinstance(value, dict) else None,
)
def test_a_change_recomputes_what_it_touches_and_no_more(change: dict[str, Any], stages: set[str]) -> None:
    assert recomputed(**change) == stages


def test_the_category_table_may_move(tmp_path: Path) -> None:
    demo = Path(__file__).parent.parent / "manifests/categories-demo.yaml"
    moved, other = tmp_path / "moved.yaml", tmp_path / "other.yaml"
    moved.write_text(demo.read_text())
    other.write_text(demo.read_text() + "  - A video of nothing.\n")
    assert recomputed(select__categories=str(moved)) == set()
    assert recomputed(select__categories=str(other)) == {"select", "export"}


def test_a_prompt_matters_to_a_model_that_reads_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = {"prompt.caption": "1", "prompt.qa": "1"}
    monkeypatch.setattr("pipeline.stages.generate.prompt_hashes", lambda: dict(hashes))
    built_in = prints(config())
    hashes["prompt.qa"] = "2"
    assert prints(config()) == built_in, "the built-in describer reads none"
    monkeypatch.setattr(
        "pipeline.stages.generate.card", lambda role, spec: replace(real_card(role, spec), reads_prompts=True)
    )
    before = prints(config())
    hashes["prompt.qa"] = "3"
    after = prints(config())
    assert {name for name in before if before[name] != after[name]} == {"generate", "clean", "export"}


def test_a_newer_version_of_a_stage_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = prints(config())
    monkeypatch.setattr(Generate, "version", Generate.version + 1)
    after = prints(config())
    assert {name for name in before if before[name] != after[name]} == {"generate", "clean", "export"}


def test_fingerprints_of_different_stages_differ() -> None:
    made = prints(config())
    assert len(set(made.values())) == len(made)


def test_tables_are_named_once_in_the_order_of_mention() -> None:
    assert tables_read(Cut(config().cut)) == ("filter", "scan", "ingest")
