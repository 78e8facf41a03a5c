"""What is known of an open_clip model before it is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pipeline.media.frames import FrameSpec
from pipeline.models import registry
from pipeline.models.open_clip import config as open_clip_config
from pipeline.models.spec import ModelSpec
from pipeline.stage import UserError
from tests.models.tiny_open_clip import MODEL, PREPROCESS

pytestmark = pytest.mark.skipif(find_spec("open_clip") is None, reason="needs the extra models")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def any_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every tag's commit were known."""
    monkeypatch.setattr(open_clip_config, "_require_pinned", lambda spec, repo: None)


def _spec(name: str = "ViT-B-32", revision: str = "laion2b_s34b_b79k", **more: Any) -> ModelSpec:
    return ModelSpec(family="open_clip", name=name, revision=revision, **more)


def _folder(place: Path, *files: str, **preprocess: Any) -> Path:
    place.mkdir(exist_ok=True)
    config = {"model_cfg": MODEL, "preprocess_cfg": {**PREPROCESS, **preprocess}}
    (place / "open_clip_config.json").write_text(json.dumps(config))
    for file in files:
        (place / file).touch()
    return place


@pytest.mark.usefixtures("any_tag")
@pytest.mark.parametrize(
    ("name", "revision", "expected"),
    [
        ("ViT-L-14-336", "openai", FrameSpec(336, 336, "shortest_side_center_crop", "bicubic")),
        ("ViT-B-16-SigLIP2-384", "webli", FrameSpec(384, 384, "stretch", "bicubic")),
        ("MobileCLIP2-S0", "dfndr2b", FrameSpec(256, 256, "shortest_side_center_crop", "bilinear")),
    ],
)
def test_a_tags_card_tells_its_own_preprocessing(name: str, revision: str, expected: FrameSpec) -> None:
    for role in ("frame_embedder", "video_text_embedder"):
        card = registry.card(role, _spec(name, revision))
        assert FrameSpec.from_json(card.frame_spec) == expected


@pytest.mark.usefixtures("any_tag")
def test_every_tag_has_a_card() -> None:
    from pipeline.models.open_clip.tags import architectures, tags

    specs = [_spec(name, tag) for name in architectures() for tag in tags(name)]
    assert len(specs) > 150
    for spec in specs:
        assert registry.card("frame_embedder", spec).frame_spec["width"] >= 224


def test_a_folders_card_tells_its_configs_preprocessing(tmp_path: Path) -> None:
    place = _folder(tmp_path / "a", resize_mode="longest", interpolation="bilinear")
    expected = FrameSpec(32, 32, "pad", "bilinear")
    for spec in (_spec("own", "1", path=str(place)), _spec(f"local-dir:{place}", "")):
        assert FrameSpec.from_json(registry.card("frame_embedder", spec).frame_spec) == expected


def test_a_card_tells_what_the_options_reserve(tmp_path: Path) -> None:
    place = _folder(tmp_path / "a")
    card = registry.card("video_text_embedder", _spec(path=str(place), options={"gpus": 0.5, "replicas": 3}))
    assert (card.gpus, card.replicas, card.frames) == (0.5, 3, 4)


