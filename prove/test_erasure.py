"""P7: deleting a key erases it, whatever runs, reads or dies meanwhile.

The victims carry counts that nothing else has. The files are read here byte by byte, and not by the code under test.
"""

import asyncio
import json
import shutil
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from gateway import keystore
from gateway.core.records import Key
from gateway.core.usage import Usage
from gateway.database import connect
from gateway.simulator import MODELS, Script, Simulator
from gateway.simulator.sending import Received
from prove.conftest import Figure
from prove.load import Outcome, call, client
from tests.harness import Database, ask, now_ms, until
from tests.test_erasure import VICTIM_NAME, Layout, count_rows, make_key, make_layout, other_process
from tests.test_server_process import COMMAND_LINE, run, server

LAYOUTS = 200
AT_ONCE = 4
"""Layouts worked on side by side: most of the time they wait."""
LONGEST_LIFE_SECONDS = 0.12
"""A command that is killed lives at most so long after it took its lock: an erasure here takes about as long."""
FINISHED_WITHIN_SECONDS = 5.0
READING = "connection.execute('BEGIN'); connection.execute('SELECT * FROM request').fetchone()"
UNTOUCHED, INTERRUPTED, DONE = "before the delete", "between delete and end", "after the end"
LONGEST_WAIT_SECONDS = 3.0
"""A third of the time after which an answer that waits for its commit is given up."""

MARKER = 0xA55A5AA55A
"""A count that the gateway believes, and that is found nowhere by chance."""
VICTIM_MODEL, OTHER_MODEL = MODELS[0], MODELS[1]
STREAMS = 50
OTHER_STREAMS = 20

LARGE_ROWS = 1_000_000
LARGE_KEYS = 20
INSERT_LARGE = "INSERT INTO request VALUES (?, ?, 0, 'claude-sonnet-5-5', 200, 900, 100, 200, 0, 5000, 0)"


