"""What the work costs: core hours, GPU hours, bytes."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.estimate.asked import Asked, ModelUse
from pipeline.estimate.rates import Rates
from pipeline.estimate.tokens import Tokens
from pipeline.estimate.volume import Clips, Volume
from pipeline.estimate.work import gflop_of_item, gflop_of_token, picture_bytes

HOUR_S = 3600.0


@dataclass(frozen=True)
class Amounts:
    """How much of everything there is to do."""

    rows: float
    """Source rows, the broken ones too."""
    videos: Volume
    selected: Volume
    clips: Clips
    pictures: float
    """Frames on the time grid of scan, which the frame embedder sees."""
    tokens: Tokens
    """Of one clip."""


def decoded(amounts: Amounts, want: Asked, rates: Rates) -> dict[str, float]:
    """Frames that each stage decodes."""
    return {
        "embed": amounts.videos.count * want.embed_frames * rates("embed_frames"),
        "scan": amounts.selected.frames * rates("scan_frames"),
        "cut": amounts.clips.frames * rates("cut_frames") if want.has_clip_files else 0.0,
        "generate": amounts.clips.frames * rates("generate_frames"),
    }


def core_hours(amounts: Amounts, want: Asked, rates: Rates) -> dict[str, float | None]:
    """By stage, with models that run on cores; None where what a model computes is not known."""
    videos, chosen, clips = amounts.videos, amounts.selected, amounts.clips
    hashing = videos.bytes / (rates("hash_mb_per_core_s") * 1e6)
    on_cores = {
        "embed": _model_core_s(want.video_text, gflop_of_item(want.video_text, rates), videos.count, rates),
        "scan": _model_core_s(want.frame, gflop_of_item(want.frame, rates), amounts.pictures, rates),
        "generate": _model_core_s(want.describer, _gflop_a_clip(amounts, want, rates), clips.count, rates),
    }
    seconds = {
        "ingest": amounts.rows * rates("ingest_core_s") + hashing,
        "embed": videos.count * rates("embed_core_s"),
        "scan": chosen.megapixels * rates("scan_core_s"),
        "split, dedup, filter": chosen.frames * rates("shots_core_s"),
        "cut": clips.megapixels * rates("cut_core_s") if want.has_clip_files else 0.0,
        "generate": _generate_core_s(clips, want, rates),
        "clean": clips.count * rates("clean_core_s"),
    }
    found: dict[str, float | None] = {}
    for stage, own in seconds.items():
        model = 0.0 if rates.is_measured(f"{stage}_core_s") else on_cores.get(stage, 0.0)
        found[stage] = None if model is None else (own + model) / HOUR_S
    return found


def _generate_core_s(clips: Volume, want: Asked, rates: Rates) -> float:
    if want.describer.builtin or rates.is_measured("generate_core_s"):
        return clips.count * rates("generate_core_s")
    return clips.megapixels * rates("sample_core_s")


def _model_core_s(use: ModelUse, gflop: float | None, items: float, rates: Rates) -> float | None:
    """Core seconds of a model that runs on cores; nothing for one that runs elsewhere or is part of its stage."""
    if use.builtin or use.on_gpu or use.endpoint:
        return 0.0
    return None if gflop is None else items * gflop / rates("core_gflop_per_s")


def _gflop_a_clip(amounts: Amounts, want: Asked, rates: Rates) -> float | None:
    """Both turns of a clip, with the prefix cache."""
    each, tokens = gflop_of_token(want.describer), amounts.tokens
    if each is None:
        return None
    return (tokens.computed + tokens.output) * each + tokens.video * rates("vision_gflop_per_token")


def gpu_hours(amounts: Amounts, want: Asked, rates: Rates, *, cached: bool = True) -> dict[str, float | None]:
    """By stage that has its model on GPUs; None where the model's speed is not known."""
    found = {}
    if want.video_text.on_gpu:
        found["embed"] = _embedder_gpu_s(want.video_text, amounts.videos.count, rates.find("embed_gpu_s"), rates)
    if want.frame.on_gpu:
        found["scan"] = _embedder_gpu_s(want.frame, amounts.pictures, rates.find("scan_gpu_s"), rates)
    if want.describer.on_gpu:
        found["generate"] = _describer_gpu_s(amounts, want, rates, cached)
    return {stage: None if seconds is None else seconds / HOUR_S for stage, seconds in found.items()}


def _embedder_gpu_s(use: ModelUse, items: float, measured: float | None, rates: Rates) -> float | None:
    gflop = gflop_of_item(use, rates)
    if measured is not None:
        return items * measured
    if gflop is None:
        return None
    return items * gflop / (rates(f"gpu_{use.precision}_tflop_per_s") * 1000 * rates("embed_utilisation"))


def _describer_gpu_s(amounts: Amounts, want: Asked, rates: Rates, cached: bool) -> float | None:
    tokens, clips = amounts.tokens, amounts.clips.count
    prompt, encoded = (tokens.computed, 1) if cached else (tokens.prompt, 2)
    if (measured := rates.find("generate_tokens_per_gpu_s")) is not None:
        return clips * (prompt + tokens.output) / measured
    each = gflop_of_token(want.describer)
    if each is None:
        return None
    gflop_per_s = rates(f"gpu_{want.describer.precision}_tflop_per_s") * 1000
    reading = prompt * each + tokens.video * encoded * rates("vision_gflop_per_token")
    writing = tokens.output * each
    return clips * (reading / rates("prefill_utilisation") + writing / rates("decode_utilisation")) / gflop_per_s


def disk_bytes(amounts: Amounts, want: Asked, rates: Rates) -> dict[str, float]:
    """What the run folder grows to, by kind."""
    videos, chosen, clips = amounts.videos, amounts.selected, amounts.clips
    files = clips.bytes * rates("clip_bytes") if want.has_clip_files else 0.0
    tables = videos.count * rates("video_row_bytes") + chosen.frames * rates("frame_row_bytes")
    known = None if rates.is_measured("picture_row_bytes") else picture_bytes(want.frame)
    return {
        "clips": files,
        "tables": tables + amounts.pictures * (known or rates("picture_row_bytes")),
        "texts and export": clips.count * rates("clip_row_bytes") + (files if want.copies_clips else 0.0),
    }
