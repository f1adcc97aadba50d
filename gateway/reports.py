"""Reading the ledger for people: summaries, pages of requests, everything held on one key.

Every function is one short read or a few of them, so that no snapshot stays open: an open one would keep the
write-ahead log from being emptied. The ledger is clustered by key and time; each statement reads one stretch
of it.
"""

import sqlite3
from collections.abc import AsyncIterator
from itertools import groupby
from typing import Any

import aiosqlite

from gateway.core.account import (
    HOUR_COLUMNS,
    Grouping,
    HistoryCell,
    KeyRecord,
    Latencies,
    LedgerPage,
    ModelTotal,
    ModelUse,
    Position,
    Row,
    SecretRecord,
    SummaryRow,
    add_up,
)
from gateway.core.amounts import DAY_MS, HOUR_MS
from gateway.core.records import Budget, KeyRow, LedgerRow
from gateway.core.usage import Usage

__all__ = [
    "Grouping",
    "read_columns",
    "read_history",
    "read_hours",
    "read_last_hours",
    "read_latencies",
    "read_page",
    "read_record",
    "read_rows",
    "read_running",
    "stream_rows",
    "summarise",
]

LATENCY_SAMPLE = 10_000
"""Requests behind a percentile: enough for a steady p95, few enough to sort at once."""
EXPORT_BATCH = 200
"""Rows read at a time for an export: a millisecond or two of work between two looks at other connections."""
MOST_RUNNING_SHOWN = 20
"""In the overview of a key; all of them are among its requests."""
_NEWEST = Position(started=2**63 - 1, sequence=0)

# `key` comes first (CROSS JOIN fixes the order) so that each key's stretch of hours is found by seeking.
SUMMARISE_HOURS = """
SELECT CASE :by
         WHEN 'day' THEN strftime('%Y-%m-%d', hour / 1000, 'unixepoch')
         WHEN 'hour' THEN strftime('%Y-%m-%d %H:00', hour / 1000, 'unixepoch')
         WHEN 'model' THEN model
         WHEN 'status' THEN CAST(status AS TEXT)
         ELSE name
       END AS label,
       model,
       sum(requests),
       sum(input),
       sum(output),
       sum(cache_write),
       sum(cache_read),
       sum(charge)
  FROM key
 CROSS JOIN usage_by_hour ON usage_by_hour.key = key.id
 WHERE (:key IS NULL OR key.id = :key)
   AND hour >= :since
 GROUP BY label, model
 ORDER BY CASE WHEN :by IN ('day', 'hour') THEN label END,
          sum(sum(charge)) OVER (PARTITION BY label) DESC,
          label,
          model
"""

SELECT_HISTORY = """
SELECT hour / :day AS day,
       model,
       status,
       sum(requests),
       sum(input),
       sum(output),
       sum(cache_write),
       sum(cache_read),
       sum(charge)
  FROM usage_by_hour
 WHERE key = :key
   AND hour >= :since
 GROUP BY day, model, status
"""

SELECT_LAST_HOURS = """
SELECT hour,
       model,
       sum(requests),
       sum(charge)
  FROM usage_by_hour
 WHERE key = ?
   AND hour >= ?
 GROUP BY hour, model
"""

SELECT_HOURS = f"""
SELECT {", ".join(HOUR_COLUMNS)}
  FROM usage_by_hour
 WHERE key = ?
 ORDER BY hour DESC, model, status
"""  # noqa: S608 - constants only

SELECT_REQUESTS = """
SELECT key, started, sequence, model, status, latency, input, output, cache_write, cache_read, estimated, upstream
  FROM request
 WHERE key = ?
   AND (started, sequence) < (?, ?)
 ORDER BY started DESC, sequence DESC
 LIMIT ?
"""

# The planner would read all requests of the key.
SELECT_RUNNING = """
SELECT key, started, sequence, model, status, latency, input, output, cache_write, cache_read, estimated, upstream
  FROM request INDEXED BY request_in_flight
 WHERE key = ?
   AND status IS NULL
 ORDER BY started DESC, sequence DESC
 LIMIT ?
"""

SELECT_LATENCIES = """
SELECT latency
  FROM (SELECT latency
          FROM request
         WHERE key = ?
           AND latency IS NOT NULL
         ORDER BY started DESC, sequence DESC
         LIMIT ?)
 ORDER BY latency
"""

# All columns, so that one added to the schema cannot be left out in silence: KeyRecord refuses it.
SELECT_KEY = "SELECT * FROM key WHERE id = ?"

SELECT_SECRETS = "SELECT key, key_id, prefix, created, expires FROM secret WHERE key = ? ORDER BY created DESC"

SELECT_BUDGETS = "SELECT tokens, window FROM budget WHERE key = ? ORDER BY ifnull(window, 9e18)"

SELECT_COLUMNS = """
SELECT tables.name, columns.name
  FROM sqlite_schema AS tables
  JOIN pragma_table_xinfo(tables.name) AS columns
 WHERE tables.type = 'table'
   AND tables.name NOT LIKE 'sqlite~_%' ESCAPE '~'
 ORDER BY tables.rowid, columns.cid
"""


async def summarise(
    connection: aiosqlite.Connection, *, key: KeyRow | None, since: int, by: Grouping
) -> list[SummaryRow]:
    """What settled requests since the hour of a time used, added up; `key=None`: those of all keys.

    Days and hours come in the order of time, everything else by charge, the largest first.
    """
    bound = {"by": by.value, "key": key, "since": since - since % HOUR_MS}
    rows = await connection.execute_fetchall(SUMMARISE_HOURS, bound)
    return [
        add_up(
            label,
            (
                ModelTotal(model=model, requests=requests, usage=_usage(*counts), charge=charge)
                for _, model, requests, *counts, charge in same
            ),
        )
        for label, same in groupby(rows, key=lambda row: row[0])
    ]


