"""export: the finished set as Parquet shards, the pair that the authors' trainer reads, and a dataset card.

The card is written last and removed first: an export without README.md is not finished.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from pipeline.export import card, llava, rows, shards
from pipeline.export.clip_files import LinkedClips
from pipeline.export.figures import Figures
from pipeline.records import Grain
from pipeline.stage import GlobalStage, Reader, Row, Writer, digest, plain

FOLDER = "export"
CARD = f"{FOLDER}/README.md"
_SHARD_OR_JSON = re.compile(rf"{FOLDER}/(data/train-\d+-of-\d+\.parquet|\d+_qa_llavaformat\.json)")


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ExportConfig:
    """What the export looks like. None of it comes from the paper."""

    rows_per_shard: int = Field(default=5000, gt=0)
    """Most clips in a Parquet shard; a shard's rows, without video, are in memory at once."""
    embed_video_bytes: bool = False
    """Also put each clip's file into the Parquet, as the column `video` that Hugging Face datasets reads."""
    video_mb_per_shard: int = Field(default=512, gt=0)
    """With embed_video_bytes: most megabytes (2**20 bytes) of video in a shard; a larger clip has its own. The
    default is about the 500 MB at which Hugging Face datasets ends its own shards."""
    title: str = Field(default="Video clips with instruction-followed descriptions", min_length=1)
    """Title of the dataset card."""


class Export(GlobalStage):
    """Plans shards from the sorted ids, then goes through the clips once, shard by shard."""

    name = "export"
    grain_in = Grain.CLIP
    grain_out = Grain.CLIP
    reads = rows.READS

    def __init__(self, config: ExportConfig, recipe: Mapping[str, Any] | None = None) -> None:
        """`recipe` is what the card tells of the run: profile and stage configs as plain values, no paths in it."""
        self.config = config
        self.recipe = recipe or {}

    def own_hash(self) -> str:
        """The card tells the whole recipe, so every change of it writes the export again."""
        return digest({"own": super().own_hash(), "recipe": plain(self.recipe)})

    def run(self, reader: Reader, writer: Writer) -> None:
        """Write the export. A shard or a clip's file that is there already is not written again."""
        plan = self._plan(reader)
        json_name = llava.file_name(plan.clips_with_file)
        _remove_stale(writer, {f"{FOLDER}/{name}" for name in (*plan.names, json_name)})
        figures, files, clips = Figures(), LinkedClips(writer, FOLDER), _clips(reader)
        with tempfile.TemporaryDirectory(prefix="hicom-export-") as folder:
            with llava.LlavaFile(os.path.join(folder, json_name)) as conversations:
                for name, length in zip(plan.names, plan.rows, strict=True):
                    shard = list(islice(clips, length))
                    assert len(shard) == length, f"export: {name}: planned {length} clips, read {len(shard)}"
                    self._write_shard(writer, name, shard, files)
                    for row, _ in shard:
                        conversations.add(row)
                        figures.add(row)
            writer.put_file(conversations.path, f"{FOLDER}/{json_name}")
        files.remove_others()
        writer.put_bytes(CARD, self._card(figures, plan, json_name).encode())

    def _write_shard(self, writer: Writer, name: str, shard: list[tuple[Row, str | None]], files: LinkedClips) -> None:
        out, uris = [row for row, _ in shard], [uri for _, uri in shard]
        shards.write_shard(writer, f"{FOLDER}/{name}", out, uris if self.config.embed_video_bytes else None)
        files.add(out, uris)
        for position, row in enumerate(out):
            writer.row("export", {"clip_id": row["clip_id"], "shard": name, "shard_row": position})

    def _plan(self, reader: Reader) -> shards.Plan:
        config = self.config
        stream = reader.batches(["clean.clip_id", "cut.clip_bytes"], ordered=True)
        sizes = (row["clip_bytes"] for batch in stream for row in batch)
        bytes_per_shard = config.video_mb_per_shard * 2**20 if config.embed_video_bytes else None
        return shards.plan_shards(sizes, config.rows_per_shard, bytes_per_shard)

    def _card(self, figures: Figures, plan: shards.Plan, json_name: str) -> str:
        schema, _ = shards.columns(self.config.embed_video_bytes)
        facts = card.CardFacts(self.config.title, schema, json_name, plan.clips_with_file, self.recipe)
        return card.render(facts, figures)


def _clips(reader: Reader) -> Iterator[tuple[Row, str | None]]:
    """Exported rows in the order of their ids, each with its clip's file in the run folder."""
    before = ""
    for batch in reader.batches(rows.READS, ordered=True):
        for row in batch:
            assert row["clip_id"] > before, f"export: {row['clip_id']} came after {before}"
            before = row["clip_id"]
            yield rows.exported(row), row["clip_uri"]


def _remove_stale(writer: Writer, planned: set[str]) -> None:
    """Remove the card, and our shards and JSON files of another plan. Files that we do not write are left alone."""
    for relative in writer.list(FOLDER):
        if relative == CARD or (_SHARD_OR_JSON.fullmatch(relative) and relative not in planned):
            writer.remove(relative)
