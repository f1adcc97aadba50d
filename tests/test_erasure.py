"""A deleted key is gone from every file of the database, whatever happens while it is being deleted.

The rows to be erased carry counts that nothing else has, so that their bytes can be looked for. The files are read
here, and not by the code under test.
"""

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway import erasure
from gateway.core import keys
from gateway.core.records import Key, KeyRow, Secret
from gateway.database import FileLock, connect
from gateway.erasure import ErasureError, erase_key, finish_pending_erasure, is_erasure_pending
from gateway.keystore import KeyGone, add_key, read_directory
from gateway.traces import row_traces, search

NOW_MS = 1_790_000_000_000
VICTIM_NAME = "victim-of-the-erasure"
VICTIM_HASH = "$argon2id$v=19$m=19456,t=2,p=1$dmljdGltdmljdGlt$" + "VICTIM" * 7
VICTIM_COUNT = 0x5A5A5A5A5A5A
VICTIM_COUNT_BYTES = VICTIM_COUNT.to_bytes(6, "big")
PROJECT = Path(__file__).parent.parent

INSERT_REQUEST = "INSERT INTO request VALUES (?, ?, 0, 'claude-sonnet-4-5', ?, 900, ?, ?, ?, ?, 0, NULL)"
SETTLE_REQUESTS = "UPDATE request SET status = 200, input = ?, output = ? WHERE key = ? AND status IS NULL"


@dataclass(frozen=True, slots=True)
class Layout:
    """A database with a key to erase among others."""

    path: Path
    victim: Key
    secret: Secret
    others: tuple[Key, ...]
    other_rows: int

    @property
    def traces(self) -> list[bytes]:
        return [
            self.secret.key_id.encode(),
            VICTIM_HASH.encode(),
            VICTIM_NAME.encode(),
            VICTIM_COUNT_BYTES,
            *row_traces(self.victim.row),
        ]

    def hits(self) -> int:
        """Read by another process: if this one closed the files, SQLite's locks on them would be gone."""
        files = [self.path.with_name(self.path.name + suffix) for suffix in ("", "-wal", "-shm")]
        found = [str(file) for file in files if file.exists()]
        content = subprocess.run(["cat", *found], capture_output=True, check=True).stdout  # noqa: S607
        return sum(content.count(trace) for trace in self.traces)


async def make_layout(path: Path, seed: int, rows: int | None = None) -> Layout:
    """Keys whose requests come mixed in the order of time, some settled later, as a server writes them."""
    choice = random.Random(seed)
    rows = rows or choice.randint(1, 4_000)
    victim, secret = make_key(choice, VICTIM_NAME, VICTIM_HASH)
    others = [make_key(choice, f"other-{number}", f"$argon2id${number}") for number in range(choice.randint(0, 60))]
    async with connect(path) as connection:
        for key, one_secret in [*others, (victim, secret)]:
            await add_key(connection, key, one_secret)
        written = write_requests(path, choice, victim, [key for key, _ in others], rows)
    return Layout(path, victim, secret, tuple(key for key, _ in others), written)


def make_key(choice: random.Random, name: str, hashed: str) -> tuple[Key, Secret]:
    key = Key(row=KeyRow(2**46 + choice.getrandbits(46)), name=name, created=NOW_MS)
    minted = keys.mint()
    return key, Secret(key=key.row, key_id=minted.key_id, prefix=minted.prefix, hash=hashed, created=NOW_MS)


def write_requests(path: Path, choice: random.Random, victim: Key, others: list[Key], rows: int) -> int:
    """Returns how many belong to others."""
    share = choice.choice([0.02, 0.1, 0.5])
    counts = {victim.row: VICTIM_COUNT}
    kept = 0
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA secure_delete = ON")
        for batch in range(0, rows, 200):
            connection.execute("BEGIN")
            for number in range(batch, min(batch + 200, rows)):
                key = victim if not others or choice.random() < share else choice.choice(others)
                kept += key is not victim
                count = counts.get(key.row, number)
                status = choice.choice([200, 200, 429, None])
                connection.execute(INSERT_REQUEST, (key.row, NOW_MS + number, status, count, count, count, count))
            if choice.random() < 0.5:
                connection.execute(SETTLE_REQUESTS, (VICTIM_COUNT, VICTIM_COUNT, victim.row))
            connection.execute("COMMIT")
    return kept


