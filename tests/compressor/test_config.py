"""Configs: presets, baselines, token counts, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from compressor.config import (
    CompressorConfig,
    GlobalConfig,
    Injection,
    InjectionConfig,
    LocalConfig,
    average_pooling,
    paper,
    release,
    unconditional,
)
from compressor.hybrid import HybridCompressor

DIRECT = InjectionConfig(kind=Injection.DIRECT)
PRESETS = {"paper": paper, "release": release}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("frames", "tokens"), [(1, 113), (32, 680), (64, 1328), (128, 2624)])
def test_tokens_of_the_paper(preset: str, frames: int, tokens: int) -> None:
    assert PRESETS[preset](3584).token_count(frames, 27, 27) == tokens


def test_average_pooling_has_local_tokens_only() -> None:
    assert average_pooling(paper(3584)).token_count(32, 27, 27) == 648


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        (paper(3584), 49.94),
        (release(3584), 49.94),
        (unconditional(release(3584)), 39.31),
        (average_pooling(paper(3584)), 16.98),
        (release(896), 19.65),
    ],
)
def test_trainable_parameters(config: CompressorConfig, millions: float) -> None:
    """The paper says 63M for the 7B model and not of what: two MLPs are 34.0M of these, the coarse injection 8.0M."""
    with torch.device("meta"):
        model = HybridCompressor(config)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("preset", PRESETS)
def test_only_configs_with_injection_are_conditional(preset: str) -> None:
    config = PRESETS[preset](64)
    assert config.conditional
    assert not unconditional(config).conditional
    assert not average_pooling(config).conditional


@pytest.mark.parametrize("preset", PRESETS)
def test_a_config_survives_json(preset: str) -> None:
    config = PRESETS[preset](64)
    adapter = TypeAdapter(CompressorConfig)
    assert adapter.validate_json(adapter.dump_json(config)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: LocalConfig(attention=False, injection=DIRECT), "leave injection"),
        (lambda: LocalConfig(attention=False, adapt_values=True), "takes no adapter"),
        (lambda: LocalConfig(injection=DIRECT, adapt_query=True), "adapt_query would train nothing"),
        (lambda: LocalConfig(ratio=(0, 3, 3)), "greater than or equal to 1"),
        (lambda: LocalConfig(ratios=(4, 3, 3)), "Unexpected keyword argument"),  # type: ignore[call-arg]
        (lambda: GlobalConfig(injection=DIRECT), "use coarse or fine"),
        (lambda: GlobalConfig(tokens=0), "greater than or equal to 1"),
        (lambda: CompressorConfig(out_width=8, local=None, global_=None), "needs local, global_ or both"),
        (lambda: replace(paper(8), width=1000), "does not divide into 9 heads"),
        (lambda: replace(paper(8), width=1161), "a width that 16 divides"),
    ],
)
def test_what_cannot_be_built_is_refused(change: type, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        change()
