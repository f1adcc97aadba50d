"""P8: what the command line changes is in force within a second, on a server that is busy with other keys.

Each change is seen by its effect on requests of the key, and that effect must not be there before.
"""

import asyncio
import json
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from gateway.simulator import MODELS, Script, Simulator
from gateway.simulator.sending import Received
from prove.conftest import Figure
from prove.load import Outcome, call, client, held_data
from tests.harness import Database, ask
from tests.test_server_process import run, server

IN_FORCE_WITHIN_SECONDS = 1.0
GIVE_UP_SECONDS = 10.0
ROUNDS = 5
CHANGES = 100
BUSY_CLIENTS = 24
"""Of other keys, each with its next request as soon as the last is answered: they fill the server's processor."""
BUSY_STREAMS = 10
LONG_MODEL = MODELS[1]
"""Its streams outlast any change."""
PAUSE_SECONDS = 0.005

Effect = Callable[[], Awaitable[bool]]


def answers(received: Received) -> Script | None:
    if b'"stream": true' not in received.body:
        return None
    if LONG_MODEL.encode() in received.body:
        return Script(stall_after_events=1)
    return Script(events=50, output_tokens=50, pause_seconds=0.02)


class Others:
    """Keys that nobody changes, and what their requests meet."""

    def __init__(self, http: aiohttp.ClientSession, keys: list[str]) -> None:
        self.plain: Counter[int | None] = Counter()
        self.streams: Counter[bool] = Counter()
        self._http = http
        self._keys = keys
        self._is_done = False

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """As long as the block lasts; then the last answers are waited for."""
        tasks = [asyncio.create_task(self._ask(self._keys[n % len(self._keys)])) for n in range(BUSY_CLIENTS)]
        tasks += [asyncio.create_task(self._stream(self._keys[n % len(self._keys)])) for n in range(BUSY_STREAMS)]
        try:
            yield
        finally:
            self._is_done = True
            await asyncio.gather(*tasks)

    async def _ask(self, key: str) -> None:
        while not self._is_done:
            outcome = await call(self._http, key, ask(), Outcome())
            self.plain[outcome.status if outcome.is_whole or outcome.status != 200 else None] += 1

    async def _stream(self, key: str) -> None:
        while not self._is_done:
            outcome = await call(self._http, key, ask(stream=True), Outcome())
            self.streams[outcome.is_whole and outcome.has_ended] += 1


