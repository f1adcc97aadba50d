"""Whatever the database does wrong: nobody unknown gets in, nothing goes unrecorded, and the gate heals by itself.

The faults are real ones, made by another connection while the server runs: a table or a column is gone, the schema
is garbage, a text is none, somebody holds the lock. Under each of them come keys that were used before, that were
proven and never used, that were never seen, and that have no budget; an answer ends in the middle of it, and a key
is disabled meanwhile. `make prove` takes away every table and every column.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from sqlite3 import OperationalError

import aiosqlite
import argon2

from gateway.core import keys
from gateway.core.keys import ApiKey
from gateway.core.records import Key
from gateway.core.usage import Usage
from gateway.simulator import Script, Simulator
from gateway.simulator.sending import Received
from tests.gate_corpus import METERED, Attempt, Seen, Serving, exchange, number_of, provider_of_both, serving_both
from tests.harness import Database, until
from tests.test_gate_paths import require_only_listed

SLOW = 1_000_000
"""Attempts with a number from here on are answered slowly."""
FAULT_SECONDS = 0.7
"""At least: two looks of the server at what changed, and the end of a slow answer."""
HEALED_WITHIN_SECONDS = 10
CLOSED = {400, 401, 403, 429, 500, 503}
LIMITS = {"budgets": [(10**9, 3_600_000), (10**9, None)], "requests_per_minute": 10**6, "tokens_per_minute": 10**9}
"""Whatever there is to read when a key is first used."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A change of the database that breaks it, and one that takes that back."""

    do: Sequence[str]
    undo: Sequence[str]


LEGACY = "PRAGMA legacy_alter_table = ON"
"""Triggers and foreign keys go on naming a table that is gone."""


def without_table(name: str) -> Fault:
    return Fault([LEGACY, f"ALTER TABLE {name} RENAME TO gone"], [f"ALTER TABLE gone RENAME TO {name}"])


def without_column(table: str, name: str) -> Fault:
    rename = f"ALTER TABLE {table} RENAME COLUMN"
    return Fault([f"{rename} {name} TO gone"], [f"{rename} gone TO {name}"])


LOCKED = Fault(["BEGIN EXCLUSIVE"], ["ROLLBACK"])
NO_TEXT = Fault(["UPDATE key SET models = CAST(x'ff' AS TEXT)"], ["UPDATE key SET models = ''"])
NO_RIGHT_TABLE = Fault(
    [
        "PRAGMA writable_schema = ON",
        "CREATE TEMP TABLE place AS SELECT rootpage FROM sqlite_schema WHERE name = 'secret'",
        "UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'erasure')"
        " WHERE name = 'secret'",
        "PRAGMA schema_version = 1001",
    ],
    [
        "UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM place) WHERE name = 'secret'",
        "DROP TABLE place",
        "PRAGMA schema_version = 1002",
    ],
)
"""The schema leads to another table's pages."""
NO_ROW = Fault(
    ["CREATE TRIGGER no_row BEFORE INSERT ON request BEGIN SELECT RAISE(ABORT, 'no'); END"], ["DROP TRIGGER no_row"]
)
"""The database takes no row of the ledger, each for itself: a constraint, and nothing wrong with the disk."""
FEW_FAULTS = {
    "no secret": without_table("secret"),
    "no request": without_table("request"),
    "no budget.tokens": without_column("budget", "tokens"),
    "no right table": NO_RIGHT_TABLE,
}


CALLS = tuple(Attempt(target=path) for path in METERED)
"""Taken in turn."""
LOOKUP = Attempt(target="/v1/models", method="GET")


