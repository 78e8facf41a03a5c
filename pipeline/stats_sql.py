"""The figures of a run as named SQL over the run's views.

Views are named after the tables of `records.TABLES` and hold live rows only; beside them stands
`rejects(stage, id, shot, reason, detail, attempts)`. Tab. 1 and Fig. 4 are the paper's: number and mean length of
clips and number of pairs by source, shares of the sources, lengths of clips. They count the clips that passed
`clean`, so they answer before the export is written too.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One figure: its name on the command line, a title for people, and the query."""

    name: str
    title: str
    sql: str


_FUNNEL = """
WITH outs(position, stage, item, items_out, shots_out) AS (
    SELECT 1, 'ingest', 'video', count(*), NULL FROM ingest
    UNION ALL SELECT 2, 'embed', 'video', count(*), NULL FROM embed
    UNION ALL SELECT 3, 'select', 'video', count(*), NULL FROM "select"
    UNION ALL SELECT 4, 'scan', 'video', count(*), NULL FROM scan
    UNION ALL SELECT 5, 'split', 'video', count(*), sum(len(shots)) FROM split
    UNION ALL SELECT 6, 'dedup', 'video', count(*), sum(len(distinct_shots)) FROM dedup
    UNION ALL SELECT 7, 'filter', 'video', count(*), sum(len(kept_shots)) FROM "filter"
    UNION ALL SELECT 8, 'cut', 'video', count(DISTINCT video_id), count(*) FROM cut
    UNION ALL SELECT 9, 'generate', 'clip', count(*), NULL FROM generate
    UNION ALL SELECT 10, 'clean', 'clip', count(*), NULL FROM clean
    UNION ALL SELECT 11, 'export', 'clip', count(*), NULL FROM export
),
lost AS (
    SELECT stage,
           count(DISTINCT id) FILTER (shot IS NULL) AS items_rejected,
           count(*) FILTER (shot IS NOT NULL) AS shots_rejected
    FROM rejects GROUP BY stage
)
SELECT stage, item,
       items_out + coalesce(items_rejected, 0) AS items_in,
       items_out,
       coalesce(items_rejected, 0) AS items_rejected,
       shots_out,
       coalesce(shots_rejected, 0) AS shots_rejected
FROM outs LEFT JOIN lost USING (stage)
ORDER BY position
"""

_REJECTS = """
SELECT stage, reason,
       count(DISTINCT id) FILTER (shot IS NULL) AS items,
       count(*) FILTER (shot IS NOT NULL) AS shots
FROM rejects GROUP BY stage, reason ORDER BY stage, reason
"""

_SOURCES = """
SELECT CASE WHEN grouping(dataset) = 1 THEN '(all)' ELSE dataset END AS dataset,
       count(DISTINCT video_id) AS videos,
       count(*) AS clips,
       round(count(*) / sum(count(*)) FILTER (grouping(dataset) = 0) OVER (), 4) AS share_of_clips,
       sum(len(pairs)) AS pairs,
       round(avg(clip_s), 2) AS mean_clip_s,
       round(sum(clip_s) / 3600, 3) AS hours
FROM clean JOIN cut USING (clip_id) JOIN ingest USING (video_id)
GROUP BY ROLLUP (dataset) HAVING count(*) > 0 ORDER BY grouping(dataset), dataset
"""

_LENGTHS = """
SELECT bin * 5 AS from_s, bin * 5 + 5 AS below_s, count(*) AS clips,
       round(count(*) / sum(count(*)) OVER (), 4) AS share_of_clips
FROM (SELECT CAST(floor(clip_s / 5) AS INTEGER) AS bin FROM clean JOIN cut USING (clip_id))
GROUP BY bin ORDER BY bin
"""

_CATEGORIES = """
SELECT coalesce(category, '(random)') AS category, dataset,
       count(DISTINCT video_id) AS videos, count(*) AS clips
FROM clean JOIN cut USING (clip_id) JOIN "select" USING (video_id) JOIN ingest USING (video_id)
GROUP BY ALL ORDER BY ALL
"""

_WORDS = r"""
WITH texts(kind, body) AS (
    SELECT 'caption', caption FROM clean JOIN generate USING (clip_id)
    UNION ALL SELECT 'instruction', p.instruction FROM (SELECT unnest(pairs) AS p FROM clean)
    UNION ALL SELECT 'answer', p.answer FROM (SELECT unnest(pairs) AS p FROM clean)
),
counted AS (SELECT kind, len(regexp_extract_all(body, '\S+')) AS words FROM texts)
SELECT kind, count(*) AS texts, round(avg(words), 2) AS mean_words, min(words) AS min_words,
       median(words) AS median_words, max(words) AS max_words
FROM counted GROUP BY kind ORDER BY kind
"""

_RULES = """
SELECT rule, count(*) AS pairs
FROM (SELECT unnest(p.rules) AS rule FROM (SELECT unnest(rejected_pairs) AS p FROM clean))
GROUP BY rule ORDER BY pairs DESC, rule
"""

FIGURES: tuple[Figure, ...] = (
    Figure("funnel", "Items in, out and rejected, stage by stage", _FUNNEL),
    Figure("rejects", "Rejects by stage and reason", _REJECTS),
    Figure("sources", "Clips, pairs and mean length by source (the paper's Tab. 1, and Fig. 4's shares)", _SOURCES),
    Figure("lengths", "Lengths of clips, in bins of 5 s (Fig. 4)", _LENGTHS),
    Figure("categories", "Videos and clips by category and source", _CATEGORIES),
    Figure("words", "Words in captions, instructions and answers", _WORDS),
    Figure("rules", "Pairs rejected by each rule, of clips that kept a pair", _RULES),
)
