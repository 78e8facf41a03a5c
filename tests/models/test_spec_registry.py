"""Naming models and finding the code that knows them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

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
