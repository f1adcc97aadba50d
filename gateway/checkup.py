"""`check`: is the installation sound.

Each check is a line; a fault tells what to do. `check --privacy` looks at one thing in full: whether the privacy
policy tells of every column that the database really has.
"""

import asyncio
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

import aiosqlite

from gateway import process
from gateway.admin import Answer
from gateway.core import policy
from gateway.core.amounts import MINUTE_MS, show_time
from gateway.core.errors import SettingsError
from gateway.core.policy import Column, Gaps
from gateway.core.settings import Settings
from gateway.core.upstreams import Access, UpstreamSettings
from gateway.credentials import open_upstreams
from gateway.database import SCHEMA_VERSION, DatabaseError, connect, require_undamaged, schema_version
from gateway.erasure import is_erasure_pending
from gateway.reports import read_columns

# One seek for each key: the ledger is clustered by key and time.
SELECT_NEWEST_START = """
SELECT max(newest)
  FROM (SELECT (SELECT max(started) FROM request WHERE key = key.id) AS newest
          FROM key)
"""

PACKAGES_FILE = Path(__file__).parent.parent / "requirements.txt"
PINNED_VERSION = re.compile(r"^([\w.-]+)==(\S+)", re.MULTILINE)
INSTALL_PACKAGES = "pip install --require-hashes -r requirements.txt"

MISSING_LINE = "has no line in the policy: describe it in gateway/core/policy.py, or drop it"
MISSING_COLUMN = "has a line in the policy, but the database has no such column"

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


def check(path: Path, load_settings: Callable[[], Settings], environment: Mapping[str, str], now_ms: int) -> Answer:
    """Look at everything that can be looked at without a server."""
    findings = [
        *_check_settings(load_settings, environment),
        *_check_program(environment),
        _check_folder(path),
        *_check_database(path, now_ms),
    ]
    faults = sum(finding.is_fault for finding in findings)
    return Answer(
        value=[{"ok": not finding.is_fault, "text": finding.text} for finding in findings],
        text="\n".join(map(str, findings)),
        talk=(f"{faults} of {len(findings)} checks found a fault." if faults else "All is well.",),
        is_failure=faults > 0,
    )


async def check_privacy(connection: aiosqlite.Connection) -> Answer:
    """Each column of the database beside what the privacy page says of it. A fault: one of the two is missing."""
    columns = await read_columns(connection)
    gaps = policy.check(columns)
    findings = _privacy_findings(columns, gaps)
    faults = sum(finding.is_fault for finding in findings)
    return Answer(
        value={
            "columns": [
                {"table": table, "column": name, "line": policy.LINES.get((table, name))} for table, name in columns
            ],
            "without_line": list(map(_column_name, gaps.missing)),
            "without_column": list(map(_column_name, gaps.stale)),
        },
        text="\n".join(map(str, findings)),
        talk=(
            f"The privacy policy and the database differ in {faults} of {len(findings)} columns."
            if faults
            else f"The policy of {policy.LAST_UPDATED} tells of all {len(columns)} columns, and of no other.",
        ),
        is_failure=faults > 0,
    )


def _check_settings(load_settings: Callable[[], Settings], environment: Mapping[str, str]) -> Iterator[Finding]:
    try:
        settings = load_settings()
    except SettingsError as error:
        yield Finding(str(error), True)
        return
    except OSError as error:
        yield Finding(f"the configuration file {error.filename} cannot be read: {error.strerror}", True)
        return
    yield from _check_upstreams(settings, environment)
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