class Subject:
    """The key that is changed: commands on it, and what its requests meet."""

    def __init__(self, origin: str, http: aiohttp.ClientSession, database: Path, name: str) -> None:
        self.waits: list[tuple[float, str]] = []
        """Seconds from each command's end to its effect."""
        self._origin = origin
        self._http = http
        self._database = database
        self._name = name
        self._key = ""

    async def live(self) -> None:
        """All that can be done to a key, from its making to its end: twenty changes."""
        await self._make()
        await self._change(self._has_header("requests-limit", "12345"), "edit", "--requests-per-minute", "12345")
        await self._change(self._has_header("requests-limit", None), "edit", "--requests-per-minute", "none")
        await self._change(self._has_header("tokens-limit", "700000"), "edit", "--tokens-per-minute", "700k")
        await self._change(self._has_header("tokens-limit", None), "edit", "--tokens-per-minute", "none")
        await self._change(self._meets(400), "edit", "--budget", "50/1h")
        await self._overdraw()
        await self._change(
            self._meets(403), "edit", "--model", "other-*", "--budget", "none", "--overdraft", "none"
        )
        await self._change(self._meets(200), "edit", "--model", "none")
        await self._narrow()
        await self._expire()
        await self._change(self._meets(200), "edit", "--expires", "none")
        await self._change(self._meets(401), "disable")
        await self._change(self._meets(200), "enable")
        await self._rename(f"{self._name}-renamed")
        await self._replace_key()
        await self._replace_key("--grace", "1h")
        await self._change(self._meets(401), "delete", "--yes")

    async def _make(self) -> None:
        self._key = str((await self._command("create"))["key"])
        await self._note(self._meets(200), "create", time.time())

    async def _overdraw(self) -> None:
        """A budget in which no request fits any more; then one that may be overdrawn."""
        used = (await held_data(self._origin, self._key))["key"]["total_charge"]
        await self._change(self._meets(429), "edit", "--budget", f"{used + 50}/1h")
        await self._change(self._meets(200), "edit", "--overdraft", "10k")

    async def _narrow(self) -> None:
        """One request at once, while one is running; then as many as come."""
        running = asyncio.create_task(call(self._http, self._key, ask(model=LONG_MODEL, stream=True), Outcome()))
        await asyncio.sleep(0.1)
        await self._change(self._meets(429), "edit", "--concurrency", "1")
        await self._change(self._meets(200), "edit", "--concurrency", "none")
        running.cancel()
        await asyncio.wait([running])

    async def _expire(self) -> None:
        assert await self._meets(200)()
        answer = await self._command("edit", "--expires", "1s")
        await self._note(self._meets(401), "edit --expires", max(time.time(), answer["expires"] / 1_000))

    async def _rename(self, name: str) -> None:
        await self._change(self._is_told("name", name), "rename", name)
        self._name = name

    async def _replace_key(self, *options: str) -> None:
        old = self._key
        self._key = str((await self._command("rotate", *options))["key"])
        ended = time.time()
        await self._note(self._meets(200), "rotate", ended)
        status_of_old = (await call(self._http, old, ask(), Outcome())).status
        assert status_of_old == (200 if options else 401)

    def _meets(self, status: int) -> Effect:
        async def effect() -> bool:
            return (await call(self._http, self._key, ask(), Outcome())).status == status

        return effect

    def _has_header(self, name: str, value: str | None) -> Effect:
        async def effect() -> bool:
            outcome = await call(self._http, self._key, ask(), Outcome())
            return outcome.status == 200 and outcome.headers.get(f"anthropic-ratelimit-{name}") == value

        return effect

    def _is_told(self, column: str, value: object) -> Effect:
        async def effect() -> bool:
            return bool((await held_data(self._origin, self._key))["key"][column] == value)

        return effect

    async def _change(self, effect: Effect, *command: str) -> None:
        assert not await effect(), f"{command}: its effect was there before"
        await self._command(*command)
        await self._note(effect, " ".join(command), time.time())

    async def _command(self, command: str, *options: str) -> dict[str, Any]:
        code, output, errors = await run("key", command, self._name, *options, "--json", database=self._database)
        assert code == 0, errors
        answer: dict[str, Any] = json.loads(output)
        return answer

    async def _note(self, effect: Effect, command: str, since: float) -> None:
        async with asyncio.timeout(GIVE_UP_SECONDS):
            while not await effect():
                await asyncio.sleep(PAUSE_SECONDS)
        self.waits.append((time.time() - since, command))


async def test_every_change_is_in_force_within_a_second_on_a_busy_server(
    provider: Simulator, database: Database, figure: Figure
) -> None:
    provider.choose = answers
    keys = [(await database.create_key(f"other-{number}"))[0] for number in range(8)]
    waits: list[tuple[float, str]] = []
    async with server(provider, database.path) as running, client(running.origin) as http:
        others = Others(http, keys)
        began = time.monotonic()
        async with others.asking():
            for number in range(ROUNDS):
                subject = Subject(running.origin, http, database.path, f"subject-{number}")
                await subject.live()
                waits += subject.waits
        per_second = (others.plain.total() + others.streams.total()) / (time.monotonic() - began)
    seconds = [wait for wait, _ in waits]
    figure(
        "P8",
        f"in force within a second: {sum(wait <= IN_FORCE_WITHIN_SECONDS for wait in seconds)} of {len(seconds)};"
        f" longest {max(seconds):.2f} s, median {statistics.median(seconds):.2f} s; meanwhile"
        f" {per_second:,.0f} requests/s of others: {others.plain.total():,} plain and {others.streams.total():,}"
        f" streams, {others.plain.total() - others.plain[200] + others.streams[False]} failed",
    )
    assert len(waits) == CHANGES
    assert [wait for wait in waits if wait[0] > IN_FORCE_WITHIN_SECONDS] == []
    assert set(others.plain) == {200}
    assert set(others.streams) == {True}
