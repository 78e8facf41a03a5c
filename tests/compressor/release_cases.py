"""What is compared with the authors' code: their names for it, a grid, and our config of the same."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from compressor.config import (
    CompressorConfig,
    Injection,
    InjectionConfig,
    LocalConfig,
    TextPath,
    release,
    unconditional,
)
from tests.compressor.drawn import drawn

OUT_WIDTH = 16
WIDTH = 1152
"""Their code has no other width for SigLIP."""


@dataclass(frozen=True)
class Case:
    """One compressor on one video."""

    kind: str
    """Their mm_projector_type, a code of digits and words."""
    guide: str | None
    """Their use_guide."""
    grid: tuple[int, int, int]
    config: CompressorConfig
    text_tokens: int = 0
    """0: the text is one pooled vector."""

    def inputs(self) -> dict[str, Tensor]:
        """Values, and with a text keys and the text; without a batch axis."""
        found = {"values": drawn("values", (*self.grid, WIDTH), 1.0)}
        if self.guide:
            shape = (self.text_tokens, WIDTH) if self.text_tokens else (WIDTH,)
            found |= {"keys": drawn("keys", (*self.grid, WIDTH), 0.3), "text": drawn("text", shape, 1.0)}
        return found


RELEASE = release(OUT_WIDTH)
assert RELEASE.local and RELEASE.global_
PLAIN_DIRECT = InjectionConfig(kind=Injection.DIRECT, norm_last=True)
COARSE = InjectionConfig(kind=Injection.COARSE, norm_last=True)
FINE = InjectionConfig(kind=Injection.FINE, norm_last=True)
GATED_COARSE = replace(COARSE, text=TextPath.GATED)


def local(config: LocalConfig) -> CompressorConfig:
    return replace(RELEASE, local=config)


ADAPTED = replace(RELEASE.local, adapt_keys=True, adapt_values=True)
ALL_ADAPTED = replace(ADAPTED, adapt_query=True, injection=COARSE)
UNCONDITIONAL = unconditional(RELEASE)
assert UNCONDITIONAL.local
ADAPTED_ALONE = replace(UNCONDITIONAL.local, adapt_query=True, adapt_keys=True, adapt_values=True)

CASES = {
    "image, unconditional": Case("local43_global32", None, (1, 9, 9), UNCONDITIONAL),
    "image": Case("local43_adaptg_global32_guidecoarse", "direct", (1, 9, 9), RELEASE),
    "even": Case("local43_adaptg_global32_guidecoarse", "direct", (8, 9, 9), RELEASE),
    # Their code stops at five frames in groups of four. Ours makes two windows of three, as theirs in groups of three.
    "five frames": Case("local33_adaptg_global32_guidecoarse", "direct", (5, 7, 8), RELEASE),
    "uneven": Case("local43_adaptg_global32_guidecoarse", "direct", (7, 8, 10), RELEASE),
    "32 frames, text as it is": Case(
        "local43_global32_guidecoarse", "direct", (32, 5, 6), local(replace(RELEASE.local, injection=PLAIN_DIRECT))
    ),
    "128 frames": Case("local43_adaptg_global32_guidecoarse", "direct", (128, 3, 5), RELEASE),
    "adapters, unconditional": Case(
        "local43_adaptqkv_global32", None, (7, 6, 7), replace(UNCONDITIONAL, local=ADAPTED_ALONE)
    ),
    "adapters": Case("local43_adaptkvg_global32_guidecoarse", "direct", (7, 6, 7), local(ADAPTED)),
    "coarse, gated text, adapters": Case(
        "local43_adaptqkv_guidecoarse_global32_adaptg_guidecoarse",
        "direct",
        (8, 6, 7),
        replace(local(ALL_ADAPTED), global_=replace(RELEASE.global_, injection=GATED_COARSE)),
    ),
    "fine": Case(
        "local43_guidefine_global32_guidefine",
        "fine",
        (8, 5, 6),
        replace(local(replace(RELEASE.local, injection=FINE)), global_=replace(RELEASE.global_, injection=FINE)),
        text_tokens=5,
    ),
}
