"""What the ledger writes together: rows, the statements that write them, and who waits for each row."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway.core.errors import Unavailable
from gateway.core.records import KeyRow, LedgerRow, Refusal

PATIENCE_SECONDS = 10.0
"""How long anybody waits for a disk that does not take a row."""

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

Statements = list[tuple[str, Sequence[Sequence[object]]]]
"""Each with its rows, in the order in which they are run."""


@dataclass(slots=True)
class Rows:
    """Rows of one kind, and who waits for each: the deadline, and what is done when the row is safe."""

    rows: list[LedgerRow] = field(default_factory=list)
    waiting: list[tuple[float, asyncio.Future[None]]] = field(default_factory=list)

    def add(self, row: LedgerRow) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self.rows.append(row)
        self.waiting.append((loop.time() + PATIENCE_SECONDS, waiter))
        return waiter

    def release(self) -> None:
        """They are safe: let those go on who wait."""
        for _, waiter in self.waiting:
            if not waiter.done():
                waiter.set_result(None)
        self.rows, self.waiting = [], []

    def expire(self, now: float) -> None:
        """Let those go who have waited long enough. The rows stay due."""
        for deadline, waiter in self.waiting:
            if deadline > now:
                return
            fail(waiter, "Usage cannot be recorded just now.")


@dataclass(slots=True)
class Batch:
    """What is written together."""

    opened: Rows = field(default_factory=Rows)
    settled: Rows = field(default_factory=Rows)
    refusals: Counter[tuple[KeyRow, Refusal]] = field(default_factory=Counter)

    def __bool__(self) -> bool:
        return bool(self.opened.rows or self.settled.rows or self.refusals)

    def openings(self) -> Statements:
        return [(INSERT_ROW, [_columns(row) for row in self.opened.rows])] if self.opened.rows else []

    def settlements(self) -> Statements:
        statements: Statements = []
        if self.settled.rows:
            statements.append((COMPLETE_ROW, [_columns(row) for row in self.settled.rows]))
        for (key, refusal), count in self.refusals.items():
            statements.append((ADD_REFUSALS[refusal], [(key, count)]))
        return statements


def fail(waiter: asyncio.Future[None], text: str) -> None:
    """Let somebody go whose row is not safe."""
    if not waiter.done():
        waiter.set_exception(Unavailable(text))
        waiter.exception()  # the request may have ended by itself, and nobody ask


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
