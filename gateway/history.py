"""The living limits of a key, derived from its ledger: at start, after an edit, and for the command line.

Nothing about limits is stored beside the ledger, so nothing can drift from it and a restart gives nothing back.
"""

from collections.abc import Mapping, Sequence

import aiosqlite

from gateway.core.buckets import REPLAYED_MS, TokenBucket
from gateway.core.limits import KeyLimits
from gateway.core.records import Budget, Key
from gateway.core.shared_budgets import INSTANCE, SharedBudgets, make_lid
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
# By key (CROSS JOIN fixes the order), because the ledger is ordered so: older rows are not read.
SELECT_SHARED_SLOTS = f"""
    SELECT started / {SLOT_MS} AS slot, sum({_CHARGE})
    FROM key CROSS JOIN request ON request.key = key.id
    WHERE started >= ?1 AND status IS NOT NULL AND (?2 = '{INSTANCE}' OR upstream = ?2)
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
# The planner would read all requests of the key.
SELECT_IN_FLIGHT = f"""
    SELECT count(*), ifnull(sum({_CHARGE}), 0)
    FROM request INDEXED BY request_in_flight
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


async def read_shared_budgets(
    connection: aiosqlite.Connection, budgets: Mapping[str, Sequence[Budget]], now_ms: int
) -> SharedBudgets:
    """The budgets that all keys share, by the name of their upstream or `INSTANCE`, with nothing running.

    What deleted keys used is not in the ledger any more, and so does not count after a start.
    """
    lids = {}
    for owner, its_budgets in budgets.items():
        if its_budgets:
            windows = [await _read_shared_window(connection, owner, budget, now_ms) for budget in its_budgets]
            lids[owner] = make_lid(owner, its_budgets, windows)
    return SharedBudgets(lids)


async def _read_shared_window(
    connection: aiosqlite.Connection, owner: str, budget: Budget, now_ms: int
) -> RollingWindow:
    window = RollingWindow(budget.window_ms)
    slots = await connection.execute_fetchall(SELECT_SHARED_SLOTS, (_since(budget.window_ms, now_ms), owner))
    if budget.window_ms is None:
        window.add(now_ms, sum(charge for _, charge in slots), now_ms)
    else:
        window.fill(((slot, charge) for slot, charge in slots), now_ms)
    return window


def _since(window_ms: int | None, now_ms: int) -> int:
    """From when on rows count: the beginning of a slot."""
    since = 0 if window_ms is None else now_ms - window_ms - SLOT_MS
    return since - since % SLOT_MS


async def _read_window(connection: aiosqlite.Connection, key: Key, budget: Budget, now_ms: int) -> RollingWindow:
    window = RollingWindow(budget.window_ms)
    if budget.window_ms is None:
        for (total_charge,) in await connection.execute_fetchall(SELECT_TOTAL_CHARGE, (key.row,)):
            window.add(now_ms, total_charge, now_ms)
    else:
        slots = await connection.execute_fetchall(SELECT_SLOTS, (key.row, _since(budget.window_ms, now_ms)))
        window.fill(((slot, charge) for slot, charge in slots), now_ms)
    return window


async def _read_bucket(
    connection: aiosqlite.Connection, select: str, key: Key, per_minute: int | None, now_ms: int
) -> TokenBucket | None:
    if per_minute is None:
        return None
    takings = await connection.execute_fetchall(select, (key.row, now_ms - REPLAYED_MS))
    return TokenBucket.replayed(per_minute, [(at, amount) for at, amount in takings], now_ms)
