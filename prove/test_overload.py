"""Overload: whoever floods the server, others are served, its memory is bounded, and bad sockets are closed.

The attackers run in a process of their own. What a good client waits is compared within one run: before and during.
"""

import asyncio
import json
import os
import re
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
from prove.conftest import Figure
from prove.load import client
from tests.harness import Database, ask
from tests.raw_provider import OK, RawProvider
from tests.test_server_process import server

LANES = 4
GOOD_DESCRIPTORS = 4 * LANES
"""Twice what the good client takes: a connection on each side for each lane."""
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
    Attack("wrong_keys", frozenset({"401", "429"}), 40, 100 * MEBIBYTE),
    Attack("slow_senders", frozenset({"none", "408"}), 30, 100 * MEBIBYTE),
    Attack("slow_readers", frozenset({"cut", "open"}), 75, 500 * MEBIBYTE // 2),
    Attack("uploads", frozenset({"200", "503", "none"}), 60, 2 * MEMORY_BYTES),  # who sends on may miss its answer
    Attack("packed_bodies", frozenset({"415"}), 20, 20 * MEBIBYTE),
    Attack("large_heads", frozenset({"431"}), 20, 100 * MEBIBYTE),
    Attack("holders", frozenset(), 40, 100 * MEBIBYTE),
]


MESSAGE = b'{"type": "message", "content": [], "usage": {"input_tokens": 9, "output_tokens": 5}}'
EVENT = b'event: ping\ndata: {"type": "ping", "filler": "%b"}\n\n' % (b"x" * 2_000)
EVENTS = 1_500
"""Of a stream: more than all buffers on its way hold."""


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A provider that makes nothing of what it is sent, so that it is never what others wait for."""
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = re.search(rb"content-length: (\d+)", head)
        missing = int(length[1]) if length else 0
        start = await reader.readexactly(min(missing, 1_000))
        missing -= len(start)
        while missing:
            missing -= len(await reader.read(min(missing, 2**20)))
        if b'"stream": true' in start:
            writer.write(OK + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            for _ in range(EVENTS):
                writer.write(b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
        else:
            writer.write(OK + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(MESSAGE))
            writer.write(MESSAGE)


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


@dataclass(slots=True)
class Watch:
    """The server's process under attack, as the system sees it. Needs root, since the server hides itself."""

    process_id: int
    most_bytes: int = 0
    bad_sockets_until: float = 0.0
    """Seconds from the start until the server was rid of all connections that were none of the good client's."""

    async def follow(self, during: asyncio.Task[dict[str, Any]]) -> None:
        start, least = time.monotonic(), self.descriptors()
        while not during.done():
            self.most_bytes = max(self.most_bytes, self.memory_bytes())
            if self.descriptors() > least + GOOD_DESCRIPTORS:
                self.bad_sockets_until = time.monotonic() - start
            await asyncio.sleep(0.1)

    def memory_bytes(self) -> int:
        status = Path(f"/proc/{self.process_id}/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process_id}/fd").iterdir()))


def late(waits: list[float]) -> float:
    """The 99th percentile."""
    return waits[len(waits) * 99 // 100]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.kind)
async def test_good_clients_are_served_while_others_flood_the_server(
    attack: Attack, database: Database, figure: Figure
) -> None:
    good_key, _ = await database.create_key("good")
    bad_key, _ = await database.create_key("bad", hasher=HASHER)
    limits = {"OPUSMAX_MAX_CONNECTIONS": "500"} if attack.kind == "holders" else {}
    async with RawProvider(answer) as provider, server(provider, database.path, **limits) as running:
        good = Good(running.origin, good_key)
        await good.waits(1)
        before = await good.waits(BEFORE_SECONDS)
        watch = Watch(running.process.pid)
        started_with = watch.memory_bytes()
        async with attacking(attack.kind, running.origin, bad_key) as outcome:
            watching = asyncio.create_task(watch.follow(outcome))
            during = await waits_during(good, outcome)
            await watching
            result, grown = await outcome, watch.most_bytes - started_with
        after = await good.waits(1)
        await running.stop()
    figure(
        "P9",
        f"{attack.kind}: {result['connections']} connections, answers {result['answers']}, rid of them after"
        f" {watch.bad_sockets_until:.1f} s; good client's p99 {1000 * late(before):.1f} ->"
        f" {1000 * late(during):.1f} ms ({len(during)} requests, 0 failed), memory +{grown / MEBIBYTE:.0f} MiB,"
        f" log {len(running.errors)} bytes",
    )
    assert after
    assert result["answers"].keys() <= attack.answers
    assert watch.bad_sockets_until <= attack.closed_within_seconds
    assert grown <= attack.growth_bytes
    assert len(running.errors) <= MAX_LOG_BYTES
    assert late(during) <= SLOWER_AT_MOST * late(before)


async def waits_during(good: Good, outcome: asyncio.Task[dict[str, Any]]) -> list[float]:
    waits: list[float] = []
    while not outcome.done():
        waits += await good.waits(0.5)
    return sorted(waits)
