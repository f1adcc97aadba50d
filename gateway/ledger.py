"""The ledger's writer: one task, one connection, two commits for all that came due since the last ones.

A request's row is opened at admission and completed at settling. Whoever waits for a row waits for the commit that
carries it. Opened rows need not be synced, but nothing is sent to an upstream before they are written. Completed
ones are synced (`synchronous=FULL`), and so are the opened rows before them.

    rows due -> opened: inserted, committed            -> those waiting to be sent go on
             -> settled: updated, committed and synced -> those waiting for their end go on
                     ^ meanwhile the next rows gather

When the disk fails, the rows stay in memory and are written when it is back; until then `is_writable` is false and
nobody is admitted. The task is never cancelled: an interrupted transaction would lock everybody out.
"""

import asyncio
import logging
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import aiosqlite

from gateway.batches import Batch, Rows, Statement, fail
from gateway.core.errors import Unavailable
from gateway.core.records import KeyRow, LedgerRow, Refusal
from gateway.database import at_once, transaction
from gateway.logs import Event

_log = logging.getLogger("opusmax.ledger")

LOOK_SECONDS = 0.25
"""How often the writer looks for changes that the command line made, and tries a failed disk again."""
REFUSALS_EVERY_LOOKS = 4
"""Refusals are written once a second at most: a looping client must not wear the disk."""
PATIENCE_SECONDS = 10.0
"""How long anybody waits for a disk that does not take a row; one look more or less."""
BUSY_ROWS = 4
"""After a larger batch the next one waits for one turn of the loop, in which more rows come due: a commit costs as
much as many rows, and those who wait for it go on one after the other."""
CLOSE_SECONDS = 10.0
"""How long the last rows may take at the end of the process."""
UNRECORDABLE = "Usage of this API key cannot be recorded. The administrator needs to look at it."

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


class Ledger:
    """Takes rows at once, writes them together, tells when they are safe."""

    def __init__(
        self, connection: aiosqlite.Connection, on_change: Callable[[aiosqlite.Connection], Awaitable[None]]
    ) -> None:
        """`on_change` is awaited between two commits whenever another process has changed the database."""
        self._connection = connection
        self._on_change = on_change
        self._due = Batch()
        self._writing = Batch()
        """What is on its way to the disk; it stays here while the disk refuses it."""
        self._refusals: Counter[tuple[KeyRow, Refusal]] = Counter()
        self._work = asyncio.Event()
        self._looks = 0
        self._is_busy = False
        self._deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        """Until when rows that come due before the next look are waited for."""
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
        `Unavailable` if the database takes other rows and not this one, or does not take it in time."""
        self._work.set()
        return self._due.opened.add(row, self._deadline)

    def settle(self, row: LedgerRow) -> asyncio.Future[None]:
        """Complete a request's row. The future is done once a power cut cannot lose it; it fails with `Unavailable`
        if the disk does not take it in time, and then it is written later, or if the database refuses it."""
        self._work.set()
        return self._due.settled.add(row, self._deadline)

    def check_key(self, key: KeyRow) -> None:
        """Raise `Unavailable` if the database has refused a row of this key, and nothing was mended since."""
        if key in self._refused:
            raise Unavailable(UNRECORDABLE)

    def count_refusal(self, key: KeyRow, refusal: Refusal) -> None:
        """Count; written within about a second."""
        self._refusals[key, refusal] += 1

    def uncommitted(self) -> tuple[Sequence[LedgerRow], Sequence[LedgerRow]]:
        """Opened and settled rows that a reader of the database does not see yet."""
        writing, due = self._writing, self._due
        return [*writing.opened.rows, *due.opened.rows], [*writing.settled.rows, *due.settled.rows]

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

    def _tick(self) -> None:
        """Wake the writer every `LOOK_SECONDS`, work or no work, until it has ended."""
        if self._task is None or self._task.done():
            return
        self._looks += 1
        self._work.set()
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._deadline = now + PATIENCE_SECONDS
        for batch in (self._writing, self._due):
            batch.opened.expire(now)
            batch.settled.expire(now)
        loop.call_later(LOOK_SECONDS, self._tick)

    async def _run(self) -> None:
        looked = self._looks
        while True:
            await self._work.wait()
            if self._is_busy:
                await asyncio.sleep(0)
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
        """Write all that is due. What comes due meanwhile is for the next turn, after a look if one is due: under
        load the writer must not forget to follow the command line."""
        if not self._writing:
            self._writing, self._due = self._due, Batch()
            self._is_busy = len(self._writing) > BUSY_ROWS
        if with_refusals:
            self._writing.refusals += self._refusals
            self._refusals.clear()
        if not self._writing:
            return
        try:
            await self._write_batch(self._writing)
        except Exception as error:
            self._set_working("write", error)
            return
        self._set_working("write", None)
        if self._due:
            self._work.set()

    async def _write_batch(self, batch: Batch) -> None:
        """In two commits: nobody who is to be sent waits for others to be synced."""
        if batch.opened.rows:
            await self._commit("NORMAL", batch.opened)
            batch.opened.release()
        if batch:
            await self._commit("FULL", batch.settled, batch.counts())
            batch.settled.release()
            batch.refusals.clear()

    async def _commit(self, synchronous: str, rows: Rows, counts: Sequence[Statement] = ()) -> None:
        statements = [*rows.statements(), *counts]

        def write(connection: sqlite3.Connection) -> None:
            if synchronous != self._synchronous:
                connection.execute(f"PRAGMA synchronous = {synchronous}")
                self._synchronous = synchronous
            if len(statements) == 1:
                connection.execute(*statements[0])  # a transaction by itself
            else:
                _execute_together(connection, statements)

        try:
            await at_once(self._connection, write)
        except (sqlite3.IntegrityError, OverflowError):
            await self._commit_one_by_one(rows, counts)

    async def _commit_one_by_one(self, rows: Rows, counts: Sequence[Statement]) -> None:
        """One row that cannot be written must not take the others with it; nor may it be answered unrecorded."""
        async with transaction(self._connection):
            for statement, row, waiter in rows.one_by_one():
                if not await self._is_taken(statement):
                    self._refused.add(row.key)
                    fail(waiter, UNRECORDABLE)
            for statement in counts:
                await self._is_taken(statement)

    async def _is_taken(self, statement: Statement) -> bool:
        """Whether the database takes it; it is executed then."""
        try:
            await self._connection.execute(*statement)
        except (sqlite3.IntegrityError, OverflowError) as error:
            _log.error(Event.LEDGER_ROW_REFUSED, exc_info=error)
            return False
        return True

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


def _execute_together(connection: sqlite3.Connection, statements: Sequence[Statement]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in statements:
            connection.execute(*statement)
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise
