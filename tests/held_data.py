"""Keys and requests put straight into a database, for the tests of reports and pages."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import aiosqlite
from aiohttp import web

from gateway.core.errors import InvalidKey, LimitExceeded
from gateway.core.keys import ApiKey, mint
from gateway.core.prices import Prices
from gateway.core.records import Key, KeyRow
from gateway.core.status import LimitsStatus
from gateway.pages import Pages

NOW = 1_790_000_000_000
"""2026-09-21 14:13:20 UTC."""

NO_LIMITS = LimitsStatus(budgets=(), requests=None, tokens=None, running=0, concurrency=None)

Columns = Mapping[str, int | str | None]

REQUEST: Columns = {
    "started": NOW,
    "sequence": 0,
    "model": "claude-x",
    "status": 200,
    "latency": 840,
    "input": 100,
    "output": 50,
    "cache_write": 20,
    "cache_read": 1_001,
    "estimated": 0,
    "upstream": None,
}


async def insert(connection: aiosqlite.Connection, table: str, values: Columns) -> None:
    columns, places = ", ".join(values), ", ".join("?" * len(values))
    await connection.execute(f"INSERT INTO {table} ({columns}) VALUES ({places})", tuple(values.values()))


async def add_key(
    connection: aiosqlite.Connection, row: int, name: str, **columns: int | str | None
) -> tuple[KeyRow, ApiKey]:
    """A key with one secret, whose hash is none."""
    api_key = mint()
    await insert(connection, "key", {"id": row, "name": name, "created": NOW, **columns})
    secret: Columns = {
        "key_id": api_key.key_id,
        "key": row,
        "prefix": api_key.prefix,
        "hash": "HASH-OF-IT",
        "created": NOW,
    }
    await insert(connection, "secret", secret)
    return KeyRow(row), api_key


async def add_request(connection: aiosqlite.Connection, key: KeyRow, **columns: int | str | None) -> None:
    """As the ledger does it: opened, then settled, unless its status is `None`."""
    values = {"key": key, **REQUEST, **columns}
    await insert(connection, "request", {**values, "status": None})
    await connection.execute(
        "UPDATE request SET status = ? WHERE key = ? AND started = ? AND sequence = ?",
        (values["status"], key, values["started"], values["sequence"]),
    )


async def live_columns(connection: aiosqlite.Connection, table: str) -> list[str]:
    rows = await connection.execute_fetchall("SELECT name FROM pragma_table_info(?)", (table,))
    return [row[0] for row in rows]


@dataclass
class Site:
    """The pages over a real database; its clock stands until a test turns it."""

    connection: aiosqlite.Connection
    public_url: str = ""
    contact: str = ""
    service_name: str = "OpusMax"
    prices: Prices = ()
    now_ms: int = NOW
    is_busy: bool = False
    """Checking too many keys to check one more."""
    keys: dict[str, Key] = field(default_factory=dict)
    limits: dict[KeyRow, LimitsStatus] = field(default_factory=dict)

    def application(self) -> web.Application:
        pages = Pages(
            settings=self,
            reader=self.connection,
            authenticate=self.authenticate,
            limits_status=lambda key: self.limits.get(key, NO_LIMITS),
            now_ms=lambda: self.now_ms,
        )
        application = web.Application()
        for path, handlers in pages.routes().items():
            for method, handler in handlers.items():
                application.router.add_route(method, path, handler)
        return application

    async def authenticate(self, text: str) -> Key:
        if self.is_busy:
            raise LimitExceeded("Too many keys just now.", retry_after_seconds=2)
        if text not in self.keys:
            raise InvalidKey("This API key is not known here.")
        return self.keys[text]

    async def add_key(self, row: int, name: str, **columns: int | str | None) -> tuple[KeyRow, str]:
        """A key that the pages know; returns its row and what its holder types."""
        key, api_key = await add_key(self.connection, row, name, **columns)
        self.keys[api_key.text] = Key(row=key, name=name, created=NOW)
        return key, api_key.text
