"""P7 on a busy server: a key is erased under its running streams, and among a million rows. Nobody else is hurt."""

import asyncio
import sqlite3
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field

import aiohttp

from gateway.core.usage import Usage
from gateway.simulator import MODELS, Script, Simulator
from gateway.simulator.sending import Received
from prove.conftest import Figure
from prove.load import Outcome, call, client
from prove.test_erasure import count_hits, erase, row_bytes
from tests.harness import Database, ask, now_ms, until
from tests.test_erasure import VICTIM_NAME
from tests.test_server_process import server

MARKER = 0xA55A5AA55A
"""A count that the gateway believes, and that is found nowhere by chance."""
VICTIM_MODEL, OTHER_MODEL = MODELS[0], MODELS[1]
STREAMS = 50
OTHER_STREAMS = 20
ENDED_WITHIN_SECONDS = 1.0
ANSWERED = 30
"""Requests of the victim that were over before it was deleted."""

LARGE_ROWS = 1_000_000
LARGE_KEYS = 20
INSERT_LARGE = "INSERT INTO request VALUES (?, ?, 0, 'claude-sonnet-5-5', 200, 900, 100, 200, 0, 5000, 0, NULL)"
LONGEST_WAIT_SECONDS = 3.0
"""A third of the time after which an answer that waits for its commit is given up."""


def by_model(received: Received) -> Script | None:
    """Long streams; what is the victim's tells it by its counts."""
    is_victims = VICTIM_MODEL.encode() in received.body
    usage = Usage(input=MARKER, output=MARKER) if is_victims else None
    if b'"stream": true' not in received.body:
        return Script(usage=usage)
    return Script(
        usage=usage, start_usage=usage, events=60 if is_victims else 30, output_tokens=60, pause_seconds=0.1
    )


async def test_deleting_a_key_ends_its_streams_and_hurts_no_other(
    provider: Simulator, database: Database, figure: Figure
) -> None:
    provider.choose = by_model
    victim, victim_key = await database.create_key(VICTIM_NAME)
    other, other_key = await database.create_key("other")
    traces = [VICTIM_NAME.encode(), MARKER.to_bytes(5, "big"), *row_bytes(victim_key.row)]
    async with server(provider, database.path) as running, client(running.origin) as http:
        plain = [call(http, victim, ask(model=VICTIM_MODEL, max_tokens=100), Outcome()) for _ in range(ANSWERED)]
        assert {outcome.status for outcome in await asyncio.gather(*plain)} == {200}
        before = count_hits(database.path, traces)[0]
        doomed = start_streams(http, victim, VICTIM_MODEL, STREAMS)
        living = start_streams(http, other, OTHER_MODEL, OTHER_STREAMS)
        await provider.arrived(ANSWERED + STREAMS + OTHER_STREAMS)
        report = await erase(database.path)
        erased_at = time.monotonic()
        ended = await asyncio.gather(*doomed)
        seconds = time.monotonic() - erased_at
        refused = await call(http, victim, ask(), Outcome())
        kept = await asyncio.gather(*living)
        after = count_hits(database.path, traces)[0]
        assert await running.stop() == 0
    after += count_hits(database.path, traces)[0]
    figure(
        "P7",
        f"deleted while {STREAMS} of its streams ran: all ended {seconds:.2f} s after it said so;"
        f" {before} hits before, {after} after;"
        f" others whole: {sum(outcome.is_whole for outcome in kept)} of {OTHER_STREAMS}",
    )
    assert (before > ANSWERED, after) == (True, 0)
    assert report["requests"] >= ANSWERED
    assert [outcome.is_broken for outcome in ended] == [True] * STREAMS
    assert seconds < ENDED_WITHIN_SECONDS
    assert refused.status == 401
    assert [outcome.is_whole for outcome in kept] == [True] * OTHER_STREAMS
    assert [(row.status, row.estimated) for row in database.rows(other_key)] == [(200, False)] * OTHER_STREAMS
    assert database.query("SELECT count(*) FROM request") == [(OTHER_STREAMS,)]


def start_streams(http: aiohttp.ClientSession, key: str, model: str, count: int) -> list[asyncio.Task[Outcome]]:
    body = ask(model=model, stream=True)
    return [asyncio.create_task(call(http, key, body, Outcome())) for _ in range(count)]


@dataclass(slots=True)
class Waits:
    """How long plain requests took, by when they ended."""

    ends: list[tuple[float, float]] = field(default_factory=list)
    statuses: Counter[int | None] = field(default_factory=Counter)

    def longest(self, since: float, until: float) -> float:
        return max(seconds for end, seconds in self.ends if end >= since and end - seconds <= until)


async def keep_asking(http: aiohttp.ClientSession, key: str, waits: Waits) -> None:
    while True:
        began = time.monotonic()
        outcome = await call(http, key, ask(model=OTHER_MODEL), Outcome())
        waits.ends.append((time.monotonic(), time.monotonic() - began))
        waits.statuses[outcome.status] += 1


async def test_usage_commits_wait_briefly_for_an_erasure_among_a_million_rows(
    provider: Simulator, database: Database, figure: Figure
) -> None:
    provider.choose = by_model
    keys = [
        await database.create_key(name) for name in (VICTIM_NAME, *(f"other-{n}" for n in range(1, LARGE_KEYS)))
    ]
    fill(database, [key.row for _, key in keys])
    async with server(provider, database.path) as running, client(running.origin) as http:
        waits = Waits()
        living = start_streams(http, keys[1][0], OTHER_MODEL, STREAMS)
        askers = [asyncio.create_task(keep_asking(http, text, waits)) for text, _ in keys[2:10]]
        await until(lambda: len(waits.ends) > 200)
        began = time.monotonic()
        report = await erase(database.path)
        erased = time.monotonic()
        kept = await asyncio.gather(*living)
        for asker in askers:
            asker.cancel()
        assert await running.stop() == 0
    figure(
        "P7",
        f"{report['requests']:,} of {LARGE_ROWS:,} rows erased in {report['seconds']:.2f} s: commits waited"
        f" {report['longest_step_seconds']:.2f} s for the command, the slowest answer of other keys took"
        f" {waits.longest(began, erased):.2f} s ({waits.longest(0, began):.2f} s before);"
        f" {waits.statuses[200]:,} of {len(waits.ends):,} answers and"
        f" {sum(outcome.is_whole for outcome in kept)} of {STREAMS} streams whole",
    )
    assert report["requests"] == LARGE_ROWS // LARGE_KEYS
    assert all(outcome.is_whole for outcome in kept)
    assert set(waits.statuses) == {200}
    assert waits.longest(began, erased) < LONGEST_WAIT_SECONDS


def fill(database: Database, rows: list[int]) -> None:
    """A million requests of the last hours, in the order of time."""
    started = now_ms() - LARGE_ROWS * 10
    with closing(sqlite3.connect(database.path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        values = ((rows[number % LARGE_KEYS], started + number * 10) for number in range(LARGE_ROWS))
        connection.executemany(INSERT_LARGE, values)
        connection.commit()
