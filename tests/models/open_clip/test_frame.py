"""The open_clip frame embedder against open_clip's own model and preprocessing, and against transformers."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.models import registry, weights
from pipeline.models.open_clip.frame import OpenClipFrameEmbedder
from pipeline.models.spec import ModelSpec
from pipeline.stage import UserError
from tests.models import tiny_open_clip

pytestmark = pytest.mark.skipif(find_spec("open_clip") is None, reason="needs the extra models")

Pictures = npt.NDArray[np.uint8]
CPU = {"device": "cpu"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_open_clip.build(tmp_path_factory.mktemp("tiny"))


def _load(place: Path, variant: str = "", **options: Any) -> OpenClipFrameEmbedder:
    spec = ModelSpec(family="open_clip", name="tiny", path=str(place), variant=variant, options={**CPU, **options})
    model = registry.load_frame_embedder(spec)
    assert isinstance(model, OpenClipFrameEmbedder)
    return model


def _pictures(count: int, side: int = tiny_open_clip.IMAGE_PX) -> Pictures:
    """Noise over flat colours, so that pictures differ as a whole too."""
    rng = np.random.default_rng(0)
    flat = rng.integers(0, 200, (count, 1, 1, 3))
    return (flat + rng.integers(0, 56, (count, side, side, 3))).astype(np.uint8)


def _own(source: str, pictures: Pictures, **settings: Any) -> npt.NDArray[np.float32]:
    """Unit vectors as open_clip itself makes them, all in one call, from PIL pictures."""
    import open_clip
    import torch
    from PIL import Image

    model, _, preprocess = open_clip.create_model_and_transforms(source, **settings)
    batch = torch.stack([preprocess(Image.fromarray(picture)) for picture in pictures])
    batch = batch.to(open_clip.model.get_input_dtype(settings.get("precision", "fp32")) or torch.float32)
    with torch.inference_mode():
        vectors: npt.NDArray[np.float32] = model.eval().encode_image(batch, normalize=True).float().numpy()
    return vectors


def test_pictures_get_the_vectors_that_open_clip_gives_them(tiny: Path) -> None:
    pictures = _pictures(10)
    ours = _load(tiny).embed(pictures)
    assert ours.dtype == np.float32 and ours.shape == (10, tiny_open_clip.DIM)
    assert np.abs(ours - _own(f"local-dir:{tiny}", pictures)).max() < 1e-6  # measured 0.0
    assert np.abs(np.linalg.norm(ours, axis=1) - 1).max() < 1e-6
    assert (ours @ ours.T)[0, 1:].max() < 0.999  # the pictures are told apart


@pytest.mark.parametrize(
    "changes",
    [
        {"preprocess": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.25, 0.125], "resize_mode": "squash"}},
        {"vision_cfg": {**tiny_open_clip.MODEL["vision_cfg"], "image_size": [32, 48]}},
        {"quick_gelu": True},
        {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}},
    ],
    ids=["other mean and std", "not square", "quick gelu", "a ResNet"],
)
def test_what_the_folders_config_says_is_what_is_done(tmp_path: Path, changes: dict[str, Any]) -> None:
    place = tiny_open_clip.build(tmp_path / "model", **changes)
    model = _load(place)
    spec = registry.card("frame_embedder", ModelSpec(family="open_clip", name="tiny", path=str(place))).frame_spec
    pictures = np.random.default_rng(0).integers(0, 256, (3, spec["height"], spec["width"], 3), dtype=np.uint8)
    assert np.abs(model.embed(pictures) - _own(f"local-dir:{place}", pictures)).max() < 1e-6


@pytest.mark.parametrize(("dtype", "precision", "tolerance"), [("bfloat16", "bf16", 2e-2), ("float16", "fp16", 2e-3)])
def test_half_precision_is_open_clips_own(tiny: Path, dtype: str, precision: str, tolerance: float) -> None:
    pictures = _pictures(10)
    ours = _load(tiny, dtype=dtype).embed(pictures)
    assert np.abs(ours - _own(f"local-dir:{tiny}", pictures, precision=precision)).max() < tolerance
    assert np.abs(np.linalg.norm(ours, axis=1) - 1).max() < 1e-6
    exact = _load(tiny).embed(pictures)
    assert 0 < np.abs(ours - exact).max() < tolerance


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("max_batch", [None, 3])
def test_the_same_picture_gives_the_same_vector_in_any_batch(tiny: Path, dtype: str, max_batch: int | None) -> None:
    model, pictures = _load(tiny, dtype=dtype, max_batch=max_batch), _pictures(64)
    assert model.max_batch == (max_batch or 4)
    whole = model.embed(pictures)
    for size in (1, 7):
        parts = [model.embed(pictures[start : start + size]) for start in range(0, 64, size)]
        assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(model.embed(pictures[::-1])[::-1], whole)


def test_no_pictures_give_no_vectors(tiny: Path) -> None:
    assert _load(tiny).embed(_pictures(0)).shape == (0, tiny_open_clip.DIM)


def test_pictures_that_may_not_be_written_to_are_taken(tiny: Path, recwarn: pytest.WarningsRecorder) -> None:
    model, pictures = _load(tiny), _pictures(2)
    pictures.flags.writeable = False
    model.embed(pictures)
    assert [str(warning.message) for warning in recwarn if "writ" in str(warning.message)] == []


def test_the_text_sides_memory_is_let_go(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    made: list[weakref.ref[Any]] = []
    create = open_clip.create_model

    def watched(*args: Any, **settings: Any) -> Any:
        model = create(*args, **settings)
        made.append(weakref.ref(model))
        return model

    monkeypatch.setattr(open_clip, "create_model", watched)
    model = _load(tiny)
    gc.collect()
    assert [ref() for ref in made] == [None]
    assert model.embed(_pictures(1)).shape == (1, model.dim)


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_cls_is_the_class_token_that_sharegpt4video_compares(tmp_path: Path, quick_gelu: bool) -> None:
    """Their code: transformers' CLIPVisionModel, hidden_states[-1][:, 0]."""
    import torch

    place = tiny_open_clip.build(tmp_path / "model", quick_gelu=quick_gelu)
    pictures = _pictures(6)
    ours = _load(place, "cls").embed(pictures)
    theirs = _transformers_twin(place, quick_gelu)
    mean, std = (torch.tensor(tiny_open_clip.PREPROCESS[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    batch = (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        answer = theirs(pixel_values=batch, output_hidden_states=True)
    tokens = torch.nn.functional.normalize(answer.hidden_states[-1][:, 0], dim=-1).numpy()
    pooled = torch.nn.functional.normalize(answer.pooler_output, dim=-1).numpy()
    assert ours.shape == (6, tiny_open_clip.WIDTH)
    assert np.abs(ours - tokens).max() < 1e-6
    assert np.abs(ours - pooled).max() > 1e-3  # the layer norm after it would show


def _transformers_twin(place: Path, quick_gelu: bool) -> Any:
    """transformers' CLIPVisionModel with the tiny model's weights."""
    import torch
    from safetensors.torch import load_file
    from transformers import CLIPVisionConfig, CLIPVisionModel

    vision = tiny_open_clip.MODEL["vision_cfg"]
    twin = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=vision["width"],
            intermediate_size=4 * vision["width"],
            num_hidden_layers=vision["layers"],
            num_attention_heads=vision["width"] // vision["head_width"],
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            hidden_act="quick_gelu" if quick_gelu else "gelu",
        )
    ).eval()
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(place / "open_clip_model.safetensors").items():
        if not name.startswith("visual.") or name == "visual.proj":
            continue
        name = name.removeprefix("visual.")
        for theirs, its in _NAMES.items():
            name = name.replace(theirs, its)
        if "in_proj_" in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[name.replace("in_proj_", f"{letter}_proj.")] = part
        else:
            renamed[name] = tensor
    twin.load_state_dict({**twin.state_dict(), **renamed})
    own = [name for name in twin.state_dict() if "position_ids" not in name]
    assert sorted(renamed) == sorted(own)
    return twin


_NAMES = {
    "transformer.resblocks": "encoder.layers",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn": "self_attn",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "conv1": "embeddings.patch_embedding",
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
}
"""open_clip's names of a vision transformer's parts, and transformers'."""


def test_weights_as_a_pickle_are_loaded_when_only_tensors_are_in_it(tiny: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    place = _as_pickle(tiny, tmp_path / "model", load_file(tiny / "open_clip_model.safetensors"))
    assert np.array_equal(_load(place).embed(_pictures(3)), _load(tiny).embed(_pictures(3)))
    torch.save({"state_dict": _Trap()}, place / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match=r"open_clip cannot load .*UnpicklingError"):
        _load(place)
    assert not _Trap.sprung


class _Trap:
    """Would run code when unpickled."""

    sprung = False

    def __reduce__(self) -> Any:
        return _spring, ()


def _spring() -> None:
    _Trap.sprung = True


def _as_pickle(source: Path, place: Path, content: Any) -> Path:
    import torch

    place.mkdir()
    (place / "open_clip_config.json").write_bytes((source / "open_clip_config.json").read_bytes())
    torch.save(content, place / "open_clip_pytorch_model.bin")
    return place


def test_weights_that_do_not_fit_the_config_are_the_users_business(tiny: Path, tmp_path: Path) -> None:
    other = tiny_open_clip.build(tmp_path / "other", embed_dim=40)
    (other / "open_clip_model.safetensors").write_bytes((tiny / "open_clip_model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"open_clip cannot load .*: RuntimeError: .*size mismatch"):
        _load(other)
    (other / "open_clip_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match=r"model open_clip:tiny@: open_clip cannot load .*: SafetensorError: "):
        _load(other)


def test_builds_of_torch_that_do_not_fit_are_the_users_business(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    code = (
        "from pipeline.models import registry\n"
        "from pipeline.models.spec import ModelSpec\n"
        f"registry.load_frame_embedder(ModelSpec(family='open_clip', name='tiny', path={str(tiny)!r}))\n"
    )
    here = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), here])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "pipeline.stage.UserError: open_clip is installed and cannot be imported: RuntimeError: operator"
    )


def test_a_folder_without_weights_never_gives_a_random_model(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_bytes((tiny / "open_clip_config.json").read_bytes())
    with pytest.raises(UserError, match=r"has no open_clip_model\.safetensors or"):
        _load(tmp_path)


@pytest.fixture(scope="module")
def cached_vit_b_32() -> Iterator[Path]:
    """A hub's cache that holds ViT-B-32@openai, with random weights."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as cache:  # 600 MB, which pytest's own folders would keep
        store = Path(cache) / "models--timm--vit_base_patch32_clip_224.openai"
        snapshot = store / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (store / "refs").mkdir()
        (store / "refs" / "main").write_text("0" * 40)
        torch.manual_seed(0)
        save_file(open_clip.create_model("ViT-B-32").state_dict(), str(snapshot / "open_clip_model.safetensors"))
        yield Path(cache)


@pytest.mark.slow
def test_a_pretrained_tag_is_used_as_it_was_trained(cached_vit_b_32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip itself only warns that its ViT-B-32 has GELU and openai's weights want QuickGELU."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cached_vit_b_32))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setitem(weights.COMMITS, "timm/vit_base_patch32_clip_224.openai", "0" * 40)
    pictures = _pictures(4, 224)
    spec = ModelSpec(family="open_clip", name="ViT-B-32", revision="openai", options=CPU)
    assert registry.lacks("frame_embedder", spec) == registry.lacks("video_text_embedder", spec) == []
    ours = registry.load_frame_embedder(spec).embed(pictures)
    settings = {"pretrained": "openai", "cache_dir": str(cached_vit_b_32)}
    assert np.abs(ours - _own("ViT-B-32", pictures, force_quick_gelu=True, **settings)).max() < 1e-6
    with pytest.warns(UserWarning, match="QuickGELU mismatch"):
        as_it_comes = _own("ViT-B-32", pictures, **settings)
    assert np.abs(ours - as_it_comes).max() > 1e-4
