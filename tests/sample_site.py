"""A gateway with keys in every state that the pages can show: for pictures, and for the tests of accessibility.

The figures come from seeds, so two runs differ in their dates only. Requests in flight are real ones, which the
provider holds open.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import aiosqlite

from gateway import database, server
from gateway.core.account import request_columns
from gateway.core.amounts import DAY_MS, HOUR_MS, MINUTE_MS
from gateway.core.records import KeyRow, LedgerRow
from gateway.core.settings import Settings
from gateway.core.usage import NO_USAGE, Usage
from gateway.credentials import open_upstreams
from gateway.simulator import Script, Simulator
from tests.harness import CREDENTIALS, OPERATOR_CREDENTIAL, Database, ask, now_ms
from tests.held_data import insert

BUSY = "research-team"
USED_UP = "nightly-evals"
EXPIRED = "workshop-2026"
DISABLED = "old-laptop"
EMPTY = "new-colleague"

MODELS = {
    "claude-sonnet-4-5": 46,
    "claude-haiku-4-5": 22,
    "gpt-5-mini": 14,
    "claude-opus-4-5": 9,
    "gpt-5": 6,
    "text-embedding-3-small": 3,
}
"""How many of a hundred requests ask each."""
STATUSES = {200: 94, 499: 3, 529: 2, 502: 1}
FIVE_HOURS = 5 * HOUR_MS
WEEK = 7 * DAY_MS
PRICES = """
[prices]
"claude-*" = { input = 3, output = 15, cache_write = 3.75, cache_read = 0.3 }
"gpt-*" = { input = 1.25, output = 10, cache_write = 0, cache_read = 0.125 }
"""
"""A configuration; one of the models has no price in it."""
HOLDING = Script(stall_after_events=1)
"""The provider begins an answer and says nothing more."""


@dataclass(frozen=True)
class SampleSite:
    """The gateway's address, and the keys by their names."""

    origin: str
    keys: dict[str, str]


@dataclass(frozen=True)
class Person:
    """A key: its name, what it may do, and what it did."""

    name: str
    ledger: Sequence[LedgerRow] = ()
    limits: dict[str, Any] = field(default_factory=dict)


@asynccontextmanager
async def sample_site(path: Path, *, in_flight: int = 2, configuration: str = "") -> AsyncIterator[SampleSite]:
    """All keys with their history; so many requests of the busy one run as long as the site does."""
    keys = await _write_keys(path)
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(Simulator(credentials={OPERATOR_CREDENTIAL}))
        provider.script = HOLDING
        origin = await stack.enter_async_context(_serving(provider, path, configuration))
        client = await stack.enter_async_context(aiohttp.ClientSession(origin))
        for _ in range(in_flight):
            await stack.enter_async_context(_running(client, keys[BUSY]))
        yield SampleSite(origin, keys)


def _serving(provider: Simulator, path: Path, configuration: str) -> AbstractAsyncContextManager[str]:
    places = {"anthropic_url": provider.origin, "openai_url": provider.origin, "listen": "127.0.0.1:0"}
    others = {"database": str(path), "contact": "ops@example.org", "drain_seconds": "1"}
    settings = Settings.load(places | others, {}, configuration)
    return server.listening(settings, open_upstreams(settings, CREDENTIALS))


