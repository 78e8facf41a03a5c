"""What a compressor is made of. `paper()` and `release()` return complete configs; the rest derives others from them.

Light on purpose: no torch here, so that a command can check a config and count tokens without loading it.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from math import ceil
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

Positive = Annotated[int, Field(ge=1)]
STRICT = ConfigDict(extra="forbid")


class Injection(StrEnum):
    """How the instruction enters the tokens A that query the video."""

    DIRECT = "direct"
    """The pooled text becomes the one query of all groups."""
    COARSE = "coarse"
    """Adaptive layer norm: scale and shift are made of the pooled text."""
    FINE = "fine"
    """Cross attention from A to the text's tokens."""


class TextPath(StrEnum):
    """What the text goes through before it is injected."""

    PLAIN = "plain"
    MLP = "mlp"
    GATED = "gated"
    """(1 - a) * C + a * LN(MLP(C)), with a learned scalar `a` that starts at 0."""


class Position(StrEnum):
    """How three sinusoids, over time, height and width, become one position embedding."""

    SPLIT = "split"
    """Each has channels of its own: 3/8 height, 3/8 width, 2/8 time."""
    SUM = "sum"
    """Each has all channels, and they are added up."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class InjectionConfig:
    """How the instruction is injected."""

    kind: Injection
    text: TextPath = TextPath.PLAIN
    norm_last: bool = False
    """coarse and fine: the paper norms A first, LN(A) * scale + shift and attention of LN(A); the authors' code norms
    the result, LN(A * (1 + scale) + shift) and LN(A + attention of A)."""
    heads: Positive = 9
    """fine: heads of the cross attention. 9 of 128 channels in the authors' code."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LocalConfig:
    """Local compression: each group of neighbouring tokens becomes one token."""

    ratio: tuple[Positive, Positive, Positive] = (4, 3, 3)
    """At most so many frames, rows and columns become one token (sec. 4.1). An axis that does not divide gets balanced
    windows, some of which overlap by one."""
    attention: bool = True
    """False: the plain mean of each group, the paper's baseline."""
    grouping: bool = True
    """False: each group's query attends to the whole video."""
    injection: InjectionConfig | None = None
    resized_query: bool = False
    """Where no text is the query, it is the mean of the group (paper) or the features resized to the grid of groups by
    trilinear interpolation, True (authors' code)."""
    own_keys: bool = False
    """True: keys come beside the values, which are the keys otherwise. The authors' code uses SigLIP's last hidden
    state after its head's residual MLP as keys and layer -2 as values."""
    adapt_query: bool = False
    adapt_keys: bool = False
    adapt_values: bool = False
    """x becomes (1 - a) * x + a * LN(f(x)), `a` learned, 0 at first; f is linear for queries, else an MLP. The adapted
    variants of the authors' code; an adapter of values or keys costs more than all the rest."""

    def __post_init__(self) -> None:
        direct = self.injection is not None and self.injection.kind is Injection.DIRECT
        if not self.attention and (self.injection or self.own_keys or not self.grouping):
            raise ValueError("attention=False is the mean of each group: leave injection, own_keys and grouping alone")
        if not self.attention and (self.adapt_query or self.adapt_keys or self.adapt_values):
            raise ValueError("attention=False is the mean of each group: it takes no adapter")
        if direct and self.adapt_query:
            raise ValueError("direct injection replaces the query, so adapt_query would train nothing: set it to False")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GlobalConfig:
    """Global compression: learned tokens attend to the whole video."""

    tokens: Positive = 32
    """Learned tokens, as many as come out (sec. 4.1)."""
    heads: Positive = 9
    injection: InjectionConfig | None = None
    position: Position = Position.SPLIT
    position_on_values: bool = False
    """True: values carry the position too, as in the authors' code; the paper adds it to keys only."""
    residual: bool = False
    """True: the query is added to what it found before the last MLP, as in the authors' code."""
    token_std: Annotated[float, Field(ge=0)] = 0.02
    """Spread of the learned tokens at the start. Our choice; the authors' code starts them at 0, all equal."""

    def __post_init__(self) -> None:
        if self.injection is not None and self.injection.kind is Injection.DIRECT:
            raise ValueError("direct injection would make all global tokens the same query: use coarse or fine")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CompressorConfig:
    """A whole compressor: local tokens, then global ones."""

    width: Positive = 1152
    """Channels of the features and of the text. SigLIP so400m."""
    out_width: Positive
    """Channels of the LLM: 3584 for Qwen2.5-7B, 896 for 0.5B."""
    local: LocalConfig | None
    global_: GlobalConfig | None

    def __post_init__(self) -> None:
        if self.local is None and self.global_ is None:
            raise ValueError("a compressor needs local, global_ or both")
        for heads in self._head_counts():
            if self.width % heads:
                raise ValueError(f"width {self.width} does not divide into {heads} heads: set heads to a divisor")
        if self.global_ and self.global_.position is Position.SPLIT and self.width % 16:
            raise ValueError(f"position=split needs a width that 16 divides, not {self.width}")

    def _head_counts(self) -> list[int]:
        parts = [part for part in (self.local, self.global_) if part]
        fine = [part.injection.heads for part in parts if part.injection and part.injection.kind is Injection.FINE]
        return fine + ([self.global_.heads] if self.global_ else [])

    @property
    def conditional(self) -> bool:
        """Whether it needs an instruction."""
        return any(part is not None and part.injection is not None for part in (self.local, self.global_))

    def token_count(self, frames: int, height: int, width: int) -> int:
        """Tokens that come out for a grid of so many tokens."""
        count = self.global_.tokens if self.global_ else 0
        if self.local:
            t, h, w = (ceil(n / a) for n, a in zip((frames, height, width), self.local.ratio, strict=True))
            count += t * h * w
        return count


def paper(out_width: int) -> CompressorConfig:
    """The paper's choice: direct injection for local, coarse for global (sec. 3.1, Tab. 4)."""
    local = LocalConfig(injection=InjectionConfig(kind=Injection.DIRECT, text=TextPath.MLP))
    global_ = GlobalConfig(injection=InjectionConfig(kind=Injection.COARSE))
    return CompressorConfig(out_width=out_width, local=local, global_=global_)


def release(out_width: int) -> CompressorConfig:
    """The authors' released checkpoint, directg_local43_global32."""
    local = LocalConfig(
        injection=InjectionConfig(kind=Injection.DIRECT, text=TextPath.GATED, norm_last=True),
        resized_query=True,
        own_keys=True,
    )
    global_ = GlobalConfig(
        injection=InjectionConfig(kind=Injection.COARSE, norm_last=True),
        position=Position.SUM,
        position_on_values=True,
        residual=True,
        token_std=0.0,
    )
    return CompressorConfig(out_width=out_width, local=local, global_=global_)


def unconditional(config: CompressorConfig) -> CompressorConfig:
    """The same without injection: the paper's baseline, and what the alignment stage trains.

    Keys are the values then, as in the authors' code, which makes text-aligned keys only for a text.
    """
    return replace(
        config,
        local=replace(config.local, injection=None, own_keys=False) if config.local else None,
        global_=replace(config.global_, injection=None) if config.global_ else None,
    )


def average_pooling(config: CompressorConfig) -> CompressorConfig:
    """The mean of each local group of `config` and an MLP, nothing else: the paper's baseline (Tab. 4)."""
    ratio = (config.local or LocalConfig()).ratio
    return replace(config, local=LocalConfig(ratio=ratio, attention=False), global_=None)
