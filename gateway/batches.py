"""What the ledger writes together: rows, the statements that write them, and who waits for each row.

A statement writes many rows in one step, because each step may have to wait until the loop's thread lets the
writer's go on. It is a transaction by itself, and each row counts in the totals as if it came alone.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.core.errors import Unavailable
from gateway.core.records import KeyRow, LedgerRow, Refusal

MOST_ROWS = 32
"""In one statement. Each number of rows has a text of its own, and a connection keeps 128 of them prepared."""

Statement = tuple[str, Sequence[object]]
"""A text and its parameters."""

# In the order of `_values`.
_COLUMNS = (
    "key, started, sequence, model, status, latency, input, output, cache_write, cache_read, estimated, upstream"
)


def _texts(write: str) -> Mapping[int, str]:
    """Number of rows -> the text that writes so many, which are called `due` in it."""
    columns = _COLUMNS.split(", ")
    row = f"({', '.join('?' for _ in columns)})"
    return {
        number: f"WITH due ({_COLUMNS}) AS (VALUES {', '.join([row] * number)}) {write}"
        for number in range(1, MOST_ROWS + 1)
    }


# A row whose key is gone is not written, and says nothing.
INSERT_ROWS = _texts(f"""
    INSERT INTO request ({_COLUMNS})
    SELECT * FROM due
    WHERE key IN (SELECT id FROM key)
""")  # noqa: S608 - constants
COMPLETE_ROWS = _texts("""
    UPDATE request
    SET model = due.model, status = due.status, latency = due.latency,
        input = due.input, output = due.output, cache_write = due.cache_write, cache_read = due.cache_read,
        estimated = due.estimated, upstream = due.upstream
    FROM due
    WHERE request.key = due.key AND request.started = due.started AND request.sequence = due.sequence
""")
ADD_REFUSALS = {
    refusal: f"UPDATE key SET refused_{refusal} = refused_{refusal} + ?2 WHERE id = ?1"  # noqa: S608 - constants
    for refusal in Refusal
}


@dataclass(slots=True)
class Rows:
    """Rows of one kind, and who waits for each: the deadline, and what is done when the row is safe."""

    texts: Mapping[int, str]
    """`INSERT_ROWS` or `COMPLETE_ROWS`."""
    rows: list[LedgerRow] = field(default_factory=list)
    waiting: list[tuple[float, asyncio.Future[None]]] = field(default_factory=list)

    def add(self, row: LedgerRow, deadline: float) -> asyncio.Future[None]:
        """`deadline`: when to stop waiting for the disk, in the time of `expire`."""
        waiter: asyncio.Future[None] = asyncio.Future()
        self.rows.append(row)
        self.waiting.append((deadline, waiter))
        return waiter

    def statements(self) -> Iterator[Statement]:
        """Together they write all rows, once."""
        for first in range(0, len(self.rows), MOST_ROWS):
            yield self._statement(self.rows[first : first + MOST_ROWS])

    def one_by_one(self) -> Iterator[tuple[Statement, LedgerRow, asyncio.Future[None]]]:
        """For each row the statement that writes it alone, and who waits for it."""
        for row, (_, waiter) in zip(self.rows, self.waiting, strict=True):
            yield self._statement([row]), row, waiter

    def _statement(self, rows: Sequence[LedgerRow]) -> Statement:
        return self.texts[len(rows)], [value for row in rows for value in _values(row)]

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

    opened: Rows = field(default_factory=lambda: Rows(INSERT_ROWS))
    settled: Rows = field(default_factory=lambda: Rows(COMPLETE_ROWS))
    refusals: Counter[tuple[KeyRow, Refusal]] = field(default_factory=Counter)

    def __bool__(self) -> bool:
        return bool(self.opened.rows or self.settled.rows or self.refusals)

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.opened.rows) + len(self.settled.rows)

    def counts(self) -> list[Statement]:
        """They add the refusals."""
        return [(ADD_REFUSALS[refusal], (key, count)) for (key, refusal), count in self.refusals.items()]


def fail(waiter: asyncio.Future[None], text: str) -> None:
    """Let somebody go whose row is not safe."""
    if not waiter.done():
        waiter.set_exception(Unavailable(text))
        waiter.exception()  # the request may have ended by itself, and nobody ask


def _values(row: LedgerRow) -> tuple[object, ...]:
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
        row.estimated,
        row.upstream,
    )