def count_hits(path: Path, traces: list[bytes]) -> tuple[int, int]:
    """How often the traces stand in the files, and how many bytes those have.

    No connection of this process may be open: closing a file drops the locks of all.
    """
    files = [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")]
    content = b"\0\0".join(file.read_bytes() for file in files if file.exists())
    return sum(content.count(trace) for trace in traces), len(content)


def row_bytes(row: int) -> list[bytes]:
    """A row id of 47 bits in a column and as a rowid: written down a second time on purpose."""
    return [
        row.to_bytes(6, "big"),
        bytes(row >> shift & 0x7F | (0x80 if shift else 0) for shift in range(42, -1, -7)),
    ]


def what_is_left(path: Path, key: Key) -> str:
    """How far the erasure of a key came."""
    with closing(sqlite3.connect(path)) as connection:
        if connection.execute("SELECT 1 FROM key WHERE id = ?", (key.row,)).fetchone():
            return UNTOUCHED
        return INTERRUPTED if connection.execute("SELECT 1 FROM erasure").fetchone() else DONE


async def erase(path: Path, name: str = VICTIM_NAME) -> dict[str, Any]:
    """`key delete`, to its end; what it reports."""
    code, output, errors = await run("key", "delete", name, "--yes", "--json", database=path)
    assert code == 0, errors
    report: dict[str, Any] = json.loads(output)
    assert report["hits"] == 0
    return report


async def begin_to_erase(path: Path, random: Random) -> None:
    """`key delete`, killed at a random moment after it took its lock."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, COMMAND_LINE, "key", "delete", VICTIM_NAME, "--yes", "--database", path),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    lock = path.with_name(f"{path.name}-erasure.lock")
    while not lock.exists() and process.returncode is None:
        await asyncio.sleep(0.001)
    await asyncio.sleep(random.uniform(0, LONGEST_LIFE_SECONDS))
    if process.returncode is None:
        process.send_signal(signal.SIGKILL)
    await process.wait()


@dataclass(slots=True)
class Tally:
    """What happened to all layouts together."""

    provider: Simulator
    kills: Counter[str] = field(default_factory=Counter)
    server_took: list[float] = field(default_factory=list)
    hits_before: int = 0
    hits: int = 0
    searched_bytes: int = 0

    def search(self, layout: Layout) -> None:
        hits, size = count_hits(layout.path, [*layout.traces, *row_bytes(layout.victim.row)])
        self.hits += hits
        self.searched_bytes += size


async def by_the_command_alone(layout: Layout, _random: Random, _tally: Tally) -> None:
    await erase(layout.path)


async def beside_a_reader(layout: Layout, random: Random, _tally: Tally) -> None:
    """It goes on reading a state from before the erasure for a while."""
    with other_process(layout.path, READING) as reader:
        asyncio.get_running_loop().call_later(random.uniform(0.2, 0.8), reader.kill)
        await erase(layout.path)


async def finished_by_the_next_start(layout: Layout, random: Random, tally: Tally) -> None:
    await begin_to_erase(layout.path, random)
    stage = what_is_left(copied_raw(layout.path), layout.victim)
    tally.kills[stage] += 1
    async with server(tally.provider, layout.path):
        if stage != UNTOUCHED:
            tally.search(layout)
    if stage == UNTOUCHED:
        await erase(layout.path)


def copied_raw(path: Path) -> Path:
    """The files as a dead process left them: looking at the originals would tidy them up."""
    folder = path.with_name(f"{path.name}-copy")
    folder.mkdir()
    for file in (path, path.with_name(f"{path.name}-wal")):
        if file.exists():  # a command that came to its end has taken its log with it
            shutil.copy(file, folder)
    return folder / path.name


async def finished_by_the_running_server(layout: Layout, random: Random, tally: Tally) -> None:
    async with server(tally.provider, layout.path):
        await begin_to_erase(layout.path, random)
        died_at = time.monotonic()
        tally.kills[stage := what_is_left(layout.path, layout.victim)] += 1
        if stage == UNTOUCHED:
            await erase(layout.path)
        while what_is_left(layout.path, layout.victim) == INTERRUPTED:
            await asyncio.sleep(0.02)
        if stage == INTERRUPTED:
            tally.server_took.append(time.monotonic() - died_at)
        tally.search(layout)


WAYS: tuple[Callable[[Layout, Random, Tally], Awaitable[None]], ...] = (
    by_the_command_alone,
    beside_a_reader,
    finished_by_the_next_start,
    finished_by_the_running_server,
)


async def erase_one_layout(folder: Path, seed: int, tally: Tally) -> None:
    folder.mkdir()
    random = Random(seed)
    layout = await make_layout(folder / "opusmax.db", seed)
    if random.random() < 0.5:
        await give_second_secret(layout, random)
    tally.hits_before += count_hits(layout.path, layout.traces)[0]
    await WAYS[seed % len(WAYS)](layout, random, tally)
    tally.search(layout)
    assert what_is_left(layout.path, layout.victim) == DONE
    assert count_rows(layout.path) == layout.other_rows
    shutil.rmtree(folder)


async def give_second_secret(layout: Layout, random: Random) -> None:
    """Its hash is the same, so that it is searched for as well."""
    _, secret = make_key(random, VICTIM_NAME, layout.secret.hash)
    async with connect(layout.path) as connection:
        await keystore.rotate(connection, replace(secret, key=layout.victim.row), grace_ms=10**9)


async def test_nothing_of_an_erased_key_is_left_in_two_hundred_layouts(
    tmp_path: Path, provider: Simulator, figure: Figure
) -> None:
    tally = Tally(provider)
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(seed: int) -> None:
        async with slots:
            await erase_one_layout(tmp_path / str(seed), seed, tally)

    async with asyncio.TaskGroup() as group:
        for seed in range(LAYOUTS):
            group.create_task(one(seed))
    figure(
        "P7",
        f"{LAYOUTS} layouts: {tally.hits_before:,} hits before, {tally.hits} after, in {tally.searched_bytes:,} bytes"
        f" read; killed {dict(tally.kills)}; the running server finished within {max(tally.server_took):.1f} s",
    )
    assert tally.hits == 0
    assert tally.hits_before > LAYOUTS
    assert tally.kills[INTERRUPTED] > LAYOUTS // 10
    assert max(tally.server_took) < FINISHED_WITHIN_SECONDS


def by_model(received: Received) -> Script | None:
    """Long streams; what is the victim's tells it by its counts."""
    is_victims = VICTIM_MODEL.encode() in received.body
    usage = Usage(input=MARKER, output=MARKER) if is_victims else None
    if b'"stream": true' not in received.body:
        return Script(usage=usage)
    return Script(
        usage=usage, start_usage=usage, events=60 if is_victims else 30, output_tokens=60, pause_seconds=0.1
    )


async def test_deleting_a_key_ends_its_streams_and_hurts_no_other(
    provider: Simulator, database: Database, figure: Figure
) -> None:
    provider.choose = by_model
    victim, victim_key = await database.create_key(VICTIM_NAME)
    other, other_key = await database.create_key("other")
    async with server(provider, database.path) as running, client(running.origin) as http:
        plain = [call(http, victim, ask(model=VICTIM_MODEL, max_tokens=100), Outcome()) for _ in range(30)]
        assert {outcome.status for outcome in await asyncio.gather(*plain)} == {200}
        traces = [VICTIM_NAME.encode(), MARKER.to_bytes(5, "big"), *row_bytes(victim_key.row)]
        before, _ = count_hits(database.path, traces)
        doomed = start_streams(http, victim, VICTIM_MODEL, STREAMS)
        living = start_streams(http, other, OTHER_MODEL, OTHER_STREAMS)
        await provider.arrived(30 + STREAMS + OTHER_STREAMS)
        report = await erase(database.path)
        erased_at = time.monotonic()
        ended = await asyncio.gather(*doomed)
        seconds = time.monotonic() - erased_at
        refused = await call(http, victim, ask(), Outcome())
        kept = await asyncio.gather(*living)
        hits, size = count_hits(database.path, traces)
        assert await running.stop() == 0
    hits_at_end, _ = count_hits(database.path, traces)
    rows = database.rows(other_key)
    figure(
        "P7",
        f"deleted while {STREAMS} of its streams ran: all ended {seconds:.2f} s after it said so; {before} hits before,"
        f" {hits + hits_at_end} after, in {size:,} bytes; rows {len(database.rows(victim_key))};"
        f" others whole: {sum(outcome.is_whole for outcome in kept)} of {OTHER_STREAMS}",
    )
    assert before > 30
    assert report["requests"] >= 30
    assert (hits, hits_at_end) == (0, 0)
    assert all(outcome.is_broken for outcome in ended)
    assert refused.status == 401
    assert all(outcome.is_whole for outcome in kept)
    assert [row.status for row in rows] == [200] * OTHER_STREAMS
    assert not any(row.estimated for row in rows)
    assert database.query("SELECT count(*) FROM request") == [(OTHER_STREAMS,)]


def start_streams(http: Any, key: str, model: str, count: int) -> list[asyncio.Task[Outcome]]:
    body = ask(model=model, stream=True)
    return [asyncio.create_task(call(http, key, body, Outcome())) for _ in range(count)]


@dataclass(slots=True)
class Waits:
    """How long plain requests took, by when they ended."""

    ends: list[tuple[float, float]] = field(default_factory=list)
    statuses: Counter[int | None] = field(default_factory=Counter)

    def longest(self, since: float, until: float) -> float:
        return max(seconds for end, seconds in self.ends if end >= since and end - seconds <= until)


async def keep_asking(http: Any, key: str, waits: Waits) -> None:
    while True:
        began = time.monotonic()
        outcome = await call(http, key, ask(model=OTHER_MODEL), Outcome())
        waits.ends.append((time.monotonic(), time.monotonic() - began))
        waits.statuses[outcome.status] += 1


async def test_usage_commits_wait_briefly_for_an_erasure_among_a_million_rows(
    provider: Simulator, database: Database, figure: Figure
) -> None:
    provider.choose = by_model
    keys = [
        await database.create_key(name) for name in (VICTIM_NAME, *(f"other-{n}" for n in range(1, LARGE_KEYS)))
    ]
    fill(database, [key.row for _, key in keys])
    async with server(provider, database.path) as running, client(running.origin) as http:
        waits = Waits()
        living = start_streams(http, keys[1][0], OTHER_MODEL, STREAMS)
        askers = [asyncio.create_task(keep_asking(http, text, waits)) for text, _ in keys[2:10]]
        await until(lambda: len(waits.ends) > 200)
        began = time.monotonic()
        report = await erase(database.path)
        erased = time.monotonic()
        kept = await asyncio.gather(*living)
        for asker in askers:
            asker.cancel()
        assert await running.stop() == 0
    figure(
        "P7",
        f"{report['requests']:,} of {LARGE_ROWS:,} rows erased in {report['seconds']:.2f} s: the command kept commits"
        f" waiting {report['longest_step_seconds']:.2f} s; the slowest answer of another key took"
        f" {waits.longest(began, erased):.2f} s ({waits.longest(0, began):.2f} s before); {len(waits.ends):,} answers"
        f" and {STREAMS} streams whole",
    )
    assert report["requests"] == LARGE_ROWS // LARGE_KEYS
    assert all(outcome.is_whole for outcome in kept)
    assert set(waits.statuses) == {200}
    assert waits.longest(began, erased) < LONGEST_WAIT_SECONDS


def fill(database: Database, rows: list[int]) -> None:
    """A million requests of the last hours, in the order of time."""
    started = now_ms() - LARGE_ROWS * 10
    with closing(sqlite3.connect(database.path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        values = ((rows[number % LARGE_KEYS], started + number * 10) for number in range(LARGE_ROWS))
        connection.executemany(INSERT_LARGE, values)
        connection.commit()
