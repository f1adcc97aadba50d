"""The usage page's figures against the provider's own record, to the token, over a mixed run."""

import asyncio
import itertools
from contextlib import suppress
from random import Random

import aiohttp

from gateway.core.records import Key
from gateway.core.usage import NO_USAGE, Usage
from gateway.simulator import Script, Simulator
from tests.harness import Database, ask, until

REQUESTS = 200
AT_ONCE = 20
MAX_TOKENS = 100


class Scripts:
    """Plain and cached answers, errors, breaks, and slow streams. Each reports an input of its own, so that the
    provider's record and the ledger's row can be laid side by side."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._inputs = itertools.count(1_000)

    def next(self) -> Script:
        random = self._random
        usage = Usage(
            input=next(self._inputs),
            output=random.randrange(1, MAX_TOKENS),
            cache_write=random.choice([0, random.randrange(3_000)]),
            cache_read=random.choice([0, random.randrange(90_000)]),
        )
        match random.randrange(10):
            case 0 | 1:
                return Script(status=random.choice([400, 404, 429, 500, 529]))
            case 2:
                return Script(usage=usage, cut_after_events=random.randrange(1, 9))
            case 3:
                return Script(usage=usage, error_event_after_events=random.randrange(1, 9))
            case 4 | 5:
                return Script(usage=usage, events=20, pause_seconds=0.01)
            case _:
                return Script(usage=usage)


async def use(http: aiohttp.ClientSession, key: str, *, leaves: bool, stream: bool) -> None:
    """One request; some clients leave in the middle of the answer."""
    body = ask(stream=stream, max_tokens=MAX_TOKENS)
    with suppress(aiohttp.ClientError):
        async with http.post("/v1/messages", json=body, headers={"x-api-key": key}) as answer:
            if leaves:
                await answer.content.readany()
                answer.close()
            else:
                await answer.read()


async def run_mixed(http: aiohttp.ClientSession, provider: Simulator, key: str) -> None:
    random = Random(20)
    scripts = Scripts(random)
    provider.choose = lambda received: scripts.next() if received.is_message else None
    gate = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with gate:
            await use(http, key, leaves=random.random() < 0.2, stream=random.random() < 0.7)

    await asyncio.gather(*(one() for _ in range(REQUESTS)))


def total(usages: list[Usage]) -> dict[str, int]:
    return {
        "total_input": sum(usage.input for usage in usages),
        "total_output": sum(usage.output for usage in usages),
        "total_cache_write": sum(usage.cache_write for usage in usages),
        "total_cache_read": sum(usage.cache_read for usage in usages),
        "total_charge": sum(usage.charge for usage in usages),
        "total_requests": len(usages),
    }


async def test_all_figures_agree_with_the_providers_own_record(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: tuple[str, Key]
) -> None:
    text, key = alice
    await run_mixed(http, provider, text)
    await until(lambda: sum(row.status is not None for row in database.rows(key)) == REQUESTS)
    for received in provider.messages():
        await received.ended.wait()

    reported = {entry.reported.input: entry.reported for entry in provider.messages() if entry.reported != NO_USAGE}
    charged = [row for row in database.rows(key) if row.usage != NO_USAGE]
    broken = [row for row in charged if row.estimated]
    assert len(charged) == len(reported)
    assert REQUESTS // 10 < len(broken) < REQUESTS // 2
    for row in charged:
        truth = reported[row.usage.input]
        if row.estimated:  # input and caches are the provider's; output is at least what it had said so far
            assert (row.usage.cache_write, row.usage.cache_read) == (truth.cache_write, truth.cache_read)
            assert truth.output <= row.usage.output <= MAX_TOKENS
        else:
            assert row.usage == truth

    async with http.get("/usage.json", headers={"x-api-key": text}) as answer:
        page = await answer.json()
    shown = {name: value for name, value in page["key"].items() if name.startswith("total_")}
    beyond = sum(row.usage.output - reported[row.usage.input].output for row in broken)
    expected = total(list(reported.values()) + [NO_USAGE] * (REQUESTS - len(reported)))
    expected["total_output"] += beyond
    expected["total_charge"] += beyond
    assert shown == expected
