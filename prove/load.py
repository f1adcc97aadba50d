"""What the proofs share: requests to a running gateway, and what became of each for its client."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from gateway.core.records import Key
from tests.harness import Database

TERMINAL_EVENT = b'"message_stop"'
CHARGE = "input + output + cache_write + (cache_read + 9) / 10"
"""What a row of the ledger counts, written down a second time on purpose."""


@dataclass(slots=True)
class Outcome:
    """What a client saw of one request."""

    status: int | None = None
    """`None`: the connection broke before a head came."""
    headers: Mapping[str, str] = field(default_factory=dict)
    arrived: bytearray = field(default_factory=bytearray)
    has_ended: bool = False
    """The answer came to a proper end."""

    @property
    def is_whole(self) -> bool:
        """The client has all that it asked for. Whoever reads a stream stops at its terminal event."""
        return self.status == 200 and (self.has_ended or TERMINAL_EVENT in self.arrived)

    @property
    def is_broken(self) -> bool:
        """A head came, and then no proper end."""
        return self.status is not None and not self.has_ended

    @property
    def retry_after(self) -> int:
        return int(self.headers["retry-after"])

    @property
    def text(self) -> str:
        return self.arrived.decode()


async def call(http: aiohttp.ClientSession, key: str, body: Mapping[str, Any], outcome: Outcome) -> Outcome:
    """One request, noted in `outcome` as it goes. A connection that breaks is an outcome too."""
    try:
        async with http.post("/v1/messages", json=body, headers={"x-api-key": key}) as answer:
            outcome.status = answer.status
            outcome.headers = {name.lower(): value for name, value in answer.headers.items()}
            async for chunk in answer.content.iter_any():
                outcome.arrived += chunk
            outcome.has_ended = True
    except (aiohttp.ClientError, ConnectionError):
        pass
    return outcome


def client(origin: str) -> aiohttp.ClientSession:
    """A client with as many connections as it has requests."""
    return aiohttp.ClientSession(origin, connector=aiohttp.TCPConnector(limit=0))


async def call_all(origin: str, key: str, bodies: Iterable[Mapping[str, Any]]) -> list[Outcome]:
    """All at once, each on a connection of its own."""
    async with client(origin) as http:
        return await asyncio.gather(*(call(http, key, body, Outcome()) for body in bodies))


async def held_data(origin: str, key: str) -> dict[str, Any]:
    """`GET /usage.json`."""
    async with client(origin) as http, http.get("/usage.json", headers={"x-api-key": key}) as answer:
        assert answer.status == 200
        data: dict[str, Any] = await answer.json()
        return data


async def usage_page(origin: str, key: str) -> str:
    """The Check Usage page of a key, as HTML."""
    async with client(origin) as http, http.post("/usage", data={"key": key}) as answer:
        assert answer.status == 200
        return await answer.text()


def charged(database: Database, key: Key) -> int:
    """What the ledger has charged to a key in all."""
    [(charge,)] = database.query(f"SELECT ifnull(sum({CHARGE}), 0) FROM request WHERE key = ?", key.row)
    return int(charge)
