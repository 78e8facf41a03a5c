"""Naming models and finding the code that knows them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import field

import pytest
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pipeline.models import registry
from pipeline.models.protocols import Card, FrameEmbedder, VideoTextEmbedder
from pipeline.models.spec import ModelSpec
from pipeline.stage import UserError


def test_key_names_the_weights_and_not_where_they_lie() -> None:
    here = ModelSpec(family="open_clip", name="ViT-L-14-336", revision="openai", path="/data/a")
    there = ModelSpec(family="open_clip", name="ViT-L-14-336", revision="openai", path="/mnt/b")
    assert here.key == there.key == "open_clip:ViT-L-14-336@openai"


def test_spec_reads_a_yaml_mapping() -> None:
    spec = TypeAdapter(ModelSpec).validate_python({"family": "builtin", "name": "visual", "revision": "1"})
    assert spec == ModelSpec(family="builtin", name="visual", revision="1")


@pytest.mark.parametrize(
    "mapping",
    [
        {"family": "builtin"},
        {"family": "builtin", "name": ""},
        {"family": "built:in", "name": "visual"},
        {"family": "builtin", "name": "visual", "weights": "x"},
        {"family": "builtin", "name": "visual", "revision": 1},
    ],
    ids=["no name", "empty name", "colon in family", "unknown key", "number as revision"],
)
def test_bad_spec_is_refused(mapping: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(ModelSpec).validate_python(mapping)


@pytest.mark.parametrize("role", list(registry.MODELS))
def test_unknown_family_names_the_known_ones(role: registry.Role) -> None:
    with pytest.raises(UserError, match=r"nosuch:x@: unknown family 'nosuch' .* known: builtin"):
        registry.card(role, ModelSpec(family="nosuch", name="x"))


@pytest.mark.parametrize(("role", "name"), [("video_text_embedder", "attributes"), ("frame_embedder", "visual")])
@pytest.mark.parametrize(("asked", "revision"), [("other", "1"), (None, ""), (None, "2")])
def test_builtin_models_are_pinned(role: registry.Role, name: str, asked: str | None, revision: str) -> None:
    spec = ModelSpec(family="builtin", name=asked or name, revision=revision)
    with pytest.raises(UserError, match=rf'write \{{family: builtin, name: {name}, revision: "1"\}}'):
        registry.card(role, spec)


def test_builtin_embedders_load() -> None:
    text: VideoTextEmbedder = registry.load_video_text_embedder(
        ModelSpec(family="builtin", name="attributes", revision="1")
    )
    frame: FrameEmbedder = registry.load_frame_embedder(ModelSpec(family="builtin", name="visual", revision="1"))
    assert (text.key, frame.key) == ("builtin:attributes@1", "builtin:visual@1")


@pytest.mark.parametrize(("role", "name"), [("video_text_embedder", "attributes"), ("frame_embedder", "visual")])
def test_a_card_tells_the_frames_that_are_wanted(role: registry.Role, name: str) -> None:
    card = registry.card(role, ModelSpec(family="builtin", name=name, revision="1"))
    assert isinstance(card, Card) and card.frames >= 1 and not card.reads_prompts
    assert card.frame_spec["width"] > 0 and card.frame_spec["height"] > 0


def test_registry_imports_no_model() -> None:
    code = (
        "import sys, pipeline.models.registry\n"
        "found = [m for m in sys.modules if m.startswith('pipeline.models.builtin') or m in ('torch', 'cv2', 'av')]\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_variant_is_part_of_the_key() -> None:
    spec = ModelSpec(family="open_clip", name="ViT-L-14-336", revision="openai", variant="cls")
    assert spec.key == "open_clip:ViT-L-14-336@openai#cls"


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TinyOptions:
    """Options of a made-up family."""

    temperature: float = 0.5
    replicas: int = field(default=1, metadata={"place": True})


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModelSpec]:
    """A spec of a made-up family of describers, with these options."""
    where = f"{__name__}:"
    family = registry.Family(where + "card", where + "load", where + "TinyOptions", where + "lacks")
    monkeypatch.setitem(registry.MODELS["describer"], "tiny", family)
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or sys.modules[TinyOptions.__module__])
    return lambda **options: ModelSpec(family="tiny", name="t", options=options)


def lacks(spec: ModelSpec) -> list[str]:
    return [f"{spec.name} needs a package"]


def test_options_are_the_familys_dataclass(tiny: Callable[..., ModelSpec]) -> None:
    assert registry.options("describer", tiny(temperature=1.0)) == TinyOptions(temperature=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 1.0}, r"model tiny:t@: unknown key describer's options.temprature; did you mean temperature\?"),
        ({"zzz": 1.0}, r"unknown key describer's options.zzz; known: temperature, replicas"),
        ({"replicas": "2"}, r"describer's options.replicas: Input should be a valid integer; got '2'"),
    ],
)
def test_bad_options_name_the_key(tiny: Callable[..., ModelSpec], options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.options("describer", tiny(**options))


def test_a_family_without_options_takes_none() -> None:
    spec = ModelSpec(family="builtin", name="observer", revision="1", options={"a": 1})
    with pytest.raises(UserError, match=r"the family 'builtin' takes no options; got \['a'\]"):
        registry.options("describer", spec)


def test_what_decides_results_is_in_the_identity_and_what_does_not_is_not(tiny: Callable[..., ModelSpec]) -> None:
    plain = registry.identity("describer", tiny())
    assert plain["model"] == "tiny:t@"
    assert registry.identity("describer", tiny(replicas=8)) == plain
    assert registry.identity("describer", tiny(temperature=0.5)) == plain
    assert registry.identity("describer", tiny(temperature=0.6)) != plain
    builtin = ModelSpec(family="builtin", name="observer", revision="1")
    assert registry.identity("describer", builtin) == {"model": builtin.key}


def test_what_is_lacking_is_the_familys_word(tiny: Callable[..., ModelSpec]) -> None:
    assert registry.lacks("describer", tiny()) == ["t needs a package"]
    assert registry.lacks("describer", ModelSpec(family="builtin", name="observer", revision="1")) == []


@pytest.mark.parametrize("role", list(registry.MODELS))
def test_every_name_in_the_registry_is_there(role: registry.Role) -> None:
    for family in registry.MODELS[role].values():
        for where in (family.card, family.load, family.options, family.lacks):
            if where is not None:
                module, _, name = where.partition(":")
                assert hasattr(importlib.import_module(module), name), where
