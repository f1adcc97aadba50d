"""The living limits of a key, derived from its ledger: at start, after an edit, and for the command line.

Nothing about limits is stored beside the ledger, so nothing can drift from it and a restart gives nothing back.
"""

import aiosqlite

from gateway.core.buckets import REPLAYED_MS, TokenBucket
from gateway.core.limits import KeyLimits
from gateway.core.records import Budget, Key
from gateway.core.status import LimitsStatus
from gateway.core.windows import SLOT_MS, RollingWindow

_CHARGE = "input + output + cache_write + (cache_read + 9) / 10"

SELECT_SLOTS = f"""
    SELECT started / {SLOT_MS} AS slot, sum({_CHARGE})
    FROM request
    WHERE key = ? AND started >= ? AND status IS NOT NULL
    GROUP BY slot
    ORDER BY slot
"""  # noqa: S608 - constants only
SELECT_TOTAL_CHARGE = "SELECT total_charge FROM key WHERE id = ?"
SELECT_STARTS = "SELECT started, 1 FROM request WHERE key = ? AND started >= ? ORDER BY started"
SELECT_CHARGES = f"""
    SELECT started + ifnull(latency, 0) AS settled, {_CHARGE}
    FROM request
    WHERE key = ? AND started >= ? AND status IS NOT NULL
    ORDER BY settled
"""  # noqa: S608 - constants only
SELECT_IN_FLIGHT = f"""
    SELECT count(*), ifnull(sum({_CHARGE}), 0)
    FROM request
    WHERE key = ? AND status IS NULL
"""  # noqa: S608 - constants only


async def read_limits(connection: aiosqlite.Connection, key: Key, now_ms: int) -> KeyLimits:
    """The limits as they stand after all settled requests, with nothing running."""
    windows = [await _read_window(connection, key, budget, now_ms) for budget in key.budgets]
    requests = await _read_bucket(connection, SELECT_STARTS, key, key.requests_per_minute, now_ms)
    tokens = await _read_bucket(connection, SELECT_CHARGES, key, key.tokens_per_minute, now_ms)
    return KeyLimits(key, windows, requests, tokens)


async def read_status(connection: aiosqlite.Connection, key: Key, now_ms: int) -> LimitsStatus:
    """How the key stands by the ledger alone, for those who are not the running server."""
    limits = await read_limits(connection, key, now_ms)
    ((limits.running, limits.held),) = await connection.execute_fetchall(SELECT_IN_FLIGHT, (key.row,))
    return limits.status(now_ms)


async def _read_window(connection: aiosqlite.Connection, key: Key, budget: Budget, now_ms: int) -> RollingWindow:
    window = RollingWindow(budget.window_ms)
    if budget.window_ms is None:
        for (total_charge,) in await connection.execute_fetchall(SELECT_TOTAL_CHARGE, (key.row,)):
            window.add(now_ms, total_charge, now_ms)
    else:
        since = now_ms - budget.window_ms - SLOT_MS
        slots = await connection.execute_fetchall(SELECT_SLOTS, (key.row, since - since % SLOT_MS))
        window.fill(((slot, charge) for slot, charge in slots), now_ms)
    return window


async def _read_bucket(
    connection: aiosqlite.Connection, select: str, key: Key, per_minute: int | None, now_ms: int
) -> TokenBucket | None:
    if per_minute is None:
        return None
    takings = await connection.execute_fetchall(select, (key.row, now_ms - REPLAYED_MS))
    return TokenBucket.replayed(per_minute, [(at, amount) for at, amount in takings], now_ms)
