"""Every reject reason, reached through the command line by a real input or setting, and gone once that is mended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipeline.models import registry
from pipeline.records import REASONS
from tests import clips
from tests.command_line import LOCAL, assert_balance, hicom, sets
from tests.models import faulty_describer
from tests.run_helpers import FAULTS, Command, Tables, copy_run, read_tables


@dataclass(frozen=True)
class Case:
    """A setting that makes a stage reject an item, and one with which it does not."""

    reason: str
    stage: str
    video: str
    """The item, or for stages of clips the video whose one clip is the item."""
    on: str
    off: str
    shot: int | None = None


INDEX_FIRST = {"movflags": "+faststart"}
FAULTY = "models.describer={{family: faulty, name: {}}}"
SOUND = 'models.describer={family: builtin, name: observer, revision: "1"}'
ANY_LENGTH, CLOSE = "filter.min_s=0", "dedup.candidate_interval_s=0.5"
CASES = (
    Case("decode_failed", "scan", "torn", "scan.max_decode_error_share=0", "scan.max_decode_error_share=1"),
    Case("not_selected", "select", "disc", "select.random_rest=1", "select.random_rest=99"),
    Case("redundant", "dedup", "cuts", "dedup.thresholds={builtin:visual: -0.99}", "dedup.thresholds={}", shot=1),
    Case("no_sample", "dedup", "blink", "dedup.candidate_interval_s=2", CLOSE, shot=1),
    Case("too_short", "filter", "blink", "filter.min_s=6.1", ANY_LENGTH, shot=2),
    Case("too_long", "filter", "blink", "filter.max_s=6.1", "filter.max_s=120", shot=0),
    Case("no_clip_left", "filter", "short", "filter.min_s=5", ANY_LENGTH),
    Case("cut_failed", "cut", "avi", "cut.mode=copy", "cut.mode=auto", shot=0),
    Case("cut_failed", "cut", "avi", "cut.mode=copy", "cut.mode=exact"),
    *(Case(r, "generate", "disc", FAULTY.format(r), SOUND) for r in faulty_describer.FAULTS),
    Case("all_pairs_invalid", "clean", "disc", "clean.min_answer_words=999", "clean.min_answer_words=8"),
)
MENDED_FILES = ("missing", "not_video", "no_video_stream", "unreadable")
MENDED_ROWS = ("duplicate_id", "bad_id", "bad_row")
FAULTED = ("decoder_crashed", "timeout", "worker_crashed")


def test_no_reason_is_left_out() -> None:
    assert {case.reason for case in CASES} | {*MENDED_FILES, *MENDED_ROWS, *FAULTED} == set(REASONS)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos, sound and not, and the manifest that lists them under ids of ours: media/rows.csv."""
    folder = tmp_path_factory.mktemp("media")
    clips.write_clip(folder / "cuts.mp4", clips.shots(("maroon", 60), ("sky", 60), ("black", 60)))
    clips.write_clip(folder / "blink.mp4", clips.shots(("maroon", 62), ("sky", 16), ("black", 60)))
    clips.write_clip(folder / "disc.mp4", clips.disc(60))
    clips.write_clip(folder / "avi.avi", clips.disc(60, (0, 1)), clips.mpeg4())
    clips.write_clip(folder / "short.mp4", clips.flat("gold", 20))
    whole = clips.write_clip(folder / "whole.mp4", clips.noise(60))
    clips.overwritten(whole, folder / "torn.mp4", 0.5, 0.52)
    hollow = clips.write_clip(folder / "hollow.mp4", clips.disc(60), replace(clips.h264(), muxer_options=INDEX_FIRST))
    hollow.write_bytes(hollow.read_bytes().partition(b"mdat")[0])
    clips.text(folder / "not_video.mp4")
    clips.audio_only(folder / "no_video_stream.mp4")
    clips.truncated(whole, folder / "unreadable.mp4")
    rows = [f"{path.name},{path.stem}" for path in sorted(folder.iterdir()) if path.stem != "whole"]
    rows += ["missing.mp4,missing", "cuts.mp4,cuts", "cuts.mp4,../../x", "cuts.mp4,one,too many"]
    (folder / "rows.csv").write_text("\n".join(["path,id", *rows]))
    return folder


