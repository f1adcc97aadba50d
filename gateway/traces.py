"""Looking for what must be gone: the bytes of a deleted key in the files of the database."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from gateway.database import beside

SMALLEST_ROW_SEARCHED = 2**40
"""A smaller number turns up by chance; `keystore.new_key_row` gives larger ones."""
BLOCK_BYTES = 2**20

_PRINT_FILE = "import shutil, sys; shutil.copyfileobj(open(sys.argv[1], 'rb'), sys.stdout.buffer, 2**20)"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchedFile:
    """One of the database's files, searched from end to end."""

    name: str
    searched_bytes: int
    hits: int


def row_traces(row: int) -> list[bytes]:
    """A row's id as SQLite writes it: in columns (big-endian) and as a rowid (seven bits to a byte).

    https://www.sqlite.org/fileformat.html#record_format
    """
    if row < SMALLEST_ROW_SEARCHED:
        return []
    column = row.to_bytes(6 if row < 2**47 else 8, "big")
    groups = [row >> shift & 0x7F for shift in range(0, row.bit_length(), 7)]
    rowid = bytes([*(group | 0x80 for group in reversed(groups[1:])), groups[0]])
    return [column, rowid]


def search(path: Path, traces: list[bytes]) -> tuple[SearchedFile, ...]:
    """Look for all traces in all files of the database at `path`. Raises `OSError` if one cannot be read."""
    files = (beside(path, suffix) for suffix in ("", "-wal", "-shm"))
    return tuple(_search_file(file, traces) for file in files if file.exists())


def _search_file(path: Path, traces: list[bytes]) -> SearchedFile:
    """Another process reads the file for us: if this one closed it, all of SQLite's locks on it would be gone.

    https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_
    """
    overlap_bytes = max(map(len, traces), default=1) - 1
    searched_bytes = hits = 0
    tail = b""
    command = [sys.executable, "-ISc", _PRINT_FILE, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as reader:  # noqa: S603 - a constant program
        while reader.stdout and (block := reader.stdout.read(BLOCK_BYTES)):
            window = tail + block
            hits += sum(window.count(trace) - tail.count(trace) for trace in traces)
            tail = window[max(0, len(window) - overlap_bytes) :]
            searched_bytes += len(block)
    if reader.returncode != 0:
        raise OSError(f"{path} could not be read")
    return SearchedFile(name=path.name, searched_bytes=searched_bytes, hits=hits)
