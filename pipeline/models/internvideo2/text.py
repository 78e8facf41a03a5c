"""InternVideo2's text side: sentences to one vector each, by the lower layers of a BERT. Inference only.

The original's BERT is the usual one up to its fusion layers, and its text mode stops there: so a `transformers` BERT of
just those layers computes the same. The vector is the first word piece's.

Letters in names of tensors: C sentences, S word pieces of a sentence, D numbers per word piece.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, BertTokenizer

from pipeline.models.internvideo2.sizes import TextSize
from pipeline.stage import UserError

PIECES = 40
"""Word pieces that a sentence is filled up to, the mark at its start among them: max_txt_l of the original's retrieval
evaluation."""
_FIRST, _PADDING = "[CLS]", "[PAD]"
_DROPPED = str.maketrans("", "", ",.'!?\"()*#:;~")


def plain_sentence(sentence: str) -> str:
    """A sentence as the original's data sets hand it on, in training and in retrieval evaluation alike: lower case,
    without punctuation, hyphens and slashes as spaces. (Its demo hands sentences on as they are.)"""
    words = sentence.lower().translate(_DROPPED).replace("-", " ").replace("/", " ").replace("<person>", "person")
    return " ".join(words.split())


class TextEncoder(nn.Module):
    """Word pieces to a vector."""

    def __init__(self, size: TextSize) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.width,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=size.mlp_width,
            max_position_embeddings=size.positions,
        )
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, pieces_CS: Tensor, mask_CS: Tensor) -> Tensor:
        """Vectors [C, D]. `mask_CS` is 1 for pieces of the sentence and 0 for padding."""
        positions_CS = torch.arange(pieces_CS.shape[1], device=pieces_CS.device).expand_as(pieces_CS)
        seen = self.bert(
            input_ids=pieces_CS,
            attention_mask=mask_CS,
            position_ids=positions_CS,
            token_type_ids=torch.zeros_like(pieces_CS),
        )
        first_CD: Tensor = seen.last_hidden_state[:, 0]
        return first_CD

    def fill_buffers(self) -> None:
        """Give BERT's constant buffers, which no checkpoint need hold, their values."""
        embeddings = self.bert.embeddings
        positions = embeddings.position_ids.shape[1]
        embeddings.register_buffer("position_ids", torch.arange(positions)[None], persistent=False)
        embeddings.register_buffer("token_type_ids", torch.zeros(1, positions, dtype=torch.long), persistent=False)


class Tokenizer:
    """Sentences to word pieces: BERT's uncased ones, but as the original has it without BERT's mark at the end."""

    def __init__(self, vocabulary: Path, size: TextSize) -> None:
        """Raises UserError for a vocabulary of another model."""
        pieces = vocabulary.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        if len(pieces) != size.vocabulary or not {_FIRST, _PADDING} <= set(pieces):
            raise UserError(
                f"{vocabulary}: {len(pieces)} word pieces; expected BERT's {size.vocabulary}, with {_FIRST} and "
                f"{_PADDING}: the vocab.txt of the text model that this one was trained with"
            )
        numbers = {piece: i for i, piece in enumerate(pieces)}
        self._first, self._padding = numbers[_FIRST], numbers[_PADDING]
        self._tokenizer: Any = BertTokenizer(vocab=numbers, do_lower_case=True)

    def __call__(self, sentences: list[str]) -> tuple[Tensor, Tensor]:
        """Word pieces and mask, both int64 [C, S], S = PIECES. Raises UserError for a sentence without a word and for
        one that is too long (the original reads the beginning of such a one)."""
        plain = [plain_sentence(sentence) for sentence in sentences]
        split = self._tokenizer(plain, add_special_tokens=False)["input_ids"] if plain else []
        pieces_CS = torch.full((len(sentences), PIECES), self._padding)
        mask_CS = torch.zeros_like(pieces_CS)
        for i, found in enumerate(split):
            if not 1 <= len(found) < PIECES:
                wrong = "there is no word in it" if not found else f"{len(found)} word pieces; {PIECES - 1} are read"
                raise UserError(f"category {sentences[i]!r}: {wrong}; give the model a sentence of a few words")
            pieces_CS[i, : 1 + len(found)] = torch.tensor([self._first, *found])
            mask_CS[i, : 1 + len(found)] = 1
        return pieces_CS, mask_CS
