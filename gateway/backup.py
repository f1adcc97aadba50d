"""`backup`: a copy of the data, while a server may be running."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiosqlite

from gateway.admin import Answer

COPY_DATABASE = "VACUUM INTO ?"


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
