"""P3 for budgets that all keys share: ten keys at once, kills in between, and one lid over them."""

import asyncio
import signal
from pathlib import Path
from random import Random

from gateway.simulator import Simulator
from prove.conftest import Figure
from prove.load import CHARGE, Outcome, call, client
from prove.test_budgets import AT_ONCE, HOLD, admitted, mixed_bodies, truthful
from tests.harness import OPERATOR_CREDENTIAL, Database
from tests.test_server_process import server

KEYS = 10
ROUNDS = 6
UPSTREAM = f"""
[[upstream]]
name = "one"
protocol = "anthropic"
url = "%s"
credentials = "ONE_KEY"
budgets = "{30 * HOLD}/1h"
"""


def spent(database: Database) -> int:
    """What all keys were charged, or hold after a crash."""
    [(charge,)] = database.query(f"SELECT ifnull(sum({CHARGE}), 0) FROM request")
    return int(charge)


async def ask_with_all(origin: str, texts: list[str], random: Random) -> list[Outcome]:
    async with client(origin) as http:
        bodies = mixed_bodies(random)
        calls = [call(http, texts[number % KEYS], body, Outcome()) for number, body in enumerate(bodies)]
        return await asyncio.gather(*calls)


async def test_two_hundred_at_once_of_ten_keys_never_overshoot_a_shared_budget(
    provider: Simulator, database: Database, figure: Figure
) -> None:
    sizes = (HOLD, 3 * HOLD + 7, 40 * HOLD + 13, 120 * HOLD - 1)
    texts = [(await database.create_key(f"key {number}"))[0] for number in range(KEYS)]
    before, fullest = 0, 0.0
    for size in sizes:
        provider.received.clear()
        provider.choose = truthful(Random(size), 0.8)
        budget = before + size  # for ever: what the rounds before used counts as well
        async with server(provider, database.path, OPUSMAX_BUDGETS=str(budget)) as running:
            outcomes = await ask_with_all(running.origin, texts, Random(size))
        assert spent(database) <= budget
        assert admitted(outcomes) == len(provider.messages()) >= size // HOLD
        fullest = max(fullest, (spent(database) - before) / size)
        before = spent(database)
    figure(
        "P3", f"{AT_ONCE} at once of {KEYS} keys on N shared tokens, {len(sizes)} times: at most {fullest:.1%} of N"
    )


async def test_kills_give_nothing_of_a_shared_budget_back(
    provider: Simulator, database: Database, tmp_path: Path, figure: Figure
) -> None:
    configuration = tmp_path / "opusmax.toml"
    configuration.write_text(UPSTREAM % provider.origin)
    configuration.chmod(0o600)
    texts = [(await database.create_key(f"key {number}"))[0] for number in range(KEYS)]
    environment = {"ONE_KEY": OPERATOR_CREDENTIAL}
    for number in range(ROUNDS):
        provider.choose = truthful(Random(number), 0.5)
        async with server(provider, database.path, "--config", str(configuration), **environment) as running:
            asking = asyncio.create_task(ask_with_all(running.origin, texts, Random(number)))
            await asyncio.sleep(Random(number).uniform(0.1, 0.6))
            await running.stop(signal.SIGKILL)
            await asking
        assert spent(database) <= 30 * HOLD
    figure("P3", f"{ROUNDS} kills under load on N tokens of one upstream: {spent(database) / (30 * HOLD):.1%} of N")
    assert database.query("SELECT DISTINCT upstream FROM request") == [("one",)]
