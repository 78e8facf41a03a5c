"""The figures of an export, gathered while its rows pass by."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pipeline.stage import Row

EXAMPLES = 2
"""Clips that the card quotes."""


@dataclass
class SourceFigures:
    """What the paper's Tab. 1 says of one collection."""

    videos: set[str] = field(default_factory=set)
    clips: int = 0
    pairs: int = 0
    seconds: float = 0.0

    def add(self, row: Row) -> None:
        self.videos.add(row["video_id"])
        self.clips += 1
        self.pairs += len(row["pairs"])
        self.seconds += row["duration_s"]


@dataclass
class Figures:
    """Counts over all rows added. Rows come in the order of their ids, so sums of seconds repeat to the last bit."""

    total: SourceFigures = field(default_factory=SourceFigures)
    datasets: dict[str, SourceFigures] = field(default_factory=dict)
    categories: Counter[str] = field(default_factory=Counter)
    """Clips of each category; the random rest is not in it."""
    methods: Counter[str] = field(default_factory=Counter)
    models: dict[str, set[str]] = field(default_factory=dict)
    """By column: video_model, frame_model, describer."""
    examples: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Count one exported row."""
        self.total.add(row)
        self.datasets.setdefault(row["dataset"], SourceFigures()).add(row)
        if row["category"] is not None:
            self.categories[row["category"]] += 1
        self.methods[row["method"]] += 1
        for column in ("video_model", "frame_model", "describer"):
            self.models.setdefault(column, set()).add(row[column])
        if len(self.examples) < EXAMPLES:
            self.examples.append(row)

    @property
    def built_in_describer(self) -> bool:
        return any(key.startswith("builtin:") for key in self.models.get("describer", ()))
