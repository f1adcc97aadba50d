"""Erasing a key: after it, no byte of the key is left in the database's files.

A DELETE is not enough. It leaves rows in the write-ahead log, and, in spite of secure_delete, pieces of rows in
pages that were split long ago. So an erasure has four steps, and a mark in the table `erasure` from the first to
the last, because a process can be killed between any two:

    1. DELETE the key, its rows with it, and set the mark: one transaction
       (the copies that upgrades left beside the database go too)
    2. VACUUM writes every page anew, from living rows only
    3. a TRUNCATE checkpoint empties the log; it does nothing while somebody reads an older state, so it is tried
       until its answer says that it was done
    4. look for the key in the files, and remove the mark

Whoever finds a mark finishes steps 2 and 3, unless the lock file says that another process is doing so. The blocks
that the file system freed are out of reach here: that is the part of an encrypted disk or of `fstrim`.
"""

import asyncio
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiosqlite

from gateway import copies
from gateway.core.records import Key
from gateway.database import BUSY_TIMEOUT_MS, DatabaseError, FileLock, transaction
from gateway.keystore import KeyGone
from gateway.traces import SearchedFile, row_traces, search

COUNT_REQUESTS = "SELECT count(*) FROM request WHERE key = ?"

SELECT_SECRETS = "SELECT key_id, hash FROM secret WHERE key = ?"

DELETE_KEY = "DELETE FROM key WHERE id = ?"

INSERT_MARK = "INSERT INTO erasure (started) SELECT ? WHERE NOT EXISTS (SELECT 1 FROM erasure)"

SELECT_MARK = "SELECT started FROM erasure"

DELETE_MARK = "DELETE FROM erasure"

# Of all texts that stay in the database, one that the name is a part of.
SELECT_TEXT_THAT_STAYS = """
SELECT 1 FROM key WHERE instr(name, :text) OR instr(models, :text)
 UNION ALL
SELECT 1 FROM secret WHERE instr(key_id, :text) OR instr(prefix, :text) OR instr(hash, :text)
 UNION ALL
SELECT 1 FROM sqlite_schema WHERE instr(sql, :text)
 UNION ALL
SELECT 1 FROM request WHERE instr(model, :text) OR instr(upstream, :text)
 LIMIT 1
"""

PATIENCE_SECONDS = 30.0
"""How long to wait for readers and writers that are in the way."""
PAUSE_SECONDS = 0.05
PRIMARY_CODE = 0xFF
"""The bits of an error code of SQLite that tell its kind."""
TRUNCATE_TIMEOUT_MS = 100
"""How long one try at emptying the log may wait: usage commits wait as long."""

SHORTEST_NAME_SEARCHED = 6
"""Bytes. A shorter name turns up by chance."""

_INTERRUPTED = "the key is deleted but not erased yet: {}; the server, or `key delete` of any key, finishes it"


class ErasureError(DatabaseError):
    """The erasure is not complete; the message tells the operator why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureReport:
    """What was erased, and how that was verified."""

    requests: int
    """Rows of the ledger that went with the key."""
    files: tuple[SearchedFile, ...]
    name_searched: bool
    """`False`: the key's name is too short, or a part of a text that stays, so finding it would say nothing."""
    seconds: float
    longest_step_seconds: float
    """The commits of a running server waited so long at most."""


async def erase_key(
    connection: aiosqlite.Connection,
    path: Path,
    key: Key,
    now_ms: int,
    *,
    patience_seconds: float = PATIENCE_SECONDS,
) -> ErasureReport:
    """Delete a key and everything that hangs on it, for good, and verify that.

    Raises `KeyGone`, or `ErasureError`: then either nothing is deleted yet, or the mark stays for others to finish.
    """
    watch = _Stopwatch()
    async with _lock(path, patience_seconds):
        await _require_room(connection, path)
        with watch.step():
            traces, requests = await _delete(connection, key, now_ms)
        copies.remove_those_of_upgrades(path)
        await _rewrite_files(connection, watch, patience_seconds)
        name_searched = await _tells_something(connection, key.name)
        files = await asyncio.to_thread(search, path, [*traces, key.name.encode()] if name_searched else traces)
        _require_no_hits(files)
        await _remove_mark(connection)
    return ErasureReport(
        requests=requests,
        files=files,
        name_searched=name_searched,
        seconds=watch.seconds,
        longest_step_seconds=watch.longest_step_seconds,
    )


async def is_erasure_pending(connection: aiosqlite.Connection) -> bool:
    """Whether an erasure has begun and is not done, be it that it is running now."""
    return bool(list(await connection.execute_fetchall(SELECT_MARK)))


async def finish_pending_erasure(
    connection: aiosqlite.Connection, path: Path, *, patience_seconds: float = PATIENCE_SECONDS
) -> bool:
    """Finish an erasure that was interrupted; whether there was one that no other process is busy with.

    What was to be erased is known to nobody any more, so there is nothing to search for. Raises `ErasureError`:
    then the mark stays, and this may be tried again.
    """
    if not await is_erasure_pending(connection):
        return False
    lock = FileLock(path, "erasure")
    if not lock.acquire():
        return False
    try:
        if not await is_erasure_pending(connection):  # its process was just done with it
            return False
        await _require_room(connection, path)
        copies.remove_those_of_upgrades(path)
        await _rewrite_files(connection, _Stopwatch(), patience_seconds)
        await _remove_mark(connection)
    finally:
        lock.release()
    return True


