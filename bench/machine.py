"""Processes on cores of their own, and what the kernel says that they take.

The program under test has one core alone; the provider and the load share another.
"""

import os
import platform
import re
import socket
import sqlite3
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import Distribution, version
from pathlib import Path

PROJECT = Path(__file__).parent.parent
HARNESS = PROJECT / ".venv" / "bench" / "harness"
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
STOP_SECONDS = 10
_CORES = sorted(os.sched_getaffinity(0))
SUBJECT_CORE, HARNESS_CORE = _CORES[0], _CORES[-1]


class BenchError(Exception):
    """The bench cannot go on; the message says why."""


@contextmanager
def process(
    command: Sequence[str | Path], core: int, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A program on one core, until the end of the block. What it says on stdout can be read; the rest is thrown
    away, unless `OPUSMAX_BENCH_LOUD` is set."""
    pinned = ["taskset", "-c", str(core), *map(str, command)]
    quiet = None if "OPUSMAX_BENCH_LOUD" in os.environ else subprocess.DEVNULL
    child = subprocess.Popen(
        pinned, cwd=PROJECT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=quiet
    )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdout is not None:
            child.stdout.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processor_seconds(process_id: int) -> float:
    """Of a program and all that it has started."""
    return sum(_processor_ticks(member) for member in _family(process_id)) / TICKS_PER_SECOND


def memory_megabytes(process_id: int) -> float:
    """Proportional set size (proc_pid_smaps_rollup(5)) of a program and all that it has started, in 10**6 bytes."""
    return _megabytes(process_id, "Pss")


def own_memory_megabytes(process_id: int) -> float:
    """The same without what is mapped from files: a library counts for less while other programs use it too."""
    return _megabytes(process_id, "Pss_Anon")


def _megabytes(process_id: int, line: str) -> float:
    return sum(_kibibytes(member, line) for member in _family(process_id)) * 1_024 / 1e6


def _family(process_id: int) -> list[int]:
    children: list[int] = []
    for listing in Path(f"/proc/{process_id}/task").glob("*/children"):
        children += map(int, listing.read_text().split())
    return [process_id, *(member for child in children for member in _family(child))]


def _processor_ticks(process_id: int) -> int:
    after_name = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return int(after_name[11]) + int(after_name[12])  # utime and stime: fields 14 and 15 of proc_pid_stat(5)


def _kibibytes(process_id: int, line: str) -> int:
    rollup = Path(f"/proc/{process_id}/smaps_rollup").read_text()
    found = re.search(rf"^{line}:\s+(\d+) kB", rollup, re.MULTILINE)
    return int(found[1]) if found else 0


def runtime_megabytes() -> float:
    """The installed size of what requirements.txt names."""
    names = re.findall(r"^([A-Za-z0-9._-]+)==", (PROJECT / "requirements.txt").read_text(), re.MULTILINE)
    return sum(map(_installed_bytes, names)) / 1e6


def _installed_bytes(name: str) -> int:
    files = [Path(str(file.locate())) for file in Distribution.from_name(name).files or ()]
    return sum(file.stat().st_size for file in files if file.is_file())


def folder_megabytes(folder: Path) -> float:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def description() -> str:
    """The machine and the versions, in one paragraph."""
    cpu = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    versions = [
        f"Linux {platform.release()}",
        f"Python {platform.python_version()}",
        f"SQLite {sqlite3.sqlite_version}",
        *(f"{name} {version(name)}" for name in ("aiohttp", "aiosqlite", "httptools", "msgspec")),
        _first_line(["nginx", "-v"]).replace("nginx version: ", "").replace("/", " "),
        _first_line(["go", "version"]).removeprefix("go version ").rpartition(" ")[0],
    ]
    return (
        f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores; {', '.join(versions)};"
        f" {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; load average {os.getloadavg()[0]:.1f} at the start"
    )


def _first_line(command: Sequence[str]) -> str:
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    return (said.stdout + said.stderr).strip().splitlines()[0]