@dataclass(slots=True)
class Site:
    """A server, its provider, and what was sent to it."""

    provider: Simulator
    database: Database
    origin: str
    alice: str
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    made: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    statuses: Counter[int] = field(default_factory=Counter)
    """Of the answers that keys got while something was wrong."""
    refused: set[int] = field(default_factory=set)
    """What must not reach the provider."""

    async def ask(self, key: str, attempt: Attempt | None = None, plus: int = 0) -> Seen:
        """`None`: a call that costs tokens."""
        number = next(self.numbers)
        attempt, line = attempt or CALLS[number % len(CALLS)], f"x-api-key: {key}"
        seen = await exchange(self.origin, attempt.request(plus + number, line))
        if seen.status != 200:
            seen.require_envelope(attempt.protocol(line))
        return seen

    async def require_closed(self, key: str, *others: Attempt) -> None:
        """Nothing of it reaches the provider, be it a call or one of the others."""
        number = next(self.numbers)
        self.refused.add(number)
        line = f"x-api-key: {key}"
        for attempt in (CALLS[number % len(CALLS)], *others):
            seen = await exchange(self.origin, attempt.request(number, line))
            assert seen.status in CLOSED
            seen.require_envelope(attempt.protocol(line))

    async def make_key(self, **limits: object) -> tuple[str, Key]:
        return await self.database.create_key(f"key {next(self.made)}", **limits)

    async def is_known(self, key: str) -> None:
        """Once the server has seen the key come; a lookup proves it, and reads no limits."""
        async with asyncio.timeout(20):
            while (await self.ask(key, LOOKUP)).status != 200:
                await asyncio.sleep(0.02)

    async def heals(self, *keys: str) -> None:
        """Each of these is served again, by itself."""
        async with asyncio.timeout(HEALED_WITHIN_SECONDS):
            for key in keys:
                while (await self.ask(key)).status != 200:
                    await asyncio.sleep(0.02)

    async def require_all_recorded(self) -> None:
        """What the provider was asked stands in the ledger, one row each, and was asked by the rules."""
        numbers = require_only_listed(self.provider).numbers
        await until(lambda: self.database.query("SELECT 1 FROM request WHERE status IS NULL") == [])
        rows = self.database.query("SELECT input, status FROM request")
        assert len(rows) == len(numbers)
        whole = [number for number, status in rows if status == 200]
        assert set(whole) <= set(numbers)
        assert len(set(whole)) == len(whole)
        assert self.refused.isdisjoint(numbers)


@asynccontextmanager
async def site(database: Database, serve: Serving = serving_both) -> AsyncIterator[Site]:
    alice, _ = await database.create_key("alice", **LIMITS)
    async with provider_of_both() as provider:
        provider.choose = answer_slowly_or_at_once
        async with serve(provider, database.path) as origin:
            here = Site(provider, database, origin, alice)
            await here.heals(alice)
            yield here


def answer_slowly_or_at_once(received: Received) -> Script | None:
    if not received.is_message:
        return None
    number = number_of(received)
    usage = Usage(input=number, output=1)
    return Script(usage=usage, first_byte_delay_seconds=FAULT_SECONDS / 2 if number >= SLOW else 0)


async def come_through(here: Site, fault: Fault) -> None:
    """One fault, from before to after."""
    fresh, _ = await here.make_key(**LIMITS)
    unseen, _ = await here.make_key(**LIMITS)
    poor, _ = await here.make_key(budgets=[(10, 3_600_000)])
    leaver, leaving = await here.make_key()
    await here.is_known(fresh)
    await here.heals(leaver)
    known = [here.alice, fresh, unseen]
    slow = asyncio.create_task(here.ask(here.alice, plus=SLOW))
    before = len(here.provider.messages())
    await until(lambda: len(here.provider.messages()) > before)
    async with second_connection(here.database) as connection:
        await run(connection, fault.do)
        answers = [slow, *await send_under_fault(here, known, poor)]
        is_disabled = await disable(connection, leaving)
        answers += await send_under_fault(here, known, poor)
        if is_disabled:
            await until_closed(here, leaver)
        await run(connection, fault.undo)
        here.statuses.update(seen.status for seen in await asyncio.gather(*answers))
        await disable(connection, leaving)
    await here.heals(*known)
    await until_closed(here, leaver)
    assert set(here.statuses) <= {200, *CLOSED}


def second_connection(database: Database) -> aiosqlite.Connection:
    """As another process would have it. It waits in a thread: the server may be in this process."""
    return aiosqlite.connect(database.path, isolation_level=None, timeout=20)


async def run(connection: aiosqlite.Connection, statements: Sequence[str]) -> None:
    for statement in statements:
        await connection.execute_fetchall(statement)


async def disable(connection: aiosqlite.Connection, key: Key) -> bool:
    """As the command line does it. Returns whether the fault lets it."""
    with suppress(OperationalError):
        await connection.execute_fetchall("UPDATE key SET disabled = 1 WHERE id = ?", (key.row,))
        return not connection.in_transaction
    return False


async def until_closed(here: Site, key: str) -> None:
    async with asyncio.timeout(20):
        while (await here.ask(key, LOOKUP)).status == 200:
            await asyncio.sleep(0.02)
    assert (await here.ask(key)).status in CLOSED


