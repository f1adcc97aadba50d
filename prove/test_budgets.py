"""P3: a budget is not overshot, however many requests run at once, and what a refusal says of time is true."""

import asyncio
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gateway.core.estimate import BYTES_PER_TOKEN
from gateway.core.usage import Usage
from gateway.simulator import Script, Simulator
from gateway.simulator.sending import Received
from prove.conftest import Figure
from prove.load import Outcome, call, call_all, charged, client, held_data, usage_page
from tests.harness import Database, ask, hold_of
from tests.test_server_process import run, server

AT_ONCE = 200
MAX_TOKENS = 100
HOLD = max(hold_of(ask(stream=stream, max_tokens=MAX_TOKENS)) for stream in (True, False))
HOUR_MS = 3_600_000
SEEDS = (3, 11)


def mixed_bodies(random: Random, count: int = AT_ONCE) -> list[dict[str, Any]]:
    return [ask(stream=random.random() < 0.5, max_tokens=MAX_TOKENS) for _ in range(count)]


def truthful(random: Random, slowest_seconds: float) -> Callable[[Received], Script | None]:
    """A provider that takes its time; when it does, every answer uses all that it could, to the token."""

    def choose(received: Received) -> Script | None:
        if not received.is_message:
            return None
        most = Usage(input=-(-received.body_length // BYTES_PER_TOKEN), output=MAX_TOKENS)
        return Script(
            usage=most if slowest_seconds or random.random() < 0.5 else None,
            output_tokens=random.randint(1, MAX_TOKENS),
            first_byte_delay_seconds=slowest_seconds and random.uniform(slowest_seconds * 0.8, slowest_seconds),
            pause_seconds=random.choice([0, 0.001]),
        )

    return choose


def admitted(outcomes: list[Outcome]) -> int:
    """How many were; all others were refused, and in no other way."""
    statuses = [outcome.status for outcome in outcomes]
    assert set(statuses) <= {200, 429}, set(statuses)
    assert all(outcome.is_whole for outcome in outcomes if outcome.status == 200)
    return statuses.count(200)


async def test_two_hundred_at_once_never_overshoot_a_budget_and_leave_none_of_it_unused(
    provider: Simulator, database: Database, figure: Figure
) -> None:
    sizes = (HOLD, 3 * HOLD + 7, 10 * HOLD + 50, 40 * HOLD + 13, 120 * HOLD - 1)
    cases = list(product(sizes, (0.0, 0.8), SEEDS))
    keys = [
        await database.create_key(f"case {n}", budgets=[(size, HOUR_MS), (2 * size, None)])
        for n, (size, _, _) in enumerate(cases)
    ]
    fullest = 0.0
    async with server(provider, database.path) as running:
        for (text, key), (size, slowest_seconds, seed) in zip(keys, cases, strict=True):
            provider.received.clear()
            provider.choose = truthful(Random(seed), slowest_seconds)
            outcomes = await call_all(running.origin, text, mixed_bodies(Random(seed)))
            assert charged(database, key) <= size
            assert admitted(outcomes) == len(database.rows(key)) == len(provider.messages()) >= size // HOLD
            fullest = max(fullest, charged(database, key) / size)
    figure("P3", f"{AT_ONCE} at once on N tokens, {len(cases)} times: charged <= N, at most {fullest:.1%} of it")


async def test_with_overdraft_holds_reach_so_far_beyond_a_budget_and_no_further(
    provider: Simulator, database: Database, figure: Figure
) -> None:
    cases = list(product((HOLD // 2, 5 * HOLD), (HOLD, 3 * HOLD + 5, 30 * HOLD), (0.0, 1.5)))
    keys = [
        await database.create_key(f"case {n}", budgets=[(size, HOUR_MS)], overdraft=overdraft)
        for n, (size, overdraft, _) in enumerate(cases)
    ]
    async with server(provider, database.path) as running:
        for (text, key), (size, overdraft, slowest_seconds) in zip(keys, cases, strict=True):
            provider.choose = truthful(Random(size), slowest_seconds)
            outcomes = await call_all(running.origin, text, mixed_bodies(Random(overdraft)))
            assert charged(database, key) <= size + overdraft
            if slowest_seconds:  # all ask while nothing is settled yet: only the holds count
                assert admitted(outcomes) >= (size + overdraft) // HOLD
            at_once = charged(database, key)
            await use_up_one_by_one(running.origin, text)
            assert size <= charged(database, key) <= max(at_once, size - 1 + HOLD)
    figure("P3", f"{AT_ONCE} at once with overdraft D, {len(cases)} times: charged <= N + D in all")


async def use_up_one_by_one(origin: str, text: str) -> None:
    """Until nothing starts any more: with an overdraft as large as a hold, that is when nothing is left."""
    async with client(origin) as http:
        while True:
            outcome = await call(http, text, ask(max_tokens=MAX_TOKENS), Outcome())
            if outcome.status == 429:
                return
            assert outcome.status == 200


@pytest.mark.parametrize("seed", SEEDS)
async def test_what_a_provider_reports_beyond_the_hold_is_charged_in_full_shown_and_blocks(
    provider: Simulator, database: Database, figure: Figure, seed: int
) -> None:
    size, random = 20 * HOLD + 5, Random(seed)
    beyond: list[int] = []

    def choose(received: Received) -> Script | None:
        if not received.is_message:
            return None
        beyond.append(random.randint(1, 1_000))
        return Script(output_tokens=MAX_TOKENS, over_report=beyond[-1], first_byte_delay_seconds=0.8)

    text, key = await database.create_key(budgets=[(size, HOUR_MS)])
    provider.choose = choose
    async with server(provider, database.path) as running:
        outcomes = await call_all(running.origin, text, mixed_bodies(random))
        assert admitted(outcomes) == len(beyond) >= size // HOLD
        assert charged(database, key) == provider.reported_total().charge
        over = charged(database, key) - size
        assert 0 < over <= sum(beyond)
        [refused] = await call_all(running.origin, text, [ask(max_tokens=1)])
        assert (refused.status, json.loads(refused.arrived)["error"]["type"]) == (429, "billing_error")
        assert f"(over by {over:,})" in refused.text
        assert (await held_data(running.origin, text))["budgets"][0]["over"] == over
        assert f"{over:,}" in await usage_page(running.origin, text)
    figure("P3", f"over-reported by X each: all charged, over by {over:,} <= {sum(beyond):,}, shown, blocks")


async def test_a_burst_right_after_a_restart_is_not_refused_by_the_key_check(
    provider: Simulator, tmp_path: Path, figure: Figure
) -> None:
    """With a key as the command line makes it: its hash takes its time."""
    rounds, burst, path = 5, 64, tmp_path / "opusmax.db"
    _, output, _ = await run("key", "create", "burst", "--json", database=path)
    for _ in range(rounds):
        async with server(provider, path) as running:
            outcomes = await call_all(running.origin, json.loads(output)["key"], mixed_bodies(Random(1), burst))
            assert [outcome.status for outcome in outcomes] == [200] * burst
    figure("P3", f"bursts of {burst} right after a restart: 0 refused in {rounds}")


# Waits that are told are true.

WAITING_KEYS = 96
OVER_REPORTED = "more than was asked for"
LIMITS: tuple[Callable[[Random], dict[str, Any]], ...] = (
    lambda random: {"budgets": [(random.randint(200, 400), 1_000 * random.randint(2, 4))]},
    lambda random: {"budgets": [(300, 1_000 * random.randint(2, 4))], "overdraft": random.randint(1, 200)},
    lambda random: {"budgets": [(250, 2_000), (400, 1_000 * random.randint(3, 4))]},
    lambda random: {"requests_per_minute": random.randint(11, 20)},
    lambda random: {"requests_per_minute": 20, "budgets": [(random.randint(400, 800), 3_000)]},
    lambda random: {"tokens_per_minute": random.randint(6_000, 9_000), "budgets": [(20_000, 3_000)]},
)
"""Each comes back within seconds."""


def an_ask(random: Random, limits: dict[str, Any]) -> dict[str, Any]:
    """Whose answer takes all of `max_tokens`, or more than that."""
    content = random.choice(["Hello there", "Hello there", OVER_REPORTED])
    most = 700 if "tokens_per_minute" in limits else 130
    messages = [{"role": "user", "content": content}]
    return ask(messages=messages, max_tokens=random.randint(most // 4, most), stream=random.random() < 0.5)


async def first_refusal(origin: str, text: str, limits: dict[str, Any], random: Random) -> tuple[Any, Outcome]:
    """Ask at random moments, one after the other, until an ask is refused."""
    async with client(origin) as http:
        while True:
            body = an_ask(random, limits)
            outcome = await call(http, text, body, Outcome())
            if outcome.status != 200:
                return body, outcome
            await asyncio.sleep(random.choice([0, 0, random.random() * 0.4]))


async def check_the_wait(origin: str, text: str, limits: dict[str, Any], random: Random) -> tuple[bool, int]:
    """Whether an ask two seconds before the time that was told could be tried, and that time."""
    body, refused = await first_refusal(origin, text, limits, random)
    since = asyncio.get_running_loop().time()
    assert refused.status == 429, refused.text
    has_time = refused.retry_after > 2
    for seconds, wanted in ((refused.retry_after - 2, 429), (refused.retry_after, 200)):
        if seconds > 0:
            await asyncio.sleep(since + seconds - asyncio.get_running_loop().time())
            [outcome] = await call_all(origin, text, [body])
            assert outcome.status == wanted, (limits, seconds, refused.text, outcome.text)
    return has_time, refused.retry_after


async def test_waiting_as_long_as_a_refusal_says_is_enough_and_two_seconds_less_is_not(
    provider: Simulator, database: Database, figure: Figure
) -> None:
    random = Random(5)
    provider.choose = lambda received: Script(
        output_tokens=10_000, over_report=300 if OVER_REPORTED.encode() in received.body else 0
    )
    keys: list[tuple[str, dict[str, Any]]] = []
    for n in range(WAITING_KEYS):
        limits = LIMITS[n % len(LIMITS)](random)
        text, _ = await database.create_key(f"case {n}", **limits)
        keys.append((text, limits))
    async with server(provider, database.path) as running:
        for text, _ in keys:
            await held_data(running.origin, text)  # proves the key, of which only a few may wait at once
        waits = await asyncio.gather(
            *(check_the_wait(running.origin, text, limits, Random(n)) for n, (text, limits) in enumerate(keys))
        )
    tried_early = sum(has_time for has_time, _ in waits)
    assert tried_early > WAITING_KEYS // 2
    longest = max(seconds for _, seconds in waits)
    figure(
        "P3",
        f"retry-after of buckets and settled windows (up to {longest} s): enough in {len(waits)} of {len(waits)},"
        f" two seconds less refused {tried_early} of {tried_early}",
    )
