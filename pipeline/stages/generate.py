"""Generate: a caption and instruction-answer pairs for every clip, by a describer, in two turns (paper, sec. 3.2).

Nothing is judged here but the form: an answer that was cut off, refused, or is not a caption with three pairs is a
reject. Whether a pair is any good is for `clean` to say, as often as anyone likes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from pipeline.media.budget import FrameCount
from pipeline.models.prompts import PAIRS_PER_CLIP, prompt_hashes
from pipeline.models.protocols import Card, ClipFrames, Describer, Frames, Turn
from pipeline.models.registry import card, identity, load_describer
from pipeline.models.spec import ModelSpec
from pipeline.models.two_turns import checked_caption, cut_off, storable
from pipeline.records import Grain, seconds
from pipeline.stage import Chunk, Output, Rejected, Resources, Row, TwoStepStage, Workspace


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class GenerateConfig:
    """Which model describes how much of a clip."""

    model: ModelSpec
    """The describer (the paper's: Qwen2-VL-72B-Instruct, sec. 3.2)."""
    frames: Annotated[int, Field(ge=1, le=768)] | None = None
    """Frames, in the middles of so many equal parts of the clip; None: as many as the model's own settings give a clip
    of its length. The paper gives no number."""


class Generate(TwoStepStage):
    """A clip to its caption and pairs."""

    name: ClassVar[str] = "generate"
    grain_in: ClassVar[Grain] = Grain.CLIP
    grain_out: ClassVar[Grain] = Grain.CLIP
    version: ClassVar[int] = 2
    reads: ClassVar[tuple[str, ...]] = (
        "cut.clip_uri",
        "cut.start_pts",
        "cut.end_pts",
        "cut.clip_time_base_num",
        "cut.clip_time_base_den",
        "cut.clip_s",
        "ingest.uri",
        "ingest.duration_s",
    )

    def __init__(self, config: GenerateConfig) -> None:
        self.config = config

    @cached_property
    def _card(self) -> Card:
        """Looked up on first use: who reads a finished run need not have the model. Raises UserError."""
        return card("describer", self.config.model)

    @cached_property
    def _prompts(self) -> dict[str, str] | None:
        return prompt_hashes() if self._card.reads_prompts else None

    @property
    def resources(self) -> Resources:
        return self._card.resources(batch_size=64)

    def depends_on(self) -> Mapping[str, str]:
        return {**identity("describer", self.config.model), **(self._prompts or {})}

    def prepare(self, row: Row, work: Workspace) -> Iterator[Chunk]:
        args, media_s, start_s = _where(row, work)
        shown, frame_spec = self.shown(row["clip_s"])
        args |= {"count": shown.count, "frame_spec": frame_spec}
        frames, times_s, frames_decoded = _joined(work.guarded("sample", args, media_s), shown.count)
        times_s -= start_s
        is_new = np.diff(times_s, prepend=-np.inf) > 0  # a clip of few frames gives some of them twice
        if not is_new.all():
            frames, times_s = frames[is_new], times_s[is_new]
        info = {
            "clip_id": row["clip_id"],
            "duration_s": row["clip_s"],
            "frames_used": len(frames),
            "frames_lowered_from": shown.lowered_from,
            "frames_decoded": frames_decoded,
        }
        yield Chunk(arrays={"frames": frames, "times_s": times_s}, info=info)

    def shown(self, clip_s: float) -> tuple[FrameCount, dict[str, Any]]:
        """How many frames a clip of this length is shown with, and the size of each as the sampling job takes it."""
        asked, budget = self.config.frames, self._card.budget
        if budget is None:
            return FrameCount(asked or self._card.frames), self._card.frame_spec
        shown = budget.fitting(asked) if asked is not None else budget.frames(clip_s)
        return shown, budget.frame_spec(shown.count)

    def load_model(self) -> GenerateModel:
        return GenerateModel(load_describer(self.config.model))

    def finish(self, row: Row, prepared: list[dict[str, Any]], inferred: list[Chunk]) -> Output:
        (sampled,), (answer,) = prepared, inferred
        said = answer.info
        _check_turns(said["turns"])
        columns = {
            "caption": storable(checked_caption(said["caption"])).strip(),
            "raw_pairs": _checked_pairs(said["pairs"]),
            "describer": self.config.model.key,
            "turns": said["turns"],
            **_frames_seen(sampled, said["frames_used"]),
            "prompt_hashes": _as_json(self._prompts),
        }
        return Output(rows=[columns], frames_decoded=sampled["frames_decoded"], measured=said["measured"])


def _joined(parts: Iterable[Chunk], count: int) -> tuple[Frames, np.ndarray, int]:
    """The sampled frames [count, H, W, 3] in one array, their times and how many were decoded for them.

    A describer sees all frames of a clip at once, so they travel together. They may be 100 MB: copied once, as they
    come.
    """
    frames = np.empty((0, 0, 0, 3), np.uint8)
    times_s: list[float] = []
    frames_decoded = 0
    for part in parts:
        some: Frames = part.arrays["frames"]
        if not times_s:
            frames = np.empty((count, *some.shape[1:]), np.uint8)
        frames[len(times_s) : len(times_s) + len(some)] = some
        times_s += part.info["times_s"]
        frames_decoded = part.info["frames_decoded"]
    return frames[: len(times_s)], np.array(times_s, np.float64), frames_decoded


def _frames_seen(sampled: dict[str, Any], used: int | None) -> dict[str, int | None]:
    """Columns: the frames that the describer saw, and those that the settings ask for where it saw fewer for want of
    room. `used`: what the describer says, when it left some out."""
    given, lowered_from = sampled["frames_used"], sampled["frames_lowered_from"]
    if used is not None and used < given:
        lowered_from = max(given, lowered_from or 0)
    return {"frames_used": given if used is None else used, "frames_lowered_from": lowered_from}


def _as_json(prompts: Mapping[str, str] | None) -> str | None:
    if prompts is None:
        return None
    return json.dumps({name.removeprefix("prompt."): sha256 for name, sha256 in sorted(prompts.items())})


class GenerateModel:
    """A loaded describer; as many clips in flight as callers send."""

    def __init__(self, describer: Describer) -> None:
        self._describer = describer

    async def infer(self, chunk: Chunk) -> Chunk:
        """`frames` uint8 [T, H, W, 3] with `times_s` [T] of one clip to its Description, as plain values."""
        clip = ClipFrames(
            clip_id=chunk.info["clip_id"],
            frames=chunk.arrays["frames"],
            times_s=chunk.arrays["times_s"],
            duration_s=chunk.info["duration_s"],
        )
        return Chunk(arrays={}, info=asdict(await self._describer.describe(clip)))

    def close(self) -> None:
        """End what the describer started; a describer that starts nothing has no `close`."""
        close = getattr(self._describer, "close", None)
        if close is not None:
            close()


def _where(row: Row, work: Workspace) -> tuple[dict[str, Any], float | None, float]:
    """What the sample job opens, the seconds of media it may have to read, and where on its clock the clip starts."""
    if row["clip_uri"] is not None:
        return {"uri": work.locate(row["clip_uri"])}, row["clip_s"], 0.0
    num, den = row["clip_time_base_num"], row["clip_time_base_den"]
    window = {
        "start_pts": row["start_pts"],
        "end_pts": row["end_pts"],
        "time_base_num": num,
        "time_base_den": den,
    }
    return {"uri": row["uri"], "window": window}, row["duration_s"], float(seconds(row["start_pts"], num, den))


def _check_turns(turns: list[dict[str, Any]]) -> None:
    """Each turn's last answer is whole; an answer that was asked for again does not count. Raises Rejected."""
    for said in {turn["turn"]: turn for turn in turns}.values():
        if cut_off(Turn(**said)):
            raise Rejected("truncated", f"the {said['turn']} turn was cut off after {said['output_tokens']} tokens")


def _checked_pairs(pairs: list[dict[str, str]]) -> list[dict[str, Any]]:
    if len(pairs) != PAIRS_PER_CLIP:
        raise Rejected("bad_output", f"{len(pairs)} instruction-answer pairs, expected {PAIRS_PER_CLIP}")
    return [
        {"index": index, **{name: storable(pair[name]).strip() for name in ("instruction", "answer")}}
        for index, pair in enumerate(pairs)
    ]
