"""Adapter `ego4d`: the metadata file `ego4d.json` of Ego4D.

An object with `date`, `version`, `description` and `videos`, one item a video: `video_uid`, `duration_sec`,
`scenarios`, `video_source`, `device`, `video_metadata`, `video_components` and more (ego4d-data.org, metadata). The
videos must have been downloaded with Ego4D's own tool, which writes `<version>/full_scale/<video_uid>.mp4`; they are
found by uid (see media_root.py).

The file is parsed whole by the standard library: 110 MB of memory, once, on the driver, for a file of 38 MiB (9,821
videos of the published shape, where measured).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pipeline.sources.manifest import read_text
from pipeline.sources.media_root import MediaRoot
from pipeline.sources.rows import Problem, meta_json, source_row
from pipeline.sources.uri import base_name, plain_text
from pipeline.stage import Row, UserError

DATASET = "ego4d"
ID_NAME = "video_uid"
_META = ("scenarios", "video_source", "device", "is_stereo", "has_redacted_regions")


def ego4d_rows(place: str, media: MediaRoot) -> Iterator[Row]:
    """A row a video; source_key `ego4d/<video_uid>`. Raises UserError when the file is not an ego4d.json."""
    for number, video in enumerate(_videos(place)):
        name = f"{DATASET}/{base_name(place)}:videos[{number}]"
        if not isinstance(video, dict):
            yield source_row(name, DATASET, "", problem=Problem("bad_row", f"videos[{number}] is not an object"))
            continue
        given = video.get(ID_NAME)
        meta = meta_json({key: video.get(key) for key in _META})
        yield media.row(f"{DATASET}/{given}" if given else name, DATASET, given, meta)


def _videos(place: str) -> list[Any]:
    shown = plain_text(place)
    try:
        content = json.loads(read_text(place))
    except (ValueError, RecursionError) as error:
        raise UserError(f"manifest {shown!r} is not JSON: {error}") from error
    videos = content.get("videos") if isinstance(content, dict) else None
    if not isinstance(videos, list):
        raise UserError(f"manifest {shown!r} is not an ego4d.json: an object with a list 'videos' is expected")
    if not videos:
        raise UserError(f"manifest {shown!r} lists no videos")
    return videos
