"""Keys, secrets and budgets in the database. Each public function is one transaction.

Requests are not read or written here: that is the ledger's part. Deleting a key is more than deleting a row: see
erasure.py.
"""

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import aiosqlite

from gateway.core.keys import KEY_ID_LENGTH, PREFIX
from gateway.core.records import Budget, Key, KeyRow, Secret
from gateway.database import transaction

SELECT_KEYS = """
SELECT id, name, created, expires, disabled, requests_per_minute, tokens_per_minute, concurrency, overdraft, models
  FROM key
 ORDER BY name COLLATE NOCASE, name
"""

SELECT_BUDGETS = """
SELECT key, tokens, window
  FROM budget
 ORDER BY window IS NULL, window
"""

SELECT_SECRETS = """
SELECT key, key_id, prefix, hash, created, expires
  FROM secret
"""

SELECT_OTHER_WITH_NAME = "SELECT 1 FROM key WHERE name = ? AND id <> ?"

INSERT_KEY = """
INSERT INTO key (id, name, created, expires, disabled, requests_per_minute, tokens_per_minute, concurrency,
                 overdraft, models)
VALUES (:row, :name, :created, :expires, :disabled, :requests_per_minute, :tokens_per_minute, :concurrency,
        :overdraft, :models)
"""

UPDATE_KEY = """
UPDATE key
   SET name = :name,
       expires = :expires,
       disabled = :disabled,
       requests_per_minute = :requests_per_minute,
       tokens_per_minute = :tokens_per_minute,
       concurrency = :concurrency,
       overdraft = :overdraft,
       models = :models
 WHERE id = :row
"""

INSERT_BUDGET = "INSERT INTO budget (key, tokens, window) VALUES (?, ?, ?)"

DELETE_BUDGETS = "DELETE FROM budget WHERE key = ?"

INSERT_SECRET = """
INSERT INTO secret (key_id, key, prefix, hash, created, expires)
VALUES (:key_id, :key, :prefix, :hash, :created, :expires)
"""  # noqa: S105 - a statement, no secret

EXPIRE_SECRETS = """
UPDATE secret
   SET expires = min(ifnull(expires, :at), :at)
 WHERE key = :key
"""

DELETE_EXPIRED_SECRETS = "DELETE FROM secret WHERE key = ? AND expires <= ?"

SHORTEST_PREFIX = 4
"""Characters of a key id that find a key: what is shown of it. Fewer would make a typing error find one."""


class NameTaken(Exception):
    """Another key has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is already a key with the name {name}")


class KeyGone(Exception):
    """The key was deleted meanwhile."""

    def __init__(self) -> None:
        super().__init__("the key has been deleted meanwhile")


@dataclass(frozen=True, slots=True)
class Directory:
    """All keys and secrets at one moment."""

    keys: Mapping[KeyRow, Key]
    """In the order of their names."""
    secrets: Mapping[str, Secret]
    """By public key id; expired ones are among them."""


def new_key_row() -> KeyRow:
    """A random id for a key's row. JSON carries it exactly, and SQLite stores each one in six bytes."""
    return KeyRow(2**46 + secrets.randbits(46))


async def read_directory(connection: aiosqlite.Connection) -> Directory:
    """All keys and secrets as they are now."""
    async with _snapshot(connection):
        return Directory(keys=await _read_keys(connection), secrets=await _read_secrets(connection))


async def find_keys(connection: aiosqlite.Connection, text: str) -> list[Key]:
    """The keys that an administrator may mean by `text`: none, one or several.

    That is the key with exactly this name; else with exactly this public id or row id; else those whose public
    id begins so, if `text` has at least as much of it as is shown (`sk-ant-om1-k7f3…`, `sk-ant-om1-k7f3`, `k7f3`).
    """
    directory = await read_directory(connection)
    named = [key for key in directory.keys.values() if key.name == text]
    if named:
        return named
    key_id = text.removeprefix(PREFIX).removesuffix("…").removesuffix("...")
    return _with_row_id(directory, text) or _with_key_id(directory, key_id)


async def add_key(connection: aiosqlite.Connection, key: Key, secret: Secret) -> None:
    """Write a new key with its first secret. Raises `NameTaken`."""
    async with transaction(connection):
        await _require_free_name(connection, key)
        await connection.execute(INSERT_KEY, _columns(key))
        await _insert_budgets(connection, key)
        await connection.execute(INSERT_SECRET, asdict(secret))


