"""A disk that is full, read-only, locked or damaged, and a second server: nothing goes unrecorded, and it heals."""

import asyncio
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from random import Random
from sqlite3 import DatabaseError
from sqlite3 import connect as connect_directly

import pytest

from gateway.simulator import Simulator
from prove.conftest import Figure
from tests.harness import Database
from tests.test_disk_faults import (
    STREAMS,
    Course,
    Fault,
    asking,
    come_through,
    open_client,
    refusal_to_start,
    require_no_loss,
)
from tests.test_erasure import make_layout, other_process
from tests.test_server_process import Server, run, server

DISK_BYTES = 8 * 2**20
FULL_SECONDS = 14.0
"""Longer than an answer waits for its usage to be recorded (10 s)."""
LOCKED_SECONDS = 20.0
DAMAGED_FILES = 40
FLIPPED_BITS = 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted(folder):
        yield folder


@contextmanager
def mounted(folder: Path) -> Iterator[None]:
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "tmpfs", str(folder)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode != 0:  # noqa: S607
        pytest.skip("only root may mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607


def make_read_only(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)  # noqa: S607


def filling(folder: Path) -> Fault:
    """Not a byte is free."""

    @contextmanager
    def fault(_running: Server) -> Iterator[None]:
        fill_up(folder)
        try:
            yield
        finally:
            (folder / "ballast").unlink()

    return fault


def fill_up(folder: Path) -> None:
    with (folder / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
        while True:
            ballast.write(bytes(4_096))


def making_read_only(database: Path) -> Fault:
    """The files refuse every write, whoever has them open already."""
    files = [str(database), f"{database}-wal"]

    @contextmanager
    def fault(_running: Server) -> Iterator[None]:
        change_attributes("+i", files)
        try:
            yield
        finally:
            change_attributes("-i", files)

    return fault


def change_attributes(mode: str, files: list[str]) -> None:
    if subprocess.run(["chattr", mode, *files], capture_output=True, check=False).returncode != 0:  # noqa: S607
        pytest.skip("only root may make files immutable, and on ext4 only")


def locking(database: Path) -> Fault:
    """Another process is in the middle of a change."""

    @contextmanager
    def fault(_running: Server) -> Iterator[None]:
        with other_process(database, "connection.execute('BEGIN EXCLUSIVE')"):
            yield

    return fault


def tell(figure: Figure, name: str, course: Course) -> None:
    figure(
        "disk",
        f"{name}: everybody refused after {course.noticed_seconds:.2f} s, serving again"
        f" {course.back_seconds:.2f} s after its end; {course.answered:,} answered, {course.refused:,} refused,"
        f" {course.unrecorded} unrecorded",
    )


async def test_a_full_disk_stops_everybody_and_loses_nothing(
    provider: Simulator, small_disk: Path, figure: Figure
) -> None:
    database = Database(small_disk / "opusmax.db")
    fault = filling(small_disk)
    course = await come_through(provider, database, fault, fault_seconds=FULL_SECONDS, stream_seconds=4)
    tell(figure, "disk full for 14 s", course)
    require_no_loss(course, database)
    assert course.whole_afterwards == 0  # they waited for ten seconds, and broke


async def test_a_read_only_database_stops_everybody_and_loses_nothing(
    provider: Simulator, database: Database, figure: Figure
) -> None:
    fault = making_read_only(database.path)
    course = await come_through(provider, database, fault, fault_seconds=6, stream_seconds=4)
    tell(figure, "read-only for 6 s", course)
    require_no_loss(course, database)
    assert course.whole_afterwards == STREAMS  # their last bytes waited for the disk


async def test_a_database_locked_by_another_process_stops_everybody_and_loses_nothing(
    provider: Simulator, database: Database, figure: Figure
) -> None:
    fault = locking(database.path)
    course = await come_through(provider, database, fault, fault_seconds=LOCKED_SECONDS, stream_seconds=10)
    tell(figure, "locked for 20 s", course)
    require_no_loss(course, database)


async def test_damaged_files_are_not_served(provider: Simulator, tmp_path: Path, figure: Figure) -> None:
    """Bits are flipped at random, and SQLite's own check says which files are damaged."""
    layout = await make_layout(tmp_path / "whole.db", seed=3, rows=1_500)
    whole = layout.path.read_bytes()
    files = [damaged(tmp_path / f"{seed}.db", whole, Random(seed)) for seed in range(DAMAGED_FILES)]
    rejected = [file for file in files if is_damaged(file)]
    slots = asyncio.Semaphore(2)

    async def refuse(file: Path) -> str:
        async with slots:
            return await refusal_to_start(provider, file)

    results = await asyncio.gather(*map(refuse, rejected), return_exceptions=True)
    lines = [line for line in results if isinstance(line, str)]
    figure("disk", f"damaged files not served: {len(lines)} of {len(rejected)}")
    assert len(rejected) > DAMAGED_FILES / 2
    assert len(lines) == len(rejected), next(result for result in results if not isinstance(result, str))
    unnamed = [line for file, line in zip(rejected, lines, strict=True) if str(file) not in line]
    assert unnamed == []


def damaged(path: Path, content: bytes, random: Random) -> Path:
    flipped = bytearray(content)
    for _ in range(random.randint(1, FLIPPED_BITS)):
        flipped[random.randrange(len(flipped))] ^= 1 << random.randrange(8)
    path.write_bytes(flipped)
    return path


def is_damaged(path: Path) -> bool:
    with closing(connect_directly(f"file:{path}?immutable=1", uri=True)) as connection:
        try:
            return bool(connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",))
        except (DatabaseError, UnicodeDecodeError):  # the damage may be part of the complaint
            return True


async def test_a_database_of_another_kind_is_refused_and_left_alone(
    provider: Simulator, database: Database, tmp_path: Path
) -> None:
    """One whose version was lost, and one that belongs to another program."""
    await database.create_key()
    foreign = tmp_path / "foreign.db"
    for path, statement in ((database.path, "PRAGMA user_version = 0"), (foreign, "CREATE TABLE theirs (x)")):
        with closing(connect_directly(path)) as connection:
            connection.execute(statement)
        before = path.read_bytes()
        assert str(path) in await refusal_to_start(provider, path)
        assert path.read_bytes() == before


async def test_a_disk_that_cannot_be_written_at_the_start_is_told_by_its_name(
    provider: Simulator, small_disk: Path
) -> None:
    database = Database(small_disk / "opusmax.db")
    await database.create_key()
    fill_up(small_disk)
    line = await refusal_to_start(provider, database.path)
    assert str(database.path) in line
    (small_disk / "ballast").unlink()
    make_read_only(small_disk)
    line = await refusal_to_start(provider, database.path)
    assert "Read-only" in line
    assert str(small_disk) in line
    assert "listen" not in line


async def test_a_server_does_not_start_on_a_locked_database(provider: Simulator, database: Database) -> None:
    await database.create_key()
    with other_process(database.path, "connection.execute('BEGIN EXCLUSIVE')"):
        line = await refusal_to_start(provider, database.path)
    assert f"{database.path} cannot be used: database is locked" in line


async def test_commands_on_a_full_disk_fail_with_a_line_and_change_nothing(
    provider: Simulator, small_disk: Path
) -> None:
    database = Database(small_disk / "opusmax.db")
    await database.create_key("alice")
    async with server(provider, database.path):
        fill_up(small_disk)
        for command in (["disable", "alice"], ["delete", "alice", "--yes"], ["rotate", "alice"], ["create", "bob"]):
            code, output, errors = await run("key", *command, database=database.path)
            assert (code, output, errors.count("\n")) == (1, "", 1), errors
        assert database.query("SELECT name, disabled FROM key") == [("alice", 0)]
        assert database.query("SELECT count(*) FROM secret") == [(1,)]


async def test_second_servers_are_refused_and_the_first_does_not_notice(
    provider: Simulator, database: Database, figure: Figure
) -> None:
    text, _ = await database.create_key()
    async with server(provider, database.path) as running, open_client(running.origin) as http:
        began = time.monotonic()
        async with asking(http, [text]) as clients:
            for _ in range(5):
                assert "another server is running" in await refusal_to_start(provider, database.path)
        seconds = (time.monotonic() - began) / 5
    figure(
        "disk",
        f"a second server is refused in {seconds:.2f} s; the first answered {clients.count(200):,} of"
        f" {len(clients.seen):,} meanwhile",
    )
    assert clients.count(200) == len(clients.seen) > 0
