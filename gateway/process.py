"""The process that serves: nothing of it on disk or open to other users, and nothing in it that would write down
what passes. What cannot be made so is refused at the start, in one line.

Python's own debug modes (PYTHONDEVMODE, PYTHONASYNCIODEBUG, PYTHONFAULTHANDLER) are not refused: what they say goes
through logs.py, which writes names only, and of a crash they show files and lines, never values.
"""

import ctypes
import gc
import os
import re
import resource
import shlex
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from gateway.core.errors import SettingsError
from gateway.database import beside

OLDEST_AIOHTTP = (3, 14, 4)
"""The first release without the advisories that matter to a proxy, as in requirements.in."""

LEAKING_VARIABLES = {
    "SSLKEYLOGFILE": "the secrets of every TLS connection would be written to that file, and whoever has them can"
    " read what was sent",
}
"""Variables of the environment that write down what passes, or what opens it."""

COLLECTED_AFTER = (10_000, 10, 20)
"""So many new objects, collections of those, and collections of these, before the garbage collector looks again."""

LARGE_BLOCK_BYTES = 2**20

_M_MMAP_THRESHOLD = -3
_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4
_OTHER_FILES = 64
"""What is open besides connections: the database, its locks, the log."""
_OPEN_TO_OTHERS = 0o077


def harden() -> None:
    """No core dumps, no reading of the memory by other processes of the same user, files for the owner only.

    Raises `SettingsError` if the system does not grant it.
    """
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise SettingsError(
            "this system lets other processes read the memory: prctl(PR_SET_DUMPABLE, 0) had no effect"
        )


def raise_file_limit() -> None:
    """As many open files as the system lets us have: a stream needs two."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def settle_memory() -> None:
    """What is there once the server has started stays, so the collector need not look through it again and again.
    Young objects are looked at less often too: requests leave next to no cycles behind.

    Large blocks go back to the system when they are freed. By itself glibc would raise its bound to what the first
    argon2 proof took, and keep the next ones' 19 MiB for good.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTED_AFTER)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other libraries of C have none, nor that habit
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


def refuse_leaking_environment(environment: Mapping[str, str]) -> None:
    """Raises `SettingsError` if a variable is set that would have content, or keys to it, written down."""
    for name, consequence in LEAKING_VARIABLES.items():
        if environment.get(name):
            raise SettingsError(f"{name} is set: {consequence}; unset it")


def require_safe_aiohttp() -> None:
    """Raises `SettingsError` unless aiohttp is a release that is safe to face clients, with its parser in C."""
    try:
        from aiohttp import http_parser  # slow to load, and most commands need none of it

        version = metadata.version("aiohttp")
    except ImportError:
        raise SettingsError("aiohttp is not installed") from None
    if tuple(map(int, re.findall(r"\d+", version)[:3])) < OLDEST_AIOHTTP:
        oldest = ".".join(map(str, OLDEST_AIOHTTP))
        raise SettingsError(f"aiohttp {version} has known faults: install {oldest} or newer")
    if http_parser.HttpRequestParser.__module__ != "aiohttp._http_parser":
        raise SettingsError(
            "aiohttp's C parser is missing: install a binary wheel of aiohttp, and unset AIOHTTP_NO_EXTENSIONS"
        )


def require_private_files(database: Path) -> None:
    """Raises `SettingsError` if others than its owner may read or change a file of the database."""
    files = [beside(database, suffix) for suffix in ("", "-wal", "-shm")]
    open_to_others = [str(file) for file in files if file.exists() and file.stat().st_mode & _OPEN_TO_OTHERS]
    if open_to_others:
        raise SettingsError(
            f"{', '.join(open_to_others)} may be read by others than the owner:"
            f" run `chmod go= {shlex.join(open_to_others)}`"
        )


def max_streams() -> int:
    """How many streams the limit of open files leaves room for: two each, and some for everything else."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (soft - _OTHER_FILES) // 2)
