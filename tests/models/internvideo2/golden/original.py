"""What the authors' own InternVideo2 code gives, for the tests to compare ours with.

    git clone https://github.com/OpenGVLab/InternVideo /elsewhere/InternVideo     (the goldens: commit 3965eef)
    pip install --no-deps --target /elsewhere/old transformers==4.33.3 tokenizers==0.13.3 \\
        huggingface_hub==0.25.2 easydict scipy
    export PYTHONPATH=/elsewhere/old:.          (the rest, timm and einops too, from an environment of today)
    iv2=/elsewhere/InternVideo/InternVideo2/multi_modality

    python tests/models/internvideo2/golden/original.py $iv2 golden     writes the goldens beside this file anew
    python tests/models/internvideo2/golden/original.py $iv2 embed 1B --depth 40 --videos 2 --out original.npz
                    embeddings by a model as large as a published one; benchmarks/internvideo2_parity.py compares

The models are built by the authors' classes from the authors' configs, on their plain path: no flash-attn, no fused
layers. Weights are not the published ones: `tests.models.tiny_internvideo2.tensor` makes each from its name. This needs
the packages of its time, so it imports nothing of ours that imports torch.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
import tempfile
import types
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch

from pipeline.models.internvideo2.sizes import PUBLISHED, Size
from tests.models import tiny_internvideo2 as tiny

HERE = Path(__file__).parent
CONFIGS = {"1B": "OpenGVLab/InternVideo2-Stage2_1B-224p-f4", "6B": "OpenGVLab/InternVideo2-Stage2_6B-224p-f4"}
_NOT_NEEDED = (
    *("flash_attn", "flash_attn.flash_attn_interface", "flash_attn.bert_padding", "flash_attn.modules"),
    *("flash_attn.modules.mlp", "flash_attn.ops", "flash_attn.ops.rms_norm", "librosa", "termcolor"),
    *("torchaudio", "torchaudio.compliance", "torchaudio.compliance.kaldi"),
)
"""Packages that the authors' files import at their top and that nothing here calls."""


class Original:
    """The authors' code, imported from a checkout."""

    def __init__(self, root: Path) -> None:
        warnings.simplefilter("ignore")
        sys.path.insert(0, str(root))
        importlib.import_module("transformers.modeling_utils")  # looks around for packages: before those that are none
        for name in _NOT_NEEDED:
            sys.modules[name] = MagicMock()
        # Packages without their __init__, which would import every model of the repository.
        for name in ("", ".models", ".models.backbones", ".models.backbones.internvideo2", ".dataset"):
            package = types.ModuleType(f"iv2{name}")
            package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
            sys.modules[f"iv2{name}"] = package
        self._root = root
        self._backbone = self._import("models.backbones.internvideo2.internvideo2")
        shelf = sys.modules["iv2.models.backbones.internvideo2"]
        for name in ("pretrain_internvideo2_1b_patch14_224", "pretrain_internvideo2_6b_patch14_224"):
            setattr(shelf, name, getattr(self._backbone, name))
        shelf.internvl_clip_6b = None  # type: ignore[attr-defined]
        self._bert = self._import("models.backbones.bert.xbert")
        # The text side starts from the hub's BERT, which the checkpoint then overwrites: start from nothing.
        self._bert.BertForMaskedLM.from_pretrained = classmethod(lambda cls, name, config, **_: (cls(config), {}))
        self.interpolate = self._import(
            "models.backbones.internvideo2.pos_embed"
        ).interpolate_pos_embed_internvideo2_new
        self.pre_text = self._import("dataset.utils").pre_text
        self._tokenizer_class = self._import("models.backbones.bert.tokenization_bert").BertTokenizer

    def _import(self, name: str) -> Any:
        return importlib.import_module(f"iv2.{name}")

    def config(self, name: str) -> Any:
        """The config that the authors pretrained 1B or 6B with, on the plain path."""
        reader = self._import("utils.config")
        sys.modules.pop("config", None)
        config = reader.eval_dict_leaf(
            reader.Config.from_file(str(self._root / f"scripts/pretraining/stage2/{name}/config.py"))
        )
        vision = config.model.vision_encoder
        vision.pretrained = vision.clip_teacher = None
        vision.use_flash_attn = vision.use_fused_rmsnorm = vision.use_fused_mlp = False
        config.model.text_encoder.config = str(self._root / config.model.text_encoder.config)
        return config

    def model(self, config: Any, **vision: Any) -> Any:
        """A model without memory; `vision`: arguments of the vision transformer instead of the authors' own."""
        name = "visual" if config.model.model_cls == "InternVideo2_Stage2" else "audiovisual"
        module = self._import(f"models.internvideo2_stage2_{name}")
        built, linspace = self._backbone.PretrainInternVideo2, torch.linspace
        self._backbone.PretrainInternVideo2 = lambda **usual: built(**{**usual, **vision})
        torch.linspace = lambda *args: linspace(*args, device="cpu")  # read at once, for drop path
        try:
            kind = getattr(module, f"InternVideo2_Stage2_{name}")
            if name == "audiovisual":
                kind.build_audio_encoder = lambda self: torch.nn.Identity()  # made by BEATs's own checkpoint
            with torch.device("meta"):
                return kind(config, MagicMock(), is_pretrain=True).eval()
        finally:
            self._backbone.PretrainInternVideo2, torch.linspace = built, linspace

    def tiny(self, size: Size, frames: int | None = None) -> Any:
        """A tiny model, as the authors would build one of this size."""
        config, vision, text = self.config("1B"), size.vision, size.text
        config.model.embed_dim = size.embedding
        config.model.vision_encoder.update(
            num_frames=frames or vision.frames,
            d_model=vision.width,
            clip_embed_dim=vision.pool_width,
            clip_teacher_embed_dim=24,
            clip_teacher_final_dim=12,
            clip_return_layer=2,
            sep_image_video_pos_embed=vision.image_positions,
        )
        bert = json.loads(Path(config.model.text_encoder.config).read_text())
        bert |= {
            "hidden_size": text.width,
            "num_hidden_layers": text.layers + text.fusion_layers,
            "num_attention_heads": text.heads,
            "intermediate_size": text.mlp_width,
            "vocab_size": text.vocabulary,
            "max_position_embeddings": text.positions,
        }
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            file.write(json.dumps(bert))
            file.flush()
            config.model.text_encoder.update(config=file.name, d_model=text.width, fusion_layer=text.layers)
            return self.model(
                config,
                img_size=vision.image_px,
                embed_dim=vision.width,
                depth=vision.depth,
                num_heads=vision.heads,
                mlp_ratio=vision.mlp_width / vision.width,
                attn_pool_num_heads=vision.pool_heads,
            )

    def pieces(self, sentences: list[str]) -> Any:
        """Sentences as the retrieval evaluation gives them to the model, with the tests' vocabulary."""
        with tempfile.TemporaryDirectory() as folder:
            vocabulary = Path(folder, "vocab.txt")
            vocabulary.write_text("\n".join(tiny.VOCABULARY) + "\n", encoding="utf-8")
            tokenizer = self._tokenizer_class(str(vocabulary))
        plain = [self.pre_text(sentence) for sentence in sentences]
        return tokenizer(plain, padding="max_length", truncation=True, max_length=40, return_tensors="pt")


