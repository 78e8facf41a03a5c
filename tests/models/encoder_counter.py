"""Counts what vLLM's vision encoder is given, within the engine's worker.

engine_args: {worker_extension_cls: tests.models.encoder_counter.EncoderCounter}
"""

from __future__ import annotations

from typing import Any

from pipeline.models.vllm.engine import VllmEngine

EXTENSION = f"{__name__}.EncoderCounter"
"""What vLLM's `worker_extension_cls` has to be."""


def start(engine: VllmEngine) -> None:
    """Begin to count."""
    _call(engine, "count_encoded")


def encoded(engine: VllmEngine) -> int:
    """Videos that went through the encoder so far."""
    [count] = _call(engine, "encoded")
    return int(count)


def _call(engine: VllmEngine, method: str) -> list[Any]:
    answers: list[Any] = engine.submit(engine._llm.collective_rpc(method)).result()
    return answers


class EncoderCounter:
    """vLLM adds these methods to its worker."""

    model_runner: Any

    def count_encoded(self) -> None:
        self._encoded: list[int] = []
        visual = self.model_runner.model.visual
        inner = visual.forward

        def counting(*args: Any, **kwargs: Any) -> Any:
            grid = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
            self._encoded.append(len(grid))
            return inner(*args, **kwargs)

        visual.forward = counting

    def encoded(self) -> int:
        return sum(self._encoded)
