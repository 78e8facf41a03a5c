"""The rates of a former run, measured from its tables and metrics through DuckDB.

A rate holds only for the same settings: the share of video that is kept depends on the thresholds, a speed on the
model. What the run cannot say for this config is not taken, and said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pipeline.config import RunConfig, differences
from pipeline.estimate.asked import asked
from pipeline.estimate.former_sql import (
    CLIP_LENGTHS,
    MEASURED_ONLY,
    MEASUREMENTS,
    RATIO,
    TIMED_STAGES,
    VIDEO_LENGTHS,
    Measurement,
)
from pipeline.estimate.headers import BELIEVED_S
from pipeline.estimate.rates import Rate, Rates
from pipeline.estimate.tokens import LENGTHS
from pipeline.estimate.volume import clips_if_all_kept, usable_lengths
from pipeline.models import registry
from pipeline.query import open_query, run_query
from pipeline.session import Session, read_session
from pipeline.stage import UserError, plain
from pipeline.store.files import Files

_CLIP_STAGES = ("scan", "split", "dedup", "filter")
"""Stages that decide how much of a video becomes clips."""
_VIDEO_TABLES = ("sources", "ingest", "embed", "select", "select_scores", "split", "dedup", "filter")
_CLIP_TABLES = ("cut", "generate", "clean", "export")
_WEIGHED_FILES = 200
"""Files of a folder whose size is asked for, evenly among all: on an object store each is a request."""
_LEAST_ERROR = 0.1
"""What is measured is not taken to be known better than this, as a share: machines have better days. Our choice."""


def measure(run: str, config: RunConfig, assumed: Rates) -> Rates:
    """The assumed rates with those of a former run in place.

    Raises UserError for a folder that is no run folder, cannot be read, or has nothing to say for this config.
    """
    try:
        former = Former(run, config, assumed)
        found = list(former.rates())
        lengths = former.clip_lengths()
    except UserError as err:
        raise UserError(f"--rates {run}: {err}") from err
    if not found:
        raise UserError(f"--rates {run} has no rates for this config: {'; '.join(former.not_taken)}")
    return replace(assumed.having(found), clip_lengths=lengths, not_taken=tuple(former.not_taken))


class Former:
    """A former run, as far as it can speak for a config."""

    def __init__(self, run: str, config: RunConfig, assumed: Rates) -> None:
        self.not_taken: list[str] = []
        """What `rates` left out, and why; complete when it is exhausted."""
        self._run = run
        self._assumed = assumed
        self._min_s = config.filter.min_s
        self._session = read_session(run)
        self._con = open_query(self._session)
        self._unlike = dict(_unlike(self._session, config))
        self._numbers = _numbers(self._session, assumed)

    def rates(self) -> Iterator[Rate]:
        """What was measured and holds for the config."""
        refused: dict[str, list[str]] = {}
        for measurement in MEASUREMENTS:
            rate, why = self._measured(measurement), self._why_not(measurement.same)
            if rate is None:
                why = self._why_none(measurement) if measurement.expected else None
            elif why is None:
                yield rate
            if why is not None:
                refused.setdefault(why, []).append(measurement.rate)
        if (why := self._why_not(_CLIP_STAGES)) is not None:
            refused.setdefault(why, []).append("clip_s")
        self.not_taken += [f"{' '.join(names)}: {why}" for why, names in refused.items()]
        yield from self._mean_clip()
        if (cores := self._numbers["cores"]) is not None:
            yield self._rate("cores", cores, None, f"as {self._run} noted when it ran")

    def clip_lengths(self) -> tuple[float, ...]:
        """Lengths that stand for those of its clips; none where it does not speak for the config."""
        if self._why_not(_CLIP_STAGES):
            return ()
        [row] = self._query(CLIP_LENGTHS, shares=[(i + 0.5) / LENGTHS for i in range(LENGTHS)])
        return tuple(row["lengths"] or ())

    def _mean_clip(self) -> Iterator[Rate]:
        """The mean length of clips in videos that have room for one: what gives, by the arithmetic of the estimate,
        as many clips as there were."""
        [row] = self._query(CLIP_LENGTHS, shares=[0.5])
        videos = [video["video_s"] for video in self._query(VIDEO_LENGTHS)]
        usable = sum(usable_lengths(videos, self._min_s))
        if self._why_not(_CLIP_STAGES) or not (row["n"] and usable):
            return
        low, high = self._min_s, max(videos)
        for _ in range(60):
            middle = (low + high) / 2
            mean_s = usable / clips_if_all_kept(videos, self._min_s, middle)
            low, high = (middle, high) if mean_s < row["mean_s"] else (low, middle)
        error = 2 * row["deviation_s"] / row["mean_s"] / math.sqrt(row["n"])
        yield self._rate("clip_s", high, error, f"measured on {self._run}, {row['n']} clips of {row['mean_s']:.3g} s")

    def _why_not(self, stages: tuple[str, ...]) -> str | None:
        return next((self._unlike[stage] for stage in stages if stage in self._unlike), None)

    def _why_none(self, measurement: Measurement) -> str:
        unknown = any(name.endswith("_cores") and self._numbers[name] is None for name in measurement.needs)
        if unknown and self._ran(measurement.same):
            return "the run did not note how many cores it had, or it went on with others"
        return "nothing to measure it on"

    def _ran(self, stages: tuple[str, ...]) -> bool:
        names = ", ".join(f"'{stage}'" for stage in stages)
        [row] = self._query(f"SELECT count(*) AS n FROM metrics WHERE stage IN ({names})")
        return bool(row["n"])

    def _measured(self, measurement: Measurement) -> Rate | None:
        if any(self._numbers[name] is None for name in measurement.needs):
            return None
        [found] = self._query(RATIO.replace("{measured}", measurement.sql))
        if not found["n"] or not found["x"]:
            return None
        value, n = found["y"] / found["x"], found["n"]
        left = found["yy"] - 2 * value * found["xy"] + value**2 * found["xx"]
        error = 2 * math.sqrt(max(0.0, left) * n / (n - 1)) / found["y"] if n > 1 and value else 1.0
        return self._rate(measurement.rate, value, error, f"measured on {self._run}, {n} {measurement.items}")

    def _query(self, sql: str, **more: object) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = run_query(self._con, sql.format(**self._numbers, **more)).to_pylist()
        return rows

    def _rate(self, name: str, value: float, error: float | None, source: str) -> Rate:
        """`error`: two standard errors as a share of the value; None for what is known."""
        unit = MEASURED_ONLY[name] if name in MEASURED_ONLY else self._assumed.named[name].unit
        times = 1.0 if error is None else 1 + max(error, _LEAST_ERROR)
        return Rate(name, value, value / times, value * times, unit, source, measured=True)


def _unlike(session: Session, config: RunConfig) -> Iterator[tuple[str, str]]:
    """Stages that were not what they are in this config, each with the first difference."""
    for stage in config.stages():
        old = session.stage(stage.name)
        recorded = session.record["stages"].get(stage.name, {})
        changed = {
            **differences(plain(old.config, places=False), plain(stage.config, places=False), f"{stage.name}."),
            **differences(recorded.get("depends_on", {}), stage.depends_on(), f"{stage.name}: "),
            **differences({"version": recorded.get("version")}, {"version": stage.version}, f"{stage.name}: "),
        }
        for path, (before, now) in changed.items():
            yield stage.name, f"{path} was {before!r}, is {now!r}"
            break


def _numbers(session: Session, assumed: Rates) -> Mapping[str, float | None]:
    """What the queries need beside the views; None for what the run does not know."""
    want, config = asked(session.config), session.config
    gpus = {
        "embed_gpus": registry.card("video_text_embedder", config.models.video_text),
        "scan_gpus": registry.card("frame_embedder", config.models.frame),
        "generate_gpus": registry.card("describer", config.models.describer),
    }
    return {
        **{name: card.gpus * card.replicas or None for name, card in gpus.items()},
        **_cores(session.record.get("ran_on")),
        "reads_prompts": 1 if want.reads_prompts else None,
        "believed_s": BELIEVED_S,
        "min_s": want.min_s,
        "embed_frames": want.embed_frames,
        "hash_mb_per_core_s": assumed.named["hash_mb_per_core_s"].value,
        "frame_row_bytes": assumed.named["frame_row_bytes"].value,
        "video_table_bytes": sum(_bytes(session.files, f"tables/{name}") for name in _VIDEO_TABLES)
        + _bytes(session.files, "rejects")
        + _bytes(session.files, "metrics"),
        "scan_table_bytes": _bytes(session.files, "tables/scan"),
        "clip_table_bytes": sum(_bytes(session.files, f"tables/{name}") for name in _CLIP_TABLES)
        + _bytes(session.files, "export", (".parquet", ".json"))
        + _bytes(session.files, "clips", (".json",)),
    }


def _cores(ran_on: Any) -> dict[str, int | None]:
    """Cores that each timed stage had, and all of those that are noted: None where it is not known, or not one number.

    `ran_on`: as run.yaml has it.
    """
    ran_on = ran_on if isinstance(ran_on, dict) else {}
    by_stage = {
        stage: noted.get("cores") if isinstance(noted := ran_on.get(stage), dict) else None
        for timed in TIMED_STAGES.values()
        for stage in timed
    }
    found = {f"{name}_cores": _same([by_stage[stage] for stage in timed]) for name, timed in TIMED_STAGES.items()}
    return {**found, "cores": _same([cores for stage, cores in by_stage.items() if stage in ran_on])}


def _same(values: list[int | None]) -> int | None:
    return values[0] if values and len(set(values)) == 1 else None


def _bytes(files: Files, folder: str, endings: tuple[str, ...] = ("",)) -> float:
    """Bytes of the files below a folder, from a few where they are many."""
    paths = [path for path in files.list(folder) if path.endswith(endings)]
    some = paths[:: max(1, len(paths) // _WEIGHED_FILES)]
    return sum(files.size(path) or 0 for path in some) * len(paths) / max(1, len(some))
