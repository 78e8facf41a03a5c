"""The figures of an estimate, from headers, a config and rates: arithmetic alone."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.estimate import cost
from pipeline.estimate.asked import Asked
from pipeline.estimate.cost import HOUR_S, Amounts
from pipeline.estimate.headers import Headers
from pipeline.estimate.rates import Rates
from pipeline.estimate.tokens import tokens_of_clip
from pipeline.estimate.volume import Source, clips, listed, selected, source
from pipeline.models.prompts import PAIRS_PER_CLIP


@dataclass(frozen=True)
class Figure:
    """One figure of an estimate."""

    section: str
    name: str
    unit: str
    value: float | None
    """None where it cannot be known."""


def reckon(headers: Headers, want: Asked, rates: Rates) -> list[Figure]:
    """All figures, in the order of the work. The same headers and config give the same list of them."""
    amounts = amounts_of(source(headers, rates), want, rates)
    return [
        *_input_figures(amounts),
        *_decode_figures(amounts, want, rates),
        *_clip_figures(amounts),
        *_token_figures(amounts),
        *_cost_figures(amounts, want, rates),
    ]


def amounts_of(inputs: Source, want: Asked, rates: Rates) -> Amounts:
    """How much of everything there is to do."""
    everything = listed(inputs)
    chosen = selected(everything, want, rates)
    made = clips(inputs, chosen, want, rates)
    return Amounts(
        rows=inputs.headers.rows,
        videos=everything,
        selected=chosen,
        clips=made,
        pictures=chosen.seconds / want.grid_interval_s,
        tokens=tokens_of_clip(inputs.videos, made.mean_s, want, rates),
    )


def _input_figures(amounts: Amounts) -> list[Figure]:
    videos, chosen = amounts.videos, amounts.selected
    return [
        Figure("input", "readable videos", "videos", videos.count),
        Figure("input", "length of all videos", "hours", videos.seconds / HOUR_S),
        Figure("input", "size of the files", "bytes", videos.bytes),
        Figure("select", "videos selected", "videos", chosen.count),
        Figure("select", "length of selected videos", "hours", chosen.seconds / HOUR_S),
    ]


def _decode_figures(amounts: Amounts, want: Asked, rates: Rates) -> list[Figure]:
    by_stage = cost.decoded(amounts, want, rates)
    lines = [Figure("decode", f"frames decoded in {name}", "frames", frames) for name, frames in by_stage.items()]
    return [*lines, Figure("decode", "frames decoded", "frames", sum(by_stage.values()))]


def _clip_figures(amounts: Amounts) -> list[Figure]:
    made = amounts.clips
    return [
        Figure("clips", "clips", "clips", made.count),
        Figure("clips", "mean length of a clip", "seconds", made.mean_s),
        Figure("clips", "length of all clips", "hours", made.seconds / HOUR_S),
        Figure("clips", "pairs before clean", "pairs", made.count * PAIRS_PER_CLIP),
    ]


def _token_figures(amounts: Amounts) -> list[Figure]:
    each, count = amounts.tokens, amounts.clips.count
    return [
        Figure("tokens", "video tokens of a clip", "tokens", each.video),
        Figure("tokens", "prompt tokens without prefix cache", "tokens", count * each.prompt),
        Figure("tokens", "prompt tokens with prefix cache", "tokens", count * each.computed),
        Figure("tokens", "output tokens", "tokens", count * each.output),
    ]


def _cost_figures(amounts: Amounts, want: Asked, rates: Rates) -> list[Figure]:
    cores, disk = cost.core_hours(amounts, want, rates), cost.disk_bytes(amounts, want, rates)
    cached, not_cached = (cost.gpu_hours(amounts, want, rates, cached=c) for c in (True, False))
    lines = [Figure("cores", f"core time of {name}", "core hours", hours) for name, hours in cores.items()]
    lines.append(Figure("cores", "core time", "core hours", _sum(cores)))
    known = all(rates.is_measured(f"{stage}_core_s") for stage in ("ingest", "embed", "scan", "cut", "generate"))
    if known and (held := rates.find("cores")) is not None and (total := _sum(cores)) is not None:
        lines.append(Figure("cores", "time on the machine of the former run", "hours", total / held))
    lines += [Figure("gpus", f"GPU time of {name}", "GPU hours", hours) for name, hours in cached.items()]
    lines.append(Figure("gpus", "GPU time", "GPU hours", _sum(cached)))
    if "generate" in cached:
        lines.append(Figure("gpus", "GPU time without prefix cache", "GPU hours", _sum(not_cached)))
    lines += [Figure("disk", f"size of {name}", "bytes", size) for name, size in disk.items()]
    return [*lines, Figure("disk", "size of the run folder", "bytes", sum(disk.values()))]


def _sum(parts: dict[str, float | None]) -> float | None:
    """None when a part is not known."""
    total = 0.0
    for part in parts.values():
        if part is None:
            return None
        total = total + part
    return total