class _Stopwatch:
    """How long the whole took, and the longest of the steps that keep others from writing."""

    __slots__ = ("_started", "longest_step_seconds")

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.longest_step_seconds = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.longest_step_seconds = max(self.longest_step_seconds, time.monotonic() - began)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started


@asynccontextmanager
async def _lock(path: Path, patience_seconds: float) -> AsyncIterator[None]:
    """Held while we live, so that others can tell our mark from one that was left behind."""
    lock = FileLock(path, "erasure")

    async def acquire() -> bool:
        return lock.acquire()

    await _until(
        acquire, patience_seconds, "nothing is deleted: another erasure is running; try again when it is done"
    )
    try:
        yield
    finally:
        lock.release()


async def _until(attempt: Callable[[], Awaitable[bool]], patience_seconds: float, complaint: str) -> None:
    """Try again and again; raises `ErasureError` with the complaint when patience is over."""
    deadline = time.monotonic() + patience_seconds
    while not await attempt():
        if time.monotonic() >= deadline:
            raise ErasureError(complaint)
        await asyncio.sleep(PAUSE_SECONDS)


async def _require_room(connection: aiosqlite.Connection, path: Path) -> None:
    """VACUUM builds the database anew in memory, then writes it to the log; the DELETE may fill the log as well."""
    pages = await _read_number(connection, "PRAGMA page_count")
    database_bytes = pages * await _read_number(connection, "PRAGMA page_size")
    free_bytes = shutil.disk_usage(path.parent).free
    if free_bytes < 2 * database_bytes:
        raise ErasureError(
            f"erasing needs {_megabytes(2 * database_bytes)} of free disk beside {path}, and there are"
            f" {_megabytes(free_bytes)}: make room and try again"
        )
    available_bytes = _available_memory()
    if available_bytes is not None and available_bytes < database_bytes:
        raise ErasureError(
            f"erasing needs {_megabytes(database_bytes)} of free memory, and there are"
            f" {_megabytes(available_bytes)}: make room and try again"
        )


def _available_memory() -> int | None:
    """Bytes; `None` where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _megabytes(size_bytes: int) -> str:
    return f"{-(-size_bytes // 10**6):,} MB"


async def _read_number(connection: aiosqlite.Connection, statement: str, *values: object) -> int:
    ((number,),) = await connection.execute_fetchall(statement, values)
    return int(number)


async def _delete(connection: aiosqlite.Connection, key: Key, now_ms: int) -> tuple[list[bytes], int]:
    """Returns what must not be found any more, and how many requests went with the key."""
    async with transaction(connection):
        traces = row_traces(key.row)
        for key_id, hashed in await connection.execute_fetchall(SELECT_SECRETS, (key.row,)):
            traces += [key_id.encode(), hashed.encode()]
        requests = await _read_number(connection, COUNT_REQUESTS, key.row)
        deleted = await connection.execute(DELETE_KEY, (key.row,))
        if deleted.rowcount == 0:
            raise KeyGone
        await connection.execute(INSERT_MARK, (now_ms,))
    return traces, requests


async def _rewrite_files(connection: aiosqlite.Connection, watch: _Stopwatch, patience_seconds: float) -> None:
    async def vacuum() -> bool:
        with watch.step():
            return await _vacuum(connection)

    async def empty_log() -> bool:
        with watch.step():
            return await _empty_log(connection)

    await _until(vacuum, patience_seconds, _INTERRUPTED.format("the database is being written to all the time"))
    await connection.execute(f"PRAGMA busy_timeout = {TRUNCATE_TIMEOUT_MS}")
    try:
        await _until(empty_log, patience_seconds, _INTERRUPTED.format("some process keeps an old state of it open"))
    finally:
        await connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")


async def _vacuum(connection: aiosqlite.Connection) -> bool:
    """Whether it was done; not if others were writing all the time."""
    try:
        await connection.execute("VACUUM")
    except sqlite3.Error as error:
        if error.sqlite_errorcode & PRIMARY_CODE == sqlite3.SQLITE_BUSY:
            return False
        raise ErasureError(_INTERRUPTED.format(error)) from None
    return True


async def _empty_log(connection: aiosqlite.Connection) -> bool:
    """Whether it was done; not if somebody reads an older state. Keeps others from writing while it waits."""
    try:
        (row,) = await connection.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:
        raise ErasureError(_INTERRUPTED.format(error)) from None
    return tuple(row) == (0, 0, 0)


async def _tells_something(connection: aiosqlite.Connection, name: str) -> bool:
    """Whether finding the name in the files would mean that the key is still there."""
    if len(name.encode()) < SHORTEST_NAME_SEARCHED:
        return False
    return not list(await connection.execute_fetchall(SELECT_TEXT_THAT_STAYS, {"text": name}))


def _require_no_hits(files: tuple[SearchedFile, ...]) -> None:
    if found := [f"{file.name} ({file.hits} times)" for file in files if file.hits]:
        raise ErasureError(_INTERRUPTED.format(f"the key is still found in {', '.join(found)}"))


async def _remove_mark(connection: aiosqlite.Connection) -> None:
    async with transaction(connection):
        await connection.execute(DELETE_MARK)
