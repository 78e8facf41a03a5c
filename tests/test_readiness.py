"""What a run will lack is told before it begins."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import commands, readiness
from pipeline.commands import RunRequest
from pipeline.config import RunConfig, load_profile, parse
from pipeline.plan import PLAN
from pipeline.readiness import go_offline, is_offline, lacking_gpus, lacking_models, require_ready, unfit_settings
from pipeline.stage import UserError
from tests.command_line import hicom, refused
from tests.fake_driver import gpus, put_driver
from tests.models import tiny_internvideo2, tiny_open_clip
from tests.run_helpers import Silent, draw_videos, run_here

ALL = [stage.name for stage in PLAN]
COMMIT = "0" * 40
VIDEO = {"family": "internvideo2", "name": "OpenGVLab/InternVideo2-Stage2_1B-224p-f4", "revision": COMMIT}
SERVED = {"family": "openai", "name": "m", "options": {"base_url": "https://example.org/v1", "api_key_env": "NO_KEY"}}


def config(**models: Any) -> RunConfig:
    """The demo with other models."""
    values = load_profile("demo")
    return parse({**values, "models": {**values["models"], **models}}, {})


@pytest.fixture(autouse=True)
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cached weights, no key, and the environment as it was afterwards."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.delenv("NO_KEY", raising=False)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return partial(put_driver, tmp_path, monkeypatch)


# Models


def test_the_demo_lacks_nothing() -> None:
    assert lacking_models(config(), ALL) == lacking_gpus(config(), ALL) == unfit_settings(config(), ALL) == []


def test_only_the_models_of_stages_with_work_are_looked_for() -> None:
    lacking = partial(lacking_models, config(describer=SERVED))
    assert lacking(["split", "clean"]) == lacking(["scan"]) == []
    (line,) = lacking(["scan", "generate"])
    assert line.startswith("no key for https://example.org/v1; run: export NO_KEY=")


def test_weights_are_lacking_only_where_they_cannot_be_downloaded() -> None:
    pytest.importorskip("torch")
    models = config(video_text=VIDEO)
    assert lacking_models(models, ["embed"]) == []
    go_offline()
    lines = lacking_models(models, ["embed", "select"])
    assert len(lines) == 2, "weights and vocabulary, once for both stages"
    assert all("run once without --offline, or `hf download" in line for line in lines)


@pytest.mark.parametrize("profile", ["hicom248k", "small"])
def test_a_shipped_profile_stops_for_weights_only_when_it_may_not_download_them(profile: str) -> None:
    for package in ("vllm", "open_clip", "transformers"):
        pytest.importorskip(package)
    made = parse(load_profile(profile), {})
    assert lacking_models(made, ALL) == []
    go_offline()
    assert len(lacking_models(made, ALL)) == {"hicom248k": 4, "small": 2}[profile], "each once"


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("true", True), ("0", False), ("", False), (None, False)])
def test_offline_is_read_as_the_hubs_client_reads_it(
    monkeypatch: pytest.MonkeyPatch, value: str | None, offline: bool
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    if value is not None:
        monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert is_offline() is offline


def test_on_a_cluster_only_what_the_driver_loads_is_looked_for_here(monkeypatch: pytest.MonkeyPatch) -> None:
    lacked: list[str] = []
    monkeypatch.setattr("pipeline.models.registry.lacks", lambda role, spec: lacked.append(role) or [])
    require_ready(config(), ALL, elsewhere=True, reserved=True)
    assert lacked == ["video_text_embedder"]
    lacked.clear()
    require_ready(config(), ["scan", "generate"], elsewhere=True, reserved=True)
    assert lacked == []
    require_ready(config(), ALL, elsewhere=False, reserved=True)
    assert lacked == ["video_text_embedder", "frame_embedder", "describer"]


# GPUs


@pytest.mark.parametrize(
    ("options", "there", "complaint"),
    [
        ({"gpus": 1}, 1, None),
        ({"gpus": 0.5, "replicas": 2}, 1, None),
        ({"gpus": 0}, 0, None),
        (
            {"gpus": 1},
            0,
            "models.video_text reserves 1 GPUs, and this machine has 0: --set models.video_text.options.gpus",
        ),
        ({"gpus": 1, "replicas": 4}, 2, "reserves 1 GPUs for each of 4 processes, and this machine has 2"),
    ],
)
def test_more_gpus_than_there_are_would_be_waited_for_in_vain(
    driver: Callable[..., None], options: dict[str, Any], there: int, complaint: str | None
) -> None:
    driver(gpus(there) if there else None)
    lines = lacking_gpus(config(video_text={**VIDEO, "options": options}), ["embed"])
    assert (complaint is None and lines == []) or (complaint is not None and complaint in lines[0])


def test_gpus_that_cannot_be_counted_are_told(driver: Callable[..., None]) -> None:
    driver("Driver/library version mismatch\n", 18)
    (line,) = lacking_gpus(config(video_text={**VIDEO, "options": {"gpus": 1}}), ["embed"])
    assert line == "this machine's GPUs cannot be counted: nvidia-smi: Driver/library version mismatch"


def test_gpus_count_only_where_they_are_reserved(driver: Callable[..., None]) -> None:
    pytest.importorskip("torch")
    driver(None)
    models = config(video_text={**VIDEO, "options": {"gpus": 1}})
    require_ready(models, ["embed"], elsewhere=False, reserved=False)
    require_ready(models, ["embed"], elsewhere=True, reserved=True)
    require_ready(models, ["select"], elsewhere=False, reserved=True)
    with pytest.raises(UserError, match=r"cannot be finished as it is:\n  models.video_text reserves 1 GPUs"):
        require_ready(models, ["embed"], elsewhere=False, reserved=True)


# Settings


def test_sentences_that_the_built_in_embedder_cannot_judge_are_told_before_it_embeds() -> None:
    values = {**load_profile("demo"), "select": {"categories": "categories"}}
    (line,) = unfit_settings(parse(values, {}), ["embed", "select"])
    assert "A video about cooking activity." in line
    assert unfit_settings(parse(values, {}), ["scan"]) == []


def test_a_frame_embedder_without_a_threshold_is_told_before_it_scans() -> None:
    frame = {"family": "open_clip", "name": "ViT-B-32", "revision": "openai"}
    (line,) = unfit_settings(config(frame=frame), ["scan", "dedup"])
    assert line.startswith("dedup: no keep threshold for the frame embedder open_clip:ViT-B-32@openai")
    assert unfit_settings(config(frame=frame), ["scan"]) == [], "scan alone needs none"


# Commands


@pytest.fixture
def profile(tmp_path: Path) -> str:
    """The demo with the 29 sentences and an endpoint that wants a key."""
    values = load_profile("demo")
    values["models"]["describer"] = SERVED
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**values, "select": {"categories": "categories"}}))
    return str(path)


def test_a_run_that_cannot_be_finished_stops_before_any_work_with_a_line_for_each_reason(
    tmp_path: Path, profile: str
) -> None:
    videos, run = draw_videos(tmp_path / "videos"), tmp_path / "run"
    said = refused("run", videos, "--out", run, "--profile", profile, "--engine", "local")
    first, *lines = said.splitlines()
    assert first == "error: this run cannot be finished as it is:"
    assert [line.split()[0] for line in lines] == ["no", "category"]
    assert not (run / "tables" / "ingest").exists()


def test_stages_that_need_nothing_of_it_run(tmp_path: Path, profile: str) -> None:
    videos, run = draw_videos(tmp_path / "videos"), tmp_path / "run"
    hicom("ingest", run, videos, "--profile", profile, "--engine", "local")
    hicom("embed", run, "--engine", "local")
    assert "category 'A video about cooking activity.'" in refused("select", run, "--engine", "local")


def test_a_finished_run_needs_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is looked at, exported or cleaned again, the weights need not be."""
    videos, run = draw_videos(tmp_path / "videos"), tmp_path / "run"
    run_here(run, videos, profile="demo")
    asked: list[list[str]] = []
    monkeypatch.setattr(commands, "require_ready", lambda config, stages, **how: asked.append(list(stages)))
    again = RunRequest(str(run), engine="local")
    commands.run(again, Silent())
    commands.run(RunRequest(str(run), engine="local", sets=("clean.min_answer_words=9",)), Silent())
    commands.run(RunRequest(str(run), engine="local", sets=("split.threshold=30",)), Silent())
    assert asked == [[], ["clean", "export"], ALL[ALL.index("split") :]]


