"""Parquet shards: how many and how long, which are written already, and writing one.

A shard's metadata carries the digest of what it holds. A run that was killed finds the shards it finished by
that digest and goes on with the others; a shard of other content under the same name is written anew.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.export.clip_files import read_clip
from pipeline.export.rows import SCHEMA, VIDEO_COLUMN, VIDEO_FOLDER, plain_rows
from pipeline.records import Column, to_schema
from pipeline.stage import Row, Writer, digest

FORMAT = 1
"""Raised when the same rows are to give other bytes: then every shard is written again."""
DIGEST_KEY = "hicom.content"
ROW_GROUP_ROWS = 1000
ROW_GROUP_BYTES = 64 * 2**20
"""A row group ends at either bound; the second bounds the memory that embedded files take."""
LARGEST_EMBEDDED_BYTES = 2**30
"""A larger file is not embedded: Arrow's binary type ends at 2 GiB. Its `video` is null, its `clip_path` is not."""


@dataclass(frozen=True)
class Plan:
    """How the clips, in the order of their ids, fall into shards."""

    rows: tuple[int, ...]
    """Rows of each shard."""
    clips_with_file: int

    @property
    def names(self) -> list[str]:
        """Names of the shards, relative to the export."""
        total = len(self.rows)
        return [f"data/train-{index:05d}-of-{total:05d}.parquet" for index in range(total)]


def plan_shards(clip_bytes: Iterable[int | None], rows_per_shard: int, bytes_per_shard: int | None) -> Plan:
    """Fill shards in order, each up to both bounds; a clip above the byte bound has a shard of its own.

    `clip_bytes` is each clip's file size, None for a virtual clip. Without clips there is one empty shard.
    """
    shards, rows, held, with_file = [], 0, 0, 0
    for size in clip_bytes:
        with_file += size is not None
        added = size or 0
        full = rows == rows_per_shard or (bytes_per_shard is not None and held + added > bytes_per_shard)
        if rows and full:
            shards.append(rows)
            rows, held = 0, 0
        rows, held = rows + 1, held + added
    if rows or not shards:
        shards.append(rows)
    return Plan(tuple(shards), with_file)


def columns(embed_video_bytes: bool) -> tuple[pa.Schema, dict[str, str]]:
    """Schema of a shard, and the metadata that tells Hugging Face datasets what `video` is."""
    if not embed_video_bytes:
        return SCHEMA, {}
    extra: tuple[Column, ...] = (VIDEO_COLUMN,)
    feature = {"info": {"features": {VIDEO_COLUMN.name: {"_type": "Video"}}}}
    return pa.schema([*SCHEMA, *to_schema(extra)]), {"huggingface": json.dumps(feature)}


def write_shard(writer: Writer, relative: str, rows: list[Row], uris: list[str | None] | None) -> bool:
    """Write one shard of exported rows, unless it is there already; True when it was written.

    `uris` holds the clips' files in the run folder, to embed them, or is None. A row group at a time is in memory.
    """
    plain = plain_rows(rows)
    content = digest({"format": FORMAT, "embedded": uris is not None, "rows": plain})
    if _stored_digest(writer, relative) == content:
        return False
    schema, metadata = columns(uris is not None)
    schema = schema.with_metadata({**metadata, DIGEST_KEY: content})
    with tempfile.TemporaryDirectory(prefix="hicom-export-") as folder:
        local = os.path.join(folder, "shard.parquet")
        with pq.ParquetWriter(local, schema, compression="zstd", version="2.6", write_page_index=True) as sink:
            for group in _row_groups(writer, plain, uris):
                sink.write_table(pa.Table.from_pylist(group, schema=schema), row_group_size=ROW_GROUP_ROWS)
        writer.put_file(local, relative)
    return True


def _stored_digest(writer: Writer, relative: str) -> str | None:
    if not writer.exists(relative):
        return None
    with writer.open_file(relative) as handle:
        try:
            metadata = pq.read_schema(handle).metadata or {}
        except (pa.ArrowInvalid, OSError):  # not ours, or damaged: written anew
            return None
    value: bytes | None = metadata.get(DIGEST_KEY.encode())
    return value.decode() if value is not None else None


def _row_groups(writer: Writer, rows: list[Row], uris: list[str | None] | None) -> Iterator[list[Row]]:
    group: list[Row] = []
    held = 0
    for index, row in enumerate(rows):
        size = row["clip_bytes"] or 0
        if uris is not None:
            fits = size <= LARGEST_EMBEDDED_BYTES
            row = {**row, "video": _video(writer, row, uris[index] if fits else None)}
            held += size if fits else 0
        group.append(row)
        if len(group) == ROW_GROUP_ROWS or held >= ROW_GROUP_BYTES:
            yield group
            group, held = [], 0
    if group:
        yield group


def _video(writer: Writer, row: Row, uri: str | None) -> Row | None:
    if uri is None:
        return None
    name = row["clip_path"].removeprefix(f"{VIDEO_FOLDER}/")
    return {"bytes": read_clip(writer, row["clip_id"], uri), "path": name}
