"""The built-in video-text embedder against videos drawn to have one attribute each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.models.builtin import attributes as builtin_attributes
from pipeline.models.builtin.attributes import WORDS, attributes_named, measure
from pipeline.models.registry import card, load_video_text_embedder
from pipeline.models.spec import ModelSpec
from pipeline.stage import UserError

SPEC = ModelSpec(family="builtin", name="attributes", revision="1")
MODEL = load_video_text_embedder(SPEC)
MANIFESTS = Path(__file__).resolve().parents[3] / "manifests"
SIDE, FRAMES, K = 128, 8, len(WORDS)

Rng = np.random.Generator


def flat(rng: Rng, *rgb: int) -> np.ndarray:
    """Frames in one colour, each pixel up to 6 levels off, and every frame a little lighter or darker."""
    noise = rng.integers(-3, 4, (FRAMES, SIDE, SIDE, 3)) + rng.integers(-3, 4, (FRAMES, 1, 1, 1))
    frames: np.ndarray = np.clip(np.array(rgb) + noise, 0, 255).astype(np.uint8)
    return frames


def blocks(rng: Rng) -> np.ndarray:
    """A still picture of large blocks in strong colours."""
    colours = np.array([[230, 30, 30], [30, 200, 40], [40, 60, 230], [240, 220, 40]])
    picture = np.kron(colours[rng.permutation(16) % 4].reshape(4, 4, 3), np.ones((32, 32, 1)))
    return np.repeat(picture[None].astype(np.uint8), FRAMES, axis=0)


def noise(rng: Rng) -> np.ndarray:
    """A still picture of fine grain, half grey and half purple."""
    picture = rng.integers(60, 200, (1, SIDE, SIDE, 1)) * np.array([1.0, 0.72, 1.0])
    return np.repeat(picture.astype(np.uint8), FRAMES, axis=0)


def halves(rng: Rng) -> np.ndarray:
    """A still picture, half black and half white."""
    frames = flat(rng, 6, 6, 6)
    frames[:, :, SIDE // 2 :] = 250
    return frames


def shape(rng: Rng) -> np.ndarray:
    """A square that jumps about before a purple background, for which the demo has no category."""
    frames = flat(rng, 160, 40, 190)
    for t, corner in enumerate(rng.permutation(9)[:FRAMES]):
        y, x = 44 * (corner // 3), 44 * (corner % 3)
        frames[t, y : y + 40, x : x + 40] = (240, 240, 60)
    return frames


def pan(rng: Rng) -> np.ndarray:
    """A smooth coloured wave that moves through the picture."""
    phase = np.arange(SIDE) * (2 * np.pi / SIDE) + rng.uniform(0, 6)
    waves = [np.stack([np.sin(phase + 0.8 * t + k) for k in range(3)], -1) for t in range(FRAMES)]
    picture = np.stack(waves)[:, None] * 70 + 125
    return np.repeat(picture, SIDE, axis=1).astype(np.uint8)


# One video for each attribute, which no other video here has as much of.
DRAWN: dict[str, Callable[[Rng], np.ndarray]] = {
    "dark": lambda rng: flat(rng, 10, 10, 10),
    "bright": lambda rng: flat(rng, 248, 248, 248),
    "contrast": halves,
    "grey": lambda rng: flat(rng, 128, 128, 128),
    "colourful": blocks,
    "red": lambda rng: flat(rng, 200, 20, 30),
    "orange": lambda rng: flat(rng, 230, 120, 30),
    "yellow": lambda rng: flat(rng, 220, 210, 30),
    "green": lambda rng: flat(rng, 30, 170, 50),
    "cyan": lambda rng: flat(rng, 30, 190, 200),
    "blue": lambda rng: flat(rng, 30, 60, 210),
    "purple": lambda rng: flat(rng, 160, 40, 190),
    "textured": noise,
    "moving": pan,
}
# What each demo category's best video is. A pan in many colours and a jumping square both move.
DEMO = {
    "A dark video.": ("dark",),
    "A bright video.": ("bright",),
    "A grey video.": ("grey",),
    "A video in warm colours.": ("red", "orange", "yellow"),
    "A mostly green video.": ("green",),
    "A mostly blue video.": ("blue",),
    "A video of fine texture.": ("textured",),
    "A video full of motion.": ("moving", "shape"),
}


def embed(videos: list[np.ndarray]) -> np.ndarray:
    return MODEL.embed_videos(np.stack(videos))


@pytest.mark.parametrize("seed", range(4))
def test_the_video_drawn_for_an_attribute_is_its_best_match(seed: int) -> None:
    names = list(DRAWN)
    videos = embed([draw(np.random.default_rng([seed, i])) for i, draw in enumerate(DRAWN.values())])
    scores_VC = videos @ MODEL.embed_texts([f"A {WORDS[name][0]} video." for name in names]).T * np.sqrt(K)
    for c, name in enumerate(names):
        second, best = np.sort(scores_VC[:, c])[-2:]
        assert names[scores_VC[:, c].argmax()] == name
        assert best > 0.5 and best - second > 0.15, (name, best, second)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("sentence", "drawn"), [(s, d) for s, names in DEMO.items() for d in names])
def test_the_demo_category_of_a_drawn_video_is_the_right_one(sentence: str, drawn: str, seed: int) -> None:
    categories = yaml.safe_load((MANIFESTS / "categories-demo.yaml").read_text())["categories"]
    assert set(categories) == set(DEMO)
    draw = shape if drawn == "shape" else DRAWN[drawn]
    scores = MODEL.embed_texts(categories) @ embed([draw(np.random.default_rng(seed))])[0] * np.sqrt(K)
    second, best = np.sort(scores)[-2:]
    assert categories[int(scores.argmax())] == sentence
    assert best - second > 0.03 if drawn == "shape" else best - second > 0.2, dict(zip(categories, scores, strict=True))


@pytest.mark.parametrize(
    ("more", "less", "word"),
    [
        ((20, 20, 20), (60, 60, 60), "dark"),
        ((250, 250, 250), (200, 200, 200), "bright"),
        ((20, 20, 20), (200, 60, 60), "monochrome"),
        ((210, 90, 40), (150, 130, 125), "warm"),
        ((40, 90, 210), (125, 130, 150), "cool"),
    ],
)
def test_more_of_an_attribute_scores_higher(more: tuple[int, int, int], less: tuple[int, int, int], word: str) -> None:
    high, low = embed([flat(np.random.default_rng(0), *more), flat(np.random.default_rng(1), *less)])
    (text,) = MODEL.embed_texts([word])
    assert high @ text > low @ text + 0.05


def test_motion_grows_with_what_moves_and_stillness_shrinks() -> None:
    rng = np.random.default_rng(0)
    strengths = [measure(video) for video in (flat(rng, 160, 40, 190), shape(rng), pan(rng))]
    moving, still = ([s[name] for s in strengths] for name in ("moving", "still"))
    assert moving[0] < 0.01 < 0.3 < moving[1] < moving[2]
    assert still[0] > 0.95 and still[1] == still[2] == 0


def test_one_frame_does_not_move() -> None:
    strengths = measure(blocks(np.random.default_rng(0))[:1])
    assert strengths["moving"] == 0 and strengths["still"] == 1


def test_cosine_to_an_attribute_is_its_strength() -> None:
    video = pan(np.random.default_rng(0))
    strengths = measure(video)
    scores = MODEL.embed_texts([words[0] for words in WORDS.values()]) @ embed([video])[0]
    np.testing.assert_allclose(scores * np.sqrt(K), [strengths[name] for name in WORDS], atol=1e-6)


@pytest.mark.parametrize("name", [*DRAWN, "shape"])
def test_embeddings_are_unit_float32_and_the_same_in_any_batch(name: str) -> None:
    draw = shape if name == "shape" else DRAWN[name]
    video = draw(np.random.default_rng(7))
    alone = embed([video])
    together = embed([blocks(np.random.default_rng(1)), video, noise(np.random.default_rng(2))])
    assert alone.dtype == np.float32 and alone.shape == (1, MODEL.dim)
    assert abs(float(np.linalg.norm(alone[0])) - 1) < 1e-6
    np.testing.assert_array_equal(alone[0], together[1])


def test_texts_are_unit_and_two_words_share_the_weight() -> None:
    texts = MODEL.embed_texts(["dark", "A dark blue video", "BLUE, dark!"])
    assert texts.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(texts[1], texts[2])
    assert attributes_named("A dark blue video") == ["dark", "blue"]
    assert attributes_named("A film in black and white.") == ["colourless"]


def test_the_papers_sentences_are_refused_each() -> None:
    sentences = yaml.safe_load((MANIFESTS / "categories.yaml").read_text())["categories"]
    assert len(sentences) == len(set(sentences)) == 29
    for sentence in sentences:
        with pytest.raises(UserError, match="real model"):
            MODEL.embed_texts([sentence])


@pytest.mark.parametrize(
    ("sentence", "says"),
    [
        ("A video about cooking activity.", "does not know 'about', 'cooking', 'activity'"),
        ("A video about red wine.", "does not know 'about', 'wine'"),
        ("A video that is not dark.", "does not know 'not'"),
        ("A dark video without a cat's motion", "does not know 'without', \"cat's\""),
        ("A video.", "finds no attribute in it"),
        ("", "finds no attribute in it"),
        ("暗い", "does not know '暗い'"),
    ],
)
def test_a_sentence_it_cannot_judge_is_refused_with_what_it_knows(sentence: str, says: str) -> None:
    with pytest.raises(UserError) as refused:
        MODEL.embed_texts(["A dark video.", sentence])
    message = str(refused.value)
    assert repr(sentence) in message and says in message and "dark, dim, bright" in message


def test_card_and_shape_agree() -> None:
    wants = card("video_text_embedder", SPEC)
    assert (wants.frame_spec["width"], wants.frame_spec["height"]) == (SIDE, SIDE)
    assert wants.frames == FRAMES and MODEL.dim == K + 1
    with pytest.raises(AssertionError):
        MODEL.embed_videos(np.zeros((1, 8, 64, 64, 3), np.uint8))


def test_every_word_names_one_attribute() -> None:
    words = [word for group in WORDS.values() for word in group]
    assert len(words) == len(set(words))
    assert set(WORDS) == set(measure(np.zeros((2, SIDE, SIDE, 3), np.uint8)))
    assert not set(words) & set(builtin_attributes._FILLERS.split())