@pytest.fixture(scope="module")
def ingested(media: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder after ingest. Read only: tests take copies."""
    run = tmp_path_factory.mktemp("ingested") / "run"
    hicom("ingest", run, media / "rows.csv", *LOCAL, *sets("select.random_rest=99", "select.quota=0"))
    return run


@pytest.fixture(scope="module")
def finished(ingested: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after the last stage. Read only: tests take copies."""
    run = copy_run(ingested, tmp_path_factory.mktemp("finished") / "run")
    hicom("run", "--out", run, *LOCAL)
    tables = read_tables(run)
    assert_balance(tables)
    assert {row["reason"] for row in tables.rows["rejects"] if row["stage"] == "embed"} == {"decode_failed"}
    return run


@pytest.fixture(autouse=True)
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Describers that go wrong, as a model family."""
    monkeypatch.setitem(registry.MODELS["describer"], "faulty", faulty_describer.FAMILY)


@contextmanager
def replaced(path: Path, data: bytes) -> Iterator[None]:
    """A file with other bytes for a while."""
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(data)
    yield
    if before is None:
        path.unlink()
    else:
        path.write_bytes(before)


def rejected(tables: Tables, stage: str, item: str, shot: int | None = None) -> list[str]:
    """The reasons that a stage gives for an item, or for one of its shots."""
    rejects = tables.rows["rejects"]
    return [row["reason"] for row in rejects if (row["stage"], row["id"], row["shot"]) == (stage, item, shot)]


def item_of(case: Case, tables: Tables) -> str:
    if case.stage not in ("generate", "clean"):
        return case.video
    [clip] = [row["clip_id"] for row in tables.rows["cut"] if row["video_id"] == case.video]
    return str(clip)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.stage}-{case.reason}")
def test_a_rule_rejects_and_without_it_the_reason_is_gone(case: Case, finished: Path, tmp_path: Path) -> None:
    run = copy_run(finished, tmp_path / "run")
    item = item_of(case, read_tables(run))
    hicom(case.stage, run, *LOCAL, *sets(case.on))
    tables = read_tables(run)
    assert rejected(tables, case.stage, item, case.shot) == [case.reason]
    assert_balance(tables, case.stage)
    hicom(case.stage, run, *LOCAL, *sets(case.off))
    tables = read_tables(run)
    assert rejected(tables, case.stage, item, case.shot) == []
    assert_balance(tables, case.stage)


def test_what_is_tried_again_is_told_by_its_attempts(finished: Path, tmp_path: Path) -> None:
    """An engine's failure may pass; a refusal will not."""
    run = copy_run(finished, tmp_path / "run")
    for reason, attempts in (("engine_error", 2), ("refused", 1)):
        hicom("generate", run, *LOCAL, *sets(FAULTY.format(reason)))
        said = hicom("rejects", run, "--stage", "generate", "--reason", reason, "--format", "json")
        assert {row["attempts"] for row in json.loads(said.out)} == {attempts}


@pytest.mark.parametrize("reason", MENDED_FILES)
def test_a_bad_file_is_rejected_and_once_mended_taken(reason: str, media: Path, ingested: Path, tmp_path: Path) -> None:
    run, key = copy_run(ingested, tmp_path / "run"), f"rows.csv/{reason}"
    assert rejected(read_tables(run), "ingest", key) == [reason]
    with replaced(media / f"{reason}.mp4", (media / "whole.mp4").read_bytes()):
        said = hicom("retry", run, "--reason", reason, *LOCAL)
    assert "1 items" in said.out
    tables = read_tables(run)
    assert rejected(tables, "ingest", key) == [] and reason in tables.ids("ingest")
    assert_balance(tables, "ingest")


@pytest.mark.parametrize(
    ("reason", "key", "line", "mended"),
    [
        ("duplicate_id", "rows.csv/cuts #2", "cuts.mp4,cuts\ncuts.mp4,../", "cuts.mp4,again\ncuts.mp4,../"),
        ("bad_id", "rows.csv/../../x", "cuts.mp4,../../x", "cuts.mp4,x"),
        ("bad_row", "rows.csv/:15", "cuts.mp4,one,too many", "cuts.mp4,one"),
    ],
)
def test_a_bad_row_is_rejected_and_once_mended_taken(
    reason: str, key: str, line: str, mended: str, media: Path, ingested: Path, tmp_path: Path
) -> None:
    run, manifest = copy_run(ingested, tmp_path / "run"), media / "rows.csv"
    tables = read_tables(run)
    assert rejected(tables, "ingest", key) == [reason]
    assert_balance(tables, "ingest")
    text = manifest.read_text()
    assert text.count(line) == 1
    with replaced(manifest, text.replace(line, mended).encode()):
        hicom("ingest", run, manifest, *LOCAL)
    after = read_tables(run)
    assert reason not in {row["reason"] for row in after.rows["rejects"]}
    assert len(after.rows["ingest"]) == len(tables.rows["ingest"]) + 1
    assert_balance(after, "ingest")


def test_a_file_without_a_frame_is_rejected_and_once_mended_taken(media: Path, ingested: Path, tmp_path: Path) -> None:
    """`embed` is the first to want a picture. Its index is sound, so `ingest` takes it."""
    run = copy_run(ingested, tmp_path / "run")
    hicom("embed", run, *LOCAL)
    tables = read_tables(run)
    assert tables.rejected("embed") == {"hollow": "decode_failed"}
    assert_balance(tables, "embed")
    with replaced(media / "hollow.mp4", (media / "whole.mp4").read_bytes()):
        hicom("retry", run, "--reason", "decode_failed", *LOCAL)
    tables = read_tables(run)
    assert tables.rejected("embed") == {} and "hollow" in tables.ids("embed")


def test_a_decoder_that_dies_costs_its_file(ingested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, faults = copy_run(ingested, tmp_path / "run"), Command(tmp_path / "faults")
    faults.rules({"decoder": "sample", "match": "disc", "how": "crash"})
    with monkeypatch.context() as env:
        env.setenv("HICOM_TEST_FAULTS", str(faults.faults))
        env.setenv("PYTHONPATH", str(FAULTS))
        hicom("embed", run, *LOCAL)
    tables = read_tables(run)
    assert tables.rejected("embed")["disc"] == "decoder_crashed"
    assert_balance(tables, "embed")
    hicom("retry", run, "--reason", "decoder_crashed", *LOCAL)
    tables = read_tables(run)
    assert "disc" not in tables.rejected("embed") and "disc" in tables.ids("embed")


def test_a_deadline_that_passes_costs_its_file(ingested: Path, tmp_path: Path) -> None:
    run = copy_run(ingested, tmp_path / "run")
    hicom("embed", run, *LOCAL, *sets("engine.deadline_base_s=0.000001", "engine.deadline_per_media_s=0"))
    tables = read_tables(run)
    assert set(tables.rejected("embed").values()) == {"timeout"} and not tables.rows["embed"]
    assert_balance(tables, "embed")
    hicom("embed", run, *LOCAL, *sets("engine.deadline_base_s=60"))
    assert set(read_tables(run).rejected("embed").values()) == {"timeout"}, "what is rejected is not tried unasked"
    hicom("retry", run, "--reason", "timeout", *LOCAL)
    tables = read_tables(run)
    assert tables.rejected("embed") == {"hollow": "decode_failed"}
    assert_balance(tables, "embed")


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_item(finished: Path, tmp_path: Path) -> None:
    run, command = copy_run(finished, tmp_path / "run"), Command(tmp_path / "faults")
    command.rules({"item": "split", "match": "disc"})
    command.run("split", run, *sets("split.threshold=30"))
    tables = read_tables(run)
    assert tables.rejected("split") == {"disc": "worker_crashed"}
    assert_balance(tables, "split")
    command.rules()
    command.run("retry", run, "--reason", "worker_crashed", *LOCAL)
    tables = read_tables(run)
    assert tables.rejected("split") == {} and "disc" in tables.ids("split")
    assert_balance(tables)
