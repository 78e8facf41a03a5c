"""What is measured on a former run: SQL over its views (see query.py).

A rate is the sum of y over the sum of x; each query gives a row of y and x for every item measured, and how much they
vary says how well the rate is known. In braces stand numbers that no view holds (see `former.Former`).
"""

from __future__ import annotations

from dataclasses import dataclass

RATIO = """
SELECT count(*) AS n, sum(y) AS y, sum(x) AS x, sum(y * y) AS yy, sum(x * y) AS xy, sum(x * x) AS xx
FROM (SELECT CAST(y AS DOUBLE) AS y, CAST(x AS DOUBLE) AS x FROM ({measured})) WHERE y IS NOT NULL AND x IS NOT NULL
"""


@dataclass(frozen=True)
class Measurement:
    """A rate and how it is measured."""

    rate: str
    items: str
    """What a row of the query is, for people."""
    same: tuple[str, ...]
    """Stages whose settings, models and prompts must be those of the run for the rate to hold."""
    sql: str
    needs: tuple[str, ...] = ()
    """Numbers without which nothing can be measured."""
    expected: bool = True
    """Whether it is worth telling that a run has none."""


def _busy(*stages: str) -> str:
    """WITH spent (id, busy_s, frames): the time that stages were at work on each item, whatever went on side by side
    counted once for a host. Pauses between two commands, the start of Ray and the loading of models are not in it."""
    names = ", ".join(f"'{stage}'" for stage in stages)
    return f"""WITH spans AS (
        SELECT stage, id, host, frames_decoded, epoch(finished_at) - seconds AS began, epoch(finished_at) AS ended
        FROM metrics WHERE stage IN ({names})
    ),
    steps AS (
        SELECT id, frames_decoded,
               greatest(0, ended - greatest(began, coalesce(max(ended) OVER earlier, began))) AS busy_s
        FROM spans WINDOW earlier AS (PARTITION BY stage, host ORDER BY began, ended
                                      ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
    ),
    spent AS (SELECT id, sum(busy_s) AS busy_s, sum(frames_decoded) AS frames FROM steps GROUP BY id)"""


_CLIPS = """a_second AS (
    SELECT sum(duration_s * fps) / sum(duration_s) AS frames, sum(bytes) / sum(duration_s) AS bytes,
           sum(duration_s * fps * width * height) / 1e6 / sum(duration_s) AS mpx
    FROM ingest WHERE duration_s <= {believed_s} AND fps IS NOT NULL
),
clips AS (
    SELECT video_id, clip_id, clip_s, clip_bytes AS file_bytes,
           clip_s * frames AS frames, clip_s * mpx AS mpx, clip_s * bytes AS bytes
    FROM cut, a_second
),
videos AS (SELECT video_id, sum(frames) AS frames, sum(mpx) AS mpx FROM clips GROUP BY video_id)"""
"""Frames, pixels and bytes of clips as an estimate reckons them: as many a second as all videos have on average."""

_DONE = """WITH through AS (
    SELECT DISTINCT video_id FROM cut
    UNION SELECT id FROM rejects WHERE shot IS NULL AND stage IN ('scan', 'split', 'dedup', 'filter', 'cut')
),
done AS (
    SELECT video_id, CASE WHEN i.duration_s <= {believed_s} THEN i.duration_s
                     ELSE CAST(c.end_pts AS DOUBLE) * c.time_base_num / c.time_base_den END AS video_s
    FROM through JOIN ingest i USING (video_id) LEFT JOIN scan c USING (video_id)
)"""
"""Videos that have come to their end in cut, with the lengths that their headers state, or that scan found."""

VIDEO_LENGTHS = f"{_DONE} SELECT video_s FROM done WHERE video_s IS NOT NULL"
CLIP_LENGTHS = """
SELECT quantile_cont(clip_s, {shares}) AS lengths, count(*) AS n, avg(clip_s) AS mean_s,
       coalesce(stddev(clip_s), avg(clip_s)) AS deviation_s FROM cut
"""