async def send_under_fault(here: Site, known: Sequence[str], poor: str) -> list[asyncio.Task[Seen]]:
    """Known keys may be answered, now or when the fault is over; strangers, and who has no budget, never are."""
    await here.require_closed(poor)  # first, while the server has not noticed anything
    tasks = [asyncio.create_task(here.ask(key)) for key in known]
    right = keys.parse(here.alice)
    assert right is not None
    for stranger in (keys.mint().text, ApiKey(right.key_id, keys.mint().secret).text):
        await here.require_closed(stranger, LOOKUP)
    await asyncio.sleep(FAULT_SECONDS / 2)
    return tasks


async def require_gate_holds(
    database: Database, faults: Iterable[Fault], serve: Serving = serving_both
) -> Counter[int]:
    """One fault after the other, with one server."""
    async with site(database, serve) as here:
        for fault in faults:
            await come_through(here, fault)
        await here.require_all_recorded()
    return here.statuses


async def test_a_fault_of_the_database_lets_nobody_in_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Each at a server of its own, all at once: most of the time is spent waiting."""
    sites = [require_gate_holds(Database(tmp_path / f"{name}.db"), [fault]) for name, fault in FEW_FAULTS.items()]
    statuses = sum(await asyncio.gather(*sites), Counter[int]())
    assert statuses[503] > 0


# What stands in the database makes no sense


HASHES = [
    *("", "garbage", "$argon2id$", "$argon2id$v=19$m=8,t=1,p=1$", "$argon2id$v=19$m=8,t=1,p=1$AAAA$AAAA"),
    *("\u00e9" * 99, "$2b$12$" + "a" * 53, "$argon2id$v=19$m=-1,t=0,p=0$c29tZXNhbHQ$AAAA"),
    *("{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M=", "0" * 10**6),
    argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1, type=argon2.Type.I).hash("another"),
]


async def test_a_hash_that_is_damaged_opens_to_nobody_and_once_repaired_to_its_key(database: Database) -> None:
    made = [await database.create_key(f"damaged {number}") for number in range(len(HASHES))]
    whole = dict(database.query("SELECT key, hash FROM secret"))
    async with second_connection(database) as connection:
        for (_, key), damaged in zip(made, HASHES, strict=True):
            await connection.execute("UPDATE secret SET hash = ? WHERE key = ?", (damaged, key.row))
    async with site(database) as here, second_connection(database) as connection:
        for text, _ in made:
            await here.require_closed(text, LOOKUP)
        for _, key in made:
            await connection.execute("UPDATE secret SET hash = ? WHERE key = ?", (whole[key.row], key.row))
        await here.heals(*[text for text, _ in made])
        await here.require_all_recorded()


HUGE = 2**63 - 1
NONSENSE = [
    f"INSERT INTO budget (key, window, tokens) VALUES (:key, {HUGE}, {HUGE})",
    f"INSERT INTO budget (key, window, tokens) VALUES (:key, {2**62}, 1000000)",
    "INSERT INTO budget (key, window, tokens) VALUES (:key, 1000, 1000000), (:key, 1001, 1000001)",
    f"UPDATE key SET requests_per_minute = {HUGE}, tokens_per_minute = {HUGE}, concurrency = 1 WHERE id = :key",
    f"UPDATE key SET overdraft = {HUGE} WHERE id = :key",
    f"UPDATE key SET expires = -{HUGE} WHERE id = :key",
    "UPDATE key SET expires = 0 WHERE id = :key",
    f"UPDATE key SET expires = {HUGE}, created = -{HUGE}, last_used = {HUGE} WHERE id = :key",
    "UPDATE key SET models = '[ [! [] ][ \\' || char(0) WHERE id = :key",
    "UPDATE key SET total_charge = -1, total_requests = -1 WHERE id = :key",
]
"""All of it passes the schema's own checks."""
RESTORE = (
    "UPDATE key SET (expires, models, overdraft) = (NULL, '', 0),"
    " (requests_per_minute, tokens_per_minute, concurrency) = (NULL, NULL, NULL) WHERE id = :key"
)


async def test_limits_that_make_no_sense_hurt_their_own_key_alone(database: Database) -> None:
    async with site(database) as here, second_connection(database) as connection:
        made = [await here.make_key() for _ in NONSENSE]
        await run(
            connection, [sql.replace(":key", str(key.row)) for (_, key), sql in zip(made, NONSENSE, strict=True)]
        )
        follower, _ = await here.make_key()
        await here.is_known(follower)
        for text, _ in made:
            await here.ask(text, LOOKUP)
            await here.ask(text)
        await here.heals(here.alice, follower)
        await run(connection, [RESTORE.replace(":key", str(key.row)) for _, key in made])
        await here.heals(*[text for text, _ in made])
        await here.require_all_recorded()
