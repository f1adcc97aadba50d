"""One bill has one lid: budgets of the whole instance and of an upstream, over real sockets and restarts."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.core.amounts import HOUR_MS
from gateway.core.records import Key
from gateway.core.usage import Usage
from gateway.simulator import MODELS, Script, Simulator
from tests.harness import Database, ask, hold_of
from tests.upstream_tables import BUSY, asked, gateway, table

HOLD = hold_of(ask())
"""Of each request here, within a token or two: models have names of different lengths."""
CHARGE = 60
USED = Script(usage=Usage(input=CHARGE - 20, output=20))


@pytest.fixture
async def provider() -> AsyncIterator[Simulator]:
    """It takes any credential."""
    async with Simulator() as simulator:
        yield simulator


@pytest.fixture
async def keys(database: Database) -> tuple[str, str]:
    """Two keys without limits of their own."""
    return (await database.create_key("alice"))[0], (await database.create_key("bob"))[0]


def lid(tokens: int) -> str:
    return f'budgets = "{tokens}/1h"\n'


def charges(database: Database) -> list[tuple[str | None, int]]:
    """What each settled request was charged, and which upstream the ledger remembers."""
    return database.query(
        "SELECT upstream, input + output FROM request WHERE status = 200 ORDER BY started, sequence"
    )


async def test_all_keys_together_do_not_overshoot_the_budget_of_the_instance(
    provider: Simulator, database: Database, keys: tuple[str, str]
) -> None:
    provider.script = USED
    room = 5
    tables = [lid(room * (HOLD + 2)), table("a", provider.origin)]
    async with gateway(database, keys[0], *tables, a="a") as alice:
        bob = alice.with_key(keys[1])
        replies = await asyncio.gather(*(client.post() for client in (alice, bob) for _ in range(20)))
    statuses = [reply.status for reply in replies]
    assert statuses.count(200) >= room
    assert statuses.count(429) == len(statuses) - statuses.count(200)
    assert sum(charge for _, charge in charges(database)) <= room * (HOLD + 2)
    assert len(asked(provider)) == statuses.count(200)
    refused = next(reply for reply in replies if reply.status == 429)
    assert "for all keys together in 1h, and running requests hold" in refused.error["message"]
    assert int(refused.headers["retry-after"]) == 2


@pytest.mark.parametrize("protocol", ["anthropic", "openai"])
async def test_what_is_used_up_is_refused_like_a_keys_own_budget(
    provider: Simulator, database: Database, keys: tuple[str, str], protocol: str
) -> None:
    provider.script = Script(usage=Usage(input=900, output=100))
    tables = [table("a", provider.origin, protocol, budgets="1000/1h")]
    async with gateway(database, keys[0], *tables, a="a") as alice:
        assert (await alice.post(protocol)).status == 200
        refused = await alice.with_key(keys[1]).post(protocol)
    assert refused.status == 429
    assert refused.error["type"] == ("billing_error" if protocol == "anthropic" else "usage_limit_reached")
    assert refused.headers["x-should-retry"] == "false"
    assert refused.error["message"].startswith("Token budget for all keys at a used up: 1,000 of 1,000 in 1h. Room")
    assert len(asked(provider)) == 1
    assert database.query("SELECT name, refused_budget FROM key ORDER BY name") == [("alice", 0), ("bob", 1)]


async def test_an_upstream_without_a_budget_is_not_held_back_by_another_ones(
    provider: Simulator, database: Database, alice: tuple[str, Key]
) -> None:
    tables = [
        table("a", provider.origin, models=[MODELS[0]], budgets="1/1h"),
        table("b", provider.origin, models=[MODELS[1]]),
    ]
    async with gateway(database, alice[0], *tables, a="a", b="b") as client:
        assert await client.statuses(1, model=MODELS[0]) == [400]
        assert await client.statuses(3, model=MODELS[1]) == [200] * 3
    assert asked(provider) == ["b"] * 3
    assert [upstream for upstream, _ in charges(database)] == [None] * 3  # nobody needs to be remembered


async def test_a_key_that_is_refused_by_its_own_limit_leaves_the_shared_budget_as_it_was(
    provider: Simulator, database: Database
) -> None:
    provider.script = USED
    poor, _ = await database.create_key("poor", budgets=[(1, HOUR_MS)])
    rich, _ = await database.create_key("rich")
    tables = [lid(HOLD + 2), table("a", provider.origin)]
    async with gateway(database, poor, *tables, a="a") as client:
        assert await client.statuses(5, model=MODELS[0]) == [400] * 5
        assert (await client.with_key(rich).post()).status == 200


async def test_a_restart_gives_nothing_back(
    provider: Simulator, database: Database, alice: tuple[str, Key]
) -> None:
    provider.script = USED
    budget = HOLD + 2 + CHARGE
    tables = [lid(budget * 3), table("a", provider.origin, budgets=f"{budget}/1h")]
    for expected in ([200, 200], [429]):
        async with gateway(database, alice[0], *tables, a="a") as client:
            assert [(await client.post()).status for _ in expected] == expected
    assert charges(database) == [("a", CHARGE), ("a", CHARGE)]


async def test_a_budget_for_ever_counts_what_was_used_before_it_was_set(
    provider: Simulator, database: Database, alice: tuple[str, Key]
) -> None:
    budget = HOLD + 2
    provider.script = Script(usage=Usage(input=budget, output=0))
    async with gateway(database, alice[0], table("a", provider.origin), a="a") as client:
        assert (await client.post()).status == 200
    async with gateway(database, alice[0], f'budgets = "{budget}"\n', table("a", provider.origin), a="a") as client:
        refused = await client.post()
    text = (
        f"Token budget for all keys together used up: {budget} of {budget} in all. Ask the administrator for more."
    )
    assert refused.error["message"].startswith(text)
    assert "retry-after" not in refused.headers
    assert len(asked(provider)) == 1


async def test_a_request_that_moves_on_is_charged_where_it_was_answered(
    provider: Simulator, database: Database, alice: tuple[str, Key], dead_origin: str
) -> None:
    provider.script = USED
    budgets: dict[str, Any] = {"budgets": f"{HOLD + 2}/1h"}
    tables = [table("a", dead_origin, **budgets), table("b", provider.origin, **budgets)]
    async with gateway(database, alice[0], *tables, a="a", b="b") as client:
        assert (await client.post()).status == 200
    assert charges(database) == [("b", CHARGE)]


async def test_a_request_does_not_move_on_to_an_upstream_whose_budget_has_no_room(
    provider: Simulator, database: Database, alice: tuple[str, Key]
) -> None:
    provider.when(BUSY, credential="first")
    tables = [
        table("first", provider.origin),
        table("second", provider.origin, budgets="1/1h"),
        table("third", provider.origin),
    ]
    credentials = {"first": "first", "second": "second", "third": "third"}
    async with gateway(database, alice[0], *tables, **credentials) as client:
        assert (await client.post()).status == 200
    assert asked(provider) == ["first", "third"]
