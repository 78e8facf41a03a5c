"""A row of the `sources` table, as the adapters make it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.records import is_valid_id
from pipeline.sources.uri import key_text, plain_text
from pipeline.stage import Row

_MAX_META_CHARS = 4096
_LEFT_OUT = "_left_out"


@dataclass(frozen=True)
class Problem:
    """Why a source row cannot be worked on: a reject reason of `records.REASONS`, and what exactly."""

    reason: str
    detail: str


def source_row(
    name: str,
    dataset: str,
    uri: str,
    *,
    given_id: str | None = None,
    meta: str = "{}",
    problem: Problem | None = None,
) -> Row:
    """One row. `name` becomes the source_key (escaped and bounded, see `uri.key_text`)."""
    return {
        "source_key": key_text(name),
        "dataset": key_text(dataset),
        "uri": uri,
        "given_id": given_id,
        "meta": meta,
        "stamp": None,
        "problem": problem.reason if problem else None,
        "problem_detail": plain_text(problem.detail) if problem else None,
    }


def read_id(given: object) -> str | Problem:
    """The id that a manifest gives (a whole number counts as its digits), or what is wrong with it."""
    if given is None or given == "":
        return Problem("bad_id", "the id is empty")
    if isinstance(given, int) and not isinstance(given, bool):
        given = str(given)
    if isinstance(given, str) and is_valid_id(given):
        return given
    shown = repr(given)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    allowed = "1 to 128 ASCII letters, digits, '.', '_', '-', not starting with '.'"
    return Problem("bad_id", f"{shown} is not an id: {allowed}")


def meta_json(values: Mapping[str, object]) -> str:
    """A manifest's other columns as a JSON object, for the `meta` column.

    Empty values are dropped. A value longer than 4,096 characters of JSON, or nested too deep, is left out and its
    name listed under `_left_out`, so that one huge field does not travel with the video through every stage.
    """
    kept: dict[str, str] = {}
    left_out: list[str] = []
    for name, value in values.items():
        if value is None or value == "":
            continue
        text = _value_json(value)
        if text is None:
            left_out.append(plain_text(name))
        else:
            kept[plain_text(name)] = text
    if left_out:
        kept[_LEFT_OUT] = json.dumps(left_out, ensure_ascii=False)
    return "{" + ", ".join(f"{json.dumps(name, ensure_ascii=False)}: {text}" for name, text in kept.items()) + "}"


def _value_json(value: object) -> str | None:
    try:
        text = json.dumps(_plain(value), ensure_ascii=False, default=_as_text)
    except RecursionError:
        return None
    return text if len(text) <= _MAX_META_CHARS else None


def _plain(value: object) -> object:
    """JSON values only: no undecodable text, no NaN or infinity (JSON has none)."""
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {plain_text(str(k)): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _as_text(value: object) -> str:
    """Dates, decimals and other values of Parquet that JSON does not have."""
    return plain_text(str(value))