def test_a_run_whose_models_are_gone_can_be_looked_at(tmp_path: Path) -> None:
    """No weights, no package, no network."""
    videos, run, place = draw_videos(tmp_path / "videos"), tmp_path / "run", tmp_path / "models"
    place.mkdir()
    tiny_internvideo2.write_size(place, tiny_internvideo2.TINY)
    (place / "open_clip_config.json").write_text(json.dumps({"model_cfg": tiny_open_clip.MODEL}))
    own = {"name": "own", "path": str(place)}
    values = load_profile("demo")
    values["models"]["video_text"] = {"family": "internvideo2", **own}
    values["models"]["frame"] = {"family": "open_clip", **own}
    profile = tmp_path / "mine.yaml"
    profile.write_text(yaml.safe_dump(values))
    hicom("ingest", run, videos, "--profile", profile, "--engine", "local")
    shutil.rmtree(place)
    assert "ingest" in hicom("status", run).out
    hicom("rejects", run)
    hicom("query", run, "SELECT count(*) FROM ingest")
    hicom("stats", run)
    hicom("gc", run)
    written = (run / "run.yaml").read_bytes()
    for command in (("run", videos, "--out", run, "--engine", "local"), ("plan", "--profile", profile)):
        assert "model internvideo2:own@: not a published one" in refused(*command)
    assert (run / "run.yaml").read_bytes() == written


def test_the_option_offline_holds_for_the_command_and_what_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = draw_videos(tmp_path / "videos")
    seen: list[str | None] = []
    monkeypatch.setattr(commands, "require_ready", lambda *told, **how: seen.append(os.environ.get(readiness.OFFLINE)))
    for index, more in enumerate([(), ("--offline",)]):
        hicom("ingest", tmp_path / f"run{index}", videos, "--engine", "local", *more)
    assert seen == ["0", "1"]
