"""How a key is named on the command line, and what is said of one that is not there."""

import sqlite3
from contextlib import closing

import pytest

from gateway.core import keys
from tests import commands
from tests.commands import DATABASE, Run

run = commands.run


@pytest.mark.parametrize("command", ["show", "disable", "enable", "rotate", "delete"])
def test_an_unknown_key_ends_with_3(run: Run, command: str) -> None:
    run("key", "create", "alice")
    failed = run("key", command, "nobody")
    assert (failed.code, failed.out, failed.err) == (
        3,
        "",
        "error: no such key: nobody. `key list` shows them all.\n",
    )


def test_a_key_that_fits_several_ends_with_2_and_names_them(run: Run) -> None:
    run("key", "create", "alice")
    run("key", "create", "bob")
    with closing(sqlite3.connect(DATABASE)) as connection, connection:
        connection.execute("UPDATE secret SET key_id = 'k7f3' || substr(key_id, 5)")
    failed = run("key", "disable", "k7f3")
    assert (failed.code, failed.out, failed.err) == (2, "", "error: k7f3 fits several keys: alice, bob\n")


def test_a_whole_key_is_not_taken_and_not_repeated(run: Run) -> None:
    api_key = run("key", "create", "alice").out.strip()
    failed = run("key", "show", api_key)
    assert failed.code == 2
    assert keys.parse(api_key) is not None
    assert api_key not in failed.err
    assert api_key[-30:] not in failed.err


@pytest.mark.parametrize(
    ("typed", "meant"), [("alic", "alice"), ("ALICE", "alice"), ("bbo", "Bob"), ("zoe mueller", "zoë müller")]
)
def test_a_mistyped_key_gets_a_suggestion(run: Run, typed: str, meant: str) -> None:
    for name in ("alice", "Bob", "zoë müller"):
        run("key", "create", name)
    for argv in (("key", "show", typed), ("usage", typed), ("key", "simulate", typed), ("key", "delete", typed)):
        failed = run(*argv)
        assert (failed.code, failed.out) == (3, "")
        assert failed.err == f"error: no such key: {typed}. Did you mean {meant}?\n"


def test_without_any_key_it_says_how_to_make_one(run: Run) -> None:
    run("key", "create", "alice")
    run("key", "delete", "alice", "--yes")
    failed = run("key", "show", "alice")
    assert (failed.code, failed.err) == (
        3,
        "error: no such key: alice. There are no keys yet; `key create NAME` makes one.\n",
    )


@pytest.mark.parametrize("name", ["alice müller", "日本", "o'brien; rm -rf /", "--yes", "%s {0}"])
def test_a_name_may_have_spaces_and_any_letters(run: Run, name: str) -> None:
    assert run("key", "create", "--", name).code == 0
    shown = run("key", "show", "--json", "--", name)
    assert shown.json["name"] == name
    assert name in run("key", "list").out
    assert run("key", "delete", "--yes", "--", name).code == 0