_MADE_CLIPS = ("scan", "split", "dedup", "filter")
_HASHING_S = "if(v.identity LIKE 'sha256:%', v.bytes / {hash_mb_per_core_s} / 1e6, 0)"
_TURN = """WITH asked AS (SELECT clip_id, unnest(turns) AS t FROM generate)
SELECT sum({tokens}) FILTER (t.turn = '{turn}') AS y, 1 AS x FROM asked GROUP BY clip_id"""
_KINDS = {"prompt": "t.prompt_tokens", "computed": "t.prompt_tokens - t.cached_tokens", "output": "t.output_tokens"}


TIMED_STAGES: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in ("ingest", "embed", "scan", "cut", "generate", "clean")},
    "shots": ("split", "dedup", "filter"),
}
"""Stages whose time is measured, by the name of their rate. `<name>_cores` are the cores that they had."""


def _time(name: str, items: str, of: str) -> Measurement:
    """Core seconds: the time that stages were at work, on all cores that they had. `of` makes y and x of `spent`."""
    used, cores = TIMED_STAGES[name], f"{name}_cores"
    sql = f"{_busy(*used)}, {_CLIPS} {of}".replace("CORE_S", f"busy_s * {{{cores}}}")
    return Measurement(f"{name}_core_s", items, used, sql, needs=(cores,))


