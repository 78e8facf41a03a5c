"""Whether a model fits into the GPUs that one vLLM engine gets: its weights, and beside them a context to remember."""

from __future__ import annotations

from typing import Any

from pipeline.doctor.check import Lacking
from pipeline.gpus import Gpu, NoAnswer, visible_gpus
from pipeline.models import registry, weights
from pipeline.models.footprint import PUBLISHED, Footprint, footprint_of
from pipeline.models.spec import ModelSpec

UTILIZATION = 0.92
"""Share of a GPU's memory that an engine takes when it is not told (vLLM 0.31: CacheConfig.gpu_memory_utilization)."""
ACTIVATION_BYTES = 4 * 2**30
"""Bytes of each GPU for activations, CUDA graphs and the driver. Our guess for steps of 25,000 tokens, not measured;
the engine measures its own when it starts."""
CHANGES_SIZES = ("kv_cache_dtype", "pipeline_parallel_size", "cpu_offload_gb")
"""Arguments of the engine under which the sums here do not hold."""
GIB = 2**30
OPTIONS = "--set models.describer.options"


def fit(spec: ModelSpec) -> str:
    """What the weights take and leave on each GPU. Raises Lacking when that is not enough, or when other processes
    are in the way."""
    options = registry.options("describer", spec)
    known = _footprint(spec)
    unknown = _not_worked_out(options, known, spec)
    if unknown or known is None:
        return unknown
    size = options.tensor_parallel_size
    if known.heads % size:
        fits = max(n for n in range(1, size) if known.heads % n == 0)
        raise Lacking(f"{known.heads} heads do not go round {size} GPUs; {OPTIONS}.tensor_parallel_size={fits}")
    group = _group(size)
    totals = [gpu.total_bytes for gpu in group if gpu.total_bytes is not None]
    if len(totals) < size:
        return "not worked out: the driver has no number for the memory of these GPUs"
    share = options.gpu_memory_utilization or UTILIZATION
    _require_free(group, share)
    return _balance(known, options, int(min(totals) * share))


def _not_worked_out(options: Any, known: Footprint | None, spec: ModelSpec) -> str:
    """Why nothing can be said; empty when something can."""
    if options.gpus == 0:
        return "the engine reserves no GPU"
    if options.quantization is not None or options.dtype == "float32":
        return "not worked out: the engine turns the weights into another type"
    changed = [name for name in CHANGES_SIZES if name in options.engine_args]
    if changed:
        return f"not worked out: engine_args sets {', '.join(changed)}"
    return "" if known else f"not worked out: nothing is known of {spec.name} before its weights are here"


def _balance(known: Footprint, options: Any, usable: int) -> str:
    """Weights against the bytes that an engine may use of each GPU; what is left has to hold one context."""
    size, context = options.tensor_parallel_size, options.max_model_len
    weight = known.weight_bytes_each(size)
    left = usable - weight - ACTIVATION_BYTES
    asked = left if options.kv_cache_bytes is None else options.kv_cache_bytes
    tokens = max(0, asked) // known.token_bytes_each(size)
    said = (
        f"of {usable / GIB:.1f} GiB for the engine on each of {size} GPUs weights take {weight / GIB:.1f} GiB and "
        f"activations about {ACTIVATION_BYTES / GIB:.0f} GiB; room to remember {tokens:,} tokens"
    )
    if asked > left:
        needed = f"kv_cache_bytes asks for {asked / GIB:.1f} GiB where {max(0, left) / GIB:.1f} GiB are left"
        raise Lacking(f"{said}; {needed}; {_cure(known, options, usable)}")
    if weight < usable and tokens >= context:
        return f"{said}, {tokens // context} contexts of {context:,}"
    raise Lacking(f"{said}, less than one context of {context:,}; {_cure(known, options, usable)}")


def _cure(known: Footprint, options: Any, usable: int) -> str:
    """What to type."""
    alone = options.tensor_parallel_size
    room = usable - known.weight_bytes_each(alone) - ACTIVATION_BYTES
    if options.kv_cache_bytes is not None and room >= options.max_model_len * known.token_bytes_each(alone):
        return f"leave kv_cache_bytes out, or {OPTIONS}.kv_cache_bytes={room}"
    for size in (2, 4, 8, 16):
        tokens = options.max_model_len * known.token_bytes_each(size)
        needs = known.weight_bytes_each(size) + ACTIVATION_BYTES + tokens
        if size > alone and known.heads % size == 0 and needs <= usable:
            return f"with so many GPUs {OPTIONS}.tensor_parallel_size={size}, else a smaller or a quantised model"
    return f"take a smaller or a quantised model, or a shorter context: {OPTIONS}.max_model_len"


def _group(size: int) -> list[Gpu]:
    """The GPUs of one engine. Raises Lacking when there are not so many."""
    try:
        there = visible_gpus()
    except NoAnswer as err:
        raise Lacking(str(err)) from err
    if len(there) < size:
        raise Lacking(
            f"one engine takes {size} GPUs and this machine has {len(there)}; for fewer: {OPTIONS}.tensor_parallel_size"
        )
    return there[:size]


def _require_free(group: list[Gpu], share: float) -> None:
    """vLLM does not start where others hold what it is to take. Raises Lacking."""
    for gpu in group:
        assert gpu.total_bytes is not None, "checked above"
        free = 1 - gpu.used_bytes / gpu.total_bytes
        if free < share:
            raise Lacking(
                f"other processes hold {gpu.used_bytes / GIB:.1f} of {gpu.total_bytes / GIB:.1f} GiB of GPU "
                f"{gpu.index}, and the engine is to take a share of {share:g}; end them, or "
                f"{OPTIONS}.gpu_memory_utilization={max(0.01, free - 0.02):.2f}"
            )


def _footprint(spec: ModelSpec) -> Footprint | None:
    """From the weights where they are here, else as published."""
    files = ("config.json", "*.safetensors")
    here = None if weights.lacking_weights(spec, files) else footprint_of(weights.folder(spec, files))
    return here or PUBLISHED.get(spec.name)
