"""What commands print: tables, the funnel, progress. Plain text when the output is no terminal."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from pipeline.engine.task import Tally
from pipeline.records import Column
from pipeline.session import Session
from pipeline.stage import GlobalStage, Stage, TwoStepStage, UserError
from pipeline.store.live import Counts


class TerminalReporter:
    """One line per stage, live while it runs where there is a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None
        self._bar: TaskID | None = None

    def opened(self, session: Session) -> None:
        self._line(f"run folder [bold]{escape(session.files.root)}[/], profile {escape(session.record['profile'])}")
        for path, (old, new) in session.changed.items():
            self._line(f"changed: {escape(path)} was {escape(str(old))}, is now {escape(str(new))}")
        if session.recompute:
            self._line(f"to be recomputed: {', '.join(session.recompute)}")

    def listed(self, rows: int, ignored: dict[str, int], no_longer: int) -> None:
        self._line(f"inputs: {rows} source rows")
        if ignored:
            kinds = ", ".join(f"{count} {escape(kind)}" for kind, count in sorted(ignored.items()))
            self._line(f"ignored, not known as video: {kinds}")
        if no_longer:
            self._line(
                f"{no_longer} source rows of earlier commands are not among these inputs: they stay stored and leave "
                "the views. To keep them, name their inputs too."
            )

    def stage_begins(self, name: str, items: int, pending: int) -> None:
        if self._console.is_terminal and pending:
            columns = (TextColumn("{task.description:>9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bars = Progress(*columns, console=self._console, transient=True)
            self._bar = self._bars.add_task(name, total=items, completed=items - pending)
            self._bars.start()

    def progress(self, name: str, tally: Tally) -> None:
        if self._bars is not None and self._bar is not None:
            self._bars.advance(self._bar, tally.items)

    def stage_ends(self, name: str, counts: Counts, seconds: float) -> None:
        self.close()
        self._line(f"{name:>9}  {summary(counts)}  [dim]{seconds:.1f} s[/]")

    def _line(self, text: str) -> None:
        """One line, however long: what is not a terminal takes no wrapping."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the live bar down."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def summary(counts: Counts) -> str:
    """A stage's balance in one line."""
    parts = [f"{counts.items_in} in", f"{counts.rows_out} out"]
    if counts.rejected:
        parts.append("rejected " + reasons(counts.rejected))
    if counts.shots_rejected:
        parts.append("shots rejected " + reasons(counts.shots_rejected))
    if counts.missing:
        parts.append(f"{counts.missing} to do")
    return ", ".join(parts)


def reasons(counted: Mapping[str, int]) -> str:
    return " ".join(f"{reason} {count}" for reason, count in counted.items())


def funnel(rows: Iterable[tuple[str, str, Counts]]) -> Table:
    """In, out and rejected of every stage."""
    table = Table(title="Funnel", title_justify="left")
    for name in ("stage", "state", "in", "out", "rejected", "shots rejected"):
        table.add_column(name, justify="right" if name in ("in", "out") else "left")
    for name, state, counts in rows:
        table.add_row(
            name,
            state,
            str(counts.items_in),
            str(counts.rows_out),
            reasons(counts.rejected),
            reasons(counts.shots_rejected),
        )
    return table


def plan(stages: Sequence[Stage]) -> Table:
    """The plan: kind, grain, reads, writes, resources."""
    table = Table(title="Plan", title_justify="left")
    for name in ("stage", "kind", "row", "reads", "writes", "resources"):
        table.add_column(name)
    for stage in stages:
        grain = stage.grain_in.value if stage.grain_in is stage.grain_out else f"{stage.grain_in} -> {stage.grain_out}"
        extra = stage.extra_tables if isinstance(stage, GlobalStage) else ()
        writes = " ".join((stage.name, *extra))
        table.add_row(stage.name, _kind(stage), grain, _reads(stage), writes, _resources(stage))
    return table


def _reads(stage: Stage) -> str:
    """The columns that a stage reads, a line for each table."""
    columns: dict[str, list[str]] = {}
    for column in stage.reads:
        table, _, name = column.partition(".")
        columns.setdefault(table, []).append(name)
    return "\n".join(f"{table}: {' '.join(names)}" for table, names in columns.items())


def _kind(stage: Stage) -> str:
    if isinstance(stage, GlobalStage):
        return "whole set"
    return "map, 2-step" if isinstance(stage, TwoStepStage) else "map"


def _resources(stage: Stage) -> str:
    """What a worker takes, and on lines of its own which model it uses and what that takes."""
    model = getattr(stage.config, "model", None)
    uses = [] if model is None else [f"model {escape(model.key)}"]
    if isinstance(stage, GlobalStage):
        return "\n".join(["driver", *uses])
    needs = stage.resources
    lines = [f"{needs.num_cpus:g} cpu, {needs.batch_size} a batch", *uses]
    if isinstance(stage, TwoStepStage):
        gpus = f" {needs.model_gpus:g} gpu" if needs.model_gpus else ""
        lines.append(f"{needs.model_replicas} x {needs.model_cpus:g} cpu{gpus}, {needs.in_flight} in flight a worker")
    return "\n".join(lines)


def views(described: Mapping[str, str], columns: Mapping[str, Sequence[Column]]) -> Table:
    """The views that a query can read."""
    table = Table(title="Views", title_justify="left")
    table.add_column("view")
    table.add_column("columns")
    for name, about in described.items():
        table.add_row(name, escape(about))
    for name, own in columns.items():
        table.add_row(name, "\n".join(f"[bold]{c.name}[/] {escape(c.doc)}" for c in own))
    return table


def check_form(form: str, output: str | None) -> None:
    """Raises UserError for a form of output that is not known, or does not fit."""
    if form not in ("table", "parquet", *_FORMATS):
        raise UserError(f"--format {form}: expected table, csv, json or parquet")
    if form == "parquet" and output is None:
        raise UserError("--format parquet writes a file: add --output FILE.parquet")
    if form == "table" and output is not None:
        raise UserError("--output writes csv, json or parquet: add --format csv")


def result(rows: pa.Table, form: str, console: Console, output: str | None, limit: int | None = None) -> None:
    """Print a query's result, or its first `limit` rows, or write it to a file.

    Raises UserError for a file that cannot be written.
    """
    check_form(form, output)
    left_out = rows.num_rows - limit if limit is not None else 0
    rows = rows.slice(0, limit)
    if output is not None:
        _write(rows, form, output)
    elif form == "table":
        _table(rows, console)
        if left_out > 0:
            console.print(f"{left_out} more rows: --limit N prints N, --format csv all", highlight=False)
    else:
        console.file.write(_FORMATS[form](rows))


def _write(rows: pa.Table, form: str, output: str) -> None:
    try:
        if form == "parquet":
            pq.write_table(rows, output)
            return
        with open(output, "w", encoding="utf-8", newline="") as handle:
            handle.write(_FORMATS[form](rows))
    except OSError as err:
        raise UserError(
            f"--output {output}: {err.strerror or err}. Give a file in a folder that can be written."
        ) from err


def _values(rows: pa.Table) -> Iterator[tuple[Any, ...]]:
    """Rows as Python values, in the order of the columns. Two columns may have one name."""
    return zip(*(column.to_pylist() for column in rows.columns), strict=True)


def _csv(rows: pa.Table) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(rows.column_names)
    writer.writerows([_flat(value) for value in row] for row in _values(rows))
    return out.getvalue()


def _json(rows: pa.Table) -> str:
    objects = [dict(zip(rows.column_names, row, strict=True)) for row in _values(rows)]
    return json.dumps(objects, ensure_ascii=False, indent=1, default=_plain) + "\n"


_FORMATS = {"csv": _csv, "json": _json}


def _flat(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, default=_plain) if isinstance(value, (list, dict)) else value


def _plain(value: Any) -> Any:
    """What JSON has no type for. A sum of whole numbers comes as a decimal."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return str(value)


def _table(rows: pa.Table, console: Console) -> None:
    table = Table()
    for name in rows.column_names:
        table.add_column(escape(name), overflow="fold")
    for row in _values(rows):
        table.add_row(*("" if value is None else escape(_cell(value)) for value in row))
    console.print(table)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What moves a terminal's cursor, changes its colours or turns text around; line breaks and tabs may stay."""


def _cell(value: Any) -> str:
    """A value for a terminal: what strangers wrote must not steer it."""
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.0f}"
    return printable(str(_flat(value)))


def printable(text: str) -> str:
    """A text for a terminal: what strangers wrote must not steer it."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found.group()):04x}", text)
