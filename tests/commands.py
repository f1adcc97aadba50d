"""The administrator's commands, as tests call them: in this process, in a folder of its own."""

import io
import json
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway import cli

PROJECT = Path(__file__).parent.parent
DATABASE = "opusmax.db"
INSERT_REQUEST = (
    "INSERT INTO request (key, started, sequence, model, latency, input, output, cache_write, cache_read,"
    " estimated) VALUES (?, ?, ?, ?, ?, ?, 0, 0, 0, 0)"
)
SETTLE_REQUESTS = "UPDATE request SET status = 200 WHERE status IS NULL"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a command in a folder of its own, with a provider that can be reached."""
    monkeypatch.chdir(tmp_path)

    with socket.create_server(("127.0.0.1", 0)) as provider:
        origin = f"http://127.0.0.1:{provider.getsockname()[1]}"
        usual = {
            "OPUSMAX_ANTHROPIC_URL": origin,
            "OPUSMAX_LISTEN": "127.0.0.1:0",
            "ANTHROPIC_API_KEY": "a-credential",
        }

        def run_command(*argv: str, **environment: str) -> Outcome:
            out, err = io.StringIO(), io.StringIO()
            code = cli.main(argv, usual | environment, out, err)
            return Outcome(code, out.getvalue(), err.getvalue())

        yield run_command


def start(
    *argv: str, cwd: Path, stdin: int | None = None, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """The real program."""
    command = [sys.executable, str(PROJECT / "opusmax.py"), *argv]
    return subprocess.Popen(
        command,
        cwd=cwd,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        umask=0o022,
        env=environment,
    )


def fill_ledger(
    tokens: int, started: int, requests: int = 1, *, latency: int = 900, model: str = "claude-sonnet-4-5"
) -> None:
    """Settled requests of every key, all at the same time."""
    with closing(sqlite3.connect(DATABASE)) as connection, connection:
        for (row,) in connection.execute("SELECT id FROM key").fetchall():
            for sequence in range(requests):
                connection.execute(INSERT_REQUEST, (row, started, sequence, model, latency, tokens))
            connection.execute(SETTLE_REQUESTS)


def now_ms() -> int:
    return time.time_ns() // 1_000_000
