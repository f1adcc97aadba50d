"""`key list`, `key show` and `usage`: the figures, and how they are shown."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gateway.core.amounts import DAY_MS
from tests import commands
from tests.commands import DATABASE, Run, fill_ledger, now_ms

run = commands.run


def test_list_shows_the_percentage_of_each_window(run: Run) -> None:
    run("key", "create", "alice", "--budget", "2M/5h", "--budget", "20M/7d")
    fill_ledger(tokens=820_000, started=now_ms() - 60_000)
    listed = run("key", "list")
    assert listed.out.splitlines()[0].split("  ")[0] == "NAME"
    assert "2M/5h 41%, 20M/7d 4%" in listed.out
    (shown,) = run("key", "list", "--json").json
    assert [(budget["used"], budget["percent"]) for budget in shown["budgets"]] == [(820_000, 41), (820_000, 4)]


def test_list_of_no_keys_says_how_to_make_one(run: Run) -> None:
    run("key", "create", "alice")
    run("key", "delete", "alice", "--yes")
    assert run("key", "list", "--json").json == []
    assert "key create" in run("key", "list").err


def test_show_tells_when_tokens_come_back(run: Run) -> None:
    run("key", "create", "alice", "--budget", "2M/5h")
    fill_ledger(tokens=500_000, started=now_ms() - 60_000)
    shown = run("key", "show", "alice").out
    assert re.search(r"2M/5h +500,000 +0 +1,500,000 +0 +25% +from .+ UTC, all by .+ UTC", shown)


def test_an_expired_key_is_called_so(run: Run) -> None:
    run("key", "create", "alice", "--expires", "90d")
    with closing(sqlite3.connect(DATABASE)) as connection, connection:
        connection.execute("UPDATE key SET expires = 1")
    assert run("key", "show", "alice", "--json").json["state"] == "expired"


def test_a_key_whose_expiry_no_calendar_has_can_be_listed_and_shown(run: Run) -> None:
    run("key", "create", "alice", "--expires", "90d")
    for expires in (-(2**63), 2**63 - 1):
        with closing(sqlite3.connect(DATABASE)) as connection, connection:
            connection.execute("UPDATE key SET expires = ?", (expires,))
        assert {run("key", *command).code for command in (("list",), ("show", "alice"), ("list", "--json"))} == {0}


def test_usage_adds_up_by_day_model_and_key(run: Run) -> None:
    run("key", "create", "alice")
    run("key", "create", "bob")
    fill_ledger(tokens=1_000, started=now_ms() - 60_000, requests=3)
    by_key = run("usage", "--by", "key", "--json").json
    assert [(row["key"], row["requests"], row["input"], row["charge"]) for row in by_key] == [
        ("alice", 3, 3_000, 3_000),
        ("bob", 3, 3_000, 3_000),
    ]
    (model,) = run("usage", "alice", "--by", "model", "--json").json
    assert (model["model"], model["requests"]) == ("claude-sonnet-4-5", 3)
    table = run("usage", "--by", "key").out.splitlines()
    assert table[-1].split()[:3] == ["total", "6", "6,000"]


def test_usage_looks_back_only_so_far(run: Run) -> None:
    run("key", "create", "alice")
    fill_ledger(tokens=1_000, started=now_ms() - 2 * DAY_MS)
    assert run("usage", "--since", "1d", "--json").json == []
    assert len(run("usage", "--since", "3d", "--json").json) == 1


def test_usage_as_csv_cannot_run_a_formula(run: Run) -> None:
    run("key", "create", "=1+1")
    fill_ledger(tokens=1_000, started=now_ms() - 60_000)
    lines = run("usage", "--by", "key", "--csv").out.splitlines()
    assert lines == ["key,requests,input,output,cache_write,cache_read,charge", "'=1+1,1,1000,0,0,0,1000"]


PRICES = """
[prices]
"claude-sonnet-*" = { input = 3, output = 15, cache_write = 3.75, cache_read = 0.3 }
"""
ESTIMATE = "The cost is an estimate at your prices; what the provider bills may differ."


def fill_two_models(run: Run) -> None:
    """A million tokens of a model with a price, two thousand of one without, on one day."""
    run("key", "create", "alice")
    noon = now_ms() - now_ms() % DAY_MS - DAY_MS // 2
    fill_ledger(tokens=1_000_000, started=noon)
    fill_ledger(tokens=2_000, started=noon + 1, model="=gpt-5")


def test_usage_tells_the_cost_by_model_day_and_key_where_there_are_prices(run: Run) -> None:
    fill_two_models(run)
    Path("opusmax.toml").write_text(PRICES)
    by_model = run("usage", "--by", "model")
    heading, *lines, total = (line.split() for line in by_model.out.splitlines())
    assert heading[-1] == "COST"
    assert [line[7:9] for line in lines] == [["$3.00", "█" * 8], ["–", "▏"]]
    assert total[7:] == ["$3.00", "+"]
    assert by_model.err.splitlines() == [ESTIMATE, "Not in it, for want of a price: =gpt-5."]
    for by in ("day", "key"):
        assert "$3.00 +" in run("usage", "--by", by).out.splitlines()[1]
        (row,) = run("usage", "--by", by, "--json").json
        assert (row["charge"], row["cost"], row["unpriced"]) == (1_002_000, 3.0, ["=gpt-5"])
    assert [(row["cost"], row["unpriced"]) for row in run("usage", "--by", "model", "--json").json] == [
        (3.0, []),
        (None, ["=gpt-5"]),
    ]
    assert run("usage", "--by", "model", "--csv").out.splitlines() == [
        "model,requests,input,output,cache_write,cache_read,charge,cost,unpriced",
        "claude-sonnet-4-5,1,1000000,0,0,0,1000000,3.000000,",
        "'=gpt-5,1,2000,0,0,0,2000,,'=gpt-5",
    ]


@pytest.mark.parametrize("written", ["", "[prices]\n", 'listen = "nowhere"\n'])
def test_without_prices_usage_is_the_same_and_tells_no_cost(run: Run, written: str) -> None:
    fill_two_models(run)
    calls = [
        ("usage", "--by", by, *form) for by in ("day", "model", "key") for form in ((), ("--json",), ("--csv",))
    ]
    without = [run(*call) for call in calls]
    Path("opusmax.toml").write_text(written)
    assert [run(*call) for call in calls] == without
    assert not any("cost" in (answer.out + answer.err).lower() or "$" in answer.out for answer in without)


@pytest.mark.parametrize("written", [b"[prices]\nx = 5", b"[prices", b"# \xff"])
def test_prices_that_cannot_be_read_are_told_and_no_figure_without_them(run: Run, written: bytes) -> None:
    run("key", "create", "alice")
    Path("prices.toml").write_bytes(written)
    told = run("usage", "--database", DATABASE, "--config", "prices.toml")
    assert (told.code, told.out) == (1, "")
    assert re.match(r"error: (prices: a price looks like|the configuration file prices\.toml is not)", told.err)


def test_usage_has_bars_and_a_line_for_each_day(run: Run) -> None:
    run("key", "create", "alice")
    noon = now_ms() - now_ms() % DAY_MS - DAY_MS // 2
    fill_ledger(tokens=1_000, started=noon - 2 * DAY_MS)
    fill_ledger(tokens=4_000, started=noon)
    lines = run("usage").out.splitlines()
    bars = [re.search("[█-▏]*$", line)[0] for line in lines[1:-1]]  # type: ignore[index]
    assert [len(bar) for bar in bars] == [-(-len(bars[2]) // 4), 0, len(bars[2])]
    assert len(bars[2]) >= 8
    assert lines[2].split()[1:] == ["0"] * 6
    assert len(run("usage", "--json").json) == 2


def test_usage_by_model_and_by_key_has_bars_too(run: Run) -> None:
    run("key", "create", "alice")
    fill_ledger(tokens=4_000, started=now_ms() - 60_000)
    fill_ledger(tokens=1, started=now_ms() - 50_000, model="claude-haiku-4-5")
    for by in ("model", "key"):
        assert "████████" in run("usage", "--by", by).out
    assert run("usage", "--by", "model").out.splitlines()[2].endswith("▏")
