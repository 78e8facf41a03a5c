"""Which of our configs the authors' code can express, and which one a checkpoint of theirs belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import Tensor

from compressor.config import (
    CompressorConfig,
    GlobalConfig,
    Injection,
    InjectionConfig,
    LocalConfig,
    Position,
    TextPath,
    release,
    unconditional,
)

PREFIX = "model.mm_projector."
"""What their names begin with in a checkpoint."""
HEAD_CHANNELS = 128
"""Their code has width / 128 heads."""


def config_of(state: Mapping[str, Tensor]) -> CompressorConfig:
    """The config of a checkpoint of theirs, by its names and shapes.

    Two things leave no trace in a file. The group ratio is taken to be (4, 3, 3); and where the global half is
    conditional and the local one has no injector, that is taken to be direct, of the text as it is.
    """
    names = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
    readouts = [tensor for name, tensor in names.items() if name.endswith(".readout.0.weight")]
    if not readouts:
        raise ValueError(f"no {PREFIX}*.readout.0.weight: this is no checkpoint of a local or global compressor")
    out_width, width = readouts[0].shape
    global_ = _global_of(names, width) if "global_compressor.query" in names else None
    direct = InjectionConfig(kind=Injection.DIRECT, norm_last=True, heads=_heads(width))
    unseen = direct if global_ and global_.injection else None
    has_local = any(name.startswith("local_compressor.") for name in names)
    local = _local_of(names, width, unseen) if has_local else None
    found = CompressorConfig(width=width, out_width=out_width, local=local, global_=global_)
    return found if found.conditional else unconditional(found)


def _heads(width: int) -> int:
    return max(1, width // HEAD_CHANNELS)


def _local_of(names: Mapping[str, Tensor], width: int, unseen: InjectionConfig | None) -> LocalConfig:
    preset = release(1).local
    assert preset
    return replace(
        preset,
        injection=_injection_of(names, "local_compressor", width) or unseen,
        adapt_query="local_compressor.q_alpha" in names,
        adapt_keys="local_compressor.k_alpha" in names,
        adapt_values="local_compressor.v_alpha" in names,
    )


def _global_of(names: Mapping[str, Tensor], width: int) -> GlobalConfig:
    preset = release(1).global_
    assert preset
    return replace(
        preset,
        tokens=len(names["global_compressor.query"]),
        heads=_heads(width),
        injection=_injection_of(names, "global_compressor", width),
    )


def _injection_of(names: Mapping[str, Tensor], part: str, width: int) -> InjectionConfig | None:
    own = {name.split(".")[2] for name in names if name.startswith(f"{part}.guide_injector.")}
    if not own:
        return None
    kinds = {"coarse_proj": Injection.COARSE, "fine_proj": Injection.FINE}
    kind = next((kind for name, kind in kinds.items() if name in own), Injection.DIRECT)
    text = TextPath.GATED if "guide_alpha" in own else TextPath.PLAIN
    return InjectionConfig(kind=kind, text=text, norm_last=True, heads=_heads(width))


def check_expressible(config: CompressorConfig) -> None:
    """Whether their code computes what this config does."""
    wrong = []
    if config.local:
        wrong += list(_local_differences(config.local, config.conditional))
    if config.global_:
        wrong += list(_global_differences(config.global_, config.width))
    for part in (config.local, config.global_):
        if part and part.injection:
            wrong += list(_injection_differences(part.injection, config.width))
    if wrong:
        raise ValueError(f"the authors' code has no such compressor: {'; '.join(wrong)}")


def _local_differences(config: LocalConfig, conditional: bool) -> Iterator[str]:
    if not config.attention or not config.grouping:
        yield "local needs attention and grouping"
    if not config.resized_query:
        yield "local.resized_query is True there"
    if config.own_keys != conditional:
        yield f"local.own_keys is {conditional} there"


def _global_differences(config: GlobalConfig, width: int) -> Iterator[str]:
    if config.position is not Position.SUM or not config.position_on_values:
        yield "global_.position is a sum, on values too, there"
    if not config.residual:
        yield "global_.residual is True there"
    if config.heads * HEAD_CHANNELS != width:
        yield f"global_.heads are width / {HEAD_CHANNELS} there"


def _injection_differences(config: InjectionConfig, width: int) -> Iterator[str]:
    if config.text is TextPath.MLP:
        yield "injection.text is plain or gated there"
    if not config.norm_last and config.kind is not Injection.DIRECT:
        yield "injection.norm_last is True there"
    if config.kind is Injection.FINE and config.heads * HEAD_CHANNELS != width:
        yield f"injection.heads are width / {HEAD_CHANNELS} there"
