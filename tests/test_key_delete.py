"""`key delete`: it asks, it erases, it says what it verified."""

import os
import pty
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests import commands
from tests.commands import DATABASE, Run, fill_ledger, now_ms, start

run = commands.run


def test_delete_erases_and_says_what_was_verified(run: Run) -> None:
    run("key", "create", "alice-the-first")
    fill_ledger(tokens=1_000, started=now_ms(), requests=12)
    deleted = run("key", "delete", "alice-the-first", "--yes")
    assert deleted.code == 0
    assert "Erased alice-the-first and its 12 requests." in deleted.err
    assert re.search(
        r"searched opusmax.db \([\d,]+ bytes\), .+ for its ids, hashes and name: 0 hits\.", deleted.err
    )
    assert run("key", "show", "alice-the-first").code == 3


def test_delete_as_json_tells_the_same(run: Run) -> None:
    run("key", "create", "alice")
    deleted = run("key", "delete", "alice", "--yes", "--json").json
    assert (deleted["name"], deleted["requests"], deleted["hits"]) == ("alice", 0, 0)
    assert deleted["searched_bytes"] > 0


def test_delete_without_a_terminal_needs_to_be_told_yes(run: Run) -> None:
    run("key", "create", "alice")
    failed = run("key", "delete", "alice")
    assert failed.code == 2
    assert "--yes" in failed.err
    assert run("key", "show", "alice").code == 0


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1)])
def test_delete_asks_on_a_terminal(run: Run, tmp_path: Path, typed: str, code: int) -> None:
    run("key", "create", "alice")
    ours, theirs = pty.openpty()
    with start("key", "delete", "alice", cwd=tmp_path, stdin=theirs) as process:
        os.write(ours, typed.encode())
        out, err = process.communicate(timeout=20)
    os.close(ours)
    os.close(theirs)
    assert (process.returncode, out) == (code, "")
    assert "Erase alice with all its usage, for good?" in err
    assert run("key", "show", "alice").code == (3 if code == 0 else 0)


def test_delete_finishes_an_erasure_that_was_interrupted(run: Run) -> None:
    run("key", "create", "alice")
    with closing(sqlite3.connect(DATABASE)) as connection, connection:
        connection.execute("INSERT INTO erasure VALUES (1)")
    assert "an erasure is running or was interrupted" in run("check").out
    assert "interrupted is finished now" in run("key", "delete", "nobody").err
    assert "no erasure is waiting" in run("check").out
