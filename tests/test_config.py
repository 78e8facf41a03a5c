"""Reading a config: strict, with words that name the key; and what differs between two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import (
    MODEL_OF_STAGE,
    RunConfig,
    differences,
    load_profile,
    parse,
    parse_overrides,
    profile_names,
)
from pipeline.models.spec import ModelSpec
from pipeline.plan import PLAN
from pipeline.stage import UserError


def demo(*sets: str) -> RunConfig:
    return parse(load_profile("demo"), parse_overrides(sets))


def refusal(*sets: str) -> str:
    with pytest.raises(UserError) as caught:
        demo(*sets)
    return str(caught.value)


# Profiles


@pytest.mark.parametrize("name", profile_names())
def test_a_shipped_profile_is_whole(name: str) -> None:
    made = parse(load_profile(name), {})
    assert [stage.name for stage in made.stages()] == [stage.name for stage in PLAN]
    assert all(isinstance(stage, cls) for stage, cls in zip(made.stages(), PLAN, strict=True))


def test_the_demo_is_shipped() -> None:
    assert "demo" in profile_names()


def test_a_profile_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(load_profile("demo") | {"split": {"threshold": 31}}))
    assert parse(load_profile(str(path)), {}).split.threshold == 31


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("demmo", None, r"no profile 'demmo'; there are: demo.*; or give a path ending in .yaml"),
        ("../secrets", None, "no profile '../secrets'"),
        ("none.yaml", None, "cannot read .*none.yaml: No such file"),
        ("bad.yaml", b"a: [", "bad.yaml is not YAML"),
        ("bytes.yaml", b"\xff\xfe\x00", "bytes.yaml is not YAML"),
        ("list.yaml", b"- a\n- b\n", "must hold a mapping, got list"),
        ("empty.yaml", b"", "must hold a mapping, got NoneType"),
        ("object.yaml", b"!!python/object/apply:os.getcwd []", "object.yaml is not YAML"),
    ],
)
def test_a_profile_that_cannot_be_used_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_profile(name)


# Overrides


def test_values_of_overrides_are_yaml() -> None:
    texts = ["split.threshold=30", "cut.mode='copy'", "clean.disabled_rules=[yes_no]", "generate.frames=null"]
    assert parse_overrides([*texts, "sources.id_column=a=b", "sources.pattern={videoID}.*"]) == {
        "split.threshold": 30,
        "cut.mode": "copy",
        "clean.disabled_rules": ["yes_no"],
        "generate.frames": None,
        "sources.id_column": "a=b",
        "sources.pattern": "{videoID}.*",
    }


@pytest.mark.parametrize("text", ["split.threshold", "threshold=30", "=3", ""])
def test_an_override_that_is_none_is_told(text: str) -> None:
    with pytest.raises(UserError, match="--set"):
        parse_overrides([text])


def test_the_last_of_two_overrides_counts() -> None:
    assert demo("split.threshold=30", "split.threshold=31").split.threshold == 31


def test_an_override_reaches_into_a_section_that_the_profile_leaves_out() -> None:
    assert demo("filter.min_s=3", "engine.attempts=4").filter.min_s == 3


def test_the_profile_is_not_changed_by_overrides() -> None:
    profile = load_profile("demo")
    parse(profile, {"select.quota": 7, "models.frame.path": "/x"})
    assert profile == load_profile("demo")


def test_an_override_below_a_value_is_told() -> None:
    assert refusal("select.quota.x=3") == "--set select.quota.x: quota is a value, not a section"


# What is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("split.treshold=30", "config: unknown key split.treshold; did you mean threshold?"),
        ("spilt.threshold=30", "config: unknown key spilt; did you mean split?"),
        ("models.frame.pth=x", "config: unknown key models.frame.pth; did you mean path?"),
        ("models.framer.path=x", "config: unknown key models.framer; did you mean frame?"),
        ("filter.zzz=1", "config: unknown key filter.zzz; known keys: min_s, max_s"),
        ("ingest.anything=1", "config: unknown key ingest.anything; known keys: none"),
        ("embed.model={family: builtin}", "config: embed.model is not set by itself; set models.video_text"),
        ("generate.model=x", "config: generate.model is not set by itself; set models.describer"),
        ("models.frame.family=Built-In", "config: models.frame.family: String should match pattern"),
        ("models.frame.family=null", "config: models.frame.family: Input should be a valid string; got None"),
        ("split.threshold=abc", "config: split.threshold: Input should be a valid number; got 'abc'"),
        ("split.threshold=-1", "config: split.threshold: Input should be greater than 0; got -1"),
        ("split.threshold=.nan", "config: split.threshold: "),
        ("select.quota=2.5", "config: select.quota: Input should be a valid integer; got 2.5"),
        ("cut.mode=fast", "config: cut.mode: Input should be 'auto', 'exact', 'copy' or 'virtual'; got 'fast'"),
        ("filter.min_s=200", "config: filter: min_s 200.0 is above max_s 120.0: no shot could pass"),
        ("clean.disabled_rules=[nope]", "config: clean.disabled_rules: unknown rules nope; known: "),
        ("engine.attempts=0", "config: engine.attempts: Input should be greater than or equal to 1; got 0"),
    ],
)
def test_a_wrong_value_is_named(text: str, message: str) -> None:
    assert refusal(text).startswith(message)


@pytest.mark.parametrize(
    "text",
    [
        "split.threshold='30'",
        "split.threshold=true",
        "engine.attempts=true",
        "export.embed_video_bytes=1",
        "export.embed_video_bytes='yes'",
        "sources.id_column=5",
        "clean.disabled_rules=yes_no",
        "select.quota=[1]",
    ],
)
def test_values_of_another_kind_are_not_bent_into_shape(text: str) -> None:
    path = text.partition("=")[0]
    assert refusal(text).startswith(f"config: {path}: Input should be a valid")


def test_every_wrong_key_is_told_at_once_and_each_once() -> None:
    lines = refusal("split.threshold=x", "cut.crf=x", "models.frame.name=5", "models.describer.nmae=x").splitlines()
    assert len(lines) == len(set(lines)) == 4
    told = {
        line.removeprefix("config: unknown key ").removeprefix("config: ").split()[0].rstrip(":;") for line in lines
    }
    assert told == {"models.frame.name", "models.describer.nmae", "split.threshold", "cut.crf"}


@pytest.mark.parametrize(
    ("tree", "messages"),
    [
        ({}, {"config: models is missing"}),
        ({"models": None}, {"config: models: Input should be an object; got None"}),
        ({"models": {"frame": {"family": "builtin", "name": "visual"}}}, {"config: models.video_text is missing"}),
        ({**load_profile("demo"), "split": 5}, {"config: split: Input should be an object; got 5"}),
        ({**load_profile("demo"), "embed": 0}, {"config: embed must be a mapping, got 0"}),
        ({**load_profile("demo"), "scan": ["x"]}, {"config: scan must be a mapping, got ['x']"}),
    ],
)
def test_a_section_that_is_missing_or_no_section_is_named(tree: dict[str, Any], messages: set[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse(tree, {})
    lines = str(caught.value).splitlines()
    assert messages <= set(lines)
    assert not any(".model" in line for line in lines), "a stage's model is told where it is set: under models"


def test_an_empty_section_of_a_stage_with_a_model_is_its_defaults() -> None:
    assert parse({**load_profile("demo"), "embed": None}, {}).embed.frames is None


@pytest.mark.parametrize(
    ("interval_s", "grid_s", "fits"), [(2, 0.5, True), (0.3, 0.1, True), (2, 0.3, False), (0.25, 0.5, False)]
)
def test_candidates_lie_on_the_grid(interval_s: float, grid_s: float, fits: bool) -> None:
    sets = (f"dedup.candidate_interval_s={interval_s}", f"scan.grid_interval_s={grid_s}")
    if fits:
        demo(*sets)
    else:
        assert "the one must be a whole multiple of the other" in refusal(*sets)


# Models, round trips, differences


def test_stages_are_given_their_models() -> None:
    made = demo("models.frame.path=/weights")
    assert made.scan.model == ModelSpec(family="builtin", name="visual", revision="1", path="/weights")
    for stage, role in MODEL_OF_STAGE.items():
        assert getattr(made, stage).model == getattr(made.models, role)


@pytest.mark.parametrize(
    "sets",
    [
        (),
        ("split.threshold=30", "clean.disabled_rules=[yes_no, repeated]"),
        ("dedup.thresholds={'open_clip:X@y': 0.5}", "select.categories=categories", "models.frame.path=/w"),
        ("engine.part_seconds=0.1", "sources.adapter=panda70m", "export.title='a: b #c'"),
    ],
)
def test_a_config_is_read_back_as_it_was_written(sets: tuple[str, ...]) -> None:
    made = demo(*sets)
    written = yaml.safe_load(yaml.safe_dump(made.to_plain()))
    assert parse(written, {}) == made
    assert parse(written, {}).to_plain() == made.to_plain()
    assert all("model" not in written[stage] for stage in MODEL_OF_STAGE)


def test_the_recipe_tells_no_place_and_nothing_that_does_not_decide_results() -> None:
    recipe = demo("models.frame.path=/secret/weights", "select.categories=categories").recipe()
    assert "engine" not in recipe and "sources" not in recipe
    assert "/secret" not in yaml.safe_dump(recipe) and "categories" not in recipe["select"]
    assert recipe["models"]["frame"]["name"] == "visual"


def test_differences_are_named_by_their_path() -> None:
    before = {"a": {"b": 1, "c": [1, 2]}, "d": None, "same": {"x": 1}}
    after = {"a": {"b": 2, "c": [1, 3]}, "d": {"e": 1}, "same": {"x": 1}, "new": 5}
    assert differences(before, after) == {
        "a.b": (1, 2),
        "a.c": ([1, 2], [1, 3]),
        "d": (None, {"e": 1}),
        "new": (None, 5),
    }
    assert differences(before, before) == {}
