"""The commands that change a key: what they print, and what they leave as it was."""

from gateway.core import keys
from gateway.core.amounts import DAY_MS
from tests import commands
from tests.commands import Run

run = commands.run


def test_edit_prints_old_and_new_of_what_changed(run: Run) -> None:
    run("key", "create", "alice", "--budget", "2M/5h", "--concurrency", "4")
    edited = run("key", "edit", "alice", "--budget", "5M/5h", "--budget", "50M/7d", "--concurrency", "4")
    assert edited.code == 0
    assert edited.out == "budgets: 2M/5h -> 5M/5h, 50M/7d\n"


def test_edit_clears_a_limit_with_none(run: Run) -> None:
    options = (
        "--requests-per-minute",
        "--tokens-per-minute",
        "--concurrency",
        "--overdraft",
        "--budget",
        "--expires",
    )
    values = ("60", "100k", "4", "10k", "2M/5h", "90d")
    given = [text for pair in zip(options, values, strict=True) for text in pair]
    run("key", "create", "alice", *given, "--model", "claude-*")
    cleared = run("key", "edit", "alice", *(text for option in (*options, "--model") for text in (option, "none")))
    assert cleared.code == 0
    shown = run("key", "show", "alice", "--json").json
    assert [shown[name] for name in ("requests_per_minute", "tokens_per_minute", "concurrency", "expires")] == [
        None
    ] * 4
    assert (shown["overdraft"], shown["budgets"], shown["models"]) == (0, [], [])


def test_edit_keeps_what_it_is_not_told(run: Run) -> None:
    run("key", "create", "alice", "--budget", "2M/5h", "--model", "claude-*")
    run("key", "edit", "alice", "--concurrency", "2")
    shown = run("key", "show", "alice", "--json").json
    assert (shown["budgets"][0]["tokens"], shown["models"]) == (2_000_000, ["claude-*"])


def test_edit_without_a_change_says_so(run: Run) -> None:
    run("key", "create", "alice", "--concurrency", "2")
    same = run("key", "edit", "alice", "--concurrency", "2")
    assert (same.code, same.out, same.err) == (0, "", "alice is like that already.\n")
    assert run("key", "edit", "alice").code == 2


def test_disabling_and_enabling_are_shown(run: Run) -> None:
    run("key", "create", "alice")
    assert run("key", "disable", "alice").code == 0
    assert run("key", "show", "alice", "--json").json["state"] == "disabled"
    assert run("key", "enable", "alice", "--json").json["state"] == "active"


def test_renaming_keeps_the_key(run: Run) -> None:
    made = run("key", "create", "alice", "--json").json
    assert run("key", "rename", "alice", "alice-laptop").code == 0
    assert run("key", "show", "alice-laptop", "--json").json["id"] == made["id"]
    assert run("key", "show", "alice").code == 3


def test_rotating_makes_a_new_key_and_ends_the_old_one(run: Run) -> None:
    run("key", "create", "alice")
    rotated = run("key", "rotate", "alice")
    api_key = keys.parse(rotated.out.strip())
    assert api_key is not None
    (secret,) = run("key", "show", "alice", "--json").json["secrets"]
    assert secret["key_id"] == api_key.key_id


def test_rotating_with_grace_keeps_the_old_key_for_so_long(run: Run) -> None:
    run("key", "create", "alice")
    rotated = run("key", "rotate", "alice", "--grace", "24h", "--json").json
    new, old = run("key", "show", "alice", "--json").json["secrets"]
    assert (new["prefix"], new["expires"]) == (rotated["prefix"], None)
    assert old["expires"] == new["created"] + DAY_MS
