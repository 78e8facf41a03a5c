"""SQL over a run folder: DuckDB views of what is live, read-only and shut in.

Every table of `records.TABLES` is a view of its name; beside them stand `videos`, `shots`, `clips`, `pairs`,
`rejected_pairs`, `rejects` and `metrics`. A query sees only the files of these views: other files, extensions,
attached databases and settings are out of reach, and only SELECT-like statements run.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import pyarrow as pa

from pipeline.records import METRICS, REASONS, REJECTS, TABLES, Column
from pipeline.session import Session
from pipeline.stage import UserError
from pipeline.store.live import Live, damaged, empty_sql, glob_literal, parquet_sql, place, quoted

JOINED_VIEWS: dict[str, tuple[str, str]] = {
    "videos": (
        "every ingested video: what it is, whether it was selected, what scan and split found",
        """SELECT i.*, s.category, s.similarity, s.margin, s.selected_by, c.frames_decoded, c.decode_errors,
                  len(p.shots) AS shots
           FROM ingest i LEFT JOIN "select" s USING (video_id) LEFT JOIN scan c USING (video_id)
           LEFT JOIN split p USING (video_id)""",
    ),
    "shots": (
        "every shot of every split video, with what became of it",
        """SELECT x.video_id, x.shot.index AS shot,
                  CAST(x.shot.start_pts AS DOUBLE) * c.time_base_num / c.time_base_den AS start_s,
                  CAST(x.shot.end_pts AS DOUBLE) * c.time_base_num / c.time_base_den AS end_s,
                  coalesce(r.reason, 'kept') AS outcome, r.stage AS rejected_by, r.detail
           FROM (SELECT video_id, unnest(shots) AS shot FROM split) x JOIN scan c USING (video_id)
           LEFT JOIN rejects r ON r.id = x.video_id AND r.shot = x.shot.index AND r.shot IS NOT NULL""",
    ),
    "clips": (
        "every cut clip: where it is from, its category, its caption and how many pairs it keeps",
        """SELECT k.clip_id, k.video_id, i.dataset, i.source_key, s.category, s.selected_by,
                  k.start_s, k.end_s, k.clip_s, k.method, k.clip_uri, g.caption,
                  len(n.pairs) AS pairs, len(n.rejected_pairs) AS rejected_pairs
           FROM cut k JOIN ingest i USING (video_id) JOIN "select" s USING (video_id)
           LEFT JOIN generate g USING (clip_id) LEFT JOIN clean n USING (clip_id)""",
    ),
    "pairs": (
        "every instruction-answer pair that passed the rules",
        """SELECT clip_id, p.index AS pair, p.instruction, p.answer
           FROM (SELECT clip_id, unnest(pairs) AS p FROM clean)""",
    ),
    "rejected_pairs": (
        "every pair that did not, with the ids of its rules",
        """SELECT clip_id, p.index AS pair, p.instruction, p.answer, p.rules
           FROM (SELECT clip_id, unnest(rejected_pairs) AS p FROM clean)""",
    ),
}


def open_query(session: Session) -> duckdb.DuckDBPyConnection:
    """A connection with all views, shut in. Raises UserError when a file of the run folder cannot be read."""
    live = session.live()
    try:
        for name, node in live.nodes.items():
            live.load(name)
            only_live = f"SEMI JOIN live_{name} l ON l.file = d.file_index AND l.row = d.file_row_number"
            _view(live, name, f"{live.scan_sql(name)} d {only_live}")
            marker = live.marker(name)
            for extra in node.extra_tables:
                _view(live, extra, _parts_sql(live, marker["extra_parts"][extra] if marker else [], extra))
        live.con.execute(f"CREATE TEMP VIEW rejects AS {_rejects_sql(live)}")
        live.con.execute(f"CREATE TEMP VIEW metrics AS {_metrics_sql(live)}")
        for name, (_, sql) in JOINED_VIEWS.items():
            live.con.execute(f"CREATE TEMP VIEW {name} AS {sql}")
    except duckdb.Error as err:
        raise damaged(live.files, err) from err
    _shut_in(live)
    return live.con


def run_query(con: duckdb.DuckDBPyConnection, sql: str) -> pa.Table:
    """The result of one SELECT-like statement. Raises UserError with DuckDB's words."""
    try:
        statements = con.extract_statements(sql)
        # EXPLAIN is not among them: EXPLAIN ANALYZE runs what it explains, COPY too.
        if len(statements) != 1 or statements[0].type is not duckdb.StatementType.SELECT:
            raise UserError("hicom query runs one statement that reads: SELECT, WITH, FROM, DESCRIBE or SUMMARIZE")
        query = statements[0].query.rstrip().rstrip(";")
        # WITH may hold a COPY or a DELETE, but only at the top level: as a subquery DuckDB binds nothing that writes.
        con.sql(f"FROM (\n{query}\n)")
        return con.sql(query).to_arrow_table()
    except duckdb.Error as err:
        raise UserError(f"the query failed: {err}") from err


