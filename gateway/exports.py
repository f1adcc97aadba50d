"""Everything held on a key as JSON or CSV, piece by piece: a key with a million requests never sits in memory.

Names and units are those of schema.sql: times in milliseconds since 1970 (UTC), durations in milliseconds. In
the JSON, each budget also has its figures of this moment.
"""

import csv
import io
import re
from collections.abc import AsyncIterator, Iterable

import msgspec

from gateway.core.account import (
    REQUEST_COLUMNS,
    KeyRecord,
    Row,
    budget_columns,
    request_columns,
    secret_columns,
)
from gateway.core.records import LedgerRow
from gateway.core.status import BudgetStatus, LimitsStatus

_FORMULA = re.compile(r"""[\s"']*[=+\-@＝＋－＠]|[\t\r\n]""")
"""The beginning of what a spreadsheet may run: some trim a cell, or take wide characters for narrow ones."""


async def json_pieces(
    record: KeyRecord, limits: LimitsStatus, hours: list[Row], batches: AsyncIterator[list[LedgerRow]]
) -> AsyncIterator[bytes]:
    """One object: `key`, `secrets`, `budgets`, `usage_by_hour`, `requests` (newest first)."""
    head = {
        "key": record.columns(),
        "secrets": [secret_columns(secret) for secret in record.secrets],
        "budgets": _budgets(record, limits),
        "usage_by_hour": hours,
    }
    yield msgspec.json.encode(head)[:-1] + b',"requests":['
    separator = b"\n"
    async for rows in batches:
        yield separator + b",\n".join(msgspec.json.encode(request_columns(row)) for row in rows)
        separator = b",\n"
    yield b"\n]}\n"


async def csv_pieces(batches: AsyncIterator[list[LedgerRow]]) -> AsyncIterator[bytes]:
    """The requests, newest first, under a line of column names."""
    yield _csv_lines([REQUEST_COLUMNS])
    async for rows in batches:
        yield _csv_lines([_csv_cell(value) for value in request_columns(row).values()] for row in rows)


def _budgets(record: KeyRecord, limits: LimitsStatus) -> list[Row]:
    """The budgets' rows. A budget changed this very moment has no figures until the limits follow."""
    standing = {budget.window_ms: budget for budget in limits.budgets}
    return [
        budget_columns(record.id, budget) | _figures(standing.get(budget.window_ms)) for budget in record.budgets
    ]


def _figures(status: BudgetStatus | None) -> Row:
    if status is None:
        return {}
    return {
        "used": status.used,
        "percent": status.percent,
        "left": status.left,
        "over": status.over,
        "held": status.held,
        "next_at": status.next_at_ms,
        "all_by": status.all_by_ms,
    }


def _csv_lines(rows: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def inert(text: str) -> str:
    """What a spreadsheet would run as a formula gets an apostrophe in front."""
    return f"'{text}" if _FORMULA.match(text) else text


def _csv_cell(value: int | str | None) -> int | str | None:
    """Text that no spreadsheet runs; 0 and 1 for no and yes."""
    if isinstance(value, str):
        return inert(value)
    return value if value is None else int(value)
