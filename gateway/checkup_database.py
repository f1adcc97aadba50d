"""The part of `check` that looks at the database: its settings, its schema, what is in it, the clock."""

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import aiosqlite

from gateway import process
from gateway.checkup_installation import as_at_start
from gateway.checkup_privacy import check_policy
from gateway.core.amounts import MINUTE_MS, show_time
from gateway.core.findings import Finding, fault
from gateway.database import SCHEMA_VERSION, DatabaseError, connect, require_undamaged, schema_version
from gateway.erasure import is_erasure_pending

# One seek for each key: the ledger is clustered by key and time.
SELECT_NEWEST_START = """
SELECT max(newest)
  FROM (SELECT (SELECT max(started) FROM request WHERE key = key.id) AS newest
          FROM key)
"""

CLOCK_TOLERANCE_MS = MINUTE_MS


def check_database(path: Path, now_ms: int) -> Iterator[Finding]:
    """All that can be told of it while a server may be running."""
    if not path.is_file():
        yield fault(f"there is no database at {path}: `key create` or `serve` makes one")
        return
    yield as_at_start(lambda: process.require_private_files(path), "only the owner may read the database's files")
    try:
        yield from asyncio.run(_check_contents(path, now_ms))
    except (DatabaseError, sqlite3.DatabaseError) as error:
        yield fault(str(error))


async def _check_contents(path: Path, now_ms: int) -> list[Finding]:
    async with connect(path) as connection:
        return [
            Finding("the database has all of its settings"),
            Finding(f"its schema is version {await schema_version(connection)} of {SCHEMA_VERSION}"),
            await check_policy(connection),
            await _check_erasure(connection),
            await _check_integrity(connection, path),
            await _check_clock(connection, now_ms),
        ]


async def _check_erasure(connection: aiosqlite.Connection) -> Finding:
    if await is_erasure_pending(connection):
        return fault("an erasure is running or was interrupted: a running or starting server finishes it")
    return Finding("no erasure is waiting to be finished")


async def _check_integrity(connection: aiosqlite.Connection, path: Path) -> Finding:
    try:
        await require_undamaged(connection, path)
    except DatabaseError as error:
        return fault(str(error))
    return Finding("the database is not damaged")


async def _check_clock(connection: aiosqlite.Connection, now_ms: int) -> Finding:
    ((newest,),) = await connection.execute_fetchall(SELECT_NEWEST_START)
    if newest is not None and newest > now_ms + CLOCK_TOLERANCE_MS:
        return fault(
            f"the clock says {show_time(now_ms)}, and the newest request is of {show_time(newest)}: set the clock"
        )
    return Finding(f"the clock says {show_time(now_ms)}")
