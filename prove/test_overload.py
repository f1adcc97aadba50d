"""Overload: whoever floods the server, others are served, its memory is bounded, and bad sockets are closed.

The attackers run in a process of their own. What a good client waits is compared within one run: before and during.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.hashing import HASHER
from gateway.simulator import Script, Simulator
from gateway.simulator.sending import Received
from prove.conftest import Figure
from prove.load import client
from tests.harness import Database, ask
from tests.test_server_process import Server, server

LANES = 4
PAUSE_SECONDS = 0.01
BEFORE_SECONDS = 10.0
SLOWER_AT_MOST = 2.0
"""The promise: the 99th percentile of a good client's waits at most doubles."""
MEBIBYTE = 2**20
MEMORY_BYTES = 256 * MEBIBYTE
MAX_LOG_BYTES = 10_000


@dataclass(frozen=True, slots=True)
class Attack:
    """One kind, and what has to come of it."""

    kind: str
    answers: frozenset[str]
    closed_within_seconds: float
    growth_bytes: int
    """How much the server may grow."""


ATTACKS = [
    Attack("wrong_keys", frozenset({"401", "429"}), 10, 100 * MEBIBYTE),
    Attack("slow_senders", frozenset({"none", "408"}), 30, 100 * MEBIBYTE),
    Attack("slow_readers", frozenset({"cut"}), 75, 500 * 2 * MEBIBYTE),
    Attack("uploads", frozenset({"200", "503"}), 60, 2 * MEMORY_BYTES),
    Attack("packed_bodies", frozenset({"415"}), 10, 20 * MEBIBYTE),
    Attack("large_heads", frozenset({"431"}), 10, 100 * MEBIBYTE),
    Attack("holders", frozenset(), 30, 100 * MEBIBYTE),
]


def long_streams(received: Received) -> Script | None:
    """Attackers that ask for a stream get one that fills the buffers on its way."""
    return Script(long_data_line_bytes=3_000_000) if b'"stream": true' in received.body else None


@dataclass(slots=True)
class Good:
    """A good client: small requests on a few connections."""

    origin: str
    key: str

    async def waits(self, seconds: float) -> list[float]:
        """How long each request took, sorted. Each of them must be answered."""
        until = time.monotonic() + seconds
        async with client(self.origin) as http:
            lanes = await asyncio.gather(*(self._lane(http, until) for _ in range(LANES)))
        return sorted(wait for lane in lanes for wait in lane)

    async def _lane(self, http: aiohttp.ClientSession, until: float) -> list[float]:
        waits = []
        while time.monotonic() < until:
            started = time.monotonic()
            async with http.post("/v1/messages", json=ask(), headers={"x-api-key": self.key}) as answer:
                await answer.read()
                assert answer.status == 200
            waits.append(time.monotonic() - started)
            await asyncio.sleep(PAUSE_SECONDS)
        return waits


@asynccontextmanager
async def attacking(kind: str, origin: str, key: str) -> AsyncIterator[asyncio.Task[dict[str, Any]]]:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "prove.attackers", kind, origin.rpartition(":")[2]),
        cwd=Path(__file__).parent.parent,
        env={"ATTACK_KEY": key, "PATH": os.environ["PATH"]},
        stdout=asyncio.subprocess.PIPE,
    )

    async def result() -> dict[str, Any]:
        stdout, _ = await child.communicate()
        outcome: dict[str, Any] = json.loads(stdout)
        return outcome

    task = asyncio.create_task(result())
    try:
        yield task
    finally:
        if child.returncode is None:
            child.kill()
        await asyncio.gather(task, return_exceptions=True)


def memory_bytes(running: Server) -> int:
    status = Path(f"/proc/{running.process.pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


async def most_memory(running: Server, during: asyncio.Task[dict[str, Any]]) -> int:
    most = 0
    while not during.done():
        most = max(most, memory_bytes(running))
        await asyncio.sleep(0.1)
    return most


def late(waits: list[float]) -> float:
    """The 99th percentile."""
    return waits[len(waits) * 99 // 100]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.kind)
async def test_good_clients_are_served_while_others_flood_the_server(
    attack: Attack, provider: Simulator, database: Database, figure: Figure
) -> None:
    provider.choose = long_streams
    good_key, _ = await database.create_key("good")
    bad_key, _ = await database.create_key("bad", hasher=HASHER)
    limits = {"OPUSMAX_MAX_CONNECTIONS": "500"} if attack.kind == "holders" else {}
    async with server(provider, database.path, **limits) as running:
        good = Good(running.origin, good_key)
        await good.waits(1)
        before = await good.waits(BEFORE_SECONDS)
        started_with = memory_bytes(running)
        async with attacking(attack.kind, running.origin, bad_key) as outcome:
            memory = asyncio.create_task(most_memory(running, outcome))
            during = await waits_during(good, outcome)
            result, grown = await outcome, await memory - started_with
        after = await good.waits(1)
        await running.stop()
    figure(
        "P9",
        f"{attack.kind}: {result['connections']} connections, answers {result['answers']}, all closed after"
        f" {result['seconds']:.1f} s; good client's p99 {1000 * late(before):.1f} -> {1000 * late(during):.1f} ms"
        f" ({len(during)} requests, 0 failed), memory +{grown / MEBIBYTE:.0f} MiB, log {len(running.errors)} bytes",
    )
    assert after
    assert result["answers"].keys() <= attack.answers
    assert result["seconds"] <= attack.closed_within_seconds
    assert grown <= attack.growth_bytes
    assert len(running.errors) <= MAX_LOG_BYTES
    assert late(during) <= SLOWER_AT_MOST * late(before)


async def waits_during(good: Good, outcome: asyncio.Task[dict[str, Any]]) -> list[float]:
    waits: list[float] = []
    while not outcome.done():
        waits += await good.waits(0.5)
    return sorted(waits)
