"""Copies of the database: those of `backup`, and those that an upgrade leaves beside it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiosqlite

from gateway.database import SCHEMA_VERSION, beside

COPY_DATABASE = "VACUUM INTO ?"


async def copy_database(connection: aiosqlite.Connection, target: Path) -> int:
    """A consistent copy, readable by its owner only; returns its bytes. Raises `OSError` if the file is there or
    cannot be written."""
    with _new_file(target):
        await connection.execute(COPY_DATABASE, (str(target),))
        return _sync(target)


def before_upgrade(path: Path, version: int) -> Path:
    """Where the database stands as it was before it left a version of the schema."""
    return beside(path, f"-schema-{version}")


def remove_those_of_upgrades(path: Path) -> None:
    """They hold keys that are to be erased. Raises `OSError`."""
    for version in range(1, SCHEMA_VERSION):
        before_upgrade(path, version).unlink(missing_ok=True)


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