async def _write_keys(path: Path) -> dict[str, str]:
    data, now, keys = Database(path), now_ms(), {}
    async with database.connect(path) as connection:
        for person in _people(now):
            keys[person.name], key = await data.create_key(person.name, **person.limits)
            refused = (len(person.ledger) // 40, len(person.ledger) // 90)
            await connection.execute(
                "UPDATE key SET created = ?, refused_budget = ?, refused_requests = ? WHERE id = ?",
                (now - 45 * DAY_MS, *refused, key.row),
            )
            async with database.transaction(connection):
                await _write_ledger(connection, key.row, person.ledger)
    return keys


async def _write_ledger(connection: aiosqlite.Connection, key: KeyRow, rows: Sequence[LedgerRow]) -> None:
    """As the gateway does it: opened, then settled, which adds them up."""
    for row in rows:
        await insert(connection, "request", request_columns(row) | {"key": key, "status": None})
    await connection.executemany(
        "UPDATE request SET status = ? WHERE key = ? AND started = ?",
        [(row.status, key, row.started) for row in rows],
    )


@asynccontextmanager
async def _running(client: aiohttp.ClientSession, key: str) -> AsyncIterator[None]:
    """A request that does not end."""
    body = ask(stream=True, max_tokens=64_000)
    async with client.post("/v1/messages", json=body, headers={"x-api-key": key}) as answer:
        async with asyncio.timeout(10):
            await answer.content.readany()
        yield


def _people(now: int) -> Sequence[Person]:
    busy, evals = _ledger(1, 1_400, now), _ledger(2, 500, now)
    busy_limits = {
        "budgets": (
            (_budget(busy, now - FIVE_HOURS, 47), FIVE_HOURS),
            (_budget(busy, now - WEEK, 84), WEEK),
        ),
        "overdraft": 300_000,
        "requests_per_minute": 60,
        "tokens_per_minute": 400_000,
        "concurrency": 8,
        "expires": now + 90 * DAY_MS,
    }
    evals_limits = {"budgets": ((_budget(evals, now - FIVE_HOURS, 103), FIVE_HOURS), (3_500_000, None))}
    return (
        Person(BUSY, busy, busy_limits),
        Person(USED_UP, evals, evals_limits),
        Person(EXPIRED, _ledger(3, 60, now, 4), {"expires": now - 3 * DAY_MS, "budgets": ((2_000_000, WEEK),)}),
        Person(DISABLED, _ledger(4, 90, now, 9), {"disabled": True, "budgets": ((2_000_000, FIVE_HOURS),)}),
        Person(EMPTY),
    )


def _budget(rows: Sequence[LedgerRow], since: int, percent: int) -> int:
    """A round number of tokens of which these requests used about so much, and no less."""
    used = sum(row.usage.charge for row in rows if row.started >= since)
    tokens = max(10_000, used * 100 // percent)
    unit = 10 ** (len(str(tokens)) - 2)
    return int(tokens // unit * unit)


def _ledger(seed: int, count: int, now: int, days_quiet: int = 0) -> Sequence[LedgerRow]:
    """Requests of the last month up to some days ago, few of them by night and at weekends; the oldest first."""
    numbers = random.Random(seed)
    times: set[int] = set()
    while len(times) < count:
        days_ago = days_quiet + (30 - days_quiet) * numbers.random() ** 1.6
        started = now - MINUTE_MS - int(days_ago * DAY_MS)
        is_night, is_weekend = not 6 <= started // HOUR_MS % 24 <= 21, started // DAY_MS % 7 in (2, 3)
        if numbers.random() < (0.15 if is_night or is_weekend else 1):
            times.add(started)
    return [_request(numbers, started) for started in sorted(times)]


def _request(numbers: random.Random, started: int) -> LedgerRow:
    [model] = numbers.choices(list(MODELS), list(MODELS.values()))
    [status] = numbers.choices(list(STATUSES), list(STATUSES.values()))
    usage = Usage(
        input=int(numbers.lognormvariate(6, 1.2)),
        output=int(numbers.lognormvariate(6.6, 0.9)),
        cache_write=int(numbers.lognormvariate(7, 1.4)),
        cache_read=int(numbers.lognormvariate(10, 0.9)),
    )
    return LedgerRow(
        key=KeyRow(0),
        started=started,
        sequence=0,
        model=model,
        status=status,
        latency_ms=int(numbers.lognormvariate(8.6, 0.8)),
        usage=NO_USAGE if status >= 500 else usage,
        estimated=status == 499,
    )