def rejects_sql(stage: str | None, reason: str | None) -> str:
    """SQL of the rejects, each with the source row it came from. Raises UserError for an unknown stage or reason."""
    if stage is not None and stage not in TABLES:
        raise UserError(f"no stage {stage!r}; there are: {', '.join(TABLES)}")
    if reason is not None and reason not in REASONS:
        raise UserError(f"no reject reason {reason!r}; there are: {', '.join(REASONS)}")
    wanted = [f"stage = '{stage}'"] * (stage is not None) + [f"reason = '{reason}'"] * (reason is not None)
    where = f"WHERE {' AND '.join(wanted)}" if wanted else ""
    return (
        "SELECT r.stage, coalesce(i.source_key, r.id) AS item, r.shot, r.reason, r.detail, r.attempts FROM rejects r "
        f"LEFT JOIN ingest i ON i.video_id = r.id {where} ORDER BY r.stage, r.reason, item, r.shot"
    )


def view_columns() -> dict[str, list[Column]]:
    """Views with documented columns: the tables, rejects and metrics."""
    stage = Column("stage", pa.string(), "the stage that wrote the row")
    return {
        **{name: list(columns) for name, columns in TABLES.items()},
        "rejects": [stage, *REJECTS],
        "metrics": [stage, *METRICS],
    }


def _view(live: Live, table: str, source: str) -> None:
    columns = ", ".join(f'"{column.name}"' for column in TABLES[table])
    live.con.execute(f'CREATE TEMP VIEW "{table}" AS SELECT {columns} FROM {source}')


def _parts_sql(live: Live, parts: Sequence[str], table: str) -> str:
    """SQL of whole parts of a table, none of them dead."""
    return parquet_sql(live.files, parts) if parts else f"(SELECT {empty_sql(TABLES[table])} WHERE false)"


def _rejects_sql(live: Live) -> str:
    return " UNION ALL ".join(
        f"SELECT '{name}' AS stage, id, shot, reason, detail, attempts FROM rejects_{name}" for name in live.nodes
    )


def _metrics_sql(live: Live) -> str:
    selects = []
    for name, node in live.nodes.items():
        prefix = f"metrics/{name}/{node.fingerprint}-"
        parts = [path for path in live.files.list(f"metrics/{name}") if path.startswith(prefix)]
        if parts:
            columns = ", ".join(column.name for column in METRICS)
            selects.append(f"SELECT '{name}' AS stage, {columns} FROM {parquet_sql(live.files, parts)}")
    return " UNION ALL ".join(selects) or f"SELECT '' AS stage, {empty_sql(METRICS)} WHERE false"


def _shut_in(live: Live) -> None:
    allowed = [f"{place(live.files, folder)}/" for folder in ("tables", "metrics")]
    # DuckDB asks for the pattern first and then for the file that it finds.
    folders = ", ".join(quoted(path) for path in [*allowed, *map(glob_literal, allowed)])
    for setting in (
        "TimeZone = 'UTC'",
        f"allowed_directories = [{folders}]",
        "enable_external_access = false",
        "python_enable_replacements = false",
        "lock_configuration = true",
    ):
        live.con.execute(f"SET {setting}")
