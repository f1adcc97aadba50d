"""P4: nothing is lost. `kill -9` at random moments under load, and SIGTERM with streams open.

Each request has a number. It asks for at most so many output tokens, and the provider reports so many tokens read
from its cache: so each row of the ledger, settled or left in flight, tells of which request it is.
"""

import asyncio
import json
import re
import shutil
import signal
from collections.abc import Sequence
from itertools import count, cycle, islice
from pathlib import Path
from random import Random
from typing import Any

import aiohttp

from gateway.core.records import Key
from gateway.core.usage import Usage
from gateway.simulator import Script, Simulator
from gateway.simulator.sending import Received
from prove.conftest import Figure
from prove.load import CHARGE, Outcome, call, call_all, charged, client
from tests.harness import Database, ask, hold_of
from tests.test_server_process import Server, server

KILLS = 200
CLIENTS = 16
LATEST_KILL_SECONDS = 0.5
FIRST_NUMBER = 1_000
INPUT, OUTPUT = 8, 12
HOUR_MS = 3_600_000
BUDGET = 2 * 10**9
"""Never used up: what is left of it is what is looked at."""

_MAX_TOKENS = re.compile(rb'"max_tokens": (\d+)')
_LEFT = re.compile(r"; ([\d,]+) of [\d,]+ are left")


class Requests:
    """All that were made, by number, and what their clients saw."""

    def __init__(self) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self.at_the_provider: set[int] = set()
        self._numbers = count(FIRST_NUMBER)

    def next(self) -> tuple[dict[str, Any], Outcome]:
        number = next(self._numbers)
        self.outcomes[number] = Outcome()
        return ask(stream=number % 2 == 0, max_tokens=number), self.outcomes[number]

    def choose(self, received: Received) -> Script | None:
        """The provider's answer: at once or slowly, in any case with the number in it."""
        found = _MAX_TOKENS.search(received.body)
        if found is None:
            return None
        number = int(found[1])
        self.at_the_provider.add(number)
        random = Random(number)
        return Script(
            usage=Usage(input=INPUT, output=OUTPUT, cache_read=number),
            first_byte_delay_seconds=random.choice([0, random.random() * 0.03]),
            pause_seconds=random.choice([0, 0, random.random() * 0.01]),
        )


async def keep_asking(origin: str, key: str, requests: Requests) -> None:
    """Until the server is gone."""
    async with client(origin) as http:
        while True:
            body, outcome = requests.next()
            await call(http, key, body, outcome)
            if not outcome.has_ended:
                return


def rows_in_flight(path: Path, copies: Path) -> list[tuple[int, ...]]:
    """(started, sequence, input, output), out of a copy: what the next server finds has been touched by nobody."""
    copies.mkdir(exist_ok=True)
    for file in path.parent.glob(f"{path.name}*"):
        shutil.copy(file, copies / file.name)
    return Database(copies / path.name).query(
        "SELECT started, sequence, input, output FROM request WHERE status IS NULL"
    )


def check_kept_at_their_holds(database: Database, left: list[tuple[int, ...]]) -> None:
    """What was in flight is settled by the restart, at what it held."""
    for started, sequence, held_input, held_output in left:
        rows = database.query(
            "SELECT status, estimated, input, output, cache_write, cache_read FROM request"
            " WHERE started = ? AND sequence = ?",
            *(started, sequence),
        )
        body = ask(stream=held_output % 2 == 0, max_tokens=held_output)
        assert held_input + held_output == hold_of(body)
        assert rows == [(500, 1, held_input, held_output, 0, 0)]


def check_totals(database: Database) -> None:
    """Of each key: its running totals and its hours are the sums of its rows."""
    sums = f"count(*), sum(input), sum(output), sum(cache_write), sum(cache_read), sum({CHARGE})"
    rows = database.query(f"SELECT key, {sums} FROM request GROUP BY key ORDER BY key")
    totals = "total_requests, total_input, total_output, total_cache_write, total_cache_read, total_charge"
    assert database.query(f"SELECT id, {totals} FROM key WHERE total_requests > 0 ORDER BY id") == rows
    sums = "sum(requests), sum(input), sum(output), sum(cache_write), sum(cache_read), sum(charge)"
    assert database.query(f"SELECT key, {sums} FROM usage_by_hour GROUP BY key ORDER BY key") == rows
    assert database.query("SELECT count(*) FROM request WHERE status IS NULL") == [(0,)]


