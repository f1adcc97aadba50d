"""The ledger's writer: one task, one connection, one commit for all that came due since the last one.

A request's row is opened at admission and completed at settling. Whoever waits for a row waits for the commit that
carries it. Opened rows need not be synced, but nothing is sent to an upstream before they are written. Completed
ones are synced (`synchronous=FULL`), and so are the opened rows before them.

    rows due -> BEGIN IMMEDIATE, inserts, updates, COMMIT -> those waiting go on
                     ^ meanwhile the next rows gather

When the disk fails, the rows stay in memory and are written when it is back; until then `is_writable` is false and
nobody is admitted. The task is never cancelled: an interrupted transaction would lock everybody out.
"""

import asyncio
import logging
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import aiosqlite

from gateway.core.errors import Unavailable
from gateway.core.records import KeyRow, LedgerRow, Refusal
from gateway.database import transaction
from gateway.logs import Event

_log = logging.getLogger("opusmax.ledger")

LOOK_SECONDS = 0.25
"""How often the writer looks for changes that the command line made, and tries a failed disk again."""
REFUSALS_EVERY_LOOKS = 4
"""Refusals are written once a second at most: a looping client must not wear the disk."""
CLOSE_SECONDS = 10.0
"""How long the last rows may take at the end of the process."""

# A row whose key is gone is not written, and says nothing.
INSERT_ROW = """
    INSERT INTO request
        (key, started, sequence, model, status, latency,
         input, output, cache_write, cache_read, estimated, upstream)
    SELECT id, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12
    FROM key
    WHERE id = ?1
"""
COMPLETE_ROW = """
    UPDATE request
    SET model = ?4, status = ?5, latency = ?6,
        input = ?7, output = ?8, cache_write = ?9, cache_read = ?10, estimated = ?11, upstream = ?12
    WHERE key = ?1 AND started = ?2 AND sequence = ?3
"""
ADD_REFUSALS = {
    refusal: f"UPDATE key SET refused_{refusal} = refused_{refusal} + ?2 WHERE id = ?1"  # noqa: S608 - constants
    for refusal in Refusal
}
# The figures stay as they were held: what the upstream did with them nobody knows any more.
SETTLE_LEFT_IN_FLIGHT = "UPDATE request SET status = 500, estimated = 1 WHERE status IS NULL"
SELECT_NEWEST_START = "SELECT ifnull(max(last_used), 0) FROM key"


async def settle_left_in_flight(connection: aiosqlite.Connection) -> int:
    """Complete the rows that a crash left open, at what they held. Returns how many there were."""
    cursor = await connection.execute(SETTLE_LEFT_IN_FLIGHT)
    return cursor.rowcount


async def newest_start(connection: aiosqlite.Connection) -> int:
    """The time of the newest settled request; 0 in an empty ledger."""
    ((newest,),) = await connection.execute_fetchall(SELECT_NEWEST_START)
    return int(newest)


@dataclass(slots=True)
class _Batch:
    """What one commit carries."""

    opened: list[LedgerRow] = field(default_factory=list)
    opening: list[asyncio.Future[None]] = field(default_factory=list)
    """Who waits for each opened row."""
    settled: list[LedgerRow] = field(default_factory=list)
    refusals: Counter[tuple[KeyRow, Refusal]] = field(default_factory=Counter)
    waiting: list[asyncio.Future[None]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.opened or self.settled or self.refusals)

    def statements(self) -> list[tuple[str, Sequence[Sequence[object]]]]:
        """What to run, in this order: a row may be opened and settled in one commit."""
        statements: list[tuple[str, Sequence[Sequence[object]]]] = [
            (INSERT_ROW, [_columns(row) for row in self.opened]),
            (COMPLETE_ROW, [_columns(row) for row in self.settled]),
        ]
        for (key, refusal), count in self.refusals.items():
            statements.append((ADD_REFUSALS[refusal], [(key, count)]))
        return [(sql, rows) for sql, rows in statements if rows]

    def release(self) -> None:
        """Let those go on who wait for this commit."""
        for waiter in self.waiting:
            if not waiter.done():
                waiter.set_result(None)