def _check_upstreams(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Each by itself, so that one fault does not hide another; a missing credential in the words of `serve`."""
    opened: list[Access] = []
    for alone in [replace(settings, upstream=(one,)) for one in settings.upstream] or [settings]:
        try:
            opened += open_upstreams(alone, environment)
        except SettingsError as error:
            yield Finding(str(error), True)
    yield from map(_credential_finding, opened)
    yield from asyncio.run(_reach(settings.upstream or [access.upstream for access in opened]))


def _credential_finding(access: Access) -> Finding:
    upstream, count = access.upstream, len(access.credentials)
    if not upstream.credentials:
        return Finding(f"upstream {upstream.name} needs no credential")
    sources = ", ".join(upstream.credentials)
    return Finding(f"upstream {upstream.name} has {count} credential{'s' * (count > 1)} from {sources}")


async def _reach(upstreams: Sequence[UpstreamSettings]) -> list[Finding]:
    return await asyncio.gather(*map(_check_upstream, upstreams))


async def _check_upstream(upstream: UpstreamSettings) -> Finding:
    """A connection and, where there is TLS, a certificate that holds; nothing is asked."""
    parts = urlsplit(upstream.origin)
    is_tls = parts.scheme == "https"
    port = parts.port or (443 if is_tls else 80)
    provider, name = f"the provider at {upstream.origin}", f"(upstream {upstream.name})"
    try:
        async with asyncio.timeout(UPSTREAM_SECONDS):
            _reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=is_tls or None)
    except TimeoutError:
        return Finding(f"{provider} does not answer {name}: look at the network and its firewall", True)
    except OSError as error:
        return Finding(f"{provider} cannot be reached {name}: {error.strerror or error}", True)
    writer.close()
    return Finding(f"{provider} can be reached {name}")


def _check_program(environment: Mapping[str, str]) -> Iterator[Finding]:
    yield _check_packages()
    yield _as_at_start(process.require_safe_aiohttp, "aiohttp is safe to face clients, and has its parser in C")
    yield _as_at_start(
        lambda: process.refuse_leaking_environment(environment), "no variable has what passes written down"
    )


def _check_packages() -> Finding:
    """The versions of what runs here are those that requirements.txt has pinned."""
    try:
        pinned = PINNED_VERSION.findall(PACKAGES_FILE.read_text(encoding="utf-8"))
    except OSError as error:
        return Finding(
            f"{PACKAGES_FILE} cannot be read: {error.strerror}; it says which packages belong here", True
        )
    differing = [
        f"{name} {installed or 'is missing'} instead of {version}"
        for name, version in pinned
        if (installed := _installed_version(name)) != version
    ]
    if differing:
        return Finding(
            f"other packages than those of requirements.txt: {', '.join(differing)}: run `{INSTALL_PACKAGES}`", True
        )
    return Finding(f"the {len(pinned)} packages are those of requirements.txt")


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _as_at_start(require: Callable[[], None], sound: str) -> Finding:
    """What `serve` would refuse at its start is a fault here."""
    try:
        require()
    except SettingsError as error:
        return Finding(str(error), True)
    return Finding(sound)


def _check_folder(path: Path) -> Finding:
    """Only told, and not refused: where people share a group, their folders are often open to it."""
    folder = path.resolve().parent
    mode = folder.stat().st_mode & 0o777
    if mode & WRITABLE_BY_OTHERS:
        return Finding(f"{folder} may be changed by others (mode {mode:04o}): run `chmod go-w {folder}`", True)
    return Finding(f"{folder} has mode {mode:04o}")


def _check_database(path: Path, now_ms: int) -> Iterator[Finding]:
    if not path.is_file():
        yield Finding(f"there is no database at {path}: `key create` or `serve` makes one", True)
        return
    yield _as_at_start(lambda: process.require_private_files(path), "only the owner may read the database's files")
    try:
        yield from asyncio.run(_check_contents(path, now_ms))
    except (DatabaseError, sqlite3.DatabaseError) as error:
        yield Finding(str(error), True)


async def _check_contents(path: Path, now_ms: int) -> list[Finding]:
    async with connect(path) as connection:
        return [
            Finding("the database has all of its settings"),
            Finding(f"its schema is version {await schema_version(connection)} of {SCHEMA_VERSION}"),
            await _check_policy(connection),
            await _check_erasure(connection),
            await _check_integrity(connection, path),
            await _check_clock(connection, now_ms),
        ]


async def _check_policy(connection: aiosqlite.Connection) -> Finding:
    columns = await read_columns(connection)
    gaps = policy.check(columns)
    if gaps.missing or gaps.stale:
        differing = ", ".join(map(_column_name, gaps.missing + gaps.stale))
        return Finding(f"the privacy policy and the database differ in {differing}: see `check --privacy`", True)
    return Finding(f"the privacy policy tells of all {len(columns)} columns, and of no other")


def _privacy_findings(columns: list[Column], gaps: Gaps) -> list[Finding]:
    """A line for each column, then one for each line of the policy whose column is not there."""
    width = max(map(len, map(_column_name, [*columns, *gaps.stale])))
    said = policy.LINES | dict.fromkeys(gaps.missing, MISSING_LINE) | dict.fromkeys(gaps.stale, MISSING_COLUMN)
    return [
        Finding(f"{_column_name(column):{width}}  {said[column]}", column in gaps.missing + gaps.stale)
        for column in [*columns, *gaps.stale]
    ]


def _column_name(column: Column) -> str:
    return ".".join(column)


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
