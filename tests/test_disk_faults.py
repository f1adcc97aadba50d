"""A faulty disk stops everybody and loses nothing: no request goes unrecorded, and the server heals by itself.

The small version: `make prove` takes real file systems away, and for longer.
"""

import asyncio
import os
import resource
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import connect as connect_directly

import aiohttp

from gateway.core.usage import Usage
from gateway.simulator import Script, Simulator
from gateway.simulator.sending import Received
from tests.harness import Database, ask
from tests.test_server_process import COMMAND_LINE, Server, server

PAUSE_SECONDS = 0.02
"""Between two requests of a client: what is looked for is a fault, not load."""
STREAM_USAGE = Usage(input=4_711, output=815)
"""Tells the rows of the streams."""
STREAMS = 6
NOTICED_WITHIN_SECONDS = 8.0
"""SQLite waits five seconds for a lock."""
BACK_WITHIN_SECONDS = 5.0
REFUSED_WITHIN_SECONDS = 10.0
BROKEN = 0
"""In place of a status: the answer did not come to its end."""

Fault = Callable[[Server], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Seen:
    """One answer, as a client saw it."""

    key: str
    asked_at: float
    ended_at: float
    status: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How a server came through a fault."""

    noticed_seconds: float
    """From the fault's begin until every key was refused."""
    back_seconds: float
    """From its end until every key was answered again."""
    refused: int
    answered: int
    pages: dict[str, int]
    """What the pages answered meanwhile."""
    unrecorded: int
    """Requests that reached the provider, and have no row."""
    whole_meanwhile: int
    """Streams that came whole though their usage could not be recorded."""
    whole_afterwards: int
    """Streams whose last bytes waited for the disk."""


class Clients:
    """They ask all the time, each with its key, and remember what they saw. A slow answer holds nobody up."""

    def __init__(self, http: aiohttp.ClientSession, keys: list[str]) -> None:
        self.seen: list[Seen] = []
        self._http = http
        self._keys = keys
        self._asking = asyncio.create_task(self._keep_asking())

    async def until_all(self, status: int, since: float, within_seconds: float) -> float:
        """Seconds from `since` until each key was answered so to a request of later."""
        async with asyncio.timeout(within_seconds):
            while {one.key for one in self._later(since) if one.status == status} != set(self._keys):
                await asyncio.sleep(PAUSE_SECONDS)
        return max(
            min(one.ended_at for one in self._later(since) if (one.key, one.status) == (key, status)) - since
            for key in self._keys
        )

    def statuses(self, since: float, until: float) -> set[int]:
        """Of the requests that began and ended in between."""
        return {one.status for one in self._later(since) if one.ended_at <= until}

    def count(self, status: int) -> int:
        return sum(one.status == status for one in self.seen)

    async def stop(self) -> None:
        """Ask no more, and wait for the answers that are due."""
        self._asking.cancel()
        await asyncio.wait([self._asking])

    def _later(self, since: float) -> list[Seen]:
        return [one for one in self.seen if one.asked_at >= since]

    async def _keep_asking(self) -> None:
        due: set[asyncio.Task[None]] = set()
        try:
            while True:
                due = {task for task in due if not task.done()}
                due |= {asyncio.create_task(self._ask(key)) for key in self._keys}
                await asyncio.sleep(PAUSE_SECONDS)
        finally:
            await asyncio.gather(*due)

    async def _ask(self, key: str) -> None:
        asked_at = time.monotonic()
        try:
            async with self._http.post("/v1/messages", json=ask(), headers={"x-api-key": key}) as answer:
                await answer.read()
                status = answer.status
        except aiohttp.ClientError:
            status = BROKEN
        self.seen.append(Seen(key, asked_at, time.monotonic(), status))


@asynccontextmanager
async def asking(http: aiohttp.ClientSession, keys: list[str]) -> AsyncIterator[Clients]:
    clients = Clients(http, keys)
    try:
        yield clients
    finally:
        await clients.stop()


def open_client(origin: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(origin, connector=aiohttp.TCPConnector(limit=0))


async def stream(http: aiohttp.ClientSession, key: str) -> tuple[bool, float]:
    """Whether a streamed answer came whole, and when it ended."""
    body = b""
    with suppress(aiohttp.ClientError):
        async with http.post("/v1/messages", json=ask(stream=True), headers={"x-api-key": key}) as answer:
            async for chunk in answer.content.iter_any():
                body += chunk
    return b'"message_stop"' in body, time.monotonic()


def streams_of(seconds: float) -> Callable[[Received], Script | None]:
    """Streams that take about so long, and plain answers at once."""
    long = Script(usage=STREAM_USAGE, events=20, output_tokens=20, pause_seconds=seconds / 25)
    return lambda received: long if b'"stream": true' in received.body else None


async def come_through(
    provider: Simulator, database: Database, fault: Fault, *, fault_seconds: float, stream_seconds: float
) -> Course:
    """Let a fault come over a server that is being used, and go again. Its streams end in the middle of it."""
    provider.choose = streams_of(stream_seconds)
    keys = [(await database.create_key("a"))[0], (await database.create_key("b", budgets=[(10**9, None)]))[0]]
    async with server(provider, database.path) as running, open_client(running.origin) as http:
        async with asking(http, keys) as clients:
            await clients.until_all(200, 0, NOTICED_WITHIN_SECONDS)
            streams = [asyncio.create_task(stream(http, keys[number % 2])) for number in range(STREAMS)]
            await asyncio.sleep(stream_seconds / 2)
            with fault(running):
                began = time.monotonic()
                noticed = await clients.until_all(503, began, NOTICED_WITHIN_SECONDS)
                pages = await look_at_pages(http, keys[0])
                await asyncio.sleep(max(0, began + fault_seconds - time.monotonic()))
                gone = time.monotonic()
            assert clients.statuses(began + noticed, gone) == {503}
            back = await clients.until_all(200, gone, 2 * BACK_WITHIN_SECONDS)
            whole_at = [ended_at for is_whole, ended_at in await asyncio.gather(*streams) if is_whole]
        assert await running.stop() == 0
    return Course(
        noticed_seconds=noticed,
        back_seconds=back,
        refused=clients.count(503),
        answered=clients.count(200),
        pages=pages,
        unrecorded=len(provider.messages()) - sent_rows(database),
        whole_meanwhile=sum(ended_at < gone for ended_at in whole_at),
        whole_afterwards=sum(ended_at >= gone for ended_at in whole_at),
    )


async def look_at_pages(http: aiohttp.ClientSession, key: str) -> dict[str, int]:
    statuses = {}
    for path in ("/", "/privacy", "/usage", "/usage.json", "/healthz", "/readyz"):
        async with http.get(path, headers={"x-api-key": key} if path.endswith("json") else None) as answer:
            statuses[path] = answer.status
    async with http.post("/usage", data={"key": key}) as answer:
        statuses["POST /usage"] = answer.status
    return statuses


def sent_rows(database: Database) -> int:
    """The settled rows, but for those of requests that were admitted and given up before they were sent."""
    assert database.query("SELECT count(*) FROM request WHERE status IS NULL") == [(0,)]
    [(rows,)] = database.query("SELECT count(*) FROM request WHERE status != 503 OR input + output > 0")
    return int(rows)


def require_no_loss(course: Course, database: Database) -> None:
    """What must be true after every fault."""
    assert course.unrecorded == 0
    assert course.whole_meanwhile == 0
    assert course.back_seconds < BACK_WITHIN_SECONDS
    assert course.pages.pop("/readyz") == 503
    assert set(course.pages.values()) == {200}
    rows = database.query("SELECT input, output, estimated FROM request WHERE input = ?", STREAM_USAGE.input)
    assert rows == [(STREAM_USAGE.input, STREAM_USAGE.output, 0)] * STREAMS


@contextmanager
def no_more_writing(running: Server) -> Iterator[None]:
    """Every write to a file fails for the server's process (EFBIG)."""
    _, hard = resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (hard, hard))


async def test_a_disk_that_takes_nothing_stops_everybody_and_loses_nothing(
    provider: Simulator, database: Database
) -> None:
    course = await come_through(provider, database, no_more_writing, fault_seconds=1.2, stream_seconds=1)
    require_no_loss(course, database)
    assert course.refused > 10
    assert course.noticed_seconds < 1
    assert course.whole_afterwards == STREAMS


async def refusal_to_start(provider: Simulator, database: Path) -> str:
    """The one line that `serve` leaves behind, and it leaves in time."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, COMMAND_LINE, "serve", "--listen", "127.0.0.1:0", "--anthropic-url", provider.origin),
        *("--database", database),
        env={"ANTHROPIC_API_KEY": "unused", "PATH": os.environ["PATH"]},
        stderr=asyncio.subprocess.PIPE,
    )
    with suppress(TimeoutError):
        async with asyncio.timeout(REFUSED_WITHIN_SECONDS):
            await process.wait()
    if process.returncode is None:
        process.kill()
    _, errors = await process.communicate()
    assert (process.returncode, errors.count(b"\n")) == (1, 1), errors
    return errors.decode()


async def test_a_database_of_a_newer_version_is_refused(provider: Simulator, database: Database) -> None:
    await database.create_key()
    with closing(connect_directly(database.path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    assert "newer OpusMax" in await refusal_to_start(provider, database.path)


async def test_a_file_that_is_no_database_is_refused(provider: Simulator, tmp_path: Path) -> None:
    path = tmp_path / "opusmax.db"
    path.write_bytes(b"It is not what it seems to be. " * 300)
    path.chmod(0o600)
    assert "cannot be used: file is not a database" in await refusal_to_start(provider, path)
    assert path.read_bytes().startswith(b"It is not")


async def test_a_second_server_on_a_database_is_refused_and_the_first_goes_on(
    provider: Simulator, database: Database
) -> None:
    text, _ = await database.create_key()
    async with server(provider, database.path) as running:
        assert "another server is running" in await refusal_to_start(provider, database.path)
        async with aiohttp.ClientSession(running.origin) as http:
            assert (await stream(http, text))[0]
