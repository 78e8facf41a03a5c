"""Settings of the describer on vLLM, and what they mean to vLLM's engine."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from pipeline.media.budget import QWEN_TOKEN_PIXELS, VideoBudget
from pipeline.models.prompts import PAIRS_PER_CLIP, load_prompt
from pipeline.models.two_turns import TurnLimits
from pipeline.stage import UserError

_PLACE = {"place": True}

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Options:
    """How the engine is run and asked. Where no source is named, a default is our choice."""

    tensor_parallel_size: Count = field(default=1, metadata=_PLACE)
    """GPUs that share one engine's weights."""
    replicas: Count = field(default=1, metadata=_PLACE)
    """Engines, each on GPUs of its own."""
    gpus: Annotated[float, Field(ge=0)] | None = field(default=None, metadata=_PLACE)
    """GPUs that Ray reserves for an engine. null: tensor_parallel_size. 0 for vLLM's CPU build."""
    cpus: Annotated[float, Field(ge=0)] | None = field(default=None, metadata=_PLACE)
    """Cores that Ray reserves for an engine. null: 2 + tensor_parallel_size, vLLM's own advice (one for each worker,
    one for the scheduler, one for what feeds it)."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = field(default=None, metadata=_PLACE)
    """Share of each GPU's memory for weights, activations and KV cache. null: vLLM's own, 0.92 in vLLM 0.31."""
    kv_cache_bytes: Count | None = field(default=None, metadata=_PLACE)
    """Bytes of KV cache for each GPU; null: what gpu_memory_utilization leaves. vLLM's CPU build takes a share of the
    machine's memory instead: set this there."""
    mm_cache_gb: Annotated[float, Field(gt=0)] = field(default=4.0, metadata=_PLACE)
    """GiB of main memory for frames that are prepared for the model, held from the first turn to the second (vLLM's
    default)."""
    max_num_seqs: Count | None = field(default=None, metadata=_PLACE)
    """Answers that one step works on, and clips in flight at most. null: vLLM's own."""
    max_num_batched_tokens: Count | None = field(default=None, metadata=_PLACE)
    """Tokens that one step works on. null: 8192, vLLM's own for batches on large GPUs, or the video tokens of the
    largest clip where these are more, since a clip's frames go through the vision encoder in one step. vLLM's CPU build
    sets it by itself, whatever is said here."""
    enforce_eager: bool = field(default=False, metadata=_PLACE)
    """Do without CUDA graphs and compilation: starts sooner, answers slower."""
    in_flight: Count = field(default=16, metadata=_PLACE)
    """Clips of one worker that may wait for the engine at once; their frames are held in memory meanwhile. The engine
    takes in as many of them as fit its caches."""
    deadline_s: Seconds = field(default=900.0, metadata=_PLACE)
    """Seconds that both turns of a clip may take once it is in flight; its attempt fails then."""
    stall_s: Seconds = field(default=300.0, metadata=_PLACE)
    """Seconds without a token for anybody after which the engine is taken for dead and started again."""

    quantization: str | None = None
    """vLLM's name of it, such as fp8; null: as the weights are. AWQ and GPTQ checkpoints tell it themselves."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Type of the numbers; auto: that of the weights (bfloat16 for Qwen2-VL)."""
    max_model_len: Count = 32768
    """Context, tokens: frames, prompts and answers of both turns (Qwen2-VL's max_position_embeddings). A clip gets
    fewer frames where these do not fit."""
    engine_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of vLLM's AsyncEngineArgs, as they are, but for those of `REFUSED`."""

    caption_tokens: Count = TurnLimits.caption_tokens
    """This and the next two: see `models.two_turns.TurnLimits`."""
    qa_tokens: Count = TurnLimits.qa_tokens
    retry_factor: Annotated[int, Field(ge=2)] = TurnLimits.retry_factor
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.01
    """This and the next three: Qwen2-VL-72B-Instruct's generation_config.json. The likeliest token, always."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.001
    top_k: Annotated[int, Field(ge=0)] = 1
    """0: no such limit."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    seed: Annotated[int, Field(ge=0)] = 0
    """With the clip's id it gives the seed of the clip's answers; an answer that is asked for again has the next."""

    fps: Seconds = VideoBudget.fps
    """This and the next five: see `media.budget.VideoBudget`, and the sources there."""
    min_frames: Count = VideoBudget.min_frames
    max_frames: Count = VideoBudget.max_frames
    min_pixels: Count = VideoBudget.min_pixels
    max_pixels: Count = VideoBudget.max_pixels
    total_pixels: Count = VideoBudget.total_pixels

    @property
    def answer_tokens(self) -> int:
        """Tokens of both answers, should both be asked for again."""
        return (self.caption_tokens + self.qa_tokens) * self.retry_factor

    def budget(self) -> VideoBudget:
        """Frames and pixels of a clip. Raises UserError for numbers that do not fit together."""
        prompts = _prompt_tokens_at_most()
        room = self.max_model_len - prompts - self.answer_tokens
        if room <= 0:
            raise UserError(
                f"describer's options.max_model_len {self.max_model_len} has no room for frames: the prompts take up "
                f"to {prompts} tokens, the answers (caption_tokens + qa_tokens) x retry_factor = {self.answer_tokens}"
            )
        return VideoBudget(
            fps=self.fps,
            min_frames=self.min_frames,
            max_frames=self.max_frames,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
            total_pixels=self.total_pixels,
            max_tokens=room,
        )