async def edit_key(connection: aiosqlite.Connection, row: KeyRow, changes: Mapping[str, Any]) -> tuple[Key, Key]:
    """Give some fields of a key new values, by their names; returns it as it was and as it is now.

    Fields that are not named keep what another administrator may have written a moment ago. Raises `NameTaken`
    and `KeyGone`.
    """
    async with transaction(connection):
        before = (await _read_keys(connection)).get(row)
        if before is None:
            raise KeyGone
        after = replace(before, **changes)
        await _require_free_name(connection, after)
        await connection.execute(UPDATE_KEY, _columns(after))
        await connection.execute(DELETE_BUDGETS, (row,))
        await _insert_budgets(connection, after)
    return before, after


async def rotate(connection: aiosqlite.Connection, secret: Secret, *, grace_ms: int) -> None:
    """Give a key a new secret. Its older ones hold for the grace time, and with 0 not at all.

    A secret whose time was to end sooner still ends then. Raises `KeyGone`.
    """
    async with transaction(connection):
        if secret.key not in await _read_keys(connection):
            raise KeyGone
        await connection.execute(EXPIRE_SECRETS, {"key": secret.key, "at": secret.created + grace_ms})
        await connection.execute(DELETE_EXPIRED_SECRETS, (secret.key, secret.created))
        await connection.execute(INSERT_SECRET, asdict(secret))


@asynccontextmanager
async def _snapshot(connection: aiosqlite.Connection) -> AsyncIterator[None]:
    """Several reads of one state of the database."""
    await connection.execute("BEGIN")
    try:
        yield
    finally:
        await connection.rollback()


async def _read_keys(connection: aiosqlite.Connection) -> dict[KeyRow, Key]:
    budgets = await _read_budgets(connection)
    return {
        row: Key(
            row=row,
            name=name,
            created=created,
            expires=expires,
            disabled=bool(disabled),
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            concurrency=concurrency,
            overdraft=overdraft,
            models=tuple(models.split()),
            budgets=tuple(budgets.get(row, ())),
        )
        for (
            row,
            name,
            created,
            expires,
            disabled,
            requests_per_minute,
            tokens_per_minute,
            concurrency,
            overdraft,
            models,
        ) in await connection.execute_fetchall(SELECT_KEYS)
    }


async def _read_budgets(connection: aiosqlite.Connection) -> dict[KeyRow, list[Budget]]:
    budgets: dict[KeyRow, list[Budget]] = {}
    for row, tokens, window_ms in await connection.execute_fetchall(SELECT_BUDGETS):
        budgets.setdefault(row, []).append(Budget(tokens=tokens, window_ms=window_ms))
    return budgets


async def _read_secrets(connection: aiosqlite.Connection) -> dict[str, Secret]:
    return {
        key_id: Secret(key=row, key_id=key_id, prefix=prefix, hash=hashed, created=created, expires=expires)
        for row, key_id, prefix, hashed, created, expires in await connection.execute_fetchall(SELECT_SECRETS)
    }


def _with_row_id(directory: Directory, text: str) -> list[Key]:
    return [key for key in directory.keys.values() if str(key.row) == text]


def _with_key_id(directory: Directory, key_id: str) -> list[Key]:
    """Of keys with several secrets, any may match."""
    exact = directory.secrets.get(key_id)
    if exact is not None:
        return [directory.keys[exact.key]]
    if not SHORTEST_PREFIX <= len(key_id) < KEY_ID_LENGTH:
        return []
    rows = {secret.key for secret in directory.secrets.values() if secret.key_id.startswith(key_id)}
    return [key for key in directory.keys.values() if key.row in rows]


async def _require_free_name(connection: aiosqlite.Connection, key: Key) -> None:
    if list(await connection.execute_fetchall(SELECT_OTHER_WITH_NAME, (key.name, key.row))):
        raise NameTaken(key.name)


async def _insert_budgets(connection: aiosqlite.Connection, key: Key) -> None:
    rows = [(key.row, budget.tokens, budget.window_ms) for budget in key.budgets]
    await connection.executemany(INSERT_BUDGET, rows)


def _columns(key: Key) -> dict[str, Any]:
    return {**asdict(key), "models": " ".join(key.models)}
