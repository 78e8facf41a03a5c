"""The built-in describer "observer": says of a clip what it measured, and nothing else.

A program of a few hundred lines, no weights: colours by region, areas of one colour and their ways, the slide of a
pan, the light, what changes where. Every sentence is true of the sampled frames, and the pairs obey the paper's two
rules. It knows nothing of people and things, and is no substitute for a model that does.

It reads no prompts. Its tokens are words: none go in, and those of caption, instructions and answers come out.
"""

from __future__ import annotations

import asyncio

import numpy as np

from pipeline.models import registry
from pipeline.models.builtin import observer_words
from pipeline.models.builtin.observer_measure import observe
from pipeline.models.prompts import PAIRS_PER_CLIP
from pipeline.models.protocols import Card, ClipFrames, Description, Turn
from pipeline.models.spec import ModelSpec

NAME, REVISION = "observer", "1"
_SIDE = 128
"""Width and height of a picture, pixels."""
_FRAMES = 16
"""Frames of a clip."""


def card(spec: ModelSpec) -> Card:
    registry.require_builtin(spec, NAME, REVISION)
    return Card(
        frame_spec={"width": _SIDE, "height": _SIDE, "resize": "stretch", "interpolation": "area"},
        frames=_FRAMES,
        reads_prompts=False,
    )


def load(spec: ModelSpec) -> Observer:
    registry.require_builtin(spec, NAME, REVISION)
    return Observer(spec)


class Observer:
    """See the module's text; a `Describer`."""

    def __init__(self, spec: ModelSpec) -> None:
        self.key = spec.key

    async def describe(self, clip: ClipFrames) -> Description:
        """Describe a clip of frames uint8 [T, 128, 128, 3] RGB, T at least 1; the event loop stays free meanwhile."""
        shape = clip.frames.shape
        assert clip.frames.dtype == np.uint8 and shape[0] >= 1 and shape[1:] == (_SIDE, _SIDE, 3), shape
        return await asyncio.to_thread(_describe, clip)


def _describe(clip: ClipFrames) -> Description:
    seen = observe(clip)
    caption = observer_words.caption(seen)
    pairs = observer_words.pairs(seen, PAIRS_PER_CLIP)
    return Description(
        caption=caption,
        pairs=pairs,
        turns=[
            _turn("caption", caption),
            _turn("qa", " ".join(f"{pair.instruction} {pair.answer}" for pair in pairs)),
        ],
    )


def _turn(turn: str, text: str) -> Turn:
    return Turn(turn=turn, prompt_tokens=0, cached_tokens=0, output_tokens=len(text.split()), finish_reason="stop")
