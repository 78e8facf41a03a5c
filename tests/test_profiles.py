"""The profiles that are shipped: whole, checked, pinned, and every figure with a word on where it is from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import ROLES, RunConfig, load_profile, parse, profile_names
from pipeline.models import registry, weights
from pipeline.models.open_clip import tags as open_clip_tags
from pipeline.plan import PLAN, check
from pipeline.readiness import unfit_settings
from pipeline.resources import resource
from pipeline.stages.select import SelectConfig

REAL = ("hicom248k", "small")
COMMIT = re.compile(r"[0-9a-f]{40}")


def config(name: str, **sets: Any) -> RunConfig:
    return parse(load_profile(name), sets)


def path(name: str) -> Path:
    return resource("manifests", f"{name}.profile.yaml")


def test_the_three_profiles_are_shipped() -> None:
    assert profile_names() == ["demo", "hicom248k", "small"]


@pytest.mark.parametrize("name", profile_names())
def test_a_profile_parses_its_options_check_and_its_plan_holds(name: str) -> None:
    made = config(name)
    for field, role in ROLES.items():
        registry.options(role, getattr(made.models, field))
    check([type(stage) for stage in made.stages()])
    assert [stage.name for stage in made.stages()] == [stage.name for stage in PLAN]


@pytest.mark.parametrize("name", profile_names())
def test_nothing_in_a_profile_contradicts_the_rest_of_it(name: str) -> None:
    assert unfit_settings(config(name), [stage.name for stage in PLAN]) == []


@pytest.mark.parametrize("name", REAL)
def test_every_model_has_a_card_without_its_weights_and_a_pinned_revision(name: str) -> None:
    models = config(name).models
    for field, role in ROLES.items():
        spec = getattr(models, field)
        registry.card(role, spec)
        tag = open_clip_tags.tags(spec.name)[spec.revision] if spec.family == "open_clip" else None
        assert COMMIT.fullmatch(weights.COMMITS[tag.repo] if tag else spec.revision), spec.key


def test_the_paper_profiles_models_are_the_papers() -> None:
    models = config("hicom248k").models
    assert models.video_text.key.startswith("internvideo2:OpenGVLab/InternVideo2-Stage2_1B-224p-f4@")
    assert models.frame.key == "open_clip:ViT-L-14-336@openai#cls"
    assert models.describer.key.startswith("vllm:Qwen/Qwen2-VL-72B-Instruct@")
    assert registry.card("video_text_embedder", models.video_text).frames == 4
    assert registry.card("frame_embedder", models.frame).frame_spec["width"] == 336
    assert registry.card("describer", models.describer).gpus == 4


def test_the_paper_profiles_figures_are_the_defaults_which_carry_the_papers_sections() -> None:
    values = load_profile("hicom248k")
    defaults = SelectConfig.__dataclass_fields__  # type: ignore[attr-defined]
    assert values["select"] == {"quota": defaults["quota"].default, "random_rest": defaults["random_rest"].default}
    assert set(values) == {"models", "select", "engine"}, "whatever else is set needs a reason, and a line here"
    assert set(values["engine"]) == {"in_flight_bytes"}
    assert values["engine"]["in_flight_bytes"] >= 4 * 116_000_000, "several clips are on their way at once"
    assert values["models"]["frame"]["revision"] == "openai"


def test_the_papers_frame_embedder_has_the_published_threshold_and_the_small_one_says_it_has_none() -> None:
    assert config("hicom248k").dedup.thresholds["open_clip:ViT-L-14-336@openai#cls"] == 0.93
    small = config("small")
    assert small.models.frame.key in load_profile("small")["dedup"]["thresholds"]
    assert "NOT MEASURED" in path("small").read_text()


def test_the_small_profile_runs_on_one_gpu() -> None:
    models = config("small").models
    assert {registry.card(role, getattr(models, field)).gpus for field, role in ROLES.items()} == {1.0}


def test_the_endpoint_that_the_small_profile_describes_in_a_comment_is_one(tmp_path: Path) -> None:
    text = path("small").read_text()
    start = text.index("  describer:\n    family: vllm")
    commented = text[text.index("  # describer:") :]
    block = re.match(r"  # describer:\n(  #   .*\n)+", commented)
    assert block is not None
    mine = tmp_path / "mine.yaml"
    endpoint = re.sub(r"^  # ", "  ", block.group(), flags=re.M)
    mine.write_text(text[:start] + endpoint + text[text.index("dedup:\n") :])
    made = config(str(mine))
    assert made.models.describer.family == "openai"
    assert registry.card("describer", made.models.describer).gpus == 0


@pytest.mark.parametrize("name", REAL)
def test_every_figure_is_commented(name: str) -> None:
    """A line that sets a number or a revision has its reason on it or in the comment above its block."""
    lines = path(name).read_text().splitlines()
    for index, line in enumerate(lines):
        if re.match(r"^\s+[^#]*: (?:[0-9][0-9.]*|[0-9a-f]{40})\s*(?:#.*)?$", line) and "#" not in line:
            above = next(text for text in reversed(lines[:index]) if "#" in text or text.startswith("models:"))
            assert "#" in above, line


@pytest.mark.parametrize("name", REAL)
def test_the_commands_in_a_profiles_comments_are_real(name: str) -> None:
    text = path(name).read_text()
    assert f"hicom doctor --profile {name}" in text and f"--profile {name} --out RUN" in text
    for setting in re.findall(r"--set (models\.[a-z_.]+=\d+)", text):
        key, _, value = setting.partition("=")
        parse(yaml.safe_load(text), {key: int(value)})
