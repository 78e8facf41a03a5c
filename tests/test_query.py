"""Views of a run folder made by hand: what they show, how they are typed, and what a query cannot reach."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from pipeline.query import JOINED_VIEWS, open_query, rejects_sql, run_query, view_columns
from pipeline.records import METRICS, REJECTS, TABLES, to_schema
from pipeline.session import Session, open_session
from pipeline.stage import Row, UserError
from pipeline.store.live import Node
from pipeline.store.tables import ItemResult
from pipeline.store.whole_set import WholeSetWriter
from tests.store.rows import commit, put_lock, random_row, reject, write_whole
from tests.tiny import shot, source


class Hand:
    """Writes a run folder by hand, in the order of the plan."""

    def __init__(self, root: Path | str) -> None:
        self.session = open_session(str(root), create=True)
        self.session.save()
        self._nodes: dict[str, Node] = {node.name: node for node in self.session.nodes}

    def whole(self, name: str, rows: Iterable[Row], rejects: dict[str, str] | None = None) -> None:
        node = self._nodes[name]
        write_whole(self.session.files, node, rows, rejects)

    def part(self, name: str, *results: ItemResult, fingerprint: str | None = None) -> None:
        node = self._nodes[name]
        if fingerprint is not None:
            node = Node(node.name, node.grain_in, node.grain_out, fingerprint, node.whole_set)
        commit(self.session.files, node, results)


def done(table: str, key: str, *rejects: Row, **given: Any) -> ItemResult:
    """An item with one row, and what it dropped."""
    row = random_row(table, 0, **{TABLES[table][0].name: key}, **given)
    return ItemResult(key, [row], list(rejects), random_row("metrics", 0, id=key, seconds=1.5))


def failed(key: str, reason: str, **given: Any) -> ItemResult:
    return ItemResult(key, [], [reject(key, reason, **given)], None)


def pair(index: int, **more: Any) -> Row:
    return {"index": index, "instruction": f"i{index}", "answer": f"a{index}", **more}


def write_run(root: Path | str) -> Session:
    """Three videos: v1 with shots 0 to 2 becomes two clips; v2 is not selected; bad.mp4 is no video."""
    hand = Hand(root)
    hand.whole("sources", [source(key) for key in ("a.mp4", "b.mp4", "bad.mp4")])
    hand.part(
        "ingest",
        done("ingest", "a.mp4", video_id="v1", dataset="set'1"),
        done("ingest", "b.mp4", video_id="v2", dataset="set2"),
        failed("bad.mp4", "not_video", detail="a poem", attempts=2),
        done("ingest", "gone.mp4", video_id="v8"),
    )
    hand.part("embed", done("embed", "v1"), done("embed", "v2"))
    hand.part("embed", done("embed", "v9"), fingerprint="ofanotherconfig0")
    select(hand)
    hand.part("scan", done("scan", "v1", time_base_num=1, time_base_den=10, frames_decoded=30, decode_errors=1))
    hand.part(
        "split", done("split", "v1", shots=[{**shot(i), "start_pts": 60 * i, "end_pts": 60 * i + 60} for i in range(3)])
    )
    hand.part(
        "dedup", done("dedup", "v1", reject("v1", "redundant", 1, "as before"), distinct_shots=[shot(0), shot(2)])
    )
    hand.part("filter", done("filter", "v1", kept_shots=[shot(0), shot(2)]))
    clips = [random_row("cut", i, video_id="v1", clip_id=f"c{i}", shot=2 * i, clip_s=6.0 + i) for i in range(2)]
    hand.part("cut", ItemResult("v1", clips, []))
    hand.part("generate", done("generate", "c0", caption="a [red] ball"), done("generate", "c1"))
    hand.part(
        "clean",
        done("clean", "c0", pairs=[pair(0), pair(2)], rejected_pairs=[pair(1, rules=["empty", "too_short"])]),
        failed("c1", "all_pairs_invalid"),
    )
    return hand.session


def select(hand: Hand) -> None:
    node = hand._nodes["select"]
    writer = WholeSetWriter(hand.session.files, node, "2-0", put_lock(hand.session.files))
    writer.row("select", random_row("select", 0, video_id="v1", category="A red video.", selected_by="category"))
    writer.reject("v2", "not_selected", "no room")
    for video_id, score in (("v1", 0.75), ("v2", 0.5)):
        writer.row("select_scores", {"video_id": video_id, "category": "A red video.", "similarity": score})
    writer.finish()


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """The run folder of write_run, in a folder whose name needs quoting everywhere."""
    return write_run(tmp_path_factory.mktemp("query") / 'o\'run [1] *? "x" ü')


@pytest.fixture(scope="module")
def con(session: Session) -> duckdb.DuckDBPyConnection:
    return open_query(session)


def rows(con: duckdb.DuckDBPyConnection, sql: str) -> list[tuple[Any, ...]]:
    table = run_query(con, sql)
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


# What the views show


def test_tables_show_live_rows_only(con: duckdb.DuckDBPyConnection) -> None:
    assert rows(con, "SELECT video_id FROM embed ORDER BY 1") == [("v1",), ("v2",)], "v9 is of another config"
    assert rows(con, "SELECT video_id FROM ingest ORDER BY 1") == [("v1",), ("v2",)], "v8 is listed no longer"
    assert rows(con, "SELECT source_key FROM sources ORDER BY 1") == [("a.mp4",), ("b.mp4",), ("bad.mp4",)]
    assert rows(con, 'SELECT video_id, category FROM "select"') == [("v1", "A red video.")]
    assert rows(con, "SELECT video_id, similarity FROM select_scores ORDER BY 1") == [("v1", 0.75), ("v2", 0.5)]
    assert rows(con, "SELECT count(*) FROM export") == [(0,)]


def test_every_view_is_there_with_its_documented_columns(con: duckdb.DuckDBPyConnection) -> None:
    for name, columns in view_columns().items():
        table = run_query(con, f'SELECT * FROM "{name}"')
        assert table.column_names == [column.name for column in columns], name
        typed = duckdb.from_arrow(to_schema(tuple(columns)).empty_table())
        found = dict(rows(con, f'SELECT column_name, column_type FROM (DESCRIBE "{name}")'))
        assert found == {column: str(kind) for column, kind in zip(typed.columns, typed.types, strict=True)}, name
    assert {*TABLES, "rejects", "metrics"} == view_columns().keys()


def test_videos(con: duckdb.DuckDBPyConnection) -> None:
    found = rows(
        con, "SELECT video_id, source_key, category, frames_decoded, decode_errors, shots FROM videos ORDER BY 1"
    )
    assert found == [("v1", "a.mp4", "A red video.", 30, 1, 3), ("v2", "b.mp4", None, None, None, None)]


def test_shots(con: duckdb.DuckDBPyConnection) -> None:
    found = rows(con, "SELECT video_id, shot, start_s, end_s, outcome, rejected_by, detail FROM shots ORDER BY shot")
    assert found == [
        ("v1", 0, 0.0, 6.0, "kept", None, None),
        ("v1", 1, 6.0, 12.0, "redundant", "dedup", "as before"),
        ("v1", 2, 12.0, 18.0, "kept", None, None),
    ]


def test_clips(con: duckdb.DuckDBPyConnection) -> None:
    found = rows(
        con,
        "SELECT clip_id, video_id, dataset, source_key, category, clip_s, pairs, rejected_pairs FROM clips ORDER BY 1",
    )
    assert found == [
        ("c0", "v1", "set'1", "a.mp4", "A red video.", 6.0, 2, 1),
        ("c1", "v1", "set'1", "a.mp4", "A red video.", 7.0, None, None),
    ]
    assert rows(con, "SELECT caption FROM clips WHERE clip_id = 'c0'") == [("a [red] ball",)]


def test_pairs(con: duckdb.DuckDBPyConnection) -> None:
    assert rows(con, "FROM pairs ORDER BY pair") == [("c0", 0, "i0", "a0"), ("c0", 2, "i2", "a2")]
    assert rows(con, "FROM rejected_pairs") == [("c0", 1, "i1", "a1", ["empty", "too_short"])]


def test_rejects_of_all_stages(con: duckdb.DuckDBPyConnection) -> None:
    assert rows(con, "SELECT stage, id, shot, reason, attempts FROM rejects ORDER BY ALL") == [
        ("clean", "c1", None, "all_pairs_invalid", 1),
        ("dedup", "v1", 1, "redundant", 1),
        ("ingest", "bad.mp4", None, "not_video", 2),
        ("select", "v2", None, "not_selected", 1),
    ]


def test_metrics_tell_the_stage(con: duckdb.DuckDBPyConnection) -> None:
    found = rows(con, "SELECT stage, id, seconds FROM metrics WHERE stage = 'embed' ORDER BY id")
    assert found == [("embed", "v1", 1.5), ("embed", "v2", 1.5)]
    ((finished_at,),) = rows(con, "SELECT finished_at FROM metrics LIMIT 1")
    assert finished_at.utcoffset().total_seconds() == 0


def test_times_are_utc_wherever_the_machine_is(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    table = run_query(open_query(session), "SELECT finished_at FROM metrics")
    assert table.schema.field(0).type.tz == "UTC"


@pytest.mark.parametrize("view", JOINED_VIEWS)
def test_joined_views_are_described(con: duckdb.DuckDBPyConnection, view: str) -> None:
    assert JOINED_VIEWS[view][0] and rows(con, f"SELECT count(*) FROM {view}")[0][0] > 0


# An empty and a partial run


def test_a_run_in_which_nothing_ran_has_typed_views(tmp_path: Path) -> None:
    con = open_query(Hand(tmp_path / "run").session)
    for name, columns in view_columns().items():
        table = run_query(con, f'SELECT * FROM "{name}"')
        assert table.num_rows == 0 and table.column_names == [column.name for column in columns]
    for name in JOINED_VIEWS:
        assert run_query(con, f"SELECT * FROM {name}").num_rows == 0
    assert rows(con, "SELECT sum(len(shots)) FROM split") == [(None,)], "lists are lists"


def test_a_run_that_stopped_half_way_shows_what_is_there(tmp_path: Path) -> None:
    hand = Hand(tmp_path / "run")
    hand.whole("sources", [source("a.mp4"), source("b.mp4")])
    hand.part("ingest", done("ingest", "a.mp4", video_id="v1"))
    con = open_query(hand.session)
    assert rows(con, "SELECT video_id, category, shots FROM videos") == [("v1", None, None)]
    assert rows(con, "SELECT count(*) FROM clips") == [(0,)]


def test_a_run_behind_a_url(tmp_path: Path) -> None:
    con = open_query(write_run("memory://runs/query's [run]"))
    assert rows(con, "SELECT clip_id, pairs FROM clips ORDER BY 1") == [("c0", 2), ("c1", None)]
    with pytest.raises(UserError, match="the query failed"):
        run_query(con, "SELECT * FROM read_text('/etc/hostname')")


# Shut in


def refusal(con: duckdb.DuckDBPyConnection, sql: str) -> str:
    with pytest.raises(UserError) as caught:
        run_query(con, sql)
    return str(caught.value)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM '/etc/hostname'",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM read_parquet('{run}/run.yaml')",
        "SELECT * FROM read_text('{run}/markers/ingest.json')",
        "SELECT * FROM read_text('https://example.com/')",
        "SELECT * FROM read_parquet('s3://bucket/x.parquet')",
        "SELECT * FROM session",
    ],
)
def test_a_query_reads_nothing_but_the_views(session: Session, con: duckdb.DuckDBPyConnection, sql: str) -> None:
    assert refusal(con, sql.replace("{run}", session.files.root.replace("'", "''"))).startswith("the query failed: ")


WRITING = [
    "COPY (SELECT 1) TO '{target}'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{target}'",
    "WITH x AS (COPY (SELECT 1) TO '{target}') SELECT 1",
    "SELECT * FROM (WITH x AS (COPY (SELECT 1) TO '{target}') SELECT 1)",
    "SELECT * FROM query('WITH x AS (COPY (SELECT 1) TO ''{target}'') SELECT 1')",
    "EXPORT DATABASE '{target}'",
    "ATTACH '{target}' AS other",
]


@pytest.mark.parametrize("sql", WRITING)
@pytest.mark.parametrize("folder", ["tables", ""])
def test_a_query_writes_nothing(session: Session, con: duckdb.DuckDBPyConnection, sql: str, folder: str) -> None:
    """Not even where the parts lie that it reads."""
    target = Path(session.files.root, folder, "evil.parquet")
    refusal(con, sql.replace("{target}", str(target).replace("'", "''")))
    assert not target.exists()


def test_what_the_queries_above_would_write(tmp_path: Path) -> None:
    """Without the guard they do: the test above can fail."""
    for number, sql in enumerate(WRITING[:3]):
        target = tmp_path / f"{number}.parquet"
        duckdb.connect().execute(sql.replace("{target}", str(target)))
        assert target.exists()


@pytest.mark.parametrize(
    "sql",
    [
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "RESET allowed_directories",
        "PRAGMA database_list",
        "CALL duckdb_settings()",
        "CREATE TABLE t AS SELECT 1",
        "DROP VIEW clips",
        "DELETE FROM live_ingest",
        "WITH gone AS (DELETE FROM live_ingest RETURNING in_key) SELECT * FROM gone",
        "INSERT INTO live_ingest SELECT * FROM live_ingest",
        "EXPLAIN ANALYZE DELETE FROM live_ingest",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP VIEW clips",
        "",
        ";",
        "-- nothing",
        "SELEC 1",
        "SELECT * FROM nowhere",
        "SELECT 1) UNION ALL (SELECT 2",
    ],
)
def test_only_one_statement_that_reads_runs(con: duckdb.DuckDBPyConnection, sql: str) -> None:
    known = sql.startswith(("SELEC", "WITH"))  # DuckDB says what is wrong with these
    said = "the query failed: " if known and ";" not in sql else "hicom query runs one statement that reads: SELECT"
    assert refusal(con, sql).startswith(said)
    assert rows(con, "SELECT count(*) FROM ingest") == [(2,)]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1;",
        "SELECT 1 -- and no more",
        "SELECT 1 /* ; DROP VIEW clips */",
        "WITH n AS (SELECT count(*) AS c FROM ingest) SELECT c FROM n",
        "FROM ingest",
        "DESCRIBE clips",
        "SUMMARIZE cut",
        "SHOW TABLES",
        "VALUES (1, 2)",
        "(SELECT 1) UNION ALL (SELECT 2) ORDER BY 1 LIMIT 1",
        "SELECT ';' AS semicolon",
    ],
)
def test_what_reads_is_let_through(con: duckdb.DuckDBPyConnection, sql: str) -> None:
    assert run_query(con, sql).num_rows > 0


def test_an_error_on_a_row_is_the_querys(con: duckdb.DuckDBPyConnection) -> None:
    assert refusal(con, "SELECT CAST(source_key AS INTEGER) FROM ingest").startswith(
        "the query failed: Conversion Error"
    )


def test_an_order_is_kept(con: duckdb.DuckDBPyConnection) -> None:
    sql = "SELECT range AS n FROM range(10000) ORDER BY n DESC"
    assert [n for (n,) in rows(con, sql)] == list(range(9999, -1, -1))


def test_values_come_as_they_are(con: duckdb.DuckDBPyConnection) -> None:
    found = rows(con, "SELECT sum(shot) AS n, now() > TIMESTAMP '2020-01-01' AS late, {'a': [1, 2]} AS s FROM cut")
    assert found == [(2, True, {"a": [1, 2]})]


# Rejects as `hicom rejects` asks for them


@pytest.mark.parametrize(
    ("stage", "reason", "items"),
    [
        (None, None, ["c1", "a.mp4", "bad.mp4", "b.mp4"]),
        ("ingest", None, ["bad.mp4"]),
        (None, "redundant", ["a.mp4"]),
        ("select", "not_selected", ["b.mp4"]),
        ("select", "redundant", []),
    ],
)
def test_rejects_by_stage_and_reason(
    con: duckdb.DuckDBPyConnection, stage: str | None, reason: str | None, items: list[str]
) -> None:
    """In the order of stage and reason, each with the source row it came from where it has one."""
    found = run_query(con, rejects_sql(stage, reason))
    assert found.column_names == ["stage", "item", "shot", "reason", "detail", "attempts"]
    assert found["item"].to_pylist() == items


@pytest.mark.parametrize(
    ("stage", "reason", "message"),
    [
        ("scna", None, "no stage 'scna'; there are: sources, ingest, embed"),
        (None, "tiemout", "no reject reason 'tiemout'; there are: missing"),
        ("x' OR 1=1 --", None, "no stage"),
    ],
)
def test_unknown_stages_and_reasons_are_told(stage: str | None, reason: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rejects_sql(stage, reason)


def test_a_damaged_part_is_told(tmp_path: Path) -> None:
    session = write_run(tmp_path / "run")
    for part in (tmp_path / "run/tables/embed").iterdir():
        part.write_bytes(b"not Parquet")
    with pytest.raises(UserError, match="a file of this run folder cannot be read"):
        open_query(session)


def test_views_of_columns_are_those_of_the_records() -> None:
    columns = view_columns()
    assert [c.name for c in columns["rejects"]] == ["stage", *(c.name for c in REJECTS)]
    assert [c.name for c in columns["metrics"]] == ["stage", *(c.name for c in METRICS)]
