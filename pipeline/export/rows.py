"""One exported row: its columns, where each comes from, and the row built from the run folder's columns.

Nothing in a row names the machine or the moment it was made on, so the same input gives the same bytes.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from pipeline.records import TABLES, Column, to_schema
from pipeline.stage import Row

VIDEO_FOLDER = "split_videos"
"""Folder of the clips' files, relative to the export; named as the authors' trainer expects it."""

COPIED: tuple[tuple[str, str], ...] = (
    ("clean.clip_id", "clip_id"),
    ("cut.video_id", "video_id"),
    ("ingest.source_key", "source_key"),
    ("ingest.dataset", "dataset"),
    ("ingest.identity", "identity"),
    ("select.category", "category"),
    ("select.categories", "categories"),
    ("select.similarity", "similarity"),
    ("select.selected_by", "selected_by"),
    ("cut.shot", "shot"),
    ("cut.start_pts", "start_pts"),
    ("cut.end_pts", "end_pts"),
    ("cut.clip_time_base_num", "time_base_num"),
    ("cut.clip_time_base_den", "time_base_den"),
    ("cut.start_s", "start_s"),
    ("cut.end_s", "end_s"),
    ("cut.clip_s", "duration_s"),
    ("generate.caption", "caption"),
    ("cut.method", "method"),
    ("cut.start_error_s", "start_error_s"),
    ("cut.end_error_s", "end_error_s"),
    ("cut.clip_frames", "frames"),
    ("cut.clip_width", "width"),
    ("cut.clip_height", "height"),
    ("cut.clip_bytes", "clip_bytes"),
    ("cut.clip_sha256", "clip_sha256"),
    ("embed.model", "video_model"),
    ("scan.frame_model", "frame_model"),
    ("generate.describer", "describer"),
)
"""Columns taken over as they are: the run folder's, and their name in the export."""

DERIVED_FROM: tuple[str, ...] = ("clean.pairs", "cut.clip_uri")
READS: tuple[str, ...] = (*(source for source, _ in COPIED), *DERIVED_FROM)
"""All that the export reads, as "table.column"."""

PAIR = pa.struct(
    [pa.field("instruction", pa.string(), nullable=False), pa.field("answer", pa.string(), nullable=False)]
)
VIDEO = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
"""Storage of the `Video` feature of Hugging Face datasets."""


def _renamed(source: str, name: str) -> Column:
    table, column = source.split(".")
    found = next(c for c in TABLES[table] if c.name == column)
    return Column(name, found.type, found.doc, found.nullable)


COLUMNS: tuple[Column, ...] = (
    *(_renamed(source, name) for source, name in COPIED),
    Column("pairs", pa.list_(pa.field("element", PAIR, nullable=False)), "instructions and their answers, in order"),
    Column("clip_path", pa.string(), "the clip's file, relative to the export; null for a virtual clip", nullable=True),
)
VIDEO_COLUMN = Column("video", VIDEO, "the clip's file itself; null for a virtual clip", nullable=True)

SCHEMA: pa.Schema = to_schema(COLUMNS)


def exported(row: Row) -> Row:
    """The export's row of a clip, from a row that holds READS by bare column name."""
    out = {name: row[source.split(".")[1]] for source, name in COPIED}
    out["pairs"] = [
        {"instruction": pair["instruction"], "answer": pair["answer"]}
        for pair in sorted(row["pairs"], key=lambda pair: pair["index"])
    ]
    out["clip_path"] = clip_path(row)
    return out


def clip_path(row: Row) -> str | None:
    """Where the clip's file lies, relative to the export; None for a virtual clip.

    The name carries the file's hash: a clip cut anew (other encoder settings, same id) never hides behind an
    older file. Folders by the id's first two letters keep each below the 10,000 files that the Hugging Face hub
    recommends at most, up to about two million clips.
    """
    if row["clip_uri"] is None:
        return None
    clip_id: str = row["clip_id"]
    suffix = PurePosixPath(row["clip_uri"]).suffix
    return f"{VIDEO_FOLDER}/{clip_id[:2]}/{clip_id}-{row['clip_sha256'][:12]}{suffix}"


def plain_rows(rows: list[Row]) -> list[dict[str, Any]]:
    """Rows checked against SCHEMA and brought to plain Python values."""
    plain: list[dict[str, Any]] = pa.Table.from_pylist(rows, schema=SCHEMA).to_pylist()
    return plain