BYTES_PER_TOKEN = 3
"""Of a prompt, counted before there is a tokenizer. English prose has 4 to 5; this errs on the safe side."""


def _prompt_tokens_at_most() -> int:
    """Tokens of both prompts and what the chat template puts around them."""
    texts = (load_prompt("caption").text, load_prompt("qa").render(pairs=PAIRS_PER_CLIP))
    return sum(len(text.encode()) for text in texts) // BYTES_PER_TOKEN + 64


REFUSED = frozenset(
    {
        "allowed_local_media_path",
        "code_revision",
        "hf_config_path",
        "hf_overrides",
        "load_format",
        "revision",
        "tokenizer",
        "tokenizer_revision",
        "trust_remote_code",
    }
)
"""Arguments of the engine by which a model would be other than the files of its commit, run code of its own or read
files of this machine."""


def check_engine_args(given: Collection[str]) -> None:
    """Raises UserError for arguments that `options.engine_args` may never hold."""
    refused = sorted(REFUSED.intersection(given))
    if refused:
        raise UserError(
            f"describer's options.engine_args: {', '.join(refused)} may not be set: a model is the files of its commit "
            "or of its `path`, and no code of its own is run; put what you want changed into a folder, and set `path`"
        )


def engine_args(folder: Path, options: Options) -> dict[str, Any]:
    """Arguments of vLLM's AsyncEngineArgs. Raises UserError for one that `options.engine_args` may not set."""
    check_engine_args(options.engine_args)
    budget = options.budget()
    args: dict[str, Any] = {
        "model": str(folder),
        "tensor_parallel_size": options.tensor_parallel_size,
        # Said outright: within a Ray actor vLLM would put its workers into actors of its own.
        "distributed_executor_backend": "uni" if options.tensor_parallel_size == 1 else "mp",
        "dtype": options.dtype,
        "quantization": options.quantization,
        "max_model_len": options.max_model_len,
        "max_num_batched_tokens": options.max_num_batched_tokens or max(8192, largest_clip(budget)),
        "enforce_eager": options.enforce_eager,
        "seed": 0,
        "enable_prefix_caching": True,
        "scheduling_policy": "priority",
        "mm_processor_cache_gb": options.mm_cache_gb,
        "limit_mm_per_prompt": {"video": 1, "image": 0},
        # Frames arrive chosen and resized. max_pixels is for vLLM's guess of how large a video may be.
        "mm_processor_kwargs": {
            "do_resize": False,
            "do_sample_frames": False,
            "max_pixels": budget.max_pixels,
        },
        # Without disable_any_whitespace a model may write white space until it is cut off.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "disable_log_stats": True,
    }
    args |= {
        name: value
        for name, value in {
            "gpu_memory_utilization": options.gpu_memory_utilization,
            "kv_cache_memory_bytes": options.kv_cache_bytes,
            "max_num_seqs": options.max_num_seqs,
        }.items()
        if value is not None
    }
    clash = sorted(args.keys() & options.engine_args.keys())
    if clash:
        raise UserError(f"describer's options.engine_args: {', '.join(clash)} has an option of its own, or must stay")
    return args | options.engine_args


def largest_clip(budget: VideoBudget) -> int:
    """Most video tokens that a clip can have."""
    counts = range(budget.frame_multiple, budget.max_frames + 1, budget.frame_multiple)
    most = max(budget.tokens(count) for count in counts)
    return most if budget.max_tokens is None else min(most, budget.max_tokens)


def pair_tokens(height: int, width: int) -> int:
    """Video tokens of two neighbouring frames, whose sides are multiples of 28."""
    assert height % 28 == 0 and width % 28 == 0, (height, width)
    return height * width // QWEN_TOKEN_PIXELS
