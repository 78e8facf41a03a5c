"""A Qwen2-VL of 0.8 million random weights, with tokenizer, chat template and processors, made on the spot.

The classes are transformers' own, so that vLLM loads it as it loads the published ones. What it says is nonsense, made
of words: three of its numbers are set by hand, else a random model ends neither a caption nor a JSON string.

- Every embedding, of words and of pictures, holds `LEVEL` in number 0, and no layer writes there. The output layer's
  weights of number 0 are then what a bias would be: they raise words, the closing quote and the end of the answer.
- The embeddings of tokens with a quote or a line's end hold `LEVEL` in number 1, where the output layer lowers quotes
  and the end of the answer: neither a string nor an answer is over at once.

It is sampled with temperature 1 (`OPTIONS`): the likeliest token for ever would run in a circle.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from pipeline.models.prompts import load_prompt

OPTIONS: dict[str, Any] = {
    "gpus": 0,
    "cpus": 0.2,
    "kv_cache_bytes": 32 << 20,  # 65,536 tokens
    "max_model_len": 4096,
    "max_num_seqs": 16,
    "enforce_eager": True,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "caption_tokens": 128,
    "qa_tokens": 256,
    "max_frames": 16,
    "min_pixels": 4 * 28 * 28,
    "max_pixels": 16 * 28 * 28,
}
"""Options of the describer `vllm` for this model on vLLM's CPU build."""

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's worker lives in the engine's process
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
"""Environment variables for vLLM's CPU build on a small machine."""

CONTEXT = 8192
"""Positions the model knows, tokens."""

END, PAD = "<|im_end|>", "<|endoftext|>"
IMAGE, VIDEO, VISION_START, VISION_END = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
SPECIAL = (PAD, "<|im_start|>", END, VISION_START, VISION_END, IMAGE, VIDEO)

LEVEL = 24.0
END_LOGIT, QUOTE_LOGIT, WORD_LOGIT, NEVER_LOGIT = 6.5, 5.5, 2.0, -9.0
"""About what number 0 adds to a logit. Without it, logits of random weights spread by 1."""

CHAT_TEMPLATE = """\
{%- if messages[0].role != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif -%}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{%- if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>
{%- elif part.type == 'image' or part.type == 'image_url' %}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'text' %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""

_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2's tokenizer cuts text before it merges bytes."""


@dataclass(frozen=True)
class Size:
    """Of the model; larger ones are for benchmarks."""

    width: int = 128
    layers: int = 2

    @property
    def scale(self) -> float:
        """By how much the smallest model's random weights are too large for this one."""
        return float((self.width / 128) ** 0.5)


def build(folder: Path, seed: int = 0, size: Size | None = None) -> Path:
    """Write the checkpoint into a folder, which is made, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, size = _tokenizer(), size or Size()
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(_config(tokenizer, size)).eval()
    _set_weights(model, tokenizer, size.scale)
    model = model.to(torch.bfloat16)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in (END, PAD)]
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.01, top_k=1, top_p=0.001, eos_token_id=ends, pad_token_id=ends[1]
    )
    model.save_pretrained(folder)
    edges = {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28}
    Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=edges),
        video_processor=Qwen2VLVideoProcessor(size=edges),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    """Merges learnt from the prompts, so that these are short."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    text = [load_prompt(name).text for name in ("caption", "qa")] + ['{"pairs":[{"instruction":"","answer":""},{"']
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        text * 20, trainers.BpeTrainer(vocab_size=1024, initial_alphabet=alphabet, show_progress=False)
    )
    raw.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(SPECIAL),
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def _config(tokenizer: PreTrainedTokenizerFast, size: Size) -> Qwen2VLConfig:
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    text: dict[str, Any] = {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": size.width,
        "intermediate_size": 2 * size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.width // 32,  # of 32 numbers each: fewer than vLLM's attention on CPUs takes
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "max_window_layers": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0},
        "bos_token_id": ids[PAD],
        "eos_token_id": ids[END],
        "pad_token_id": ids[PAD],
        "tie_word_embeddings": False,
    }
    vision: dict[str, Any] = {
        "depth": size.layers,
        "embed_dim": size.width // 2,
        "hidden_size": size.width,
        "num_heads": 2,
        "mlp_ratio": 2,
    }
    return Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids[IMAGE],
        video_token_id=ids[VIDEO],
        vision_start_token_id=ids[VISION_START],
        vision_end_token_id=ids[VISION_END],
        tie_word_embeddings=False,
    )


@torch.no_grad()
def _set_weights(model: Qwen2VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, scale: float) -> None:
    """Random weights of a size at which every layer matters, and the numbers of the module's text."""
    language = model.model.language_model
    for layer in language.layers:
        for part in (layer.self_attn, layer.mlp):
            for linear in part.children():
                if isinstance(linear, torch.nn.Linear):
                    linear.weight.normal_(0, 0.1 / scale)
        layer.self_attn.o_proj.weight.normal_(0, 0.4 / scale)
        for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
            last.weight /= (len(language.layers) / 2) ** 0.5
            last.weight[:2] = 0
    merged = model.model.visual.merger.mlp[-1]
    merged.weight.normal_(0, 0.3 / scale)
    merged.weight[:2] = 0
    merged.bias[:2] = torch.tensor([LEVEL * scale, 0.0])

    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    opens = torch.tensor(['"' in token or "Ċ" in token for token in tokens])
    closes = torch.tensor(['"' in token or token == END for token in tokens])
    embedding, head = language.embed_tokens.weight, model.lm_head.weight
    embedding.normal_(0, 1)
    embedding[:, 0] = LEVEL * scale
    embedding[:, 1] = 0
    embedding[: len(tokens), 1][opens] = LEVEL * scale
    head.normal_(0, 0.1 / scale)
    head[:, 0] = NEVER_LOGIT / (_EXPECTED * scale)
    head[: len(tokens), 0] = torch.tensor([_logit(token) for token in tokens]) / (_EXPECTED * scale)
    head[:, 1] = 0
    head[: len(tokens), 1][closes] = -12.0 / (_EXPECTED * scale)


_EXPECTED = 3.0
"""About what `LEVEL` is after the last layer and its norm."""


def _logit(token: str) -> float:
    if token == END:
        return END_LOGIT
    if token == '"':
        return QUOTE_LOGIT
    if re.fullmatch("Ġ[a-z]{2,}", token):
        return WORD_LOGIT
    return 0.0 if re.fullmatch("[Ġ]?[ -~]+", token) and token not in SPECIAL else NEVER_LOGIT
