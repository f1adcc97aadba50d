"""What the tests of the running gateway share: the real application on a free port, over a real database."""

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import argon2

from gateway import database, keystore, server
from gateway.core import keys
from gateway.core.estimate import BYTES_PER_TOKEN
from gateway.core.keys import ApiKey
from gateway.core.records import Budget, Key, Secret
from gateway.core.settings import Settings
from gateway.core.usage import Usage
from gateway.credentials import open_upstreams
from gateway.hashing import hash_secret
from gateway.simulator import MODELS

OPERATOR_CREDENTIAL = "the-operators-own-credential"
CREDENTIALS = {"ANTHROPIC_API_KEY": OPERATOR_CREDENTIAL}
ALL_CREDENTIALS = CREDENTIALS | {"OPENAI_API_KEY": OPERATOR_CREDENTIAL}
MODEL = MODELS[0]
FAST_HASHER = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
"""The cheapest there is: the tests are not about guessing."""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def ask(**fields: Any) -> dict[str, Any]:
    """A small request body."""
    return {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": "Hello there"}]} | fields


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition()` holds, at most some seconds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def hold_of(body: dict[str, Any]) -> int:
    """What the gateway holds for a body without pictures: a third of its bytes, and max_tokens."""
    return -(-len(json.dumps(body).encode()) // BYTES_PER_TOKEN) + int(body["max_tokens"])


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the ledger, as tests look at it."""

    model: str
    status: int | None
    latency_ms: int | None
    usage: Usage
    estimated: bool


class Database:
    """The database file as another process would use it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def create_key(self, name: str = "alice", **limits: Any) -> tuple[str, Key]:
        """A new key: its text, and its record. `budgets` are (tokens, window_ms); `hasher` is a cheap one."""
        hasher = limits.pop("hasher", FAST_HASHER)
        api_key = keys.mint()
        budgets = tuple(Budget(tokens=tokens, window_ms=window) for tokens, window in limits.pop("budgets", ()))
        key = Key(row=keystore.new_key_row(), name=name, created=now_ms(), budgets=budgets, **limits)
        async with database.connect(self.path) as connection:
            await keystore.add_key(connection, key, secret_of(key, api_key, hasher))
        return api_key.text, key

    async def edit_key(self, key: Key, **changes: Any) -> None:
        async with database.connect(self.path) as connection:
            await keystore.edit_key(connection, key.row, changes)

    def rows(self, key: Key) -> list[Row]:
        """The ledger of a key, oldest first."""
        return [
            Row(model, status, latency, Usage(input=i, output=o, cache_write=w, cache_read=r), bool(estimated))
            for model, status, latency, i, o, w, r, estimated in self.query(
                "SELECT model, status, latency, input, output, cache_write, cache_read, estimated"
                " FROM request WHERE key = ? ORDER BY started, sequence",
                key.row,
            )
        ]

    def query(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(sql, parameters).fetchall()


def secret_of(key: Key, api_key: ApiKey, hasher: argon2.PasswordHasher = FAST_HASHER) -> Secret:
    return Secret(
        key=key.row,
        key_id=api_key.key_id,
        prefix=api_key.prefix,
        hash=hash_secret(api_key.secret, hasher),
        created=key.created,
    )


class Provider(Protocol):
    """Whoever answers at an origin."""

    @property
    def origin(self) -> str: ...


@asynccontextmanager
async def serving(
    provider: Provider, path: Path, credentials: Mapping[str, str] = CREDENTIALS, **settings: Any
) -> AsyncIterator[str]:
    """A gateway in front of `provider`, which it has `credentials` for; gives its origin."""
    places = {"anthropic_url": provider.origin, "openai_url": provider.origin, "listen": "127.0.0.1:0"}
    loaded = Settings.load({"database": str(path)} | places | settings, {})
    async with server.listening(loaded, open_upstreams(loaded, credentials)) as origin:
        yield origin
