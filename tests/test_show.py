"""What commands print: plain, whole and unwrapped where no terminal is."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from rich.progress import Task

from pipeline import show
from pipeline.config import load_profile, parse
from pipeline.engine.task import Tally
from pipeline.records import TABLES
from pipeline.session import Session
from pipeline.stage import Resources, UserError
from pipeline.store.live import Counts
from tests.tiny import TinyEmbed

LONG = "a-very-long-name-" * 20


def piped() -> Console:
    """A console as a command has it whose output goes into a pipe."""
    return Console(file=io.StringIO(), width=10_000)


def terminal(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system="truecolor")


def text(console: Console) -> str:
    return cast(io.StringIO, console.file).getvalue()


ROWS = pa.table(
    {
        "id": ["v1", "[bold]v2[/]"],
        "share": [0.123456789, None],
        "count": pa.array([Decimal(3), Decimal(12345678901)], pa.decimal128(38, 0)),
        "pairs": [[{"q": 'a, "b"', "n": 1}], []],
        "when": pa.array([datetime(2025, 1, 2, tzinfo=UTC), None], pa.timestamp("us", "UTC")),
        "text": ["line\nbreak, comma", "ü 漢字"],
    }
)


def shown(form: str, rows: pa.Table = ROWS, limit: int | None = None) -> str:
    console = piped()
    show.result(rows, form, console, None, limit)
    return text(console)


# Forms of a query's result


def test_csv_is_read_back() -> None:
    header, *rows = csv.reader(io.StringIO(shown("csv")))
    assert header == ROWS.column_names
    assert rows[0][:3] == ["v1", "0.123456789", "3"] and rows[1][1] == ""
    assert json.loads(rows[0][3]) == [{"q": 'a, "b"', "n": 1}]
    assert [row[5] for row in rows] == ["line\nbreak, comma", "ü 漢字"]


def test_json_has_numbers_for_numbers() -> None:
    rows = json.loads(shown("json"))
    assert rows[0] == {
        "id": "v1",
        "share": 0.123456789,
        "count": 3,
        "pairs": [{"q": 'a, "b"', "n": 1}],
        "when": "2025-01-02 00:00:00+00:00",
        "text": "line\nbreak, comma",
    }
    assert rows[1]["count"] == 12345678901 and rows[1]["pairs"] == [] and rows[1]["share"] is None
    assert json.loads(shown("json", pa.table({"x": [Decimal("1.50")]}))) == [{"x": 1.5}]


def test_a_table_shows_text_as_it_is() -> None:
    printed = shown("table")
    assert "[bold]v2[/]" in printed and '[{"q": "a, \\"b\\"", "n": 1}]' in printed
    assert "0.123457" in printed and "12345678901" in printed


@pytest.mark.parametrize(
    ("value", "cell"),
    [(0.5, "0.5"), (12345.678, "12345.7"), (1234567.8, "1234568"), (1e-7, "1e-07"), (0.0, "0"), (float("inf"), "inf")],
)
def test_numbers_in_a_table_are_short_and_no_powers_of_ten_where_people_look(value: float, cell: str) -> None:
    assert f" {cell} " in shown("table", pa.table({"x": [value]}))


def test_a_row_stays_a_line_however_long() -> None:
    lines = shown("table", pa.table({"id": [LONG, "b"], "detail": ["x " * 300, "y"]})).splitlines()
    assert sum(LONG in line for line in lines) == 1
    assert len(lines) == 3 + 2 + 1, "a head of three lines, two rows, a foot"


def test_a_result_without_rows_has_its_columns() -> None:
    empty = ROWS.slice(0, 0)
    assert shown("csv", empty).splitlines() == [",".join(ROWS.column_names)]
    assert json.loads(shown("json", empty)) == []
    assert "share" in shown("table", empty)


def test_two_columns_may_have_one_name() -> None:
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"])
    assert shown("csv", twice).splitlines()[1] == "1,2"


def test_rows_left_out_are_counted() -> None:
    rows = pa.table({"n": list(range(60))})
    printed = shown("table", rows, limit=50)
    assert " 49 " in printed and " 50 " not in printed
    assert printed.splitlines()[-1] == "10 more rows: --limit N prints N, --format csv all"
    assert "more" not in shown("table", rows, limit=60)
    assert len(shown("csv", rows, limit=5).splitlines()) == 6
    assert len(shown("csv", rows).splitlines()) == 61


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_a_result_may_go_to_a_file(tmp_path: Path, form: str) -> None:
    console, path = piped(), tmp_path / "out file"
    show.result(ROWS, form, console, str(path))
    assert text(console) == ""
    if form == "parquet":
        assert pq.read_table(path).equals(ROWS)
    else:
        assert path.read_text(encoding="utf-8") == shown(form)


@pytest.mark.parametrize(
    ("form", "output", "message"),
    [
        ("xml", None, "--format xml: expected table, csv, json or parquet"),
        ("parquet", None, "--format parquet writes a file: add --output"),
        ("table", "out.txt", "--output writes csv, json or parquet: add --format csv"),
    ],
)
def test_a_form_that_does_not_fit_is_told(form: str, output: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        show.check_form(form, output)
    with pytest.raises(UserError, match=message):
        show.result(ROWS, form, piped(), output)


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_a_file_that_cannot_be_written_is_told(tmp_path: Path, form: str) -> None:
    with pytest.raises(UserError, match=r"--output .*no/such/folder.*Give a file in a folder that can be written"):
        show.result(ROWS, form, piped(), str(tmp_path / "no/such/folder/x"))


# Balances


def counts(**given: Any) -> Counts:
    return Counts(**{**Counts(5, 3, 4, {}, {}, 0, 0).__dict__, **given})


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({}, "5 in, 4 out"),
        ({"rejected": {"missing": 1, "timeout": 2}}, "5 in, 4 out, rejected missing 1 timeout 2"),
        ({"shots_rejected": {"too_short": 3}}, "5 in, 4 out, shots rejected too_short 3"),
        ({"missing": 2}, "5 in, 4 out, 2 to do"),
    ],
)
def test_a_balance_in_a_line(given: dict[str, Any], line: str) -> None:
    assert show.summary(counts(**given)) == line


def test_the_funnel_names_states_and_reasons() -> None:
    console = piped()
    console.print(show.funnel([("scan", "partial", counts(rejected={"timeout": 2}, shots_rejected={"redundant": 7}))]))
    row = next(line for line in text(console).splitlines() if "scan" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "scan",
        "partial",
        "5",
        "4",
        "timeout 2",
        "redundant 7",
    ]


def test_the_plan_tells_what_stages_read_write_and_need() -> None:
    console = piped()
    console.print(show.plan(parse(load_profile("demo"), {}).stages()))
    printed = text(console)
    assert "scan: frame_pts" in printed and "split: shots" in printed
    assert "select select_scores" in printed and "video_id -> clip_id" in printed
    assert all(word in printed for word in ("whole set", "map, 2-step", "driver", "0.5 cpu, 16 a batch"))
    assert "model builtin:observer@1" in printed and "1 x 0.2 cpu, 4 in flight a worker" in printed
    assert "gpu" not in printed, "the demo needs none"


def test_the_plan_tells_a_models_gpus_and_replicas() -> None:
    needs = Resources(model_cpus=2, model_gpus=8, model_replicas=3, in_flight=16)
    console = piped()
    console.print(show.plan([TinyEmbed(needs=needs)]))
    assert "3 x 2 cpu 8 gpu, 16 in flight a worker" in text(console)


def test_every_view_is_listed_with_its_columns() -> None:
    console = piped()
    console.print(show.views({"clips": "every [cut] clip"}, TABLES))
    printed = text(console)
    assert "every [cut] clip" in printed and "clip_sha256 SHA-256 of the clip's file" in printed


# While a command runs


def session(root: str = "/runs/[x] run") -> Session:
    given = {
        "files": SimpleNamespace(root=root),
        "record": {"profile": "/profiles/[my] one.yaml"},
        "changed": {"split.threshold": (45.0, 30), "sources.pattern": (None, "[a-z]*")},
        "recompute": ("split", "dedup"),
    }
    return cast(Session, SimpleNamespace(**given))


def report(console: Console, root: str = "/runs/[x] run") -> None:
    reporter = show.TerminalReporter(console)
    reporter.opened(session(root))
    reporter.listed(12, {".txt": 2, "[x]": 1}, 3)
    reporter.stage_begins("scan", 12, 9)
    reporter.progress("scan", Tally(items=9))
    reporter.stage_ends("scan", counts(), 1.25)
    reporter.close()


def test_a_report_in_a_pipe_is_plain_lines() -> None:
    console = piped()
    report(console)
    assert text(console).splitlines() == [
        "run folder /runs/[x] run, profile /profiles/[my] one.yaml",
        "changed: split.threshold was 45.0, is now 30",
        "changed: sources.pattern was None, is now [a-z]*",
        "to be recomputed: split, dedup",
        "inputs: 12 source rows",
        "ignored, not known as video: 2 .txt, 1 [x]",
        "3 source rows of earlier commands are not among these inputs: they stay stored and leave the views. "
        "To keep them, name their inputs too.",
        "     scan  5 in, 4 out  1.2 s",
    ]


def test_a_line_of_a_report_is_not_broken() -> None:
    console = Console(file=io.StringIO(), width=80)
    report(console, root=LONG)
    assert LONG in text(console)


def test_a_terminal_gets_a_bar_that_goes_away() -> None:
    console = terminal()
    reporter = show.TerminalReporter(console)
    reporter.stage_begins("scan", 10, 4)
    reporter.progress("scan", Tally(items=1))
    (bar,) = bars(reporter)
    assert (bar.total, bar.completed) == (10, 7)
    reporter.close()
    assert bars(reporter) == []
    reporter.stage_begins("split", 10, 0)
    assert bars(reporter) == [], "nothing is pending"


def bars(reporter: show.TerminalReporter) -> list[Task]:
    return reporter._bars.tasks if reporter._bars is not None else []