class Ledger:
    """Takes rows at once, writes them together, tells when they are safe."""

    def __init__(
        self, connection: aiosqlite.Connection, on_change: Callable[[aiosqlite.Connection], Awaitable[None]]
    ) -> None:
        """`on_change` is awaited between two commits whenever another process has changed the database."""
        self._connection = connection
        self._on_change = on_change
        self._due = _Batch()
        self._writing = _Batch()
        """What is on its way to the disk; it stays here while the disk refuses it."""
        self._refusals: Counter[tuple[KeyRow, Refusal]] = Counter()
        self._work = asyncio.Event()
        self._looks = 0
        self._refused: set[KeyRow] = set()
        """Keys whose rows the database does not take, though it takes others'."""
        self._failing: set[str] = set()
        """"write", "look", or both."""
        self._synchronous = ""
        self._data_version = -1
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    @property
    def is_writable(self) -> bool:
        """Whether the last commit worked, and the last look for changes."""
        return not self._failing

    def open(self, row: LedgerRow) -> asyncio.Future[None]:
        """Record an admitted request. The future is done once a crash of this process cannot lose it; it fails with
        `Unavailable` if the database takes other rows and not this one."""
        self._due.opened.append(row)
        self._due.opening.append(self._wait())
        return self._due.opening[-1]

    def settle(self, row: LedgerRow) -> asyncio.Future[None]:
        """Complete a request's row. The future is done once a power cut cannot lose it."""
        self._due.settled.append(row)
        return self._wait()

    def check_key(self, key: KeyRow) -> None:
        """Raise `Unavailable` if the database has refused a row of this key, and nothing was mended since."""
        if key in self._refused:
            raise _unrecordable()

    def count_refusal(self, key: KeyRow, refusal: Refusal) -> None:
        """Count; written within about a second."""
        self._refusals[key, refusal] += 1

    def uncommitted(self) -> tuple[Sequence[LedgerRow], Sequence[LedgerRow]]:
        """Opened and settled rows that a reader of the database does not see yet."""
        return [*self._writing.opened, *self._due.opened], [*self._writing.settled, *self._due.settled]

    async def start(self) -> None:
        """Begin to write. `on_change` is awaited once before this returns."""
        await self._look()
        self._task = asyncio.create_task(self._run())
        self._tick()

    async def close(self) -> None:
        """Write what is left, then stop; give up after `CLOSE_SECONDS`."""
        self._closing = True
        self._work.set()
        if self._task is not None:
            _done, pending = await asyncio.wait([self._task], timeout=CLOSE_SECONDS)
            if pending:
                _log.error(Event.LEDGER_LOST_AT_EXIT)

    def _wait(self) -> asyncio.Future[None]:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._due.waiting.append(waiter)
        self._work.set()
        return waiter

    def _tick(self) -> None:
        """Wake the writer every `LOOK_SECONDS`, work or no work, until it has ended."""
        if self._task is None or self._task.done():
            return
        self._looks += 1
        self._work.set()
        asyncio.get_running_loop().call_later(LOOK_SECONDS, self._tick)

    async def _run(self) -> None:
        looked = self._looks
        while True:
            await self._work.wait()
            self._work.clear()
            is_look = looked != self._looks
            if is_look or self.is_writable:  # a disk that refused is asked again at the next look only
                await self._write(with_refusals=self._closing or self._looks % REFUSALS_EVERY_LOOKS == 0)
            if self._closing and not self._writing and not self._due:
                return
            if is_look:
                looked = self._looks
                await self._look()

    async def _write(self, *, with_refusals: bool) -> None:
        """One commit of all that is due. What comes due meanwhile is for the next turn, after a look if one is due:
        under load the writer must not forget to follow the command line."""
        if not self._writing:
            self._writing, self._due = self._due, _Batch()
        if with_refusals:
            self._writing.refusals += self._refusals
            self._refusals.clear()
        if not self._writing:
            return
        try:
            await self._commit(self._writing)
        except Exception as error:
            self._set_working("write", error)
            return
        self._writing.release()
        self._writing = _Batch()
        self._set_working("write", None)
        if self._due:
            self._work.set()

    async def _commit(self, batch: _Batch) -> None:
        await self._set_synchronous("FULL" if batch.settled else "NORMAL")
        statements = batch.statements()
        try:
            async with transaction(self._connection):
                for sql, rows in statements:
                    await self._connection.executemany(sql, rows)
        except (sqlite3.IntegrityError, OverflowError):
            await self._commit_one_by_one(batch)

    async def _commit_one_by_one(self, batch: _Batch) -> None:
        """One row that cannot be written must not take the others with it; nor may it be answered unrecorded."""
        async with transaction(self._connection):
            for sql, rows in batch.statements():
                for number, row in enumerate(rows):
                    try:
                        await self._connection.execute(sql, row)
                    except (sqlite3.IntegrityError, OverflowError) as error:
                        _log.error(Event.LEDGER_ROW_REFUSED, exc_info=error)
                        if sql == INSERT_ROW:
                            self._refuse(batch.opened[number], batch.opening[number])

    def _refuse(self, row: LedgerRow, waiter: asyncio.Future[None]) -> None:
        self._refused.add(row.key)
        if not waiter.done():
            waiter.set_exception(_unrecordable())
            waiter.exception()  # the request may have ended by itself, and nobody ask

    async def _set_synchronous(self, level: str) -> None:
        if level != self._synchronous:
            await self._connection.execute(f"PRAGMA synchronous = {level}")
            self._synchronous = level

    async def _look(self) -> None:
        """Follow what another process has changed. What fails is tried again at the next look, and until it works
        nobody is admitted: a key may have been deleted."""
        try:
            ((version,),) = await self._connection.execute_fetchall("PRAGMA data_version")
            if version != self._data_version:
                await self._on_change(self._connection)
                self._data_version = version
                self._refused.clear()
        except Exception as error:
            self._set_working("look", error)
        else:
            self._set_working("look", None)

    def _set_working(self, part: str, error: Exception | None) -> None:
        """One part of the writer works, or fails with `error`; both have to work."""
        was_writable = self.is_writable
        if error is None:
            self._failing.discard(part)
        else:
            self._failing.add(part)
        if self.is_writable != was_writable:
            _log.warning(Event.LEDGER_RECOVERED if self.is_writable else Event.LEDGER_FAILING, exc_info=error)


def _unrecordable() -> Unavailable:
    return Unavailable("Usage of this API key cannot be recorded. The administrator needs to look at it.")


def _columns(row: LedgerRow) -> tuple[object, ...]:
    """The values of INSERT_ROW and COMPLETE_ROW."""
    usage = row.usage
    return (
        row.key,
        row.started,
        row.sequence,
        row.model,
        row.status,
        row.latency_ms,
        usage.input,
        usage.output,
        usage.cache_write,
        usage.cache_read,
        int(row.estimated),
        row.upstream,
    )
