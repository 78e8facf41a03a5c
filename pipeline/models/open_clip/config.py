"""What is known of an open_clip model without loading it, and what a config says about it.

`name` and `revision` are open_clip's own: an architecture and a pretrained tag, ViT-L-14-336 and openai. A tag stands
for a repository of the Hugging Face hub and no commit of it, so only those whose commit is in `weights.COMMITS` are
taken; for another one the repository itself is named, `hf-hub:organisation/name`, with a commit as the revision, or
`path` is set. (The config and tokenizer that a text side of transformers reads from a further repository are what its
main branch held when this machine first asked: open_clip's configs name no commit of it.) A folder (`path`, or
`local-dir:/folder` as the name) holds open_clip_config.json and weights under one of `WEIGHTS`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from pipeline.media.frames import FrameSpec, Interpolation, Resize
from pipeline.models import weights
from pipeline.models.device import Device, DType
from pipeline.models.open_clip import tags as open_clip_tags
from pipeline.models.spec import ModelSpec
from pipeline.stage import UserError

PACKAGES = ("torch", "open_clip")
CONFIG = "open_clip_config.json"
WEIGHTS = (
    "open_clip_model.safetensors|open_clip_pytorch_model.safetensors|open_clip_pytorch_model.bin|"
    "open_clip_pytorch_model.pth|model.safetensors|pytorch_model.bin|pytorch_model.pth|model.pth"
)
"""Names that open_clip looks for in a folder, in its order."""
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model")
"""Files of a tokenizer of transformers, where the model's text side has one."""


SHIPPED = {("ViT-B-32", "laion2b_s34b_b79k"): 224, ("ViT-L-14-336", "openai"): 336}
"""Input sizes of the shipped profiles' models, pixels: a run is planned on machines without open_clip too."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Options:
    """How an open_clip model is run."""

    dtype: DType = "float32"
    """Type of weights and activations, but for layer norms, which stay float32. float32 gives open_clip's own vectors;
    bfloat16 and float16 are for GPUs."""
    device: Device = field(default="auto", metadata={"place": True})
    """auto: on the CPU where `gpus` is 0."""
    max_batch: Annotated[int, Field(gt=0)] | None = field(default=None, metadata={"place": True})
    """Pictures in one call of the model; every call is filled up to this many, so that a picture's vector does not
    depend on its company. None: 64 on a GPU (our choice: 37,000 tokens of ViT-L-14-336), 4 on a CPU (ViT-B-32 on one
    core: 10.6 pictures/s with 4, 8.2 with 1, 11.1 at best)."""
    gpus: Annotated[float, Field(ge=0)] = field(default=0.0, metadata={"place": True})
    """GPUs that each process with the model reserves; a share such as 0.25 lets others onto the same one. 0: on the
    CPU, unless `device` asks for a GPU."""
    replicas: Annotated[int, Field(gt=0)] = field(default=1, metadata={"place": True})
    """Processes that load the model. Without a GPU each computes on one core under Ray, which sees to that."""


@plain_dataclass(frozen=True)
class Known:
    """A model's configs, as open_clip keeps them."""

    model: dict[str, Any]
    """Architecture: `embed_dim`, `vision_cfg`, `text_cfg`."""
    preprocess: dict[str, Any]
    """What is said of `mean`, `std`, `interpolation`, `resize_mode`, `fill_color`."""
    tag: open_clip_tags.Tag | None
    """The pretrained tag; None for a model that is a folder or a repository of its own."""

    @property
    def tokenizer(self) -> str | None:
        """The tokenizer of transformers that the text side wants; None: the one in open_clip's package."""
        return self.model["text_cfg"].get("hf_tokenizer_name") or None

    @property
    def text_config(self) -> str | None:
        """The hub's repository that says what the text side looks like, where it is a model of transformers."""
        return self.model["text_cfg"].get("hf_model_name") or None


def known(spec: ModelSpec) -> Known:
    """A model's configs; for `hf-hub:` this fetches one small file the first time. Without open_clip's package a model
    of `SHIPPED` is known as far as its pictures go. Raises UserError."""
    if (
        (spec.name, spec.revision) in SHIPPED
        and spec.path is None
        and weights.lacking_packages(["open_clip"], "models")
    ):
        size = SHIPPED[spec.name, spec.revision]
        return Known({"vision_cfg": {"image_size": size}, "text_cfg": {}}, {}, None)
    spec, tag = _source(spec)
    if tag is not None:
        return Known(open_clip_tags.architecture(spec.name), tag.preprocess, tag)
    file = weights.folder(spec, [CONFIG]) / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        model, preprocess = config["model_cfg"], config.get("preprocess_cfg", {})
        model["embed_dim"], model["vision_cfg"].get("width"), model["text_cfg"].get("hf_model_name")
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise UserError(
            f"model {spec.key}: {file} is no config of an open_clip model ({type(err).__name__}: {err}); expected JSON "
            "with model_cfg, and embed_dim, vision_cfg and text_cfg in it"
        ) from err
    _refuse_remote_code(spec, model)
    return Known(model, preprocess, None)


def folder(spec: ModelSpec) -> Path:
    """The local folder with the weights, downloaded the first time. Raises UserError."""
    spec, tag = _source(spec)
    return weights.folder(spec, *_files(tag), main_of=tag.repo if tag else None)


def checkpoint(spec: ModelSpec, place: Path) -> Path:
    """The file with the weights in a model's folder."""
    patterns, _ = _files(_source(spec)[1])
    return place / weights.present(weights.files_in(place), patterns)[0][-1]


