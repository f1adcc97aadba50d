"""Opening the one SQLite file: its settings, its schema, its locks.

Every connection is opened here, so that each has the same settings and none can forget one. Each setting
carries a promise:

    synchronous=FULL    a commit that returned survives a power cut
    secure_delete=ON    freed pages are overwritten (an erasure still needs VACUUM: see erasure.py)
    temp_store=MEMORY   sorting and VACUUM never write to the system's temporary folder
    auto_vacuum=NONE    pages are not moved behind our back, which leaves copies of rows in them
    foreign_keys=ON     a key's rows go with it
"""

import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiosqlite

SCHEMA_VERSION = 2
SCHEMA_FILE = Path(__file__).parent.parent / "schema.sql"
BUSY_TIMEOUT_MS = 5_000

# One statement, so that it sees one state of a file that another process may be making just now.
SELECT_VERSION_AND_TABLES = (
    "SELECT (SELECT user_version FROM pragma_user_version), (SELECT count(*) FROM sqlite_schema)"
)

# Other programs number their schemas too.
SELECT_OUR_TABLES = "SELECT name FROM sqlite_schema WHERE name IN ('key', 'secret', 'request')"

_PRAGMAS = {
    "journal_mode": "wal",
    "synchronous": 2,
    "secure_delete": 1,
    "temp_store": 2,
    "foreign_keys": 1,
    "auto_vacuum": 0,
}
"""Each is set and read back: a build of SQLite may ignore one silently."""


class DatabaseError(Exception):
    """The database cannot be used; the message tells the operator why and what to do."""


@asynccontextmanager
async def connect(path: Path) -> AsyncIterator[aiosqlite.Connection]:
    """A connection with every setting checked, on a file that has the current schema.

    Creates the file (mode 0600) and its tables where there are none yet. Transactions are explicit
    (`transaction`); a statement outside of one commits by itself. Raises `DatabaseError`.
    """
    connection = await _open(path)
    try:
        await _prepare(connection, path)
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def connect_as_it_is(path: Path) -> AsyncIterator[aiosqlite.Connection]:
    """The same whatever the schema, and without making one: for upgrades. A file that is of no older schema of ours
    is only read. Raises `DatabaseError`."""
    connection = await _open(path)
    try:
        if await is_older(connection):
            await _configure(connection)
        yield connection
    except sqlite3.DatabaseError as error:
        raise unusable(path, error) from None
    except UnicodeDecodeError:
        raise DatabaseError(f"{path} is damaged: restore a backup") from None
    finally:
        await connection.close()


async def _open(path: Path) -> aiosqlite.Connection:
    try:
        # Made by hand, so that it is nobody else's to read even for a moment. Only ever made, never opened: closing
        # a descriptor of the file drops every lock that SQLite holds on it in this process (POSIX), and the next
        # process to leave would take the live -wal for its own and delete it.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise DatabaseError(f"{path} cannot be made: {error.strerror}") from None
    try:
        sqlite3.connect(path).close()  # aiosqlite's thread would not tell this failure apart
    except sqlite3.Error as error:
        raise DatabaseError(f"{path} cannot be opened: {error}") from None
    connection = await aiosqlite.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_MS / 1_000)
    # An error in the middle of reading would leave the statement open, and an old state of the file with it.
    connection.text_factory = _readable
    return connection


def _readable(raw: bytes) -> str:
    return raw.decode(errors="replace")


async def _prepare(connection: aiosqlite.Connection, path: Path) -> None:
    try:
        is_new = await _is_new(connection, path)
        await _configure(connection)
        if is_new:
            await _create_schema(connection)
    except sqlite3.DatabaseError as error:
        raise unusable(path, error) from None
    except UnicodeDecodeError:
        raise DatabaseError(f"{path} is damaged: restore a backup") from None


def beside(path: Path, suffix: str) -> Path:
    """The file whose name continues that of the database: beside it, not beside a link to it, as SQLite does."""
    file = path.resolve()
    return file.with_name(file.name + suffix)


def unusable(path: Path, error: Exception) -> DatabaseError:
    """What SQLite or the system says about the file, with its name, in one line."""
    said = getattr(error, "strerror", None) or str(error)
    return DatabaseError(f"{path} cannot be used: {said.splitlines()[0]}")


async def _configure(connection: aiosqlite.Connection) -> None:
    for name, wanted in _PRAGMAS.items():
        await connection.execute(f"PRAGMA {name} = {wanted}")
        ((value,),) = await connection.execute_fetchall(f"PRAGMA {name}")
        if value != wanted:
            raise DatabaseError(f"this build of SQLite does not support {name} = {wanted}")


async def _is_new(connection: aiosqlite.Connection, path: Path) -> bool:
    """Whether the file is still empty. Raises `DatabaseError` for one that is not ours, before it is touched."""
    ((version, tables),) = await connection.execute_fetchall(SELECT_VERSION_AND_TABLES)
    if version > SCHEMA_VERSION:
        raise DatabaseError(
            f"{path} was written by a newer OpusMax (schema {version}, this one knows {SCHEMA_VERSION})"
        )
    if 0 < version < SCHEMA_VERSION:
        raise DatabaseError(
            f"{path} was written by an older OpusMax (schema {version}, this one has {SCHEMA_VERSION}): start the"
            " server, which upgrades it and leaves a copy beside it"
        )
    if version == 0 and tables:
        raise DatabaseError(f"{path} is not a database of OpusMax, or has lost its version: restore a backup")
    return bool(version == 0)


async def _create_schema(connection: aiosqlite.Connection) -> None:
    try:
        await connection.executescript(f"BEGIN IMMEDIATE;\n{SCHEMA_FILE.read_text()}\nCOMMIT;")
    except sqlite3.OperationalError:
        await connection.rollback()
        if await schema_version(connection) != SCHEMA_VERSION:  # another process was not first either
            raise


async def require_undamaged(connection: aiosqlite.Connection, path: Path) -> None:
    """Raises `DatabaseError` unless SQLite's own check finds nothing: about 0.3 s for a million requests."""
    try:
        ((result,),) = await connection.execute_fetchall("PRAGMA quick_check(1)")
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        result = type(error).__name__
    if result != "ok":
        raise DatabaseError(f"{path} is damaged ({result.splitlines()[0]}): restore a backup")


async def is_older(connection: aiosqlite.Connection) -> bool:
    """Whether the file is a database of an older OpusMax."""
    version = await schema_version(connection)
    return 0 < version < SCHEMA_VERSION and len(list(await connection.execute_fetchall(SELECT_OUR_TABLES))) == 3


async def schema_version(connection: aiosqlite.Connection) -> int:
    ((version,),) = await connection.execute_fetchall("PRAGMA user_version")
    return int(version)


async def at_once(connection: aiosqlite.Connection, work: Callable[[sqlite3.Connection], None]) -> None:
    """Do several statements in one turn of the connection's thread, where each turn costs more than a statement."""
    await connection._execute(work, connection._conn)  # type: ignore[no-untyped-call]  # it has no public way


@asynccontextmanager
async def transaction(connection: aiosqlite.Connection) -> AsyncIterator[None]:
    """All or nothing. `IMMEDIATE`: it waits for other writers at its start and never fails half-way."""
    await connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        await connection.rollback()
        raise
    await connection.commit()


class FileLock:
    """A lock on a file beside the database, held until `release` or the end of the process."""

    def __init__(self, database: Path, purpose: str) -> None:
        self._path = beside(database, f"-{purpose}.lock")
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Whether the lock is ours now. Never waits."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