async def check_what_is_left(origin: str, key: str, left: int) -> None:
    """A request that is one token too large for what the ledger leaves is refused, and told the same figure."""
    body = ask(max_tokens=left + 1 - (hold_of(ask(max_tokens=left)) - left))
    [refused] = await call_all(origin, key, [body])
    found = _LEFT.search(refused.text)
    assert (refused.status, hold_of(body)) == (429, left + 1), refused.text
    assert found is not None, refused.text
    assert found[1].replace(",", "") == str(left)


def numbers_in_the_ledger(database: Database) -> tuple[set[int], set[int]]:
    """Those that are settled as the provider counted them, and those that are kept at their hold; none twice."""
    settled = "SELECT cache_read FROM request WHERE (status, estimated, input, output) = (200, 0, ?, ?)"
    held = "SELECT output FROM request WHERE (status, estimated, cache_read) = (500, 1, 0)"
    numbers = [database.query(settled, INPUT, OUTPUT), database.query(held)]
    whole, kept = ({number for (number,) in rows} for rows in numbers)
    assert database.query("SELECT count(*) FROM request") == [(len(whole | kept),)]
    return whole, kept


def check_all_are_accounted_for(database: Database, requests: Requests, in_flight: int, figure: Figure) -> None:
    """Row by row, after the last restart. `in_flight`: as many as the kills left in all."""
    whole = {number for number, outcome in requests.outcomes.items() if outcome.is_whole}
    begun = {number for number, outcome in requests.outcomes.items() if outcome.status == 200}
    settled, kept = numbers_in_the_ledger(database)
    assert len(whole) > 5 * KILLS
    assert len(kept) == in_flight > KILLS
    assert whole - settled == set()
    assert begun - settled - kept == set()
    assert settled | kept <= requests.outcomes.keys()
    unrecorded = requests.at_the_provider - settled - kept
    figure("P4", f"{KILLS} kill -9: answers seen whole and missing in the ledger: 0 of {len(whole):,}")
    figure("P4", f"{KILLS} kill -9: in-flight rows kept at their hold, marked as estimated: all {in_flight:,}")
    figure(
        "P4",
        f"{KILLS} kill -9: requests that reached the provider just before their row, and of whose answers nobody"
        f" saw a byte: {len(unrecorded)} of {len(requests.at_the_provider):,}",
    )


async def load_until_killed(running: Server, keys: Sequence[str], requests: Requests, seconds: float) -> None:
    sharing = islice(cycle(keys), CLIENTS)
    clients = [asyncio.create_task(keep_asking(running.origin, key, requests)) for key in sharing]
    await asyncio.sleep(seconds)
    await running.stop(signal.SIGKILL)
    await asyncio.gather(*clients)


async def test_kill_9_loses_no_answer_that_a_client_saw_and_frees_no_hold(
    provider: Simulator, database: Database, figure: Figure, tmp_path: Path
) -> None:
    random, requests = Random(4), Requests()
    keys = [await database.create_key(f"{window}", budgets=[(BUDGET, window)]) for window in (HOUR_MS, None)]
    provider.choose = requests.choose
    left: list[tuple[int, ...]] = []
    in_flight = 0
    for _ in range(KILLS):
        async with server(provider, database.path) as running:
            check_kept_at_their_holds(database, left)
            check_totals(database)
            for text, key in keys:
                if used := charged(database, key):
                    await check_what_is_left(running.origin, text, BUDGET - used)
            seconds = random.random() * LATEST_KILL_SECONDS
            await load_until_killed(running, [text for text, _ in keys], requests, seconds)
        provider.received.clear()
        left = rows_in_flight(database.path, tmp_path / "copies")
        in_flight += len(left)
    async with server(provider, database.path):
        check_kept_at_their_holds(database, left)
        check_totals(database)
    check_all_are_accounted_for(database, requests, in_flight, figure)


# SIGTERM.

