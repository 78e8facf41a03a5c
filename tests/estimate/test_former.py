"""A former run speaks for a config where their settings are the same, and says where they are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from pipeline.config import RunConfig
from pipeline.estimate.asked import asked
from pipeline.estimate.figures import reckon
from pipeline.estimate.former import measure
from pipeline.estimate.headers import read_headers
from pipeline.estimate.rates import Rates, assumed_rates
from pipeline.plan import PLAN
from pipeline.query import open_query
from pipeline.session import read_session
from pipeline.stage import UserError
from tests.estimate.inputs import config
from tests.run_helpers import KEEP_ALL, draw_videos, run_here

THROUGH_SELECT = ("ingest", "embed", "select")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_videos(tmp_path_factory.mktemp("former") / "videos")


@pytest.fixture(scope="module")
def run(videos: Path) -> Path:
    """A finished run of the demo's models on them. Read only: tests share it."""
    run_here(videos.parent / "run", videos)
    return videos.parent / "run"


@pytest.fixture(scope="module")
def begun(videos: Path) -> Path:
    """A run that has gone as far as select. Read only."""
    run_here(videos.parent / "begun", videos, stages=THROUGH_SELECT)
    return videos.parent / "begun"


def measured(run: Path, *sets: str, base: RunConfig | None = None) -> Rates:
    return measure(str(run), base or config("demo", *KEEP_ALL, *sets), assumed_rates())


def names(rates: Rates) -> set[str]:
    return {name for name, rate in rates.named.items() if rate.measured}


def test_a_finished_run_measures_all_that_a_run_without_gpu_and_tokens_can(run: Path) -> None:
    rates = measured(run)
    assert rates.not_taken == ()
    assert names(rates) == {
        *("embeddable", "clips_share", "clip_s", "cores", "scan_frames_per_core_s"),
        *("embed_frames", "scan_frames", "cut_frames", "generate_frames"),
        *(f"{stage}_core_s" for stage in ("ingest", "embed", "scan", "shots", "cut", "generate", "clean")),
        *("clip_bytes", "video_row_bytes", "picture_row_bytes", "clip_row_bytes"),
    }
    for name in names(rates) - {"cores"}:
        rate = rates.named[name]
        assert rate.low < rate.value < rate.high, "never better known than 10%"
        assert str(run) in rate.source


def test_it_foretells_itself(run: Path, videos: Path) -> None:
    """The arithmetic of the estimate, on the run's own rates and inputs, comes back to the run."""
    ask = config("demo", *KEEP_ALL)
    headers = read_headers([str(videos)], ask)
    figures = {figure.name: figure.value for figure in reckon(headers, asked(ask), measured(run))}
    con = open_query(read_session(str(run)))
    [(clips, seconds, size)] = con.execute("SELECT count(*), sum(clip_s), sum(clip_bytes) FROM cut").fetchall()
    frames = dict(con.execute("SELECT stage, sum(frames_decoded) FROM metrics GROUP BY stage").fetchall())
    con.close()
    assert headers.broken == {"not_video": 1}
    assert figures["videos selected"] == 6
    assert figures["clips"] == pytest.approx(clips, rel=0.02)
    assert figures["length of all clips"] == pytest.approx(seconds / 3600, rel=0.02)
    assert figures["size of clips"] == pytest.approx(size, rel=0.02)
    for stage in ("embed", "scan", "cut", "generate"):
        assert figures[f"frames decoded in {stage}"] == pytest.approx(frames[stage], rel=0.02)
    assert figures["time on the machine of the former run"] == figures["core time"], "the local engine has one worker"


def test_clips_are_as_long_as_they_were(run: Path) -> None:
    lengths = measured(run).clip_lengths
    assert len(lengths) == 16 and list(lengths) == sorted(lengths)
    assert lengths[0] >= 5.4 and 10 < lengths[-1] <= 12.0, "seven clips of about 6 s, one of 12 s"


def test_other_thresholds_make_another_share_of_clips_but_no_other_speed(run: Path) -> None:
    rates = measured(run, "split.threshold=27")
    left = {"clips_share", "clip_s", "shots_core_s"}
    assert left & names(rates) == set() and {"scan_core_s", "cut_core_s", "embed_frames"} <= names(rates)
    assert rates.clip_lengths == ()
    assert rates.not_taken == ("clips_share shots_core_s clip_s: split.threshold was 45.0, is 27.0",)


