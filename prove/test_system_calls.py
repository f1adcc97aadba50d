"""P1, as the operating system sees it: which files are written at all, and who may look into the process.

Every system call that can make or write a file is traced. `strace -ff` writes one file for each thread, so that no
line is interrupted by another's.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.simulator import Simulator
from prove.conftest import Figure
from tests.harness import OPERATOR_CREDENTIAL
from tests.test_canary import (
    Folder,
    Watch,
    client,
    converse,
    launched,
    make_keys,
    talking_provider,
)
from tests.test_server_process import COMMAND_LINE

ROOT = COMMAND_LINE.parent
OPENING = ("open", "openat", "openat2", "creat")
NAMING = ("mkdir", "mkdirat", "mknod", "mknodat", "rename", "renameat", "renameat2", "link", "linkat", "symlink")
OTHERS = ("symlinkat", "truncate", "memfd_create", "execve", "clone", "clone3", "fork", "vfork")
WRITES = re.compile(r"O_(WRONLY|RDWR|CREAT|TMPFILE|TRUNC)")
CALL = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>\d+)(<(?P<path>[^>]*)>)?")
FAILED = re.compile(r"\w+\(.*\) += (-1 |\?)|[-+]{3} |.* <unfinished \.\.\.>$")
"""What came to nothing, and what strace says of signals and ends. Whoever is killed leaves a call unfinished."""
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
WORKING_FOLDER = re.compile(r"AT_FDCWD<([^>]*)>")
TOOLS = (".hypothesis", ".pytest_cache", ".mypy_cache", ".ruff_cache")
"""Folders in which pytest, hypothesis, mypy and ruff keep what they know of the last run."""

strace = shutil.which("strace")
traced = pytest.mark.skipif(strace is None, reason="strace is not installed")


def tracing(into: Path, *more: str) -> tuple[str, ...]:
    """The command under which something is traced, with all that it starts. `-D`: its process id stays its own."""
    calls = ",".join((*OPENING, *NAMING, *OTHERS, *more))
    options = ("-D", "-ff", "-y", "-qq", "--seccomp-bpf", "-s", "200", "-e", "signal=none", "-e", f"trace={calls}")
    return (str(strace), *options, "-o", str(into / "trace"))


@dataclass(frozen=True, slots=True)
class Trace:
    """What one thread did."""

    thread: int
    calls: tuple[re.Match[str], ...]

    def written(self) -> Iterator[str]:
        """The files that it made, named anew or opened for writing, those without a name among them."""
        working_folder = "?"
        for call in self.calls:
            name, arguments = call["name"], call["arguments"]
            if found := WORKING_FOLDER.search(arguments):
                working_folder = found[1]
            if name == "creat" or (name in OPENING and WRITES.search(arguments)):
                yield call["path"] or arguments
            elif name in NAMING or name in ("symlinkat", "truncate"):
                yield os.path.normpath(Path(working_folder, QUOTED.findall(arguments)[-1]))
            elif name == "memfd_create" or "sun_path=" in arguments:
                yield f"{name}({arguments})"

    def started(self) -> list[int]:
        """Its threads and processes."""
        return [int(call["result"]) for call in self.calls if call["name"] in ("clone", "clone3", "fork", "vfork")]

    @property
    def is_server(self) -> bool:
        return any(call["name"] == "execve" and '"serve"' in call["arguments"] for call in self.calls)


def read_traces(folder: Path) -> dict[int, Trace]:
    traces = {}
    for file in folder.glob("trace.*"):
        thread = int(file.suffix[1:])
        calls = []
        for line in file.read_text(errors="surrogateescape").splitlines():
            if call := CALL.match(line):
                calls.append(call)
            else:
                assert FAILED.match(line), f"strace says what nobody understands: {line}"
        traces[thread] = Trace(thread, tuple(calls))
    return traces


def of_servers(traces: dict[int, Trace]) -> list[Trace]:
    """Of all servers, with whatever they started."""
    found: dict[int, Trace] = {}
    waiting = [thread for thread, trace in traces.items() if trace.is_server]
    while waiting:
        thread = waiting.pop()
        if thread in traces and thread not in found:
            found[thread] = traces[thread]
            waiting += traces[thread].started()
    return list(found.values())


def written_by(traces: list[Trace]) -> list[str]:
    return [path for trace in traces for path in trace.written()]


def is_within(path: str, *folders: Path) -> bool:
    return any(Path(path).is_relative_to(folder) for folder in folders)


@traced
async def test_a_server_writes_files_beside_its_database_only(tmp_path: Path, figure: Figure) -> None:
    watch = Watch(tmp_path / "work")
    database = tmp_path / "database"
    database.mkdir()
    watch.folder.database.path = database / "opusmax.db"
    keys = await make_keys(watch.folder.database, watch.key_name)
    traces = tmp_path / "traces"
    traces.mkdir()
    async with (
        talking_provider(watch.canaries) as provider,
        launched(watch.folder, provider.origin, under=tracing(traces, "bind")) as running,
        client(running.origin, watch.canaries) as talking,
    ):
        await converse(talking, provider, keys)
        assert await running.stop(signal.SIGTERM) == 0
    of_server = of_servers(read_traces(traces))
    written = written_by(of_server)
    outside = [path for path in written if path != os.devnull and not is_within(path, database)]
    assert len(of_server) > 1
    assert str(watch.folder.database.path) in written
    assert outside == []
    figure(
        "P1",
        f"strace of a server, {len(talking.told):,} requests: made or opened for writing outside the database's"
        f" folder: 0 of {len(written):,} files",
    )


@traced
def test_the_whole_test_run_writes_nothing_elsewhere(tmp_path: Path, figure: Figure) -> None:
    """In-process servers are part of pytest's own process, so that what is allowed here is wider: the folder for
    temporary files, which is this run's own, the caches of the tools and Python's compiled code. Sockets with a
    name are left out: the trace would show the address of a client, for which one of the tests looks everywhere."""
    traces, home = tmp_path / "traces", tmp_path / "home"
    for folder in (traces, home):
        folder.mkdir()
    command = [*tracing(traces), sys.executable, "-m", "pytest", "tests", "-x", f"--basetemp={tmp_path / 'temp'}"]
    environment = os.environ | {"TMPDIR": str(tmp_path), "HOME": str(home)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3_000:]
    all_traces = read_traces(traces)
    written = written_by(list(all_traces.values()))
    outside = sorted({path for path in written if not is_allowed(path, tmp_path)})
    by_servers = written_by(of_servers(all_traces))
    beside = [path for path in by_servers if not (path == os.devnull or is_within(path, tmp_path / "temp"))]
    servers = sum(trace.is_server for trace in all_traces.values())
    figure(
        "P1",
        f"strace of the whole test run: files elsewhere: {len(outside)} of {len(written):,} written; by its"
        f" {servers} server processes {len(beside)} of {len(by_servers):,}",
    )
    assert outside == []
    assert beside == []
    assert servers > 10


def is_allowed(path: str, temporary: Path) -> bool:
    """Terminals, the kernel's settings of a process and memory are nothing on a disk; a browser uses them all."""
    if path.startswith((os.devnull, "/dev/pts/", "/dev/ptmx", "/dev/tty", "/proc/", "memfd_create(")):
        return True
    if is_within(path, temporary, *(ROOT / tool for tool in TOOLS)):
        return True
    return "__pycache__" in Path(path).parts and is_within(path, ROOT, Path(sys.prefix), Path(sys.base_prefix))