DRAIN_SECONDS = 3
EXIT_SECONDS = DRAIN_SECONDS + 2
OPEN = {"finishing": 25, "stalling": 15, "never reading": 10}
HUGE_BYTES = 8 * 2**20
SCRIPTS = {
    "finishing": Script(output_tokens=60, events=60, pause_seconds=0.02),
    "stalling": Script(stall_after_events=5),
    "never reading": Script(long_data_line_bytes=HUGE_BYTES, stall_after_events=5),
}


def ask_for(kind: str) -> dict[str, Any]:
    return ask(messages=[{"role": "user", "content": kind}], stream=True)


def by_kind(received: Received) -> Script | None:
    return next((script for kind, script in SCRIPTS.items() if kind.encode() in received.body), None)


async def ask_without_reading(origin: str, key: str, kind: str) -> asyncio.StreamWriter:
    """An answer that nobody takes: it fills every buffer on the way and stays there."""
    _, writer = await asyncio.open_connection("127.0.0.1", int(origin.rpartition(":")[2]), limit=1)
    body = json.dumps(ask_for(kind)).encode()
    head = f"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    return writer


async def check_new_requests_are_refused(origin: str, key: str, kept_alive: aiohttp.ClientSession) -> int:
    """On new connections and on one that was open before. Returns how many."""
    async with kept_alive.get("/readyz") as answer:
        assert answer.status == 503
    async with client(origin) as fresh:
        outcomes = [
            await call(http, key, ask(stream=stream), Outcome())
            for http in (kept_alive, fresh)
            for stream in (False, True)
            for _ in range(10)
        ]
    assert {(outcome.status, outcome.has_ended) for outcome in outcomes} == {(503, True)}
    assert all(0 < outcome.retry_after <= 60 for outcome in outcomes)
    return len(outcomes)


def check_rows_at_the_end(database: Database, key: Key) -> None:
    """A row each, settled: whole ones as they were counted, broken ones for what they used."""
    rows = database.rows(key)
    whole = [row for row in rows if row.status == 200]
    broken = [row for row in rows if row.status == 503]
    assert len(whole) == OPEN["finishing"] + 1
    assert len(broken) == len(rows) - len(whole) == OPEN["stalling"] + OPEN["never reading"]
    assert not any(row.estimated for row in whole)
    assert all(row.estimated for row in broken)
    for row in broken:
        assert 0 < row.usage.charge <= hold_of(ask_for("never reading"))


async def test_sigterm_lets_open_streams_finish_refuses_new_ones_and_ends_in_time(
    provider: Simulator, database: Database, figure: Figure
) -> None:
    text, key = await database.create_key()
    provider.choose = by_kind
    now = asyncio.get_running_loop().time
    async with (
        server(provider, database.path, "--drain", f"{DRAIN_SECONDS}s") as running,
        client(running.origin) as kept_alive,
    ):
        await call(kept_alive, text, ask(), Outcome())
        kinds = [kind for kind in ("finishing", "stalling") for _ in range(OPEN[kind])]
        streams = [asyncio.create_task(call_all(running.origin, text, [ask_for(kind)])) for kind in kinds]
        writers = [
            await ask_without_reading(running.origin, text, "never reading") for _ in range(OPEN["never reading"])
        ]
        await provider.arrived(1 + sum(OPEN.values()))
        stopped = now()
        running.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
        refused = await check_new_requests_are_refused(running.origin, text, kept_alive)
        code = await asyncio.wait_for(running.process.wait(), 2 * EXIT_SECONDS)
        took = now() - stopped
        outcomes: dict[str, list[Outcome]] = {kind: [] for kind in OPEN}
        for kind, stream in zip(kinds, streams, strict=True):
            outcomes[kind] += await stream
        for writer in writers:
            writer.transport.abort()
    assert code == 0
    assert DRAIN_SECONDS <= took <= EXIT_SECONDS
    assert all(outcome.has_ended and outcome.is_whole for outcome in outcomes["finishing"])
    assert all(outcome.is_broken and outcome.status == 200 for outcome in outcomes["stalling"])
    check_rows_at_the_end(database, key)
    figure(
        "P4",
        f"SIGTERM with {sum(OPEN.values())} streams: {OPEN['finishing']} of {OPEN['finishing']} finished, the rest"
        f" broken and settled, {refused} of {refused} new ones told 503, ended {took:.1f} s later (drain:"
        f" {DRAIN_SECONDS} s)",
    )