def lacking(spec: ModelSpec, *, text: bool) -> list[str]:
    """What this machine lacks to load the model; with `text`, to embed sentences too. No network."""
    lines = weights.lacking_packages(PACKAGES, "models")
    if lines:
        return lines
    try:
        source, tag = _source(spec)
        lines = weights.lacking_weights(source, *_files(tag), main_of=tag.repo if tag else None)
        found = None if lines else known(spec)
    except UserError as err:
        return [str(err)]
    if found is None:
        return lines
    if found.text_config or (text and found.tokenizer):
        lines = weights.lacking_packages(["transformers"], "models")
    for repo, patterns in companions(found, text=text):
        lines += weights.lacking_weights(replace(spec, path=None), patterns, TOKENIZER, main_of=repo)
    return lines


def companions(found: Known, *, text: bool) -> list[tuple[str, list[str]]]:
    """Repositories of the hub that open_clip reads beside the weights, and what it needs there: to build the model,
    and with `text` to read sentences."""
    needed = [(found.text_config, ["config.json"])]
    if text and found.tag:  # else the tokenizer lies beside the weights
        needed.append((found.tokenizer, ["tokenizer_config.json|tokenizer.json|config.json"]))
    return [(repo, patterns) for repo, patterns in needed if repo]


def fetch_companions(spec: ModelSpec, found: Known, *, text: bool) -> None:
    """Have `companions` here, so that open_clip finds them. Raises UserError."""
    for repo, patterns in companions(found, text=text):
        weights.folder(replace(spec, path=None), patterns, TOKENIZER, main_of=repo)


def frame_spec(spec: ModelSpec, found: Known) -> FrameSpec:
    """How the model wants its pictures. Raises UserError for a way that is not ours."""
    height, width = height_and_width(found.model["vision_cfg"].get("image_size", 224))
    return FrameSpec(width=width, height=height, **_resizing(spec, found.preprocess))


def height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    """What open_clip means by a size, pixels."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _resizing(spec: ModelSpec, preprocess: dict[str, Any]) -> dict[str, Any]:
    # What is not said is as open_clip's PreprocessCfg has it.
    mode, fill = preprocess.get("resize_mode") or "shortest", preprocess.get("fill_color") or 0
    interpolation = preprocess.get("interpolation") or "bicubic"
    resizes: dict[str, Resize] = {"shortest": "shortest_side_center_crop", "squash": "stretch", "longest": "pad"}
    filters: dict[str, Interpolation] = {"bicubic": "bicubic", "bilinear": "bilinear", "random": "bicubic"}
    if mode not in resizes or interpolation not in filters or fill != 0:
        raise UserError(
            f"model {spec.key}: its preprocess_cfg asks for resize_mode {mode!r}, interpolation {interpolation!r}, "
            f"fill_color {fill!r}; known: {', '.join(resizes)}; {', '.join(filters)}; 0"
        )
    return {"resize": resizes[mode], "interpolation": filters[interpolation]}


def has_class_token(found: Known) -> bool:
    """Whether the vision tower is open_clip's own transformer, whose first token is the class token."""
    vision = found.model["vision_cfg"]
    return "timm_model_name" not in vision and isinstance(vision.get("layers", 12), int)


def _source(spec: ModelSpec) -> tuple[ModelSpec, open_clip_tags.Tag | None]:
    """The spec without a prefix in its name, with its path for local-dir:; and the pretrained tag, if it names one."""
    if spec.path is not None:
        return spec, None
    if spec.name.startswith("local-dir:"):
        return replace(spec, path=spec.name.removeprefix("local-dir:")), None
    if spec.name.startswith("hf-hub:"):
        return replace(spec, name=spec.name.removeprefix("hf-hub:")), None
    return spec, _tag(spec)


def _tag(spec: ModelSpec) -> open_clip_tags.Tag:
    """The pretrained tag. Raises UserError with the nearest name, and for one that may change."""
    architectures = open_clip_tags.architectures()
    if spec.name not in architectures:
        raise UserError(
            f"model {spec.key}: open_clip has no architecture {spec.name!r}; "
            f"{_near(spec.name, architectures) or 'open_clip.list_models() lists them'}"
        )
    tags = open_clip_tags.tags(spec.name)
    if spec.revision not in tags:
        raise UserError(
            f"model {spec.key}: its revision must be a pretrained tag of {spec.name}; got {spec.revision!r}; "
            f"{_near(spec.revision, list(tags)) or 'known: ' + (', '.join(tags) or 'none, so set path')}"
        )
    _require_pinned(spec, tags[spec.revision].repo)
    return tags[spec.revision]


def _require_pinned(spec: ModelSpec, repo: str) -> None:
    if repo not in weights.COMMITS:
        raise UserError(
            f"model {spec.key}: its pretrained tag stands for huggingface.co/{repo}, whose files may change; write "
            f"`name: hf-hub:{repo}` and as the `revision` a commit of it, 40 hex digits, or set the model's `path`"
        )


def _near(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.replace("/", "-"), names, n=1)
    return f"did you mean {near[0]}?" if near else ""


def _files(tag: open_clip_tags.Tag | None) -> tuple[list[str], Sequence[str]]:
    """Patterns of the files that are needed, the weights last, and of those that may be there."""
    if tag is None:
        return [CONFIG, WEIGHTS], TOKENIZER
    if not tag.filename:
        return ["open_clip_model.safetensors|open_clip_pytorch_model.bin"], ()
    return [f"{PurePosixPath(tag.filename).with_suffix('.safetensors')}|{tag.filename}"], ()


def _refuse_remote_code(spec: ModelSpec, model: dict[str, Any]) -> None:
    """open_clip hands a config's tokenizer_kwargs to transformers as they are."""
    if "trust_remote_code" in (model["text_cfg"].get("tokenizer_kwargs") or {}):
        raise UserError(f"model {spec.key}: its {CONFIG} asks to run code of its tokenizer; that is never done here")
