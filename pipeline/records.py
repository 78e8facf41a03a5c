"""The columns of every table of a run folder, ids, and exact time. Imports nothing of ours.

A table is named after the stage that writes it. A stage's table holds the key of its input, the key of its
output where that differs, and the stage's own columns; views (`query.py`) join them.

Time is exact: an instant is an integer `*_pts` counted in the stream's time base from the first decoded
frame (so the first frame is at 0), beside `time_base_num / time_base_den` seconds a tick. `*_s` columns are
seconds, rounded from the exact value for people and SQL; no id and no decision is made from them.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

import pyarrow as pa


class Grain(StrEnum):
    """What one row is. The value is the name of the key column."""

    SOURCE = "source_key"
    VIDEO = "video_id"
    CLIP = "clip_id"


@dataclass(frozen=True)
class Column:
    """One column: its name, arrow type, one line of doc (with the unit), and whether it may be null."""

    name: str
    type: pa.DataType
    doc: str
    nullable: bool = False


SHOT = pa.struct(
    [
        pa.field("index", pa.int32(), nullable=False),  # position among the video's shots, from 0
        pa.field("start_pts", pa.int64(), nullable=False),  # first frame's time, in ticks from the first frame
        pa.field("end_pts", pa.int64(), nullable=False),  # exclusive: the next shot's first frame, or the video's end
        pa.field("start_frame", pa.int32(), nullable=False),  # index of the first frame, in decode (display) order
        pa.field("end_frame", pa.int32(), nullable=False),  # exclusive
    ]
)
KEYFRAME = pa.struct(
    [
        pa.field("frame", pa.int32(), nullable=False),  # index in decode (display) order
        pa.field("pts", pa.int64(), nullable=False),  # ticks from the first frame
        pa.field("similarity", pa.float32()),  # cosine to the keyframe before it; null for the first
    ]
)
SHOT_OUTCOME = pa.struct(
    [
        pa.field("shot", pa.int32(), nullable=False),  # the shot's index
        pa.field("outcome", pa.string(), nullable=False),  # "kept" or the reject reason
    ]
)
PAIR = pa.struct(
    [
        pa.field("index", pa.int32(), nullable=False),  # position among the clip's pairs, from 0
        pa.field("instruction", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
    ]
)
REJECTED_PAIR = pa.struct(
    [
        *PAIR,
        pa.field("rules", pa.list_(pa.string()), nullable=False),  # ids of the rules that rejected it, in table order
    ]
)
TURN = pa.struct(
    [
        pa.field("turn", pa.string(), nullable=False),  # "caption" or "qa"
        pa.field("prompt_tokens", pa.int64(), nullable=False),
        pa.field("cached_tokens", pa.int64(), nullable=False),  # prompt tokens served from the prefix cache
        pa.field("output_tokens", pa.int64(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),  # "stop", "length", ...
    ]
)

_S, _I32, _I64, _F32, _F64 = pa.string(), pa.int32(), pa.int64(), pa.float32(), pa.float64()
_SOURCE_KEY = Column("source_key", _S, "the source row: path under its input root, or the manifest's row id")
_VIDEO_ID = Column("video_id", _S, "from the manifest, or from the file's bytes (see identity)")
_CLIP_ID = Column("clip_id", _S, "from video_id and the exact start and end")

TABLES: dict[str, tuple[Column, ...]] = {
    "sources": (
        _SOURCE_KEY,
        Column("dataset", _S, "name of the collection the row came from"),
        Column("uri", _S, "where the media is: a local path, or a URL that fsspec opens"),
        Column("given_id", _S, "the id that the manifest gives; null: take it from the content", nullable=True),
        Column("meta", _S, "the manifest's other columns, as a JSON object"),
        Column("stamp", _S, "size:mtime_ns of a local file found by path; a change is ingested again", nullable=True),
        Column("problem", _S, "reject reason found while listing; null when the row is sound", nullable=True),
        Column("problem_detail", _S, "what is wrong with the row, for people", nullable=True),
    ),
    "ingest": (
        _SOURCE_KEY,
        _VIDEO_ID,
        Column("dataset", _S, "name of the collection the row came from"),
        Column("uri", _S, "where the media is: a local path, or a URL that fsspec opens"),
        Column("identity", _S, "what the id was made from: sha256:<hex>, size+etag:<size>:<etag>, or manifest"),
        Column("duration_s", _F64, "seconds the container claims; unknown is null; never decided upon", nullable=True),
        Column("fps", _F64, "the container's average frames per second", nullable=True),
        Column("width", _I32, "coded picture width, pixels, before rotation"),
        Column("height", _I32, "coded picture height, pixels, before rotation"),
        Column("rotation", _I32, "degrees counter-clockwise that the container asks a player to turn the picture"),
        Column("codec", _S, "video codec name, as libav calls it"),
        Column("bytes", _I64, "size of the file, bytes"),
        Column("meta", _S, "the manifest's other columns, as a JSON object"),
    ),
    "embed": (
        _VIDEO_ID,
        Column("embedding", pa.list_(_F32), "video embedding, unit length"),
        Column("model", _S, "the video-text embedder: family:name@revision"),
    ),
    "select": (
        _VIDEO_ID,
        Column("category", _S, "the category served, best match first; null for the random rest", nullable=True),
        Column("categories", pa.list_(_S), "all categories whose quota took the video; empty for the random rest"),
        Column("similarity", _F32, "cosine to `category`, or to the best category for the random rest"),
        Column("runner_up", _S, "the best category other than that one", nullable=True),
        Column("margin", _F32, "similarity minus the runner-up's", nullable=True),
        Column("selected_by", _S, "category or random"),
    ),
    "select_scores": (
        _VIDEO_ID,
        Column("category", _S, "the category sentence"),
        Column("similarity", _F32, "cosine of the video to the sentence"),
    ),
    "scan": (
        _VIDEO_ID,
        Column("frame_model", _S, "the frame embedder: family:name@revision"),
        Column("time_base_num", _I64, "seconds a tick, numerator"),
        Column("time_base_den", _I64, "seconds a tick, denominator"),
        Column("first_pts", _I64, "the stream's own timestamp of the first decoded frame, ticks"),
        Column("end_pts", _I64, "end of the last decoded frame, ticks from the first frame"),
        Column("frame_pts", pa.list_(_I64), "time of every decoded frame, ticks from the first frame"),
        Column("frame_scores", pa.list_(_F64), "content score of every frame against the one before; the first is 0"),
        Column("grid_frames", pa.list_(_I32), "indices of the frames on the dense time grid"),
        Column("grid_embeddings", pa.list_(_F32), "their embeddings, unit length, one after another (flattened)"),
        Column("embedding_dim", _I32, "length of one embedding"),
        Column("frames_decoded", _I64, "frames decoded"),
        Column("decode_errors", _I64, "packets lost or damaged, frames patched up, and one for a stream cut short"),
    ),
    "split": (
        _VIDEO_ID,
        Column("shots", pa.list_(SHOT), "all shots, in order, without gaps"),
    ),
    "dedup": (
        _VIDEO_ID,
        Column("keyframes", pa.list_(KEYFRAME), "the video's keyframes"),
        Column("distinct_shots", pa.list_(SHOT), "shots that hold a keyframe"),
        Column("dedup_outcomes", pa.list_(SHOT_OUTCOME), "each shot's outcome: kept, redundant or no_sample"),
    ),
    "filter": (
        _VIDEO_ID,
        Column("kept_shots", pa.list_(SHOT), "shots of acceptable length"),
        Column("filter_outcomes", pa.list_(SHOT_OUTCOME), "each shot's outcome: kept, too_short or too_long"),
    ),
    "cut": (
        _VIDEO_ID,
        _CLIP_ID,
        Column("shot", _I32, "index of the shot it was cut from"),
        Column("start_pts", _I64, "first frame's time in the source, ticks from the source's first frame"),
        Column("end_pts", _I64, "exclusive end in the source, ticks from the source's first frame"),
        Column("clip_time_base_num", _I64, "seconds a tick of start_pts and end_pts, numerator"),
        Column("clip_time_base_den", _I64, "seconds a tick of start_pts and end_pts, denominator"),
        Column("start_s", _F64, "start_pts in seconds"),
        Column("end_s", _F64, "end_pts in seconds"),
        Column("clip_s", _F64, "length of the clip, seconds: end_s - start_s"),
        Column("clip_uri", _S, "the clip's file, relative to the run folder; null for a virtual clip", nullable=True),
        Column("method", _S, "copy, encode or virtual"),
        Column("start_error_s", _F64, "seconds of the shot lost before the first frame, measured", nullable=True),
        Column("end_error_s", _F64, "seconds of the shot lost after the last frame, measured", nullable=True),
        Column("clip_frames", _I32, "frames that decode from the clip's file", nullable=True),
        Column("clip_width", _I32, "picture width of the clip's file as shown, pixels", nullable=True),
        Column("clip_height", _I32, "picture height of the clip's file as shown, pixels", nullable=True),
        Column("clip_bytes", _I64, "size of the clip's file, bytes", nullable=True),
        Column("clip_sha256", _S, "SHA-256 of the clip's file", nullable=True),
    ),
    "generate": (
        _CLIP_ID,
        Column("caption", _S, "detailed caption of the clip (turn 1)"),
        Column("raw_pairs", pa.list_(PAIR), "instruction-answer pairs as generated (turn 2)"),
        Column("describer", _S, "the describer: family:name@revision"),
        Column("turns", pa.list_(TURN), "token counts and finish reason of each turn"),
        Column("frames_used", _I32, "different frames the describer saw"),
        Column("frames_lowered_from", _I32, "frames its settings ask for, where it had no room", nullable=True),
        Column("prompt_hashes", _S, "SHA-256 of each prompt by name, as JSON; null: reads none", nullable=True),
    ),
    "clean": (
        _CLIP_ID,
        Column("pairs", pa.list_(PAIR), "the pairs that passed every rule"),
        Column("rejected_pairs", pa.list_(REJECTED_PAIR), "the others, each with the ids of its rules"),
    ),
    "export": (
        _CLIP_ID,
        Column("shard", _S, "Parquet shard that holds the clip, relative to the export"),
        Column("shard_row", _I32, "its row in the shard, from 0"),
    ),
}

REJECTS: tuple[Column, ...] = (
    Column("id", _S, "key of the rejected item: source_key, video_id or clip_id, as the stage's input"),
    Column("shot", _I32, "index of the shot, when a shot and not the whole item is rejected", nullable=True),
    Column("reason", _S, "one of REASONS"),
    Column("detail", _S, "what exactly, for people"),
    Column("attempts", _I32, "times the item was tried"),
)

METRICS: tuple[Column, ...] = (
    Column("id", _S, "key of the item, as the stage's input"),
    Column("seconds", _F64, "wall seconds from the item's start to its result, last attempt"),
    Column("attempts", _I32, "times the item was tried"),
    Column("host", _S, "machine that did it"),
    Column("finished_at", pa.timestamp("ms", tz="UTC"), "when"),
    Column("frames_decoded", _I64, "frames decoded for the item", nullable=True),
    Column("bytes_moved", _I64, "bytes handed from prepare to infer", nullable=True),
    Column("measured", _S, "the stage's own measurements, a JSON object of numbers", nullable=True),
)

REASONS: dict[str, str] = {
    # ingest
    "missing": "the file does not exist or cannot be opened for reading",
    "not_video": "the content is not a video container or is a still picture",
    "no_video_stream": "a container without a video stream",
    "unreadable": "a video container whose structure cannot be read",
    "duplicate_id": "another source row of this run has the same video_id",
    "bad_id": "the manifest's id is empty or not usable",
    "bad_row": "the manifest's row cannot be read",
    # anything that decodes
    "decode_failed": "no frame decoded, or more errors than the configured share",
    "decoder_crashed": "the guarded decoder process died",
    "timeout": "the guarded process passed its deadline",
    "worker_crashed": "the worker process died each time it held this item",
    # select
    "not_selected": "neither a category's quota nor the random rest took it",
    # shots
    "redundant": "the shot holds no keyframe: it looks like what came before",
    "no_sample": "the shot is so short that no frame of it was on the time grid",
    "too_short": "shorter than the minimum length",
    "too_long": "longer than the maximum length",
    "no_clip_left": "no shot of the video is left",
    # cut
    "cut_failed": "the clip could not be written, or did not decode as promised",
    # generate
    "bad_output": "the describer's answer does not fit the schema",
    "refused": "the describer refused",
    "truncated": "the describer's answer was cut off",
    "engine_error": "the describer's engine failed",
    # clean
    "all_pairs_invalid": "no pair passed the rules",
}
"""Every reason an item, a shot or a clip can be rejected for, with its meaning. The list is closed."""


def schema(table: str) -> pa.Schema:
    """The arrow schema of a stage's table."""
    return to_schema(TABLES[table])


def to_schema(columns: tuple[Column, ...]) -> pa.Schema:
    """Arrow schema of columns, with each column's doc in its metadata."""
    return pa.schema([pa.field(c.name, c.type, c.nullable, {"doc": c.doc}) for c in columns])


_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


def is_valid_id(text: str) -> bool:
    """True for ids that are safe in a path, a shell word, SQL and HTML: 1 to 128 ASCII letters, digits, . _ -"""
    return _ID.fullmatch(text) is not None


def clip_id(video_id: str, start: Fraction, end: Fraction) -> str:
    """Id of the clip of a video between two instants, seconds from its first frame: 32 hex digits."""
    text = f"{video_id}\n{start.numerator}/{start.denominator}\n{end.numerator}/{end.denominator}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def seconds(pts: int, time_base_num: int, time_base_den: int) -> Fraction:
    """Exact seconds of a number of ticks."""
    return Fraction(pts * time_base_num, time_base_den)
