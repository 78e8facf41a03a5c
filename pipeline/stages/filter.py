"""Filter: keep the shots of acceptable length. Lengths are compared as exact fractions, both ends included."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from pipeline.records import Grain, seconds
from pipeline.stage import MapStage, Output, Rejected, Row, ShotReject, Workspace


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class FilterConfig:
    """Acceptable lengths. A decimal number means exactly that number: 5.1 is 51/10."""

    min_s: Annotated[float, Field(ge=0)] = 5.0
    """Shortest shot kept, seconds (sec. 3.2)."""
    max_s: Annotated[float, Field(gt=0)] = 120.0
    """Longest shot kept, seconds (sec. 3.2)."""

    @model_validator(mode="after")
    def _has_room(self) -> FilterConfig:
        if self.min_s > self.max_s:
            raise ValueError(f"min_s {self.min_s} is above max_s {self.max_s}: no shot could pass")
        return self


class Filter(MapStage):
    """A video's distinct shots to those of acceptable length."""

    name: ClassVar[str] = "filter"
    grain_in: ClassVar[Grain] = Grain.VIDEO
    grain_out: ClassVar[Grain] = Grain.VIDEO
    reads: ClassVar[tuple[str, ...]] = ("dedup.distinct_shots", "scan.time_base_num", "scan.time_base_den")

    def __init__(self, config: FilterConfig) -> None:
        self.config = config

    def apply(self, row: Row, work: Workspace) -> Output:
        shots: list[dict[str, Any]] = row["distinct_shots"]
        rejects = []
        for shot in shots:
            length = seconds(shot["end_pts"] - shot["start_pts"], row["time_base_num"], row["time_base_den"])
            reject = self._judge(shot["index"], length)
            if reject is not None:
                rejects.append(reject)
        reasons = {reject.shot: reject.reason for reject in rejects}
        kept = [shot for shot in shots if shot["index"] not in reasons]
        if not kept:
            raise _no_clip_left(rejects)
        outcomes = [{"shot": s["index"], "outcome": reasons.get(s["index"], "kept")} for s in shots]
        return Output(rows=[{"kept_shots": kept, "filter_outcomes": outcomes}], shot_rejects=rejects)

    def shots_in(self, row: Row) -> int:
        return len(row["distinct_shots"])

    def shots_out(self, output: Output) -> int:
        return sum(len(row["kept_shots"]) for row in output.rows)

    def _judge(self, shot: int, length: Fraction) -> ShotReject | None:
        shortest, longest = Fraction(str(self.config.min_s)), Fraction(str(self.config.max_s))
        if length < shortest:
            return ShotReject(shot, "too_short", f"{float(length):.6f} s, shortest kept {self.config.min_s} s")
        if length > longest:
            return ShotReject(shot, "too_long", f"{float(length):.6f} s, longest kept {self.config.max_s} s")
        return None


def _no_clip_left(rejects: list[ShotReject]) -> Rejected:
    counts = {reason: sum(r.reason == reason for r in rejects) for reason in ("too_short", "too_long")}
    shares = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
    return Rejected("no_clip_left", f"of {len(rejects)} distinct shots: {shares}", rejects)