def test_other_models_have_other_speeds_and_tokens(run: Path) -> None:
    """Token rates do not transfer, and neither does the time of a stage that holds a model."""
    rates = measured(run, base=config("hicom248k"))
    taken = names(rates)
    assert {
        "scan_core_s",
        "embed_core_s",
        "generate_core_s",
        "clips_share",
        "clip_s",
        "clip_row_bytes",
    } & taken == set()
    assert {"ingest_core_s", "cut_core_s", "cut_frames", "scan_frames", "embeddable", "clip_bytes"} <= taken
    said = {name: why for line in rates.not_taken for names, _, why in [line.partition(": ")] for name in names.split()}
    assert said["generate_core_s"] == "generate.model.family was 'builtin', is 'vllm'"
    assert said["scan_core_s"] == said["clips_share"] == "scan.model.family was 'builtin', is 'open_clip'"
    assert "qa_prompt_tokens" not in said, "the built-in describer had none to tell of"


def test_places_are_not_settings(run: Path) -> None:
    assert measured(run, "engine.attempts=5", "select.categories=categories-demo").not_taken == ()


def test_a_run_that_has_not_come_far_measures_what_it_has(begun: Path) -> None:
    rates = measured(begun)
    assert {"embeddable", "embed_frames", "ingest_core_s", "embed_core_s"} <= names(rates)
    assert {"generate_core_s", "clips_share", "clip_s", "clip_bytes", "scan_core_s"} & names(rates) == set()
    [none] = rates.not_taken
    assert {"generate_core_s", "clip_bytes"} < set(none.split()) and none.endswith(": nothing to measure it on")
    assert rates.clip_lengths == ()


def test_a_run_whose_machine_is_not_known_measures_no_time(run: Path, tmp_path: Path) -> None:
    """On a cluster, or made before runs noted it."""
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    record = yaml.safe_load((copy / "run.yaml").read_text())
    assert record.pop("ran_on") == {stage.name: {"engine": "local", "cores": 1} for stage in PLAN}
    (copy / "run.yaml").write_text(yaml.safe_dump(record))
    rates = measured(copy)
    assert not [name for name in names(rates) if name.endswith("_s") and name != "clip_s"]
    assert "cores" not in names(rates) and "clips_share" in names(rates)
    [unknown] = rates.not_taken
    assert "scan_core_s" in unknown and unknown.endswith(
        ": the run did not note how many cores it had, or it went on with others"
    )


def test_time_is_read_with_the_cores_of_its_own_stage(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    record = yaml.safe_load((copy / "run.yaml").read_text())
    record["ran_on"]["scan"] = {"engine": "ray", "cores": 96}
    record["ran_on"]["dedup"] = {"engine": "ray", "cores": 2}
    (copy / "run.yaml").write_text(yaml.safe_dump(record))
    before, after = measured(run), measured(copy)
    assert after("scan_core_s") == pytest.approx(96 * before("scan_core_s"))
    assert after("cut_core_s") == pytest.approx(before("cut_core_s"))
    assert "shots_core_s" not in names(after), "its stages had different ones"
    assert "cores" not in names(after), "there is no one machine whose hours could be told"


def test_what_is_no_run_folder_is_the_users_mistake(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=rf"--rates {folder}: .* is not a run folder: it has no run.yaml"):
            measure(str(folder), config(), assumed_rates())


def test_a_damaged_run_folder_is_told(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    for part in (copy / "tables/cut").glob("*.parquet"):
        part.write_bytes(b"PAR1 of old")
    with pytest.raises(UserError, match=rf"--rates {copy}: "):
        measured(copy)


def test_an_empty_run_has_nothing_to_say(videos: Path, tmp_path: Path) -> None:
    poem = tmp_path / "poem.mp4"
    poem.write_text("not a video")
    run_here(tmp_path / "run", poem, stages=("ingest",))
    rates = measured(tmp_path / "run")
    assert names(rates) == {"ingest_core_s", "cores"}
