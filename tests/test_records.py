"""Columns, ids and exact time."""

from __future__ import annotations

from fractions import Fraction

import pyarrow as pa
import pytest

from pipeline.records import (
    METRICS,
    REASONS,
    REJECTS,
    TABLES,
    Column,
    Grain,
    clip_id,
    is_valid_id,
    schema,
    seconds,
    to_schema,
)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_one_column_of_a_name_each_with_its_doc(name: str) -> None:
    names = [column.name for column in TABLES[name]]
    assert len(names) == len(set(names))
    assert all(column.doc for column in TABLES[name])
    assert [field.metadata[b"doc"].decode() for field in schema(name)] == [column.doc for column in TABLES[name]]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_begins_with_its_key(name: str) -> None:
    first = TABLES[name][0]
    assert first.name in set(Grain) and not first.nullable


@pytest.mark.parametrize("columns", [*TABLES.values(), REJECTS, METRICS])
def test_lengths_of_time_say_their_unit(columns: tuple[Column, ...]) -> None:
    """`duration`, `start`, `error` and the like are nowhere without a unit at their end."""
    without = [c.name for c in columns if c.name.endswith(("duration", "start", "end", "error", "length"))]
    assert without == []


def test_no_column_name_means_two_things() -> None:
    """Views join the tables by key: every other name stands for one table's column, or the same thing in all."""
    shared = {"dataset", "uri", "meta", "model", "bytes", "category", "similarity", *Grain}
    seen: dict[str, str] = {}
    for table, columns in TABLES.items():
        for column in columns:
            if column.name not in shared | {"end_pts"}:
                assert seen.setdefault(column.name, table) == table, f"{column.name}: {seen[column.name]} and {table}"


def test_a_schema_says_what_may_be_null() -> None:
    made = to_schema((Column("a", pa.int64(), "never"), Column("b", pa.string(), "at times", nullable=True)))
    assert [field.nullable for field in made] == [False, True]


def test_a_clip_id_is_that_of_the_exact_stretch() -> None:
    start, end = Fraction(1, 3), Fraction(2, 3)
    made = clip_id("v1", start, end)
    assert len(made) == 32 and is_valid_id(made)
    assert clip_id("v1", Fraction(100, 300), Fraction(4, 6)) == made, "the same instants in another time base"
    others = [
        clip_id("v2", start, end),
        clip_id("v1", start, Fraction(666_666_667, 1_000_000_000)),
        clip_id("v1", Fraction(0), end),
        clip_id("v1", end, start),
    ]
    assert len({made, *others}) == 5


def test_a_clip_id_stays_what_it_was() -> None:
    """Ids of finished datasets: changing how they are made breaks every run folder there is.

    The value is that of `printf 'video\\n1/2\\n71/3' | sha256sum`.
    """
    assert clip_id("video", Fraction(1, 2), Fraction(71, 3)) == "153ac8f6ce6ea0beac7a981387244512"


def test_ticks_become_exact_seconds() -> None:
    assert seconds(90_090, 1, 90_000) == Fraction(1001, 1000)
    assert seconds(-3, 1001, 30_000) == Fraction(-1001, 10_000)
    assert seconds(2**53 + 1, 1, 1) == 2**53 + 1, "a float could not hold it"


@pytest.mark.parametrize("text", ["a", "dQw4w9WgXcQ", "-_leading", "a.b_c-d", "x" * 128, "0"])
def test_ids_that_are_safe(text: str) -> None:
    assert is_valid_id(text)


@pytest.mark.parametrize(
    "text", ["", ".hidden", "..", "../../x", "a/b", "a\\b", "a b", "a\n", "é", "x" * 129, "a'b", "%2e", "a\0", "\uff41"]
)
def test_ids_that_are_not(text: str) -> None:
    assert not is_valid_id(text)


def test_every_reason_has_a_meaning_and_fits_an_option() -> None:
    for reason, meaning in REASONS.items():
        assert reason.isidentifier() and reason == reason.lower()
        assert meaning