def count_rows(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM request").fetchone()
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        return int(count)


@contextmanager
def other_process(path: Path, program: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the database open as `connection`, until the block ends."""
    start = f"import sqlite3, sys, time; connection = sqlite3.connect({str(path)!r}, isolation_level=None)\n"
    command = [sys.executable, "-c", f"{start}{program}\nprint('ready', flush=True)\nsys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process


@pytest.mark.parametrize("seed", range(12))
async def test_nothing_of_an_erased_key_is_left_in_any_file(tmp_path: Path, seed: int) -> None:
    layout = await make_layout(tmp_path / "opusmax.db", seed)
    assert layout.hits() > 0
    async with connect(layout.path) as connection:
        report = await erase_key(connection, layout.path, layout.victim, NOW_MS)
        assert layout.hits() == 0
        assert not await is_erasure_pending(connection)
        assert list((await read_directory(connection)).keys) == [key.row for key in sorted_by_name(layout.others)]
    assert layout.hits() == 0
    assert count_rows(layout.path) == layout.other_rows
    assert report.name_searched
    assert [file.hits for file in report.files] == [0, 0, 0]


def sorted_by_name(others: tuple[Key, ...]) -> list[Key]:
    return sorted(others, key=lambda key: key.name)


async def test_deleting_alone_would_leave_traces(tmp_path: Path) -> None:
    """The measure itself works: it finds what a plain DELETE leaves."""
    layout = await make_layout(tmp_path / "opusmax.db", seed=1, rows=4_000)
    async with connect(layout.path) as connection:
        await connection.execute(erasure.DELETE_KEY, (layout.victim.row,))
        assert layout.hits() > 0


async def test_a_process_that_has_the_database_open_does_not_keep_traces_alive(tmp_path: Path) -> None:
    layout = await make_layout(tmp_path / "opusmax.db", seed=2)
    with other_process(layout.path, "connection.execute('SELECT count(*) FROM request').fetchall()"):
        async with connect(layout.path) as connection:
            await erase_key(connection, layout.path, layout.victim, NOW_MS)
            assert layout.hits() == 0
    assert layout.hits() == 0


async def test_an_erasure_waits_for_a_reader_of_an_older_state(tmp_path: Path) -> None:
    layout = await make_layout(tmp_path / "opusmax.db", seed=3)
    reading = "connection.execute('BEGIN'); connection.execute('SELECT * FROM request').fetchone()"
    async with connect(layout.path) as connection:
        with other_process(layout.path, reading) as reader:
            asyncio.get_running_loop().call_later(0.4, reader.kill)
            report = await erase_key(connection, layout.path, layout.victim, NOW_MS)
        assert layout.hits() == 0
        assert 0.3 < report.seconds < 10


async def test_a_reader_that_stays_leaves_the_erasure_to_be_finished(tmp_path: Path) -> None:
    layout = await make_layout(tmp_path / "opusmax.db", seed=4)
    reading = "connection.execute('BEGIN'); connection.execute('SELECT * FROM request').fetchone()"
    async with connect(layout.path) as connection:
        with other_process(layout.path, reading):
            with pytest.raises(ErasureError, match="deleted but not erased yet: some process keeps an old state"):
                await erase_key(connection, layout.path, layout.victim, NOW_MS, patience_seconds=0.3)
            assert await is_erasure_pending(connection)
        assert await finish_pending_erasure(connection, layout.path)
        assert layout.hits() == 0
        assert not await finish_pending_erasure(connection, layout.path)


async def test_others_write_while_a_key_is_erased(tmp_path: Path) -> None:
    layout = await make_layout(tmp_path / "opusmax.db", seed=5, rows=3_000)
    writing = f"""
import threading
def write():
    writer = sqlite3.connect({str(layout.path)!r}, isolation_level=None, timeout=5)
    for number in range(100_000):
        writer.execute({INSERT_REQUEST!r}, ({layout.others[0].row}, number, 200, 1, 1, 1, 1))
        time.sleep(0.0005)
threading.Thread(target=write, daemon=True).start()
time.sleep(0.1)
"""
    async with connect(layout.path) as connection:
        with other_process(layout.path, writing):
            await erase_key(connection, layout.path, layout.victim, NOW_MS)
            assert layout.hits() == 0
            await asyncio.sleep(0.1)
            assert layout.hits() == 0
    assert count_rows(layout.path) > layout.other_rows


@pytest.mark.parametrize("seed", range(8))
async def test_an_erasure_killed_at_any_moment_is_finished_by_the_next_start(tmp_path: Path, seed: int) -> None:
    layout = await make_layout(tmp_path / "opusmax.db", seed, rows=6_000)
    kill_while_erasing(layout, after_seconds=random.Random(seed).uniform(0, 0.08))
    async with connect(layout.path) as connection:
        was_deleted = layout.victim.row not in (await read_directory(connection)).keys
        was_pending = await is_erasure_pending(connection)
        assert await finish_pending_erasure(connection, layout.path) == was_pending
        if was_deleted:
            assert layout.hits() == 0
            assert not await is_erasure_pending(connection)
        else:
            assert not was_pending  # killed before it began: nothing is lost
            await erase_key(connection, layout.path, layout.victim, NOW_MS)
            assert layout.hits() == 0
    assert count_rows(layout.path) == layout.other_rows


def kill_while_erasing(layout: Layout, after_seconds: float) -> None:
    """Kill the command, so many seconds after it has taken its lock."""
    environment = {**os.environ, "OPUSMAX_DATABASE": str(layout.path)}
    command = [sys.executable, str(PROJECT / "opusmax.py"), "key", "delete", VICTIM_NAME, "--yes"]
    lock = layout.path.with_name("opusmax.db-erasure.lock")
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, cwd=layout.path.parent) as process:
        while not lock.exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(after_seconds)
        process.send_signal(signal.SIGKILL)


async def test_nobody_takes_over_an_erasure_whose_process_lives(tmp_path: Path) -> None:
    layout = await make_layout(tmp_path / "opusmax.db", seed=6)
    async with connect(layout.path) as connection:
        await connection.execute(erasure.INSERT_MARK, (NOW_MS,))
        living = FileLock(layout.path, "erasure")
        assert living.acquire()
        assert not await finish_pending_erasure(connection, layout.path)
        with pytest.raises(ErasureError, match="nothing is deleted: another erasure is running"):
            await erase_key(connection, layout.path, layout.victim, NOW_MS, patience_seconds=0)
        living.release()
        assert await finish_pending_erasure(connection, layout.path)
        assert layout.victim.row in (await read_directory(connection)).keys


async def test_a_name_that_stays_in_other_texts_is_not_searched_for(tmp_path: Path) -> None:
    path = tmp_path / "opusmax.db"
    async with connect(path) as connection:
        for name in ("sonnet", "claude-sonnet"):
            key, secret = make_key(random.Random(name), name, f"$argon2id$hash-number-{len(name)}")
            await add_key(connection, key, secret)
        found = {key.name: key for key in (await read_directory(connection)).keys.values()}
        report = await erase_key(connection, path, found["sonnet"], NOW_MS)
        assert not report.name_searched
        report = await erase_key(connection, path, found["claude-sonnet"], NOW_MS)
        assert report.name_searched


async def test_a_key_cannot_be_erased_twice(tmp_path: Path) -> None:
    layout = await make_layout(tmp_path / "opusmax.db", seed=7)
    async with connect(layout.path) as connection:
        await erase_key(connection, layout.path, layout.victim, NOW_MS)
        with pytest.raises(KeyGone):
            await erase_key(connection, layout.path, layout.victim, NOW_MS)
        assert not await is_erasure_pending(connection)


def test_a_trace_across_two_blocks_is_found_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (2**20 - 3) + b"TRACE" + b"y" * 2**20 + b"TRACE")
    (found,) = search(path, [b"TRACE", b"a longer trace that is nowhere"])
    assert (found.hits, found.searched_bytes) == (2, path.stat().st_size)


def test_looking_for_traces_leaves_the_locks_of_sqlite_alone(tmp_path: Path) -> None:
    path = tmp_path / "locked.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        search(path, [b"anything"])
        attempt = f"import sqlite3; sqlite3.connect({str(path)!r}, timeout=0).execute('BEGIN IMMEDIATE')"
        other = subprocess.run([sys.executable, "-c", attempt], capture_output=True, check=False)
        assert b"database is locked" in other.stderr
