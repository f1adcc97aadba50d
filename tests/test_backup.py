"""`backup`: a whole copy, private, that says what it brings back."""

import sqlite3
import stat
from contextlib import closing
from pathlib import Path

from tests import commands
from tests.commands import Run, fill_ledger, now_ms

run = commands.run


def test_a_backup_is_complete_private_and_never_overwrites(run: Run) -> None:
    run("key", "create", "alice")
    fill_ledger(tokens=1, started=now_ms(), requests=10)
    assert run("backup", "copy.db").code == 0
    assert stat.S_IMODE(Path("copy.db").stat().st_mode) == 0o600
    with closing(sqlite3.connect("copy.db")) as connection:
        assert connection.execute("SELECT count(*) FROM request").fetchone() == (10,)
    before = Path("copy.db").read_bytes()
    failed = run("backup", "copy.db")
    assert (failed.code, failed.err) == (1, "error: copy.db: File exists: it is left as it is; name another file\n")
    assert Path("copy.db").read_bytes() == before


def test_a_backup_says_what_it_holds_and_what_restoring_it_revives(run: Run) -> None:
    run("key", "create", "alice")
    fill_ledger(tokens=1, started=now_ms(), requests=10)
    made = run("backup", "copy.db", "--json")
    assert (made.json["keys"], made.json["requests"]) == (1, 10)
    for words in ("1 key with", "10 requests", "no key can be read", "deleted since", "rotated since", "forgotten"):
        assert words in made.err


def test_what_a_backup_says_of_restoring_is_so(run: Run) -> None:
    run("key", "create", "alice", "--concurrency", "1")
    old = run("key", "show", "alice", "--json").json["prefix"]
    run("backup", "copy.db")
    run("key", "rotate", "alice")
    run("key", "delete", "alice", "--yes")
    revived = run("key", "show", "alice", "--json", "--database", "copy.db").json
    assert (revived["prefix"], revived["concurrency"]) == (old, 1)


def test_a_backup_that_cannot_be_written_says_what_to_do(run: Run) -> None:
    run("key", "create", "alice")
    failed = run("backup", "nowhere/copy.db")
    assert (failed.code, failed.out) == (1, "")
    assert "nowhere/copy.db: No such file or directory: look at the path" in failed.err
