"""`key simulate`: what it reads, what it says, and that it changes nothing."""

import random
import sqlite3
from contextlib import closing
from pathlib import Path

from gateway.core.amounts import DAY_MS, HOUR_MS
from tests import commands
from tests.commands import DATABASE, INSERT_REQUEST, SETTLE_REQUESTS, Run, fill_ledger, now_ms

run = commands.run


def test_it_says_what_other_limits_would_have_refused(run: Run) -> None:
    run("key", "create", "alice")
    begin = now_ms() - 2 * HOUR_MS
    for number in range(4):
        fill_ledger(tokens=30_000, started=begin + number * 60_000)
    tried = run("key", "simulate", "alice", "--budget", "100k/5h")
    assert tried.code == 0
    assert "refused  1 of 4 requests (25.0%), with 30,000 of 120,000 tokens" in tried.out
    assert "budget 100k/5h         1  25.0%" in tried.out
    assert "tokens in 5h          120,000         100k" in tried.out
    assert "Assumed:" in tried.err
    assert "holds what it used" in tried.err
    data = run("key", "simulate", "alice", "--budget", "100k/5h", "--json").json
    assert (data["requests"], data["refused"], data["charge"]) == (4, 1, 120_000)
    [reason] = data["by_reason"]
    assert (reason["reason"], reason["first"]) == ("budget", begin + 3 * 60_000)
    assert data["most_used"]["windows"][0]["amount"] == 120_000


def test_a_limit_that_is_not_named_is_tried_as_the_key_has_it_and_nothing_is_changed(run: Run) -> None:
    run("key", "create", "alice", "--budget", "50k/5h", "--concurrency", "1")
    for number in range(3):
        fill_ledger(tokens=30_000, started=now_ms() - HOUR_MS + number)
    before = run("key", "show", "alice", "--json").json

    def refused(*argv: str) -> dict[str, int]:
        data = run("key", "simulate", "alice", *argv, "--json").json
        return {each["reason"]: each["requests"] for each in data["by_reason"]}

    assert sum(refused().values()) == 2
    assert refused("--budget", "none") == {"concurrency": 2}
    assert refused("--concurrency", "none") == {"budget": 2}
    assert refused("--concurrency", "none", "--budget", "none", "--requests-per-minute", "1") == {"requests": 2}
    assert refused("--concurrency", "none", "--hold", "60k") == {"size": 3}
    assert run("key", "show", "alice", "--json").json == before


def test_it_looks_back_so_far_and_at_this_key_only(run: Run) -> None:
    run("key", "create", "alice")
    fill_ledger(tokens=1_000, started=now_ms() - 40 * DAY_MS)
    fill_ledger(tokens=1_000, started=now_ms() - 20 * DAY_MS)
    run("key", "create", "bob")
    fill_ledger(tokens=1_000, started=now_ms() - DAY_MS)
    counts = [
        run("key", "simulate", "alice", "--json", "--since", since).json["requests"]
        for since in ("7d", "30d", "60d")
    ]
    assert counts == [1, 2, 3]
    assert run("key", "simulate", "bob", "--json").json["requests"] == 1


def test_a_key_without_requests_says_so(run: Run) -> None:
    run("key", "create", "alice")
    tried = run("key", "simulate", "alice")
    assert (tried.code, tried.out, tried.err) == (0, "", "alice has no requests in that time.\n")


def test_more_requests_than_are_read_at_once_are_each_seen_once(run: Run) -> None:
    run("key", "create", "alice")
    chance, begin = random.Random(5), now_ms() - HOUR_MS
    moments = sorted(begin + chance.randrange(1_000) for _ in range(25_000))
    with closing(sqlite3.connect(Path(DATABASE))) as connection, connection:
        ((row,),) = connection.execute("SELECT id FROM key").fetchall()
        rows = [(row, moment, number, "unknown", 1, 1) for number, moment in enumerate(moments)]
        connection.executemany(INSERT_REQUEST, rows)
        connection.execute(SETTLE_REQUESTS)
    assert run("key", "simulate", "alice", "--json").json["requests"] == 25_000
