"""Gateways in front of upstreams that an `opusmax.toml` names, and what their clients got."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from gateway import server
from gateway.core.settings import Settings
from gateway.credentials import open_upstreams
from gateway.simulator import MODELS, Script, Simulator
from tests.harness import Database, ask

OPENAI_MODEL = "gpt-5.6"
PATHS = {"anthropic": "/v1/messages", "openai": "/v1/chat/completions"}
BUSY = Script(status=429, retry_after_seconds=30)


def table(name: str, url: str, protocol: str = "anthropic", **fields: object) -> str:
    """An upstream whose credentials are in the variable of its name."""
    headers = fields.pop("headers", {})
    values = {"name": name, "protocol": protocol, "url": url, "credentials": f"{name.upper()}_KEY"} | fields
    lines = [f"{field} = {json.dumps(value)}" for field, value in values.items()]
    assert isinstance(headers, dict)
    inline = ", ".join(f"{json.dumps(header)} = {json.dumps(value)}" for header, value in headers.items())
    return "\n".join(["[[upstream]]", *lines, f"headers = {{ {inline} }}", ""])


@dataclass(frozen=True, slots=True)
class Reply:
    """What the client got."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        error = json.loads(self.body)["error"]
        assert isinstance(error, dict)
        return error


class Client:
    """A client with a key."""

    def __init__(self, session: aiohttp.ClientSession, key: str) -> None:
        self._session = session
        self._key = key

    async def post(self, protocol: str = "anthropic", body: bytes | None = None, **headers: str) -> Reply:
        """One call; `headers` are written with `_` for `-`."""
        model = MODELS[0] if protocol == "anthropic" else OPENAI_MODEL
        data = json.dumps(ask(model=model)).encode() if body is None else body
        sent = {"authorization": f"Bearer {self._key}", "content-type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        async with self._session.post(PATHS[protocol], data=data, headers=sent) as answer:
            lower = {name.lower(): value for name, value in answer.headers.items()}
            return Reply(answer.status, lower, await answer.read())

    def with_key(self, key: str) -> "Client":
        """Another client of the same gateway."""
        return Client(self._session, key)

    async def statuses(self, count: int, protocol: str = "anthropic", **fields: Any) -> list[int]:
        """Of so many calls, one after the other."""
        body = json.dumps(ask(**fields)).encode() if fields else None
        return [(await self.post(protocol, body)).status for _ in range(count)]


@asynccontextmanager
async def gateway(database: Database, key: str, *tables: str, **credentials: str) -> AsyncIterator[Client]:
    """A gateway in front of these upstreams; `a="a1,a2"`: the credentials of the one called `a`."""
    settings = Settings.load({"database": str(database.path), "listen": "127.0.0.1:0"}, {}, "".join(tables))
    environment = {f"{name.upper()}_KEY": value for name, value in credentials.items()}
    async with (
        server.listening(settings, open_upstreams(settings, environment)) as origin,
        aiohttp.ClientSession(origin) as session,
    ):
        yield Client(session, key)


def asked(provider: Simulator) -> list[str | None]:
    """The credentials of the metered calls, in order."""
    return [received.credential for received in provider.messages()]
