"""Growth: five million rows over fifty keys, and a key with a million of them."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import aiohttp
import pytest

from gateway import database
from gateway.core.amounts import DAY_MS, HOUR_MS
from gateway.core.records import Key
from gateway.simulator import MODELS, Simulator
from prove.conftest import Figure
from tests.harness import Database, now_ms
from tests.test_server_process import run, server, status_of

DAYS = 30
START_SECONDS = 2.0
PAGE_SECONDS = 0.150

INSERT_REQUEST = "INSERT INTO request VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, NULL)"
# The trigger does the same row by row; here it would take minutes.
ADD_UP_HOURS = """
INSERT INTO usage_by_hour
SELECT key, started - started % 3600000, model, status, count(*), sum(input), sum(output), sum(cache_write),
       sum(cache_read), sum(input + output + cache_write + (cache_read + 9) / 10)
  FROM request
 GROUP BY 1, 2, 3, 4
"""
ADD_UP_KEYS = """
UPDATE key
   SET (total_requests, last_used, total_charge) = (
       SELECT count(*), max(started), sum(input + output + cache_write + (cache_read + 9) / 10)
         FROM request
        WHERE key = key.id)
"""


def requests(rows: int, keys: list[Key]) -> Iterator[tuple[object, ...]]:
    """Requests of all keys in the order of time, spread over the days."""
    random = Random(1)
    now, span = now_ms(), DAYS * DAY_MS
    for number in range(rows):
        counts = [random.randrange(most) for most in (50_000, 4_000, 9_000, 90_000)]
        status = 200 if random.random() < 0.95 else 499
        started = now - span + span * number // rows
        yield (random.choice(keys).row, started, number % 100, random.choice(MODELS), status, 2_000, *counts)


async def grow(held: Database, rows: int, keys: int) -> str:
    """Fill a database; returns what the first of its keys is typed as."""
    budgets = [(10**9, 5 * HOUR_MS), (10**10, 7 * DAY_MS), (10**13, None)]
    made = [
        await held.create_key(f"key{number}", budgets=budgets, requests_per_minute=600, tokens_per_minute=10**6)
        for number in range(keys)
    ]
    with closing(sqlite3.connect(held.path)) as connection, connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.executemany(INSERT_REQUEST, requests(rows, [key for _, key in made]))
        connection.execute(ADD_UP_HOURS)
        connection.execute(ADD_UP_KEYS)
    async with database.connect(held.path) as checkpointing:
        await checkpointing.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return made[0][0]


async def page_seconds(origin: str, key: str) -> list[float]:
    """How long the Check Usage page takes, several times."""
    taken = []
    async with aiohttp.ClientSession(origin) as session:
        for _ in range(7):
            began = time.perf_counter()
            async with session.post("/usage", data={"key": key}) as answer:
                assert answer.status == 200
                await answer.read()
            taken.append(time.perf_counter() - began)
    return sorted(taken)


@pytest.mark.parametrize(("rows", "keys"), [(5_000_000, 50), (1_000_000, 1)])
async def test_a_large_ledger_starts_at_once_and_is_shown_at_once(
    tmp_path: Path, provider: Simulator, figure: Figure, rows: int, keys: int
) -> None:
    held = Database(tmp_path / "opusmax.db")
    typed = await grow(held, rows, keys)
    began = time.perf_counter()
    async with server(provider, held.path) as running:
        start = time.perf_counter() - began
        began = time.perf_counter()
        assert await status_of(running.origin, typed) == 200
        first = time.perf_counter() - began
        pages = await page_seconds(running.origin, typed)
    began = time.perf_counter()
    code, _, _ = await run("key", "list", database=held.path)
    listed = time.perf_counter() - began
    median = pages[len(pages) // 2]
    size = held.path.stat().st_size / rows
    figure(
        "grow",
        f"{rows:,} rows, {keys} keys: start {start:.2f} s, first request of a key {first * 1_000:.0f} ms,"
        f" usage page {median * 1_000:.0f} ms, key list {listed:.1f} s, {size:.0f} MB per 1 M requests",
    )
    assert code == 0
    assert start < START_SECONDS
    assert median < PAGE_SECONDS
