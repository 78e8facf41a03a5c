"""The built-in video-text embedder: how dark, blue, grey, textured, moving ... a video is, and sentences that say so.

A program of a few lines, no weights: it measures what a picture looks like and knows nothing of what it shows. A
sentence that speaks of anything else is refused, not guessed at.

The space has one axis for each attribute of `WORDS` and one more, "the rest". A video with strengths a_1 ... a_K, each
from 0 to 1, is (a_1, ..., a_K, sqrt(K - a_1^2 - ... - a_K^2)) / sqrt(K): unit length whatever the strengths, so that
the cosine to a sentence about attribute k is a_k / sqrt(K), and both rankings are true ones: of videos for a sentence,
and of sentences for a video. A sentence is the unit vector along the sum of the axes it names.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from pipeline.media.frames import FrameSpec
from pipeline.models import registry
from pipeline.models.protocols import Card, Frames, Vectors
from pipeline.models.spec import ModelSpec
from pipeline.stage import UserError

NAME, REVISION = "attributes", "1"
_SIDE = 128
"""Width and height of a picture, pixels."""
_FRAMES = 8
"""Frames of a video."""

WORDS: dict[str, tuple[str, ...]] = {
    "dark": ("dark", "dim"),
    "bright": ("bright",),
    "contrast": ("contrast", "contrasty"),
    "grey": ("grey", "gray"),
    "colourless": ("colourless", "colorless", "monochrome", "black-and-white"),
    "colourful": ("colourful", "colorful"),
    "warm": ("warm",),
    "cool": ("cool", "cold"),
    "red": ("red",),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "cyan": ("cyan", "turquoise"),
    "blue": ("blue",),
    "purple": ("purple", "violet", "magenta", "pink"),
    "textured": ("texture", "textured", "textures", "detail", "detailed", "details"),
    "smooth": ("smooth", "plain"),
    "moving": ("moving", "motion", "movement", "changing"),
    "still": ("still", "static", "motionless"),
}
"""Each attribute with the words that name it. The order is the order of the axes."""

_FILLERS = (
    "a an the of in with and that is are it its by full mostly mainly largely dominated very fine video videos clip "
    "clips film footage picture pictures frame frames image images scene scenes colour colours color colors coloured "
    "colored tone tones hue hues shade shades"
)
"""Words that say nothing by themselves. Any other word, "not" among them, is one that this model cannot judge."""

_HUES_DEG: dict[str, tuple[float, float]] = {
    "red": (345, 15),
    "orange": (15, 45),
    "yellow": (45, 70),
    "green": (70, 165),
    "cyan": (165, 195),
    "blue": (195, 255),
    "purple": (255, 345),
}
"""Hue families as degrees on the colour circle, from, to (exclusive)."""
_WARM, _COOL = ("red", "orange", "yellow"), ("cyan", "blue")

_COLOURED = 0.06
"""Chroma (largest minus smallest of R, G, B, of 1) from which a pixel has a colour, ..."""
_FULL_COLOUR = 0.2
"""... and from which it has it entirely."""
_DARK, _BRIGHT = 0.4, 0.6
"""Mean luma (of 1) below which a video is dark to some degree, above which bright."""
_FULL_CONTRAST = 0.35
"""Standard deviation of luma within a frame at which contrast is full: near half black, half white."""
_VERY_COLOURFUL = 109.0
"""Hasler and Suesstrunk (2003): the value of their measure that people call extremely colourful."""
_FULL_TEXTURE = 0.1
"""Mean size of the luma Laplacian (of 1) at which texture is full."""
_NO_TEXTURE = 0.03
"""The same measure at which nothing is smooth any more."""
_CHANGED = 0.1
"""Difference of a pixel's R, G or B (of 1) between two sampled frames that counts as changed."""
_NO_STILLNESS = 0.05
"""Share of changed pixels at which nothing is still any more."""

Floats = npt.NDArray[np.floating]


def card(spec: ModelSpec) -> Card:
    registry.require_builtin(spec, NAME, REVISION)
    return Card(
        frame_spec=FrameSpec(width=_SIDE, height=_SIDE, resize="stretch", interpolation="area").to_json(),
        frames=_FRAMES,
    )


def load(spec: ModelSpec) -> AttributesEmbedder:
    registry.require_builtin(spec, NAME, REVISION)
    return AttributesEmbedder(spec)


class AttributesEmbedder:
    """See the module's text; a `VideoTextEmbedder`."""

    dim = len(WORDS) + 1
    max_batch = 8

    def __init__(self, spec: ModelSpec) -> None:
        self.key = spec.key

    def embed_videos(self, frames: Frames) -> Vectors:
        """Embeddings [B, 20], each of unit length, of videos uint8 [B, T, 128, 128, 3] RGB."""
        assert frames.dtype == np.uint8 and frames.shape[2:] == (_SIDE, _SIDE, 3), (frames.dtype, frames.shape)
        vectors = np.zeros((len(frames), self.dim), dtype=np.float64)
        for row, video in zip(vectors, frames, strict=True):  # one by one: the same numbers in any batch
            strengths = measure(video)
            row[:-1] = [strengths[name] for name in WORDS]
            row[-1] = np.sqrt(len(WORDS) - (row[:-1] ** 2).sum())
        unit: Vectors = (vectors / np.sqrt(len(WORDS))).astype(np.float32)
        return unit

    def embed_texts(self, sentences: list[str]) -> Vectors:
        """Embeddings [C, 20], each of unit length. Raises UserError for a sentence with other words than it knows."""
        vectors = np.zeros((len(sentences), self.dim), dtype=np.float32)
        for row, sentence in zip(vectors, sentences, strict=True):
            named = attributes_named(sentence)
            row[[list(WORDS).index(name) for name in named]] = len(named) ** -0.5
        return vectors


