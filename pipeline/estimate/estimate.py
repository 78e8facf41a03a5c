"""The estimate of a command: inputs, config and rates to figures and what else has to be said of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.config import load_profile, parse, parse_overrides
from pipeline.estimate.asked import Asked, asked
from pipeline.estimate.doubt import Doubted, doubted
from pipeline.estimate.figures import reckon
from pipeline.estimate.former import measure
from pipeline.estimate.headers import BELIEVED_S, MOST_HEADERS, Headers, read_headers
from pipeline.estimate.rates import Rate, Rates, assumed_rates
from pipeline.estimate.volume import sampled_rate
from pipeline.session import DEFAULT_PROFILE


@dataclass(frozen=True)
class EstimateRequest:
    """One `hicom plan INPUT --estimate`."""

    inputs: tuple[str, ...]
    profile: str | None = None
    sets: tuple[str, ...] = ()
    limit: int | None = None
    headers: int | None = None
    """Most headers to read; None: MOST_HEADERS."""
    rates: str | None = None
    """The run folder of a former run, whose rates are taken where they hold."""


@dataclass(frozen=True)
class Estimate:
    """All figures, the rates behind them, and what else has to be said."""

    profile: str
    headers: Headers
    figures: tuple[Doubted, ...]
    rates: tuple[Rate, ...]
    """Those that a figure is made with, and all that were measured."""
    notes: tuple[str, ...]


def make_estimate(request: EstimateRequest) -> Estimate:
    """List the inputs, read headers, and reckon. Raises UserError."""
    profile = request.profile or DEFAULT_PROFILE
    config = parse(load_profile(profile), parse_overrides(request.sets))
    want, rates = asked(config), assumed_rates()
    if request.rates is not None:  # before the headers, which take a while
        rates = measure(request.rates, config, rates)
    headers = read_headers(request.inputs, config, limit=request.limit, most=request.headers or MOST_HEADERS)
    rates = rates.having(sampled_rate(headers))
    figures = doubted(lambda moved: reckon(headers, want, moved), rates)
    used = {name for figure in figures for name in figure.moved_by}
    return Estimate(
        profile=profile,
        headers=headers,
        figures=tuple(figures),
        rates=tuple(rate for name, rate in rates.named.items() if name in used or rate.measured),
        notes=(*_notes(headers, want, rates), *_not_known(figures)),
    )


def _notes(headers: Headers, want: Asked, rates: Rates) -> Iterator[str]:
    """What figures alone do not say."""
    yield "a range is what each rate's own ends make of the figure, added as squares; beside it stand those rates"
    if headers.is_sample:
        yield f"{headers.probed} of {headers.rows} headers were read, the same each time; figures are of all rows"
    yield from _unknown(headers)
    yield "the same video twice, and damage past the header, are found by ingest, embed and scan: here they are videos"
    if not want.exclusive:
        yield "select.assignment is independent: how many videos several categories share is a guess"
    if want.describer.endpoint:
        yield "the describer's tokens are the endpoint's to compute: its GPUs are not counted"
    if want.describer.on_gpu or want.frame.on_gpu or want.video_text.on_gpu:
        yield "GPU time is of work, on an H100 where it is assumed: GPUs that wait for too few cores cost more"
    if want.has_clip_files:
        yield "the export's clips are links; on an object store they are copies, as large as the clips once more"
    yield "loading of models, start of Ray, select and export are not counted; they take minutes, not hours"
    if any(rate.measured and name.endswith("_core_s") for name, rate in rates.named.items()):
        yield "measured times are the clock's, on all cores that the run had: what else was at work makes them longer"
    yield from (f"not taken from the former run: {line}" for line in rates.not_taken)


def _unknown(headers: Headers) -> Iterator[str]:
    lengths = sum(video.duration_s is None for video in headers.videos)
    speeds = sum(video.fps is None for video in headers.videos)
    readable = len(headers.videos)
    for count, what, rate in ((lengths, "length", "unknown_video_s"), (speeds, "frame rate", "unknown_fps")):
        if count and count == readable:
            yield f"no header states a {what}: the rate {rate} stands for it"
        elif count:
            yield f"{count} of {readable} headers state no {what}: the mean of the others stands for it"
    if lengths:
        yield f"a stated length above {BELIEVED_S / 3600:g} h counts as none"


def _not_known(figures: Sequence[Doubted]) -> Iterator[str]:
    names = [one.figure.name for one in figures if one.figure.value is None]
    if names:
        yield f"not known: {', '.join(names)}. How much a model computes is not at hand; --rates of a run with it tells"
