"""P4: nothing is lost. `kill -9` at random moments under load, and SIGTERM with streams open.

Each request has a number. It asks for at most so many output tokens, and the provider reports so many tokens read
from its cache: so each row of the ledger, settled or left in flight, tells of which request it is.
"""

import asyncio
import itertools
import re
import shutil
import signal
from pathlib import Path
from random import Random
from typing import Any

from gateway.core.usage import Usage
from gateway.simulator import Script, Simulator
from gateway.simulator.sending import Received
from prove.conftest import Figure
from prove.load import CHARGE, Outcome, call, call_all, charged, client
from tests.harness import Database, ask, hold_of
from tests.test_server_process import server

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
        self._numbers = itertools.count(FIRST_NUMBER)

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
    for file in (path, path.with_name(f"{path.name}-wal")):
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
    sums = f"count(*), sum(input), sum(output), sum(cache_write), sum(cache_read), sum({CHARGE})"
    totals = "total_requests, total_input, total_output, total_cache_write, total_cache_read, total_charge"
    assert database.query(f"SELECT {totals} FROM key") == database.query(f"SELECT {sums} FROM request")
    assert database.query("SELECT count(*) FROM request WHERE status IS NULL") == [(0,)]


async def left_of_the_budget(origin: str, key: str, left: int) -> int:
    """What a request that is one token too large is told."""
    body = ask(max_tokens=left + 1 - (hold_of(ask(max_tokens=left)) - left))
    [refused] = await call_all(origin, key, [body])
    found = _LEFT.search(refused.text)
    assert (refused.status, hold_of(body)) == (429, left + 1), refused.text
    assert found is not None, refused.text
    return int(found[1].replace(",", ""))


def numbers_in_the_ledger(database: Database) -> tuple[set[int], set[int]]:
    """Those that are settled as the provider counted them, and those that are kept at their hold; none twice."""
    settled = "SELECT cache_read FROM request WHERE (status, estimated, input, output) = (200, 0, ?, ?)"
    held = "SELECT output FROM request WHERE (status, estimated, cache_read) = (500, 1, 0)"
    numbers = [database.query(settled, INPUT, OUTPUT), database.query(held)]
    whole, kept = ({number for (number,) in rows} for rows in numbers)
    assert database.query("SELECT count(*) FROM request") == [(len(whole | kept),)]
    return whole, kept


async def test_kill_9_loses_no_answer_that_a_client_saw_and_frees_no_hold(
    provider: Simulator, database: Database, figure: Figure, tmp_path: Path
) -> None:
    random, requests = Random(4), Requests()
    text, key = await database.create_key(budgets=[(BUDGET, HOUR_MS), (BUDGET, None)])
    provider.choose = requests.choose
    left: list[tuple[int, ...]] = []
    in_flight = 0
    for kill in range(KILLS + 1):
        async with server(provider, database.path) as running:
            check_kept_at_their_holds(database, left)
            if kill:
                check_totals(database)
                remains = BUDGET - charged(database, key)
                assert await left_of_the_budget(running.origin, text, remains) == remains
            clients = [asyncio.create_task(keep_asking(running.origin, text, requests)) for _ in range(CLIENTS)]
            await asyncio.sleep(random.random() * LATEST_KILL_SECONDS)
            await running.stop(signal.SIGKILL if kill < KILLS else signal.SIGTERM)
            await asyncio.gather(*clients)
        provider.received.clear()
        left = rows_in_flight(database.path, tmp_path / "copies")
        in_flight += len(left)
    assert left == []

    whole = {number for number, outcome in requests.outcomes.items() if outcome.is_whole}
    begun = {number for number, outcome in requests.outcomes.items() if outcome.status == 200}
    settled, kept = numbers_in_the_ledger(database)
    known = settled | kept
    assert len(whole) > 5 * KILLS
    assert len(kept) == in_flight > KILLS
    assert whole - settled == set()
    assert begun - known == set()
    assert known <= requests.at_the_provider | kept
    figure("P4", f"{KILLS} kill -9: answers seen whole and missing in the ledger: 0 of {len(whole):,}")
    figure(
        "P4", f"{KILLS} kill -9: requests in flight, kept at their hold and marked as estimated: all {in_flight:,}"
    )
    figure(
        "P4",
        f"{KILLS} kill -9: at the provider, but without a row (nobody saw a byte of their answers):"
        f" {len(requests.at_the_provider - known)} of {len(requests.at_the_provider):,}",
    )
