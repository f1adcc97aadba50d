"""Rows written together are as if each came alone; and nobody waits for ever."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.batches import COMPLETE_ROWS, INSERT_ROWS, MOST_ROWS, Rows, Statement
from gateway.core.amounts import HOUR_MS
from gateway.core.errors import Unavailable
from gateway.core.records import KeyRow, LedgerRow
from gateway.core.usage import Usage
from gateway.database import SCHEMA_FILE

KEYS = [1, 2]
GONE = 3
TABLES = ("key", "request", "usage_by_hour")

Write = Callable[[Rows], Iterable[Statement]]


def request_of(row: LedgerRow) -> tuple[int, int, int]:
    return row.key, row.started, row.sequence


def ledger_rows(*, settled: bool) -> st.SearchStrategy[list[LedgerRow]]:
    """In any order, no two of them of one request."""
    tokens = st.integers(0, 2**40)
    row = st.builds(
        LedgerRow,
        key=st.sampled_from([KeyRow(key) for key in [*KEYS, GONE]]),
        started=st.integers(0, 3 * HOUR_MS),
        sequence=st.integers(0, 2),
        model=st.sampled_from(["unknown", "claude-haiku-4-5", "größe"]),
        status=st.sampled_from([200, 499]) if settled else st.none(),
        latency_ms=st.none() | st.integers(0, 9_000),
        usage=st.builds(Usage, input=tokens, output=tokens, cache_write=tokens, cache_read=tokens),
        estimated=st.booleans(),
        upstream=st.sampled_from([None, "first"]),
    )
    return st.lists(row, max_size=2 * MOST_ROWS + 5, unique_by=request_of)


async def gathered(texts: Mapping[int, str], due: Iterable[LedgerRow]) -> Rows:
    rows = Rows(texts)
    for row in due:
        rows.add(row, 0.0)
    return rows


def together(rows: Rows) -> Iterable[Statement]:
    return rows.statements()


def alone(rows: Rows) -> Iterable[Statement]:
    return [statement for statement, _, _ in rows.one_by_one()]


def written(opened: list[LedgerRow], settled: list[LedgerRow], write: Write) -> dict[str, list[Any]]:
    """What the tables hold after that."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(SCHEMA_FILE.read_text())
        connection.executemany(
            "INSERT INTO key (id, name, created) VALUES (?1, 'key ' || ?1, 0)", [(k,) for k in KEYS]
        )
        for texts, due in ((INSERT_ROWS, opened), (COMPLETE_ROWS, settled)):
            for statement in write(asyncio.run(gathered(texts, due))):
                connection.execute(*statement)
        return {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in TABLES}


@settings(deadline=None, max_examples=60)
@given(ledger_rows(settled=False), ledger_rows(settled=True))
def test_rows_written_together_leave_what_they_leave_one_by_one(
    opened: list[LedgerRow], others: list[LedgerRow]
) -> None:
    """Settled are most of those opened, and others that were hardly ever opened."""
    outcomes = {request_of(row): row for row in others}
    outcomes |= {request_of(row): row_settled(row) for row in opened if row.sequence}
    settled = list(outcomes.values())
    assert written(opened, settled, together) == written(opened, settled, alone)


def row_settled(row: LedgerRow) -> LedgerRow:
    return LedgerRow(
        key=row.key,
        started=row.started,
        sequence=row.sequence,
        model="claude-haiku-4-5",
        status=200,
        latency_ms=8,
        usage=Usage(
            input=row.usage.input,
            output=row.usage.output // 2,
            cache_write=row.usage.cache_write + 1,
            cache_read=row.usage.cache_read + 2,
        ),
        estimated=False,
        upstream="second",
    )


@pytest.mark.parametrize("number", [1, 2, MOST_ROWS - 1, MOST_ROWS, MOST_ROWS + 1, 2 * MOST_ROWS + 1])
def test_every_row_is_written_with_all_its_values(number: int) -> None:
    opened = [open_row(place) for place in range(number)]
    assert written(opened, [], together)["request"] == [
        (1, place // 3, place % 3, "unknown", None, None, place, 10, 20, 30, 1, None) for place in range(number)
    ]
    tables = written(opened, [row_settled(row) for row in opened], together)
    assert tables["request"] == [
        (1, place // 3, place % 3, "claude-haiku-4-5", 200, 8, place, 5, 21, 32, 0, "second")
        for place in range(number)
    ]
    sums = (number, sum(range(number)), 5 * number, 21 * number, 32 * number)
    assert [row[3:9] for row in tables["usage_by_hour"]] == [(200, *sums)]


@pytest.mark.parametrize("texts", [INSERT_ROWS, COMPLETE_ROWS])
def test_no_number_of_rows_makes_a_statement_read_the_whole_ledger(texts: Mapping[int, str]) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(SCHEMA_FILE.read_text())
        for text in texts.values():
            plan = connection.execute(f"EXPLAIN QUERY PLAN {text}", [None] * text.count("?")).fetchall()
            steps = [step for *_, step in plan]
            assert not [step for step in steps if step.startswith(("SCAN request", "SCAN key"))]


async def test_who_has_waited_long_enough_is_let_go_and_the_row_stays_due() -> None:
    rows = Rows(INSERT_ROWS)
    first, second = rows.add(open_row(1), 10.0), rows.add(open_row(2), 10.5)
    rows.expire(9.9)
    assert not first.done()
    rows.expire(10.0)
    assert isinstance(first.exception(), Unavailable)
    assert not second.done()
    assert rows.rows == [open_row(1), open_row(2)]
    rows.release()
    await second
    assert rows.rows == []


def open_row(place: int) -> LedgerRow:
    """Three of them in each millisecond."""
    return LedgerRow(
        key=KeyRow(1),
        started=place // 3,
        sequence=place % 3,
        model="unknown",
        status=None,
        latency_ms=None,
        usage=Usage(input=place, output=10, cache_write=20, cache_read=30),
        estimated=True,
    )
