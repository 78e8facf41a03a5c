"""The prompts written out: as they are shipped, and as the two turns of a conversation about one clip of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pipeline.config import RunConfig, load_profile, parse
from pipeline.media.frames import PixelBounds, spec_from_json
from pipeline.models.prompts import PAIRS_PER_CLIP, PROMPT_NAMES, Prompt, load_prompt
from pipeline.models.registry import card
from pipeline.query import open_query
from pipeline.session import read_session
from pipeline.stage import UserError
from pipeline.stages.generate import Generate

_INPUTS: dict[str, dict[str, Any]] = {"caption": {}, "qa": {"pairs": PAIRS_PER_CLIP}}
"""What each prompt's inputs are filled with."""
_TIMES_SHOWN = 4
"""Most moments that are listed in full."""
_CLIPS = """
    SELECT k.clip_id, i.source_key, k.start_s, k.end_s, k.clip_s,
           coalesce(k.clip_width, if(i.rotation % 180 = 0, i.width, i.height)) AS width,
           coalesce(k.clip_height, if(i.rotation % 180 = 0, i.height, i.width)) AS height,
           g.caption, g.raw_pairs, g.describer, g.frames_used, g.prompt_hashes
    FROM cut k JOIN ingest i USING (video_id) LEFT JOIN generate g USING (clip_id)
    WHERE starts_with(k.clip_id, ?) ORDER BY k.clip_id LIMIT 2
"""
"""The first two clips whose id begins so: the fields of a Clip."""


@dataclass(frozen=True)
class Clip:
    """A clip of a run, and what a describer said of it if one did."""

    clip_id: str
    source_key: str
    start_s: float
    end_s: float
    clip_s: float
    width: int
    height: int
    caption: str | None
    raw_pairs: list[dict[str, Any]] | None
    describer: str | None
    frames_used: int | None
    prompt_hashes: str | None


def listed() -> str:
    """Each prompt with its hash and purpose."""
    prompts = [load_prompt(name) for name in PROMPT_NAMES]
    return "\n".join(f"{prompt.name:<8} {prompt.sha256[:16]}  {prompt.purpose}" for prompt in prompts)


def files(name: str | None = None) -> str:
    """The prompts, or one of them: header, hash, schema, and the text with its inputs filled in. Raises UserError."""
    return "\n\n".join("\n".join(_file(load_prompt(each))) for each in _names(name))


def conversation(run: str, name: str | None = None, clip: str | None = None, profile: str | None = None) -> str:
    """The turns about a clip of a run, or one of them: about the first clip, or the one whose id begins so. The
    describer is the run's, or a profile's. Raises UserError."""
    names = _names(name)
    config = read_session(run).config if profile is None else parse(load_profile(profile), {})
    found = _clip(run, clip or "")
    parts = [_about(config, found), *(_turn(each, config, found) for each in names)]
    return "\n\n".join("\n".join(part) for part in parts)


def _names(name: str | None) -> list[str]:
    if name is not None and name not in PROMPT_NAMES:
        raise UserError(f"no prompt {name!r}; there are: {', '.join(PROMPT_NAMES)}")
    return [name] if name else list(PROMPT_NAMES)


def _file(prompt: Prompt) -> Iterator[str]:
    filled = _INPUTS[prompt.name]
    yield f"prompt {prompt.name}, sha256 {prompt.sha256}"
    yield f"purpose: {prompt.purpose}"
    yield from (f"input {key}: {meaning}; here {filled[key]}" for key, meaning in prompt.inputs.items())
    yield f"answer: {json.dumps(prompt.schema(**filled))}"
    yield ""
    yield prompt.render(**filled)


def _clip(run: str, beginning: str) -> Clip:
    rows = open_query(read_session(run)).execute(_CLIPS, [beginning]).fetchall()
    if not rows:
        which = f"no clip whose id begins with {beginning!r}" if beginning else "no clip yet"
        raise UserError(f"{run} has {which}; this lists some: hicom query {run} 'SELECT clip_id FROM clips LIMIT 5'")
    if beginning and len(rows) > 1:
        both = f"{rows[0][0]} and {rows[1][0]}"
        raise UserError(f"{run} has several clips whose id begins with {beginning!r}: {both}. Give more of the id")
    return Clip(*rows[0])


def _about(config: RunConfig, clip: Clip) -> Iterator[str]:
    yield f"clip {clip.clip_id}: {clip.source_key}, {clip.start_s:.2f} s to {clip.end_s:.2f} s"
    yield f"describer {config.models.describer.key}"
    if not card("describer", config.models.describer).reads_prompts:
        yield "It reads no prompts: what follows is what a describer that does would be asked."
    if clip.describer is not None:
        yield f"Described by {clip.describer}, which saw {clip.frames_used} frames{_changes(clip)}."


def _changes(clip: Clip) -> str:
    """Which prompts are no longer those that the clip was described with."""
    before: dict[str, str] = json.loads(clip.prompt_hashes or "{}")
    changed = [name for name in PROMPT_NAMES if before.get(name, load_prompt(name).sha256) != load_prompt(name).sha256]
    return f", with other words than today's in: {', '.join(changed)}" if changed else ""


def _turn(name: str, config: RunConfig, clip: Clip) -> Iterator[str]:
    prompt, filled = load_prompt(name), _INPUTS[name]
    yield f"=== turn {1 + PROMPT_NAMES.index(name)}: asked (prompt {name}, sha256 {prompt.sha256[:16]})"
    if name == PROMPT_NAMES[0]:
        yield "[what the model's own chat template puts first; no system prompt of ours]"
        yield f"[video: {_video(config, clip)}]"
    yield prompt.render(**filled)
    yield ""
    schema = prompt.schema(**filled)
    said = _pairs(clip) if schema["type"] == "object" else clip.caption
    form = f"JSON of the schema {json.dumps(schema)}" if schema["type"] == "object" else schema["description"]
    yield f"=== answered: {form}"
    yield said or "(not written yet)"


def _video(config: RunConfig, clip: Clip) -> str:
    """The frames of the clip that the describer is shown: how many, of which moments, how large."""
    known = card("describer", config.models.describer)
    shown, frame_spec = Generate(config.generate).shown(clip.clip_s)
    size = spec_from_json(frame_spec)
    if isinstance(size, PixelBounds):  # the shape of a pixel is taken for square here; few are not
        size = size.resolve(clip.width, clip.height, Fraction(1))
    text = f"{shown.count} frames of {size.width} x {size.height} pixels, {_moments(shown.count, clip.clip_s)}"
    if known.budget is not None:
        tokens = -(-shown.count // known.budget.frame_multiple) * size.width * size.height
        text += f"; {tokens // known.budget.side_multiple**2} video tokens"
    if shown.lowered_from is not None:
        text += f"; the settings ask for {shown.lowered_from} frames, and the context has no room for them"
    return text


def _moments(count: int, clip_s: float) -> str:
    """The middles of equal parts of the clip, as `generate` samples them."""
    times = [f"{(i + 0.5) * clip_s / count:.2f}" for i in range(count)]
    if count > _TIMES_SHOWN:
        times = [*times[: _TIMES_SHOWN - 1], "...", times[-1]]
    return f"at {', '.join(times)} s"


def _pairs(clip: Clip) -> str | None:
    if clip.raw_pairs is None:
        return None
    pairs = [{key: pair[key] for key in ("instruction", "answer")} for pair in clip.raw_pairs]
    return json.dumps({"pairs": pairs}, ensure_ascii=False, indent=1)
