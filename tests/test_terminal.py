"""The command line on every kind of stdout: wide, narrow, dumb, without colours, without UTF-8, or gone."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests import commands
from tests.commands import PROJECT, Run, fill_ledger, now_ms, start

run = commands.run
ESCAPE = "\x1b"
PATH = {"PATH": os.environ["PATH"]}
WITHOUT_UTF8 = {
    "C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "Latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ASCII": {"PYTHONIOENCODING": "ascii"},
}


def on_terminal(*argv: str, columns: int = 100, **environment: str) -> str:
    """What the real program shows on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    command = [sys.executable, str(PROJECT / "opusmax.py"), *argv]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=PATH | environment) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65_536):
                shown += piece
        except OSError:  # the other end is closed: that is how a terminal ends
            pass
        process.wait(timeout=20)
    os.close(ours)
    return shown.decode().replace("\r\n", "\n")


@pytest.fixture
def used(run: Run) -> Run:
    """A key that has used up its budget, and one that nearly has."""
    run("key", "create", "full", "--budget", "1k/5h")
    fill_ledger(tokens=900, started=now_ms() - 60_000)
    run("key", "create", "nearly", "--budget", "1k/5h")
    fill_ledger(tokens=850, started=now_ms() - 50_000)
    return run


def test_a_terminal_gets_colours_and_nothing_else_does(used: Run) -> None:
    shown = on_terminal("key", "list", TERM="xterm")
    assert f"{ESCAPE}[31m175%{ESCAPE}[0m" in shown
    assert f"{ESCAPE}[33m85%{ESCAPE}[0m" in shown
    assert ESCAPE not in used("key", "list").out
    for plain in ("dumb", ""):
        assert ESCAPE not in on_terminal("key", "list", TERM=plain)
    assert ESCAPE not in on_terminal("key", "list", TERM="xterm", NO_COLOR="1")
    assert f"{ESCAPE}[31mFAULT" in on_terminal("check", TERM="xterm")
    assert ESCAPE not in on_terminal("key", "list", "--json", TERM="xterm")


@pytest.mark.parametrize("columns", [45, 60, 80, 132])
def test_tables_fit_the_terminal(used: Run, columns: int) -> None:
    used("key", "create", "a-name-that-is-very-long-" + "x" * 39)
    for argv in (("key", "list"), ("usage",), ("usage", "--by", "model"), ("usage", "--by", "key")):
        shown = on_terminal(*argv, columns=columns, TERM="dumb")
        assert max(map(len, shown.splitlines())) <= columns, argv
        if argv[0] == "usage":
            assert "█" in shown


@pytest.mark.parametrize("locale", WITHOUT_UTF8)
def test_a_locale_without_utf8_is_served(run: Run, tmp_path: Path, locale: str) -> None:
    for name in ("zoë", "日本"):
        run("key", "create", name)
    fill_ledger(tokens=1_000, started=now_ms() - 60_000)
    for argv in (
        ("key", "list"),
        ("usage",),
        ("key", "show", "日本"),
        ("key", "show", "nix日"),
        ("key", "list", "--json"),
    ):
        command = [sys.executable, str(PROJECT / "opusmax.py"), *argv]
        done = subprocess.run(
            command, cwd=tmp_path, env=PATH | WITHOUT_UTF8[locale], capture_output=True, check=False, timeout=20
        )
        assert done.returncode == (3 if "nix日" in argv else 0), done.stderr
        assert b"internal error" not in done.stderr
        assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("argv", [("usage", "--csv", "--by", "model"), ("key", "list", "--json"), ("--help",)])
def test_a_reader_who_leaves_is_no_reason_to_complain(run: Run, tmp_path: Path, argv: tuple[str, ...]) -> None:
    run("key", "create", "alice")
    begin = now_ms() - 1_000
    for number in range(100):  # more than is buffered, so that the command meets the closed pipe while it writes
        fill_ledger(tokens=1, started=begin + number, model=f"model-{number:080}")
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, str(PROJECT / "opusmax.py"), *argv]
    with os.fdopen(writing, "wb") as gone:
        done = subprocess.run(command, cwd=tmp_path, stdout=gone, stderr=subprocess.PIPE, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_question_that_is_interrupted_deletes_nothing(run: Run, tmp_path: Path) -> None:
    run("key", "create", "alice")
    ours, theirs = pty.openpty()
    with start("key", "delete", "alice", cwd=tmp_path, stdin=theirs) as process:
        assert process.stderr is not None
        asked = os.read(process.stderr.fileno(), 1_000)
        time.sleep(0.2)  # it is waiting in the question
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    os.close(ours)
    os.close(theirs)
    assert b"for good?" in asked
    assert (process.returncode, out) == (1, "")
    assert "Traceback" not in err
    assert err.strip() == "error: interrupted"
    assert run("key", "show", "alice").code == 0
