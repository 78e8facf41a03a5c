"""Describers that go wrong, one for each reject reason of `generate`: the built-in one never does.

monkeypatch.setitem(registry.MODELS["describer"], "faulty", faulty_describer.FAMILY)
models.describer: {family: faulty, name: refused}
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.models.protocols import Card, ClipFrames, Description, Pair, Turn
from pipeline.models.registry import Family
from pipeline.models.spec import ModelSpec
from pipeline.stage import Retryable

FAMILY = Family("tests.models.faulty_describer:card", "tests.models.faulty_describer:load")

_TURN = Turn(turn="caption", prompt_tokens=9, cached_tokens=0, output_tokens=9, finish_reason="stop")
_SOUND = Description(
    caption="A brown dog walks along a grey sofa.",
    pairs=[Pair(f"Describe dog {n}.", f"Dog {n} walks along the sofa to its left end.") for n in range(3)],
    turns=[_TURN, replace(_TURN, turn="qa")],
)
FAULTS: dict[str, Description | None] = {
    "bad_output": replace(_SOUND, pairs=_SOUND.pairs[:2]),
    "refused": replace(_SOUND, caption="I'm sorry, but I cannot help with that."),
    "truncated": replace(_SOUND, turns=[_TURN, replace(_TURN, turn="qa", finish_reason="length")]),
    "engine_error": None,
}
"""What each describer says, by its name, which is the reason it ends in. None: its engine is gone."""


def card(spec: ModelSpec) -> Card:
    frame_spec = {"width": 32, "height": 32, "resize": "stretch", "interpolation": "area"}
    return Card(frame_spec=frame_spec, frames=2)


def load(spec: ModelSpec) -> FaultyDescriber:
    return FaultyDescriber(spec)


class FaultyDescriber:
    def __init__(self, spec: ModelSpec) -> None:
        self.key = spec.key
        self._says = FAULTS[spec.name]

    async def describe(self, clip: ClipFrames) -> Description:
        if self._says is None:
            raise Retryable("engine_error", "the engine is gone")
        return self._says