def _tokens(turn: str, kind: str) -> Measurement:
    sql = _TURN.replace("{tokens}", _KINDS[kind]).replace("{turn}", turn)
    name = f"{turn}_{kind}_tokens"
    return Measurement(name, "clips", ("generate",), sql, needs=("reads_prompts",), expected=False)


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement(
        "embeddable",
        "videos",
        (),
        """SELECT if(e.video_id IS NULL, 0, 1) AS y, 1 AS x
           FROM (SELECT DISTINCT id AS video_id FROM metrics WHERE stage = 'embed')
           LEFT JOIN embed e USING (video_id)""",
    ),
    Measurement(
        "selected_length",
        "videos",
        ("embed", "select"),
        """SELECT if(s.video_id IS NULL, 0, i.duration_s) * count(*) OVER () / count(s.video_id) OVER () AS y,
                  i.duration_s AS x
           FROM embed JOIN ingest i USING (video_id) LEFT JOIN "select" s USING (video_id)
           WHERE i.duration_s <= {believed_s} QUALIFY count(s.video_id) OVER () < count(*) OVER ()""",
        expected=False,
    ),
    Measurement(
        "clips_share",
        "videos",
        _MADE_CLIPS,
        f"""{_DONE}, kept AS (SELECT video_id, sum(clip_s) AS clip_s FROM cut GROUP BY video_id)
            SELECT coalesce(clip_s, 0) AS y, video_s AS x FROM done LEFT JOIN kept USING (video_id)
            WHERE video_s >= {{min_s}}""",
    ),
    Measurement(
        "embed_frames",
        "videos",
        (),
        f"{_busy('embed')} SELECT coalesce(frames, 0) AS y, {{embed_frames}} AS x FROM spent",
    ),
    Measurement(
        "scan_frames",
        "videos",
        (),
        """SELECT c.frames_decoded AS y, i.duration_s * i.fps AS x
           FROM scan c JOIN ingest i USING (video_id) WHERE i.duration_s <= {believed_s}""",
    ),
    Measurement(
        "cut_frames",
        "videos",
        ("cut",),
        f"{_busy('cut')}, {_CLIPS} SELECT s.frames AS y, v.frames AS x FROM spent s JOIN videos v ON v.video_id = s.id",
    ),
    Measurement(
        "generate_frames",
        "clips",
        ("generate",),
        f"""{_busy("generate")}, {_CLIPS}
            SELECT s.frames AS y, c.frames AS x FROM spent s JOIN clips c ON c.clip_id = s.id""",
    ),
    _time(
        "ingest",
        "source rows",
        f"""SELECT greatest(0, CORE_S - coalesce({_HASHING_S}, 0)) AS y, 1 AS x
            FROM spent s LEFT JOIN ingest v ON v.source_key = s.id""",
    ),
    _time("embed", "videos", "SELECT CORE_S AS y, 1 AS x FROM spent"),
    _time(
        "scan",
        "videos",
        """SELECT CORE_S AS y, coalesce(c.frames_decoded * i.width * i.height / 1e6, 0) AS x
           FROM spent s JOIN ingest i ON i.video_id = s.id LEFT JOIN scan c ON c.video_id = s.id""",
    ),
    _time(
        "shots",
        "videos",
        "SELECT CORE_S AS y, c.frames_decoded AS x FROM spent s JOIN scan c ON c.video_id = s.id",
    ),
    _time(
        "cut",
        "videos",
        "SELECT CORE_S AS y, coalesce(v.mpx, 0) AS x FROM spent s LEFT JOIN videos v ON v.video_id = s.id",
    ),
    _time("generate", "clips", "SELECT CORE_S AS y, 1 AS x FROM spent"),
    _time("clean", "clips", "SELECT CORE_S AS y, 1 AS x FROM spent"),
    Measurement(
        "scan_frames_per_core_s",
        "videos",
        ("scan",),
        f"{_busy('scan')} SELECT coalesce(frames, 0) AS y, busy_s * {{scan_cores}} AS x FROM spent",
        needs=("scan_cores",),
        expected=False,
    ),
    Measurement(
        "embed_gpu_s",
        "videos",
        ("embed",),
        f"{_busy('embed')} SELECT busy_s * {{embed_gpus}} AS y, 1 AS x FROM spent",
        needs=("embed_gpus",),
        expected=False,
    ),
    Measurement(
        "scan_gpu_s",
        "videos",
        ("scan",),
        f"""{_busy("scan")} SELECT busy_s * {{scan_gpus}} AS y, coalesce(len(c.grid_frames), 0) AS x
            FROM spent s LEFT JOIN scan c ON c.video_id = s.id""",
        needs=("scan_gpus",),
        expected=False,
    ),
    *(_tokens(turn, kind) for turn in ("caption", "qa") for kind in _KINDS),
    Measurement(
        "generate_tokens_per_gpu_s",
        "clips",
        ("generate",),
        f"""{_busy("generate")}, asked AS (SELECT clip_id, unnest(turns) AS t FROM generate),
            told AS (SELECT clip_id AS id, sum(t.prompt_tokens - t.cached_tokens + t.output_tokens) AS tokens
                     FROM asked GROUP BY clip_id)
            SELECT coalesce(tokens, 0) AS y, busy_s * {{generate_gpus}} AS x FROM spent LEFT JOIN told USING (id)""",
        needs=("generate_gpus", "reads_prompts"),
        expected=False,
    ),
    Measurement("clip_bytes", "clips", ("cut",), f"WITH {_CLIPS} SELECT file_bytes AS y, bytes AS x FROM clips"),
    Measurement(
        "video_row_bytes", "videos", (), "SELECT {video_table_bytes} / count(*) OVER () AS y, 1 AS x FROM ingest"
    ),
    Measurement(
        "picture_row_bytes",
        "videos",
        ("scan",),
        """SELECT greatest(0, {scan_table_bytes} * len(grid_frames) / sum(len(grid_frames)) OVER ()
                              - frames_decoded * {frame_row_bytes}) AS y, len(grid_frames) AS x FROM scan""",
    ),
    Measurement(
        "clip_row_bytes", "clips", ("generate",), "SELECT {clip_table_bytes} / count(*) OVER () AS y, 1 AS x FROM clean"
    ),
)

MEASURED_ONLY: dict[str, str] = {
    "cores": "cores that the run had",
    "scan_frames_per_core_s": "frames decoded and scored a core second, of these pictures",
    "embed_gpu_s": "GPU seconds a video",
    "scan_gpu_s": "GPU seconds a picture of the time grid",
    "generate_tokens_per_gpu_s": "tokens a GPU second, computed and written ones together",
    "caption_prompt_tokens": "prompt tokens of a clip's caption turn",
    "caption_computed_tokens": "of these computed, the others cached",
    "caption_output_tokens": "tokens of a caption",
    "qa_prompt_tokens": "prompt tokens of a clip's QA turn",
    "qa_computed_tokens": "of these computed, the others cached",
    "qa_output_tokens": "tokens of a clip's pairs",
}
"""Rates that nothing is assumed for, with their units."""