async def read_history(connection: aiosqlite.Connection, key: KeyRow, *, since: int) -> list[HistoryCell]:
    """What the settled requests of a key since the hour of a time used, by day, model and status at once."""
    bound = {"key": key, "since": since - since % HOUR_MS, "day": DAY_MS}
    rows = await connection.execute_fetchall(SELECT_HISTORY, bound)
    return [
        HistoryCell(
            day=day * DAY_MS,
            model=model,
            status=status,
            requests=requests,
            usage=_usage(*counts),
            charge=charge,
        )
        for day, model, status, requests, *counts, charge in rows
    ]


async def read_last_hours(connection: aiosqlite.Connection, key: KeyRow, *, since: int) -> list[ModelUse]:
    """What the settled requests of a key since the hour of a time used, by hour and model."""
    rows = await connection.execute_fetchall(SELECT_LAST_HOURS, (key, since - since % HOUR_MS))
    return [
        ModelUse(began=hour, model=model, requests=requests, charge=charge)
        for hour, model, requests, charge in rows
    ]


async def read_hours(connection: aiosqlite.Connection, key: KeyRow) -> list[Row]:
    """All rows of `usage_by_hour` of a key, by column, newest first."""
    rows = await connection.execute_fetchall(SELECT_HOURS, (key,))
    return [dict(zip(HOUR_COLUMNS, row, strict=True)) for row in rows]


async def read_rows(
    connection: aiosqlite.Connection, key: KeyRow, *, before: Position | None, limit: int
) -> list[LedgerRow]:
    """At most `limit` requests of a key, newest first; with `before`, only those older than that one."""
    start = before or _NEWEST
    rows = await connection.execute_fetchall(SELECT_REQUESTS, (key, start.started, start.sequence, limit))
    return [_ledger_row(row) for row in rows]


async def read_page(
    connection: aiosqlite.Connection, key: KeyRow, *, before: Position | None, limit: int
) -> LedgerPage:
    """`read_rows`, with the place where the next page begins."""
    rows = await read_rows(connection, key, before=before, limit=limit + 1)
    shown = tuple(rows[:limit])
    older = Position(started=shown[-1].started, sequence=shown[-1].sequence) if len(rows) > limit else None
    return LedgerPage(rows=shown, older=older)


async def stream_rows(connection: aiosqlite.Connection, key: KeyRow) -> AsyncIterator[list[LedgerRow]]:
    """All requests of a key, newest first, in batches; each batch is a read of its own."""
    before: Position | None = None
    while rows := await read_rows(connection, key, before=before, limit=EXPORT_BATCH):
        yield rows
        before = Position(started=rows[-1].started, sequence=rows[-1].sequence)


async def read_running(connection: aiosqlite.Connection, key: KeyRow) -> list[LedgerRow]:
    """The newest requests of a key that are in flight, with what each holds; newest first."""
    return [
        _ledger_row(row) for row in await connection.execute_fetchall(SELECT_RUNNING, (key, MOST_RUNNING_SHOWN))
    ]


async def read_latencies(connection: aiosqlite.Connection, key: KeyRow) -> Latencies:
    """The percentiles over the newest requests whose latency is known."""
    rows = await connection.execute_fetchall(SELECT_LATENCIES, (key, LATENCY_SAMPLE))
    ascending = [row[0] for row in rows]
    return Latencies(requests=len(ascending), p50_ms=_percentile(ascending, 50), p95_ms=_percentile(ascending, 95))


async def read_record(connection: aiosqlite.Connection, key: KeyRow) -> KeyRecord | None:
    """All that is held on a key besides its requests; `None`: there is no such key."""
    async with connection.execute(SELECT_KEY, (key,)) as cursor:
        row = await cursor.fetchone()
        names = [column[0] for column in cursor.description]
    if row is None:
        return None
    values: dict[str, Any] = dict(zip(names, row, strict=True))
    values["disabled"] = bool(values["disabled"])
    return KeyRecord(
        **values,
        secrets=tuple(
            SecretRecord(key=key, key_id=key_id, prefix=prefix, created=created, expires=expires)
            for _, key_id, prefix, created, expires in await connection.execute_fetchall(SELECT_SECRETS, (key,))
        ),
        budgets=tuple(
            Budget(tokens=tokens, window_ms=window)
            for tokens, window in await connection.execute_fetchall(SELECT_BUDGETS, (key,))
        ),
    )


async def read_columns(connection: aiosqlite.Connection) -> list[tuple[str, str]]:
    """Each (table, column) of the database as it is now, in the schema's order."""
    return [(table, column) for table, column in await connection.execute_fetchall(SELECT_COLUMNS)]


def _usage(used: int, output: int, cache_write: int, cache_read: int) -> Usage:
    """The four counts in the schema's order."""
    return Usage(input=used, output=output, cache_write=cache_write, cache_read=cache_read)


def _ledger_row(row: sqlite3.Row) -> LedgerRow:
    key, started, sequence, model, status, latency, *counts, estimated, upstream = row
    return LedgerRow(
        key=KeyRow(key),
        started=started,
        sequence=sequence,
        model=model,
        status=status,
        latency_ms=latency,
        usage=_usage(*counts),
        estimated=bool(estimated),
        upstream=upstream,
    )


def _percentile(ascending: list[int], percent: int) -> int | None:
    """By nearest rank: the smallest value that `percent` of all do not exceed."""
    if not ascending:
        return None
    return ascending[-(-len(ascending) * percent // 100) - 1]