def shapes(model: Any) -> tiny.Shapes:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def fill(model: Any) -> Any:
    """Give a model memory, and each weight its value."""
    model.to_empty(device="cpu")
    for name, value in model.state_dict().items():
        value.copy_(torch.from_numpy(tiny.tensor(name, tuple(value.shape))))
    return model


@torch.no_grad()
def embed_videos(model: Any, frames: np.ndarray) -> np.ndarray:
    """Embeddings [B, V], of any length, of videos uint8 [B, T, H, W, 3], one after another."""
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    found = []
    for video in torch.from_numpy(frames):
        pixels = ((video.float() / 255 - mean) / deviation).permute(0, 3, 1, 2)
        found.append(model.vision_proj(model.encode_vision(pixels[None], test=True)[1]).reshape(1, -1))
    return torch.cat(found).numpy()


@torch.no_grad()
def embed_texts(model: Any, pieces: Any) -> np.ndarray:
    """Embeddings [C, V], of any length."""
    return model.text_proj(model.encode_text(pieces)[1]).numpy()


def golden_names(original: Original) -> dict[str, dict[str, list[int]]]:
    """Names and shapes of the checkpoints that the authors' code reads and writes, the blocks' together."""
    found = {name: shapes(original.model(original.config(name))) for name in CONFIGS}
    return {name: tiny.folded(of) for name, of in {**found, "tiny": shapes(original.tiny(tiny.TINY))}.items()}


def golden_embeddings(original: Original) -> dict[str, np.ndarray]:
    """Embeddings of the tiny model: of videos with its own number of frames, with others, and of sentences."""
    side = tiny.TINY.vision.image_px
    model, pieces = fill(original.tiny(tiny.TINY)), original.pieces(tiny.SENTENCES)
    found = {f"videos_{frames}": embed_videos(model, tiny.videos(3, frames, side)) for frames in (4, 1)}
    found |= {"texts": embed_texts(model, pieces), "pieces": pieces.input_ids.numpy()}
    for frames in (2, 7):
        longer, weights = original.tiny(tiny.TINY, frames), model.state_dict()
        original.interpolate(weights, longer.vision_encoder, orig_t_size=4)
        longer.load_state_dict(weights, strict=True, assign=True)
        found[f"videos_{frames}"] = embed_videos(longer, tiny.videos(3, frames, side))
    shared = fill(original.tiny(replace(tiny.TINY, vision=replace(tiny.TINY.vision, image_positions=False))))
    return found | {f"shared_videos_{n}": embed_videos(shared, tiny.videos(3, n, side)) for n in (4, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="InternVideo2/multi_modality of the authors' repository")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("golden")
    embed = commands.add_parser("embed")
    embed.add_argument("size", choices=list(CONFIGS))
    embed.add_argument("--depth", type=int, help="blocks of the vision transformer; the published number if not given")
    embed.add_argument("--videos", type=int, default=1)
    embed.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    original = Original(args.checkout)
    if args.command == "golden":
        names = json.dumps(golden_names(original), indent=1)
        one_line = re.sub(r"\[\s+([\d,\s]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", names)
        tiny.NAMES.write_text(one_line + "\n", encoding="utf-8")
        np.savez_compressed(HERE / "internvideo2_tiny.npz", **golden_embeddings(original))
        return
    size = PUBLISHED[CONFIGS[args.size]]
    model = fill(original.model(original.config(args.size), depth=args.depth or size.vision.depth))
    frames = tiny.videos(args.videos, size.vision.frames, size.vision.image_px)
    ids, mask = map(torch.from_numpy, tiny.pieces(size.text.vocabulary))
    pieces = types.SimpleNamespace(input_ids=ids, attention_mask=mask)
    found = {"videos": embed_videos(model, frames), "texts": embed_texts(model, pieces)}
    np.savez(args.out, **found)


if __name__ == "__main__":
    main()
