"""Sentences to word pieces as the original does it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.models.internvideo2.text import PIECES, Tokenizer, plain_sentence
from pipeline.stage import UserError
from tests.models import tiny_internvideo2 as tiny


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tiny.build(tmp_path_factory.mktemp("internvideo2"))
    return Tokenizer(folder / "vocab.txt", tiny.TINY.text)


@pytest.mark.parametrize(
    ("sentence", "plain"),
    [
        ("A video about sci-fi movie scene.", "a video about sci fi movie scene"),
        ('  Dogs,   cats & (3/4) "birds"!\n', "dogs cats & 3 4 birds"),
        ("<person> runs; it's ~fun~ #1*", "person runs its fun 1"),
        ("?!", ""),
    ],
)
def test_a_sentence_loses_case_and_punctuation(sentence: str, plain: str) -> None:
    assert plain_sentence(sentence) == plain


def test_word_pieces_are_the_original_ones(tokenizer: Tokenizer) -> None:
    """From [CLS] on, and without BERT's [SEP] at the end."""
    with np.load(Path(__file__).parent / "golden" / "internvideo2_tiny.npz") as golden:
        pieces, mask = tokenizer(tiny.SENTENCES)
        assert np.array_equal(pieces.numpy(), golden["pieces"])
        assert np.array_equal(mask.numpy(), golden["pieces"] != tiny.VOCABULARY.index("[PAD]"))
        assert tiny.VOCABULARY.index("[SEP]") not in golden["pieces"]


def test_a_sentence_is_filled_up(tokenizer: Tokenizer) -> None:
    pieces, mask = tokenizer(["dog " * (PIECES - 1), "dog"])
    assert pieces.shape == mask.shape == (2, PIECES)
    assert mask.sum(dim=1).tolist() == [PIECES, 2]


@pytest.mark.parametrize("empty", ["", "  ", "?!", " - / \n"])
def test_a_sentence_without_words_is_refused(tokenizer: Tokenizer, empty: str) -> None:
    with pytest.raises(UserError, match="there is no word in it"):
        tokenizer(["a dog", empty])


def test_a_sentence_that_would_be_cut_is_refused(tokenizer: Tokenizer) -> None:
    """The original reads its beginning and says nothing."""
    with pytest.raises(UserError, match=r"'Dog, Dog.*: 40 word pieces; 39 are read"):
        tokenizer(["Dog, " * 40])