def test_a_card_imports_neither_torch_nor_open_clip(tmp_path: Path) -> None:
    place = _folder(tmp_path / "a")
    code = f"""
import sys
from pipeline.models import registry
from pipeline.models.spec import ModelSpec
for role in ("frame_embedder", "video_text_embedder"):
    registry.card(role, ModelSpec(family="open_clip", name="ViT-L-14-336", revision="openai"))
    registry.card(role, ModelSpec(family="open_clip", name="own", path={str(place)!r}))
    registry.lacks(role, ModelSpec(family="open_clip", name="ViT-L-14-336", revision="openai"))
found = {{"torch", "open_clip", "transformers", "torchvision"}} & set(sys.modules)
assert not found, found
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "revision", "complaint"),
    [
        ("ViT-L-14-366", "openai", "no architecture 'ViT-L-14-366'; did you mean ViT-L-14-336?"),
        ("ViT-B/32", "openai", "no architecture 'ViT-B/32'; did you mean ViT-B-32?"),
        ("quite something", "openai", "no architecture 'quite something'; open_clip.list_models"),
        ("ViT-B-32", "opnai", "a pretrained tag of ViT-B-32; got 'opnai'; did you mean openai?"),
        ("ViT-B-32", "", "got ''; known: openai, laion400m_e31"),
        ("ViT-B-32", "laion2b-s34b-b79k", "did you mean laion2b_s34b_b79k?"),
        ("ViT-L-16", "any", "known: none, so set path"),
        ("hf-hub:timm/some.model", "main", "must be a commit of huggingface.co/timm/some.model"),
    ],
)
def test_a_name_or_tag_that_is_not_there_gets_the_nearest(name: str, revision: str, complaint: str) -> None:
    spec = _spec(name, revision)
    with pytest.raises(UserError) as raised:
        registry.card("frame_embedder", spec)
    assert complaint in str(raised.value)
    assert registry.lacks("frame_embedder", spec) == [str(raised.value)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("no JSON", "is no config of an open_clip model (JSONDecodeError"),
        ("[]", "is no config of an open_clip model (TypeError"),
        ('{"embed_dim": 3}', "(KeyError: 'model_cfg')"),
        ('{"model_cfg": {"embed_dim": 3, "vision_cfg": {}}}', "(KeyError: 'text_cfg')"),
        (
            json.dumps({"model_cfg": {**MODEL, "text_cfg": {"tokenizer_kwargs": {"trust_remote_code": True}}}}),
            "asks to run code of its tokenizer; that is never done here",
        ),
        (json.dumps({"model_cfg": MODEL, "preprocess_cfg": {"resize_mode": "bend"}}), "asks for resize_mode 'bend'"),
        (json.dumps({"model_cfg": MODEL, "preprocess_cfg": {"fill_color": 9}}), "fill_color 9; known: "),
    ],
)
def test_a_config_that_is_none_says_what_is_wrong(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "open_clip_config.json").write_text(text)
    with pytest.raises(UserError) as raised:
        registry.card("frame_embedder", _spec("own", path=str(tmp_path)))
    assert complaint in str(raised.value)


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"max_batch": 0}, {"gpus": -1}, {"batch": 4}])
def test_bad_options_name_the_key(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"options.{next(iter(options))}"):
        registry.card("frame_embedder", _spec(options=options))


def test_only_the_type_of_numbers_decides_results() -> None:
    base = registry.identity("frame_embedder", _spec())
    places = {"device": "cpu", "max_batch": 3, "gpus": 1, "replicas": 2}
    assert registry.identity("frame_embedder", _spec(options=places)) == base
    assert registry.identity("frame_embedder", _spec(options={"dtype": "bfloat16"})) != base


@pytest.mark.usefixtures("any_tag")
def test_variants_are_checked_early() -> None:
    registry.card("frame_embedder", _spec(variant="cls"))
    with pytest.raises(UserError, match="unknown variant 'pooled'; known: cls"):
        registry.card("frame_embedder", _spec(variant="pooled"))
    with pytest.raises(UserError, match="no variant cls, since its vision tower has no class token"):
        registry.card("frame_embedder", _spec("ViT-B-16-SigLIP2", "webli", variant="cls"))
    with pytest.raises(UserError, match="no variant cls"):
        registry.card("frame_embedder", _spec("RN50", "openai", variant="cls"))
    with pytest.raises(UserError, match="a video-text embedder has no variants; got 'cls'"):
        registry.card("video_text_embedder", _spec(variant="cls"))


def test_a_tag_whose_commit_is_not_known_is_refused_with_what_to_write() -> None:
    spec = _spec("ViT-L-14", "openai")
    with pytest.raises(UserError) as raised:
        registry.card("frame_embedder", spec)
    assert "write `name: hf-hub:timm/vit_large_patch14_clip_224.openai` and as the `revision` a commit" in str(
        raised.value
    )
    assert registry.lacks("frame_embedder", spec) == [str(raised.value)]
    for name, revision in open_clip_config.SHIPPED:
        registry.card("frame_embedder", _spec(name, revision))


def test_lacking_weights_of_a_tag_say_what_to_type() -> None:
    (line,) = registry.lacks("frame_embedder", _spec("ViT-L-14-336", "openai"))
    assert (
        "run once without --offline, or `hf download timm/vit_large_patch14_clip_336.openai --revision 81e38efc" in line
    )


def test_lacking_files_of_a_folder_are_named(tmp_path: Path) -> None:
    spec = _spec("own", path=str(_folder(tmp_path / "a")))
    (line,) = registry.lacks("video_text_embedder", spec)
    assert "has no open_clip_model.safetensors or " in line
    whole = _spec("own", path=str(_folder(tmp_path / "b", "model.safetensors")))
    assert registry.lacks("video_text_embedder", whole) == registry.lacks("frame_embedder", whole) == []


@pytest.mark.usefixtures("any_tag")
def test_a_text_side_of_transformers_needs_its_files_too() -> None:
    spec = _spec("roberta-ViT-B-32", "laion2b_s12b_b32k")
    found = open_clip_config.known(spec)
    config = ("roberta-base", ["config.json"])
    tokenizer = ("roberta-base", ["tokenizer_config.json|tokenizer.json|config.json"])
    assert open_clip_config.companions(found, text=False) == [config]
    assert open_clip_config.companions(found, text=True) == [config, tokenizer]


def test_an_hf_hub_model_is_looked_up_by_its_commit() -> None:
    spec = _spec("hf-hub:timm/vit_large_patch14_clip_336.openai", COMMIT)
    (line,) = registry.lacks("frame_embedder", spec)
    assert f"`hf download timm/vit_large_patch14_clip_336.openai --revision {COMMIT}`" in line
    with pytest.raises(UserError, match="offline, and the files of timm/vit_large"):
        registry.card("frame_embedder", spec)


@pytest.mark.parametrize(("name", "revision"), open_clip_config.SHIPPED)
def test_a_shipped_profiles_card_needs_no_package(name: str, revision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = _spec(name, revision)
    with_package = registry.card("frame_embedder", spec)
    monkeypatch.setattr(open_clip_config.weights, "find_spec", lambda module: None)
    assert registry.card("frame_embedder", spec) == with_package
    assert any("open_clip is not installed" in line for line in registry.lacks("frame_embedder", spec))
