"""Keys in the database: what is written is read back, and what a KEY on the command line finds."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiosqlite
import argon2
import pytest

from gateway.core import keys
from gateway.core.records import Budget, Key, KeyRow, Secret
from gateway.database import connect
from gateway.hashing import hash_secret, verify_secret
from gateway.keystore import (
    KeyGone,
    NameTaken,
    add_key,
    edit_key,
    find_keys,
    new_key_row,
    read_directory,
    rotate,
)

NOW_MS = 1_790_000_000_000
CHEAPEST = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@pytest.fixture
async def connection(tmp_path: Path) -> AsyncIterator[aiosqlite.Connection]:
    async with connect(tmp_path / "opusmax.db") as opened:
        yield opened


def make_key(name: str) -> Key:
    return Key(row=new_key_row(), name=name, created=NOW_MS)


def make_secret(key: Key, key_id: str, created: int = NOW_MS) -> Secret:
    api_key = keys.ApiKey(key_id, "0" * keys.SECRET_LENGTH)
    return Secret(key=key.row, key_id=key_id, prefix=api_key.prefix, hash="$argon2id$", created=created)


async def names_found(connection: aiosqlite.Connection, text: str) -> list[str]:
    return [key.name for key in await find_keys(connection, text)]


async def test_a_key_is_read_back_as_it_was_written(connection: aiosqlite.Connection) -> None:
    key = Key(
        row=new_key_row(),
        name="alice",
        created=NOW_MS,
        expires=NOW_MS + 1,
        disabled=True,
        requests_per_minute=60,
        tokens_per_minute=100_000,
        concurrency=4,
        overdraft=300_000,
        models=("claude-*", "gpt-5"),
        budgets=(Budget(tokens=2_000_000, window_ms=18_000_000), Budget(tokens=9_000_000, window_ms=None)),
    )
    secret = make_secret(key, "k7f3m2q9x4ab")
    await add_key(connection, key, secret)
    directory = await read_directory(connection)
    assert directory.keys == {key.row: key}
    assert directory.secrets == {secret.key_id: secret}


async def test_a_name_is_given_only_once(connection: aiosqlite.Connection) -> None:
    alice, bob = make_key("alice"), make_key("bob")
    await add_key(connection, alice, make_secret(alice, "aaaaaaaaaaaa"))
    await add_key(connection, bob, make_secret(bob, "bbbbbbbbbbbb"))
    double = make_key("alice")
    with pytest.raises(NameTaken):
        await add_key(connection, double, make_secret(double, "cccccccccccc"))
    with pytest.raises(NameTaken):
        await edit_key(connection, bob.row, {"name": "alice"})
    assert [key.name for key in (await read_directory(connection)).keys.values()] == ["alice", "bob"]


async def test_an_edit_changes_the_named_fields_only(connection: aiosqlite.Connection) -> None:
    key = replace(make_key("alice"), concurrency=4, budgets=(Budget(tokens=5, window_ms=None),))
    await add_key(connection, key, make_secret(key, "aaaaaaaaaaaa"))
    await edit_key(connection, key.row, {"disabled": True})
    budgets = (Budget(tokens=7, window_ms=1_000), Budget(tokens=8, window_ms=None))
    before, after = await edit_key(connection, key.row, {"budgets": budgets})
    assert before == replace(key, disabled=True)
    assert after == replace(key, disabled=True, budgets=budgets)
    assert (await read_directory(connection)).keys[key.row] == after


async def test_a_key_that_was_deleted_meanwhile_is_not_revived(connection: aiosqlite.Connection) -> None:
    gone = make_key("gone")
    with pytest.raises(KeyGone):
        await edit_key(connection, gone.row, {"concurrency": 1})
    with pytest.raises(KeyGone):
        await rotate(connection, make_secret(gone, "aaaaaaaaaaaa"), grace_ms=0)
    assert not connection.in_transaction


@pytest.mark.parametrize(
    "text", ["k7f3m2q9x4ab", "sk-ant-om1-k7f3m2q9x4ab", "k7f3", "sk-ant-om1-k7f3", "sk-ant-om1-k7f3…", "k7f3m2"]
)
async def test_a_key_is_found_by_its_id_or_its_shown_part(connection: aiosqlite.Connection, text: str) -> None:
    alice, bob = make_key("alice"), make_key("bob")
    await add_key(connection, alice, make_secret(alice, "k7f3m2q9x4ab"))
    await add_key(connection, bob, make_secret(bob, "k7g3m2q9x4ab"))
    assert await names_found(connection, text) == ["alice"]


async def test_a_key_is_found_by_the_id_of_its_row(connection: aiosqlite.Connection) -> None:
    alice = make_key("alice")
    await add_key(connection, alice, make_secret(alice, "k7f3m2q9x4ab"))
    assert await names_found(connection, str(alice.row)) == ["alice"]


async def test_an_exact_name_wins_over_the_beginning_of_an_id(connection: aiosqlite.Connection) -> None:
    bean, other = make_key("bean"), make_key("other")
    await add_key(connection, bean, make_secret(bean, "aaaaaaaaaaaa"))
    await add_key(connection, other, make_secret(other, "beanbeanbean"))
    assert await names_found(connection, "bean") == ["bean"]


async def test_the_beginning_of_two_ids_finds_both_keys(connection: aiosqlite.Connection) -> None:
    for name, key_id in (("alice", "k7f3aaaaaaaa"), ("bob", "k7f3bbbbbbbb")):
        key = make_key(name)
        await add_key(connection, key, make_secret(key, key_id))
    assert await names_found(connection, "k7f3") == ["alice", "bob"]


@pytest.mark.parametrize("text", ["", "k", "k7f", "sk-ant-om1-", "Alice", "alic", "k7f3m2q9x4abc", "%", "_"])
async def test_less_than_the_shown_part_of_an_id_finds_nothing(connection: aiosqlite.Connection, text: str) -> None:
    alice = make_key("alice")
    await add_key(connection, alice, make_secret(alice, "k7f3m2q9x4ab"))
    assert await names_found(connection, text) == []


async def test_rotating_without_grace_leaves_the_new_secret_alone(connection: aiosqlite.Connection) -> None:
    alice = make_key("alice")
    await add_key(connection, alice, make_secret(alice, "aaaaaaaaaaaa"))
    new = make_secret(alice, "bbbbbbbbbbbb", created=NOW_MS + 5)
    await rotate(connection, new, grace_ms=0)
    assert (await read_directory(connection)).secrets == {new.key_id: new}


async def test_grace_never_prolongs_a_secret_that_was_to_end_sooner(connection: aiosqlite.Connection) -> None:
    alice = make_key("alice")
    await add_key(connection, alice, make_secret(alice, "aaaaaaaaaaaa"))
    await rotate(connection, make_secret(alice, "bbbbbbbbbbbb", created=NOW_MS + 10), grace_ms=100)
    await rotate(connection, make_secret(alice, "cccccccccccc", created=NOW_MS + 20), grace_ms=1_000)
    secrets = (await read_directory(connection)).secrets
    assert {key_id: secret.expires for key_id, secret in secrets.items()} == {
        "aaaaaaaaaaaa": NOW_MS + 110,
        "bbbbbbbbbbbb": NOW_MS + 1_020,
        "cccccccccccc": None,
    }
    assert await names_found(connection, "aaaa") == ["alice"]


async def test_the_secrets_of_other_keys_are_left_alone_by_a_rotation(connection: aiosqlite.Connection) -> None:
    alice, bob = make_key("alice"), make_key("bob")
    await add_key(connection, alice, make_secret(alice, "aaaaaaaaaaaa"))
    kept = make_secret(bob, "bbbbbbbbbbbb")
    await add_key(connection, bob, kept)
    await rotate(connection, make_secret(alice, "cccccccccccc"), grace_ms=0)
    assert (await read_directory(connection)).secrets["bbbbbbbbbbbb"] == kept


def test_ids_of_rows_are_carried_exactly_by_json_and_take_six_bytes() -> None:
    rows = {new_key_row() for _ in range(1_000)}
    assert len(rows) == 1_000
    assert all(2**40 <= row < 2**47 for row in rows)
    assert all(KeyRow(int(float(row))) == row for row in rows)


def test_a_secret_is_verified_and_nothing_else_is() -> None:
    hashed = hash_secret("right", CHEAPEST)
    assert verify_secret(hashed, "right")
    assert not verify_secret(hashed, "wrong")
    assert not verify_secret("no hash at all", "right")
    assert not verify_secret("$argon2id$", "right")
    assert not verify_secret("", "")
    assert not verify_secret(hashed, "\ud800")


def test_new_secrets_are_hashed_as_owasp_asks() -> None:
    assert hash_secret("secret").startswith("$argon2id$v=19$m=19456,t=2,p=1$")
