"""The writer: rows go together, one bad row goes alone, and what fails is tried again."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiosqlite
import pytest

from gateway.batches import MOST_ROWS
from gateway.core.errors import Unavailable
from gateway.core.records import KeyRow, LedgerRow, Refusal
from gateway.core.usage import Usage
from gateway.database import connect
from gateway.ledger import LOOK_SECONDS, Ledger
from tests.harness import Database, until

Follow = Callable[[aiosqlite.Connection], Awaitable[None]]


async def ignore(_connection: aiosqlite.Connection) -> None:
    """Nobody follows changes here."""


@asynccontextmanager
async def open_ledger(path: Path, follow: Follow = ignore) -> AsyncIterator[Ledger]:
    async with connect(path) as connection:
        book = Ledger(connection, follow)
        await book.start()
        yield book
        await book.close()


def row(key: KeyRow, started: int, *, output: int = 5, status: int | None = None) -> LedgerRow:
    return LedgerRow(
        key=key,
        started=started,
        sequence=0,
        model="unknown",
        status=status,
        latency_ms=None if status is None else 7,
        usage=Usage(input=3, output=output),
        estimated=status is None,
    )


def is_recordable(book: Ledger, key: KeyRow) -> bool:
    try:
        book.check_key(key)
    except Unavailable:
        return False
    return True


async def test_a_settlement_that_the_database_refuses_is_not_told_as_safe(database: Database) -> None:
    _, key = await database.create_key()
    async with open_ledger(database.path) as book:
        await book.open(row(key.row, 1))
        await book.open(row(key.row, 2))
        refused = book.settle(row(key.row, 1, status=200, output=2**70))
        taken = book.settle(row(key.row, 2, status=200, output=9))
        async with asyncio.timeout(5):
            outcomes = await asyncio.gather(refused, taken, return_exceptions=True)
        assert [isinstance(outcome, Unavailable) for outcome in outcomes] == [True, False]
        assert not is_recordable(book, key.row)
    assert [kept.status for kept in database.rows(key)] == [None, 200]


async def test_opened_rows_do_not_wait_for_settlements_that_fail(database: Database) -> None:
    _, key = await database.create_key()
    async with open_ledger(database.path) as book:
        await book.open(row(key.row, 1))
        with sqlite3.connect(database.path) as other:
            other.execute("CREATE TRIGGER no BEFORE UPDATE ON request BEGIN SELECT RAISE(FAIL, 'no'); END")
        other.close()
        settled, opened = book.settle(row(key.row, 1, status=200)), book.open(row(key.row, 2))
        async with asyncio.timeout(5):
            await opened
            await asyncio.wait([settled])
    assert [kept.status for kept in database.rows(key)] == [None, None]


async def test_a_row_that_cannot_be_written_does_not_take_the_others_with_it(database: Database) -> None:
    _, key = await database.create_key()
    async with open_ledger(database.path) as book:
        waits = [
            book.open(row(key.row, 1)),
            book.open(row(key.row, 1)),  # the same row again
            book.open(row(key.row, 2, output=2**70)),  # more than SQLite can hold
            book.open(row(KeyRow(77), 3)),  # a key that is gone
            book.open(row(key.row, 4)),
            book.settle(row(key.row, 4, status=200, output=9)),
        ]
        async with asyncio.timeout(5):
            outcomes = await asyncio.gather(*waits, return_exceptions=True)
        with pytest.raises(Unavailable):
            book.check_key(key.row)
        await database.edit_key(key, name="mended")
        await until(lambda: is_recordable(book, key.row))
    assert [isinstance(outcome, Unavailable) for outcome in outcomes] == [False, True, True, False, False, False]
    assert [(kept.status, kept.usage.output) for kept in database.rows(key)] == [(None, 5), (200, 9)]
    assert database.query("SELECT total_requests, total_output FROM key") == [(1, 9)]
    assert database.query("SELECT requests, output FROM usage_by_hour") == [(1, 9)]


async def test_among_more_rows_than_one_statement_takes_only_the_bad_one_is_refused(database: Database) -> None:
    _, key = await database.create_key()
    number = 2 * MOST_ROWS
    bad = number - 2
    async with open_ledger(database.path) as book:
        await asyncio.gather(*[book.open(row(key.row, started)) for started in range(number)])
        book.count_refusal(key.row, Refusal.SIZE)
        waits = [
            book.settle(row(key.row, started, status=200, output=2**70 if started == bad else 9))
            for started in range(number)
        ]
        async with asyncio.timeout(5):
            outcomes = await asyncio.gather(*waits, return_exceptions=True)
    assert [place for place, outcome in enumerate(outcomes) if outcome is not None] == [bad]
    assert [place for place, kept in enumerate(database.rows(key)) if kept.status is None] == [bad]
    totals = database.query("SELECT total_requests, total_output, refused_size FROM key")
    assert totals == [(number - 1, 9 * (number - 1), 1)]


@pytest.mark.parametrize("error", [sqlite3.OperationalError("disk I/O error"), ValueError("an odd row")])
async def test_until_a_change_can_be_followed_nobody_is_admitted(database: Database, error: Exception) -> None:
    _, key = await database.create_key()
    faults = [error, error]

    async def follow(_connection: aiosqlite.Connection) -> None:
        if started and faults:
            raise faults.pop()

    started = False
    async with open_ledger(database.path, follow) as book:
        started = True
        await database.edit_key(key, name="renamed")
        await until(lambda: not book.is_writable)
        await until(lambda: book.is_writable)
        async with asyncio.timeout(5):
            await book.open(row(key.row, 1))
    assert faults == []


async def test_a_change_is_followed_also_while_rows_never_stop_coming(database: Database) -> None:
    _, key = await database.create_key()
    followed = 0

    async def follow(_connection: aiosqlite.Connection) -> None:
        nonlocal followed
        followed += 1

    async def write_on(book: Ledger, first: int) -> None:
        for number in range(first, first + 100_000):
            await book.open(row(key.row, number))

    async with open_ledger(database.path, follow) as book:
        writers = [asyncio.create_task(write_on(book, 1 + n * 100_000)) for n in range(8)]
        await asyncio.sleep(2 * LOOK_SECONDS)
        before = followed
        await database.edit_key(key, name="renamed")
        await until(lambda: followed > before)
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)


async def test_refusals_are_counted_together(database: Database) -> None:
    _, key = await database.create_key()
    async with open_ledger(database.path) as book:
        for _ in range(1_000):
            book.count_refusal(key.row, Refusal.BUDGET)
    assert database.query("SELECT refused_budget, refused_tokens FROM key") == [(1_000, 0)]
