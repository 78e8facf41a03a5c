"""Generate: a caption and instruction-answer pairs for every clip, by a describer, in two turns (paper, sec. 3.2).

Nothing is judged here but the form: an answer that was cut off, refused, or is not a caption with three pairs is a
reject. Whether a pair is any good is for `clean` to say, as often as anyone likes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from pipeline.models.prompts import PAIRS_PER_CLIP, prompt_hashes
from pipeline.models.protocols import ClipFrames, Describer
from pipeline.models.registry import card, load_describer
from pipeline.models.spec import ModelSpec
from pipeline.records import Grain, seconds
from pipeline.stage import Chunk, Output, Rejected, Resources, Retryable, Row, TwoStepStage, Workspace


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class GenerateConfig:
    """Which model describes how much of a clip."""

    model: ModelSpec
    """The describer (the paper's: Qwen2-VL-72B-Instruct, sec. 3.2)."""
    frames: Annotated[int, Field(ge=1, le=768)] | None = None
    """Frames, in the middles of so many equal parts of the clip; None: as many as the model was made for. The paper
    gives no number."""


class Generate(TwoStepStage):
    """A clip to its caption and pairs."""

    name: ClassVar[str] = "generate"
    grain_in: ClassVar[Grain] = Grain.CLIP
    grain_out: ClassVar[Grain] = Grain.CLIP
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
        """Raises UserError for a model that is not known."""
        self.config = config
        self._card = card("describer", config.model)

    @property
    def resources(self) -> Resources:
        # An engine behind the describer batches whatever is in flight; a batch must not run dry before it is full.
        return Resources(batch_size=64, in_flight=16)

    def depends_on(self) -> Mapping[str, str]:
        return {"model": self.config.model.key, **(prompt_hashes() if self._card.reads_prompts else {})}

    def prepare(self, row: Row, work: Workspace) -> Iterator[Chunk]:
        args, media_s, start_s = _where(row, work)
        args |= {"count": self.config.frames or self._card.frames, "frame_spec": self._card.frame_spec}
        parts = list(work.guarded("sample", args, media_s))
        # A describer sees all frames of a clip at once, so they travel together; they are few.
        frames = np.concatenate([part.arrays["frames"] for part in parts])
        times_s = np.concatenate([np.asarray(part.info["times_s"], dtype=np.float64) for part in parts]) - start_s
        is_new = np.diff(times_s, prepend=-np.inf) > 0  # a clip of few frames gives some of them twice
        info = {"clip_id": row["clip_id"], "duration_s": row["clip_s"], "frames_used": int(is_new.sum())}
        info["frames_decoded"] = parts[-1].info["frames_decoded"]
        yield Chunk(arrays={"frames": frames[is_new], "times_s": times_s[is_new]}, info=info)

    def load_model(self) -> GenerateModel:
        return GenerateModel(load_describer(self.config.model))

    def finish(self, row: Row, prepared: list[dict[str, Any]], inferred: list[Chunk]) -> Output:
        (sampled,), (answer,) = prepared, inferred
        said = answer.info
        _check_turns(said["turns"])
        columns = {
            "caption": _checked_caption(said["caption"]),
            "raw_pairs": _checked_pairs(said["pairs"]),
            "describer": self.config.model.key,
            "turns": said["turns"],
            "frames_used": sampled["frames_used"],
        }
        return Output(rows=[columns], frames_decoded=sampled["frames_decoded"])


class GenerateModel:
    """A loaded describer; as many clips in flight as callers send."""

    def __init__(self, describer: Describer) -> None:
        self._describer = describer

    async def infer(self, chunk: Chunk) -> Chunk:
        """`frames` uint8 [T, H, W, 3] with `times_s` [T] of one clip to caption, pairs and turns, as plain values."""
        clip = ClipFrames(
            clip_id=chunk.info["clip_id"],
            frames=chunk.arrays["frames"],
            times_s=chunk.arrays["times_s"],
            duration_s=chunk.info["duration_s"],
        )
        return Chunk(arrays={}, info=asdict(await self._describer.describe(clip)))


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


_REASON_OF_FINISH = {"length": "truncated", "content_filter": "refused"}
"""What it means for the clip that a turn did not end with "stop". Any other end is the engine's failure."""
_REFUSAL = re.compile(
    r"\W*(?:i(?:'m| am) (?:very |so |really )?sorry|sorry,|i apologi[sz]e|as an ai\b|"
    r"i(?:'m| am) (?:not able|unable) to|i (?:cannot|can't|can not|won't) )",
    re.IGNORECASE,
)
"""How a refusal begins."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def _check_turns(turns: list[dict[str, Any]]) -> None:
    for turn in turns:
        end = turn["finish_reason"]
        detail = f"the {turn['turn']} turn ended with {end!r} after {turn['output_tokens']} tokens"
        if end in _REASON_OF_FINISH:
            raise Rejected(_REASON_OF_FINISH[end], detail)
        if end != "stop":
            raise Retryable("engine_error", detail)


def _checked_caption(caption: str) -> str:
    if not caption.strip():
        raise Rejected("refused", "the caption is empty")
    if _REFUSAL.match(caption.replace("\u2019", "'")):
        raise Rejected("refused", f"the caption is a refusal: {caption.strip()[:200]!r}")
    return _storable(caption.strip())


def _checked_pairs(pairs: list[dict[str, str]]) -> list[dict[str, Any]]:
    if len(pairs) != PAIRS_PER_CLIP:
        raise Rejected("bad_output", f"{len(pairs)} instruction-answer pairs, expected {PAIRS_PER_CLIP}")
    return [
        {"index": index, **{name: _storable(pair[name]).strip() for name in ("instruction", "answer")}}
        for index, pair in enumerate(pairs)
    ]


def _storable(text: str) -> str:
    """The text with every lone surrogate, which JSON may hold and UTF-8 may not, as a replacement character."""
    return _SURROGATE.sub("\ufffd", text)
