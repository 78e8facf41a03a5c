"""What a model takes of GPU memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.models.footprint import PUBLISHED, Footprint, footprint_of

BIG = PUBLISHED["Qwen/Qwen2-VL-72B-Instruct"]
SMALL = PUBLISHED["Qwen/Qwen2-VL-2B-Instruct"]


@pytest.mark.parametrize(
    ("name", "hidden", "inner", "vocabulary", "tied"),
    [
        ("Qwen/Qwen2-VL-2B-Instruct", 1536, 8960, 151936, True),
        ("Qwen/Qwen2-VL-7B-Instruct", 3584, 18944, 152064, False),
        ("Qwen/Qwen2-VL-72B-Instruct", 8192, 29568, 152064, False),
    ],
)
def test_the_table_counts_the_architectures_parameters(
    name: str, hidden: int, inner: int, vocabulary: int, tied: bool
) -> None:
    """Counted again by hand: language model, vision transformer (32 blocks of width 1280) and what joins them."""
    known = PUBLISHED[name]
    kv = known.kv_heads * known.head_dim
    block = (hidden * hidden + hidden) + 2 * (hidden * kv + kv) + hidden * hidden + 3 * hidden * inner + 2 * hidden
    language = known.layers * block + hidden + vocabulary * hidden * (1 if tied else 2)
    wide = 1280
    vision_block = 4 * wide + 3 * wide * wide + 3 * wide + wide * wide + wide + 8 * wide * wide + 5 * wide
    vision = 3 * 2 * 14 * 14 * wide + 32 * vision_block
    joint = 2 * wide + (4 * wide) ** 2 + 4 * wide + 4 * wide * hidden + hidden
    assert known.weight_bytes == 2 * (language + vision + joint)
    assert hidden == known.heads * known.head_dim


def test_a_tensor_parallel_group_shares_weights_and_memory_of_tokens() -> None:
    assert BIG.weight_bytes_each(4) == 36_702_780_160
    assert [BIG.token_bytes_each(gpus) for gpus in (1, 4, 8)] == [320 << 10, 80 << 10, 40 << 10]


def test_heads_that_do_not_go_round_are_there_twice() -> None:
    assert [SMALL.token_bytes_each(gpus) for gpus in (1, 2, 4)] == [28 << 10, 14 << 10, 14 << 10]


def write(folder: Path, config: Any, weights: tuple[int, ...] = (600, 400)) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    for part, size in enumerate(weights):
        (folder / f"model-{part}.safetensors").write_bytes(b"\0" * size)
    return folder


OLD = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}


@pytest.mark.parametrize("config", [OLD, {"hidden_size": 1, "text_config": OLD}], ids=["flat", "nested"])
def test_a_folder_says_what_its_model_takes(tmp_path: Path, config: Any) -> None:
    assert footprint_of(write(tmp_path, config)) == Footprint(1000, 2, 4, 2, 16)


@pytest.mark.parametrize(
    ("config", "weights"),
    [(OLD, ()), ({}, (1,)), ({**OLD, "num_hidden_layers": None}, (1,)), ([], (1,))],
    ids=["no weights", "another kind", "no number", "no object"],
)
def test_of_anything_else_nothing_is_known(tmp_path: Path, config: Any, weights: tuple[int, ...]) -> None:
    assert footprint_of(write(tmp_path, config, weights)) is None
    assert footprint_of(tmp_path / "nowhere") is None
