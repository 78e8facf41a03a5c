"""Counts what vLLM's vision encoder is given, within the engine's worker.

engine_args: {worker_extension_cls: tests.models.encoder_counter.EncoderCounter}, then
engine.call_workers("count_encoded") and, later, engine.call_workers("encoded").
"""

from __future__ import annotations

from typing import Any


class EncoderCounter:
    """vLLM adds these methods to its worker."""

    model_runner: Any

    def count_encoded(self) -> None:
        """Begin to count."""
        self._encoded: list[int] = []
        visual = self.model_runner.model.visual
        inner = visual.forward

        def counting(*args: Any, **kwargs: Any) -> Any:
            grid = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
            self._encoded.append(len(grid))
            return inner(*args, **kwargs)

        visual.forward = counting

    def encoded(self) -> int:
        """Videos that went through the encoder so far."""
        return sum(self._encoded)