def attributes_named(sentence: str) -> list[str]:
    """The attributes that a sentence names, in the order of `WORDS`. Raises UserError for any word it does not know."""
    text = sentence.lower().replace("black and white", "black-and-white")
    attribute_of = {word: name for name, words in WORDS.items() for word in words}
    named, unknown = set(), []
    for word in re.findall(r"[^\W_]+(?:[-'][^\W_]+)*", text):
        if word in attribute_of:
            named.add(attribute_of[word])
        elif word not in _FILLERS.split():
            unknown.append(word)
    if unknown or not named:
        problem = f"does not know {', '.join(map(repr, unknown))}" if unknown else "finds no attribute in it"
        raise UserError(
            f"category {sentence!r}: the built-in embedder measures what a video looks like and {problem}. "
            f"It knows: {', '.join(attribute_of)}. Use such sentences (manifests/categories-demo.yaml has some), "
            "or a real model for sentences about what happens in a video"
        )
    return [name for name in WORDS if name in named]


def measure(frames: Frames) -> dict[str, float]:
    """Strength of every attribute of `WORDS`, 0 to 1, over frames uint8 [T, H, W, 3] RGB of one video in time order."""
    rgb = frames.astype(np.float32) / 255
    luma = rgb[..., 0] * 0.299 + rgb[..., 1] * 0.587 + rgb[..., 2] * 0.114
    brightness, detail, changed = float(luma.mean()), _detail(luma), _changed(rgb)
    strengths = {
        "dark": 1 - brightness / _DARK,
        "bright": (brightness - _BRIGHT) / (1 - _BRIGHT),
        "contrast": float(luma.std(axis=(1, 2)).mean()) / _FULL_CONTRAST,
        "colourful": _colourfulness(rgb) / _VERY_COLOURFUL,
        "textured": detail / _FULL_TEXTURE,
        "smooth": 1 - detail / _NO_TEXTURE,
        "moving": changed**0.5,  # the root, so that a small thing that moves counts beside a pan
        "still": 1 - changed / _NO_STILLNESS,
        **_colour_shares(rgb, luma),
    }
    return {name: min(max(strength, 0.0), 1.0) for name, strength in strengths.items()}


def _colour_shares(rgb: Floats, luma: Floats) -> dict[str, float]:
    """Shares of the pixels that have a hue of each family, or none."""
    chroma = rgb.max(axis=-1) - rgb.min(axis=-1)
    coloured = np.clip((chroma - _COLOURED) / (_FULL_COLOUR - _COLOURED), 0, 1)
    hue = _hue_deg(rgb, chroma)
    shares = {}
    for name, (start, end) in _HUES_DEG.items():
        inside = (hue - start) % 360 < (end - start) % 360
        shares[name] = float((coloured * inside).mean())
    shares["warm"] = sum(shares[name] for name in _WARM)
    shares["cool"] = sum(shares[name] for name in _COOL)
    shares["colourless"] = float((1 - coloured).mean())
    middling = np.clip(np.minimum(luma, 1 - luma) / 0.2, 0, 1)  # neither near black nor near white
    shares["grey"] = float(((1 - coloured) * middling).mean())
    return shares


def _hue_deg(rgb: Floats, chroma: Floats) -> Floats:
    red, green, blue = np.moveaxis(rgb, -1, 0)
    span = np.where(chroma > 0, chroma, 1)
    top = rgb.argmax(axis=-1)
    sixth = np.choose(top, [(green - blue) / span, 2 + (blue - red) / span, 4 + (red - green) / span])
    hue: Floats = (60 * sixth) % 360
    return hue


def _colourfulness(rgb: Floats) -> float:
    """Hasler and Suesstrunk's measure, from 0 to above 100, mean over the frames."""
    red, green, blue = np.moveaxis(rgb * 255, -1, 0)
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = np.hypot(red_green.std(axis=(1, 2)), yellow_blue.std(axis=(1, 2)))
    offset = np.hypot(red_green.mean(axis=(1, 2)), yellow_blue.mean(axis=(1, 2)))
    return float((spread + 0.3 * offset).mean())


def _detail(luma: Floats) -> float:
    """Mean size of the luma Laplacian, 0 to 1."""
    middle = luma[:, 1:-1, 1:-1]
    around = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    return float(np.abs(middle - around / 4).mean())


def _changed(rgb: Floats) -> float:
    """Share of pixels that differ from one sampled frame to the next; 0 for a single frame."""
    if len(rgb) < 2:
        return 0.0
    return float((np.abs(np.diff(rgb, axis=0)).max(axis=-1) > _CHANGED).mean())
