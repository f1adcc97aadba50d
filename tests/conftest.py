"""Fixtures: the simulated provider, a database, and the gateway between them."""

import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from gateway.core.records import Key
from gateway.simulator import Simulator
from tests.harness import OPERATOR_CREDENTIAL, Database, serving


@pytest.fixture
async def provider() -> AsyncIterator[Simulator]:
    """The upstream; it accepts the operator's credential only."""
    async with Simulator(credentials={OPERATOR_CREDENTIAL}) as simulator:
        yield simulator


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "opusmax.db")


@pytest.fixture
async def alice(database: Database) -> tuple[str, Key]:
    """A key without limits: its text and its record."""
    return await database.create_key("alice")


@pytest.fixture
async def origin(provider: Simulator, database: Database, alice: tuple[str, Key]) -> AsyncIterator[str]:
    """A running gateway that knows alice."""
    del alice
    async with serving(provider, database.path) as address:
        yield address


@pytest.fixture
async def http(origin: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of that gateway, without a key."""
    async with aiohttp.ClientSession(origin) as session:
        yield session


@pytest.fixture
def dead_origin() -> Iterator[str]:
    """Where every connection is refused."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
