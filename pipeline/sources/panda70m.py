"""Adapter `panda70m`: the published CSV files of Panda-70M.

A row is one YouTube video with all its clips: `videoID, url, timestamp, caption, matching_score`, and since October
2024 `desirable_filtering, shot_boundary_detection` (github.com/snap-research/Panda-70M, dataset_dataloading). The
paper takes the original untrimmed video (HICom, sec. 3.2), so the clips' own columns are not read. The videos must
have been downloaded; they are found by id (see media_root.py), never by the page in `url`.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.sources.manifest import Manifest
from pipeline.sources.media_root import MediaRoot
from pipeline.sources.rows import Problem, meta_json, source_row
from pipeline.stage import Row, UserError

DATASET = "panda70m"
ID_NAME = "videoID"
_NEEDED = (ID_NAME, "url", "timestamp")


def is_panda70m(columns: list[str]) -> bool:
    """True when a table has the columns by which Panda-70M's files are known."""
    return set(_NEEDED) <= set(columns)


def panda70m_rows(manifest: Manifest, media: MediaRoot) -> Iterator[Row]:
    """A row a video; source_key `panda70m/<videoID>`, whichever of the published files it is in. Raises UserError."""
    if not is_panda70m(manifest.columns):
        raise UserError(
            f"manifest {manifest.name!r} has columns {manifest.shown_columns}; Panda-70M's have"
            f" {', '.join(_NEEDED)} and more. For another table use --set sources.adapter=table"
        )
    for record in manifest.records:
        if record.error is not None:
            name = f"{DATASET}/{manifest.name}:{record.number}"
            yield source_row(name, DATASET, "", problem=Problem("bad_row", record.error))
            continue
        name = f"{DATASET}/{record.values.get(ID_NAME) or f'{manifest.name}:{record.number}'}"
        meta = meta_json({"url": record.values.get("url")})
        yield media.row(name, DATASET, record.values.get(ID_NAME), meta)
