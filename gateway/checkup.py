"""`check` and `backup`: is the installation sound, and a copy of its data.

Each check is a line; a fault tells what to do.
"""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiosqlite

from gateway.admin import Answer
from gateway.core.amounts import MINUTE_MS, show_time
from gateway.core.errors import SettingsError
from gateway.core.settings import Settings
from gateway.database import SCHEMA_VERSION, DatabaseError, connect, require_undamaged, schema_version
from gateway.erasure import is_erasure_pending

# One seek for each key: the ledger is clustered by key and time.
SELECT_NEWEST_START = """
SELECT max(newest)
  FROM (SELECT (SELECT max(started) FROM request WHERE key = key.id) AS newest
          FROM key)
"""

COPY_DATABASE = "VACUUM INTO ?"

OPEN_TO_OTHERS = 0o077
WRITABLE_BY_OTHERS = 0o022
CLOCK_TOLERANCE_MS = MINUTE_MS
UPSTREAM_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    text: str
    is_fault: bool = False

    def __str__(self) -> str:
        return f"{'FAULT' if self.is_fault else 'ok   '}  {self.text}"


def check(path: Path, load_settings: Callable[[], Settings], now_ms: int) -> Answer:
    """Look at everything that can be looked at without a server."""
    findings = [*_check_settings(load_settings), *_check_permissions(path), *_check_database(path, now_ms)]
    faults = sum(finding.is_fault for finding in findings)
    return Answer(
        value=[{"ok": not finding.is_fault, "text": finding.text} for finding in findings],
        text="\n".join(map(str, findings)),
        talk=(f"{faults} of {len(findings)} checks found a fault." if faults else "All is well.",),
        is_failure=faults > 0,
    )


async def back_up(connection: aiosqlite.Connection, target: Path) -> Answer:
    """A consistent copy, readable by its owner only. Raises `OSError` if the file is there or cannot be written."""
    with _new_file(target):
        await connection.execute(COPY_DATABASE, (str(target),))
        size_bytes = _sync(target)
    return Answer(
        value={"file": str(target), "bytes": size_bytes},
        talk=(f"Wrote {target} ({size_bytes:,} bytes). A key deleted later is still in it.",),
    )


@contextmanager
def _new_file(target: Path) -> Iterator[None]:
    """An empty file, which goes again if something fails.

    SQLite would give it the mode of the umask, and would take any empty file that is already there.
    """
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        yield
    except BaseException:
        target.unlink()
        raise


def _sync(file: Path) -> int:
    """The file, and its name in the folder, survive a power cut from now on; returns its bytes."""
    for place in (file, file.parent):
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        os.fsync(descriptor)
        os.close(descriptor)
    return file.stat().st_size


def _check_settings(load_settings: Callable[[], Settings]) -> Iterator[Finding]:
    try:
        settings = load_settings()
    except SettingsError as error:
        yield Finding(str(error), True)
        return
    yield asyncio.run(_check_upstream(settings.anthropic_url))
    missing = {
        "public_url": "texts and pages cannot say where users find this server",
        "contact": "users are not told whom to ask, and the privacy page names nobody",
    }
    for name, consequence in missing.items():
        value = getattr(settings, name)
        if value:
            yield Finding(f"{name} is {value}")
        else:
            yield Finding(
                f"{name} is not set, so {consequence}: set it in opusmax.toml or as OPUSMAX_{name.upper()}", True
            )


async def _check_upstream(origin: str) -> Finding:
    """A connection and, where there is TLS, a certificate that holds; nothing is asked."""
    parts = urlsplit(origin)
    is_tls = parts.scheme == "https"
    port = parts.port or (443 if is_tls else 80)
    try:
        async with asyncio.timeout(UPSTREAM_SECONDS):
            _reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=is_tls or None)
    except TimeoutError:
        return Finding(f"the provider at {origin} does not answer: look at the network and its firewall", True)
    except OSError as error:
        return Finding(f"the provider at {origin} cannot be reached: {error.strerror or error}", True)
    writer.close()
    return Finding(f"the provider at {origin} can be reached")


def _check_permissions(path: Path) -> Iterator[Finding]:
    for file in (path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")):
        if file.exists():
            yield _check_mode(file, OPEN_TO_OTHERS, "may be read by others than its owner", "chmod go=")
    yield _check_mode(path.resolve().parent, WRITABLE_BY_OTHERS, "may be changed by others", "chmod go-w")


def _check_mode(place: Path, forbidden: int, fault: str, remedy: str) -> Finding:
    mode = place.stat().st_mode & 0o777
    if mode & forbidden:
        return Finding(f"{place} {fault} (mode {mode:04o}): run `{remedy} {place}`", True)
    return Finding(f"{place} has mode {mode:04o}")


def _check_database(path: Path, now_ms: int) -> list[Finding]:
    if not path.is_file():
        return [Finding(f"there is no database at {path}: `key create` or `serve` makes one", True)]
    try:
        return asyncio.run(_check_contents(path, now_ms))
    except (DatabaseError, sqlite3.DatabaseError) as error:
        return [Finding(str(error), True)]


async def _check_contents(path: Path, now_ms: int) -> list[Finding]:
    async with connect(path) as connection:
        return [
            Finding("the database has all of its settings"),
            Finding(f"its schema is version {await schema_version(connection)} of {SCHEMA_VERSION}"),
            await _check_erasure(connection),
            await _check_integrity(connection, path),
            await _check_clock(connection, now_ms),
        ]


async def _check_erasure(connection: aiosqlite.Connection) -> Finding:
    if await is_erasure_pending(connection):
        return Finding("an erasure is running or was interrupted: a running or starting server finishes it", True)
    return Finding("no erasure is waiting to be finished")


async def _check_integrity(connection: aiosqlite.Connection, path: Path) -> Finding:
    try:
        await require_undamaged(connection, path)
    except DatabaseError as error:
        return Finding(str(error), True)
    return Finding("the database is not damaged")


async def _check_clock(connection: aiosqlite.Connection, now_ms: int) -> Finding:
    ((newest,),) = await connection.execute_fetchall(SELECT_NEWEST_START)
    if newest is not None and newest > now_ms + CLOCK_TOLERANCE_MS:
        return Finding(
            f"the clock says {show_time(now_ms)}, and the newest request is of {show_time(newest)}: set the clock",
            True,
        )
    return Finding(f"the clock says {show_time(now_ms)}")
