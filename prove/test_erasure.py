"""P7: deleting a key erases it, whatever reads or dies meanwhile.

The victims carry counts that nothing else has. The files are read here byte by byte, and not by the code that is
proven.
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
from gateway.database import connect
from gateway.simulator import Simulator
from prove.conftest import Figure
from tests.test_erasure import VICTIM_NAME, Layout, count_rows, make_key, make_layout, other_process
from tests.test_server_process import COMMAND_LINE, run, server

LAYOUTS = 200
AT_ONCE = 4
"""Layouts worked on side by side: most of the time they wait."""
LONGEST_LIFE_SECONDS = 0.08
"""A command that is killed lives at most so long after it took its lock: an erasure here takes about as long."""
FINISHED_WITHIN_SECONDS = 5.0
READING = "connection.execute('BEGIN'); connection.execute('SELECT * FROM request').fetchone()"
UNTOUCHED, INTERRUPTED, DONE = "before the delete", "between delete and end", "after the end"


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


async def beside_a_reader(layout: Layout, random: Random, tally: Tally) -> None:
    """It goes on reading a state from before the erasure for a while, and does not tidy up when it goes."""
    with other_process(layout.path, READING) as reader:
        asyncio.get_running_loop().call_later(random.uniform(0.2, 0.8), reader.kill)
        await erase(layout.path)
        tally.search(layout)


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
        async with asyncio.timeout(2 * FINISHED_WITHIN_SECONDS):
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
    random = Random(seed)
    layout = await make_layout(new_folder(folder) / "opusmax.db", seed)
    if random.random() < 0.5:
        await give_second_secret(layout, random)
    tally.hits_before += count_hits(layout.path, layout.traces)[0]
    await WAYS[seed % len(WAYS)](layout, random, tally)
    tally.search(layout)
    assert what_is_left(layout.path, layout.victim) == DONE
    assert count_rows(layout.path) == layout.other_rows
    shutil.rmtree(folder)


def new_folder(folder: Path) -> Path:
    folder.mkdir()
    return folder


async def give_second_secret(layout: Layout, random: Random) -> None:
    """In place of the first, or beside it. Its hash is the same, so that it is searched for as well."""
    _, secret = make_key(random, VICTIM_NAME, layout.secret.hash)
    async with connect(layout.path) as connection:
        await keystore.rotate(
            connection, replace(secret, key=layout.victim.row), grace_ms=random.choice([0, 10**9])
        )


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
    kills = ", ".join(f"{count} {stage}" for stage, count in sorted(tally.kills.items()))
    figure(
        "P7",
        f"{LAYOUTS} layouts: {tally.hits_before:,} hits before, {tally.hits} after, in"
        f" {tally.searched_bytes:,} bytes; killed {kills};"
        f" the running server finished within {max(tally.server_took, default=0):.1f} s",
    )
    assert tally.hits == 0
    assert tally.hits_before > LAYOUTS
    assert tally.kills[INTERRUPTED] > LAYOUTS // 10
    assert max(tally.server_took) < FINISHED_WITHIN_SECONDS