# Who may look into the process.

WINDOWS = ("environ", "mem", "maps", "fd")
LOOKING = """
import os, pathlib, sys
for name in sys.argv[2:]:
    try:
        path = pathlib.Path("/proc", sys.argv[1], name)
        list(path.iterdir()) if path.is_dir() else path.open("rb").close()
        print("open")
    except PermissionError:
        print("denied")
"""
UNLIKE_ROOT = 65_534
"""Whoever may trace every process could look into this one too: server and reader run as this user instead."""


def as_a_user() -> tuple[str, ...]:
    if os.getuid() != 0:
        return ()
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("root needs setpriv to become another user")
    return (setpriv, f"--reuid={UNLIKE_ROOT}", f"--regid={UNLIKE_ROOT}", "--clear-groups")


@pytest.fixture
def folder_of_a_user() -> Iterator[Folder]:
    """Which is below no folder of root's own."""
    if subprocess.run([*as_a_user(), sys.executable, "-c", "import aiohttp"], check=False).returncode != 0:
        pytest.skip("another user than root cannot run this Python")
    with tempfile.TemporaryDirectory() as name:
        folder = Folder(Path(name) / "work")
        if os.getuid() == 0:
            for path in (Path(name), folder.path, folder.temporary):
                os.chown(path, UNLIKE_ROOT, UNLIKE_ROOT)
        yield folder


def looks_of_a_user(process: int) -> list[str]:
    command = [*as_a_user(), sys.executable, "-c", LOOKING, str(process), *WINDOWS]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def arguments_of(process: int) -> bytes:
    return Path(f"/proc/{process}/cmdline").read_bytes()


def test_other_programs_can_be_looked_into(folder_of_a_user: Folder) -> None:
    """What the next test finds closed is the server's doing."""
    with subprocess.Popen([*as_a_user(), "sleep", "600"], cwd=folder_of_a_user.path) as sleeping:
        try:
            while b"sleep" not in arguments_of(sleeping.pid)[:10]:
                pass  # it has not become that user yet
            assert looks_of_a_user(sleeping.pid) == ["open"] * len(WINDOWS)
        finally:
            sleeping.kill()


async def test_no_other_process_of_the_same_user_can_look_into_the_server(
    folder_of_a_user: Folder, figure: Figure
) -> None:
    folder = folder_of_a_user
    async with (
        Simulator(credentials={OPERATOR_CREDENTIAL}) as provider,
        launched(folder, provider.origin, under=as_a_user()) as running,
    ):
        seen = looks_of_a_user(running.process.pid)
        arguments = arguments_of(running.process.pid)
    figure("P1", f"looks of another process of the same user: denied {seen.count('denied')} of {len(seen)}")
    assert seen == ["denied"] * len(WINDOWS)
    assert OPERATOR_CREDENTIAL.encode() not in arguments
