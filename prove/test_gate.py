"""P9: nothing reaches a provider unmetered or unauthenticated, and every failure of the gate is closed."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from sqlite3 import connect as connect_directly

import pytest

from gateway.simulator import Simulator
from prove.conftest import Figure
from tests.gate_corpus import METERED, attempts, provider_of_both, report_number
from tests.harness import OPERATOR_CREDENTIAL, Database
from tests.json_forms import FORMS
from tests.test_gate_credentials import require_closed, require_ends_in_time
from tests.test_gate_faults import (
    LOCKED,
    NO_RIGHT_TABLE,
    NO_ROW,
    NO_TEXT,
    Fault,
    require_gate_holds,
    without_column,
    without_table,
)
from tests.test_gate_paths import Reached, require_clean_answer, require_one_row_each, require_only_listed, sent_all
from tests.test_json_corpus import require_one_reading
from tests.test_server_process import server

PATHS = 2_000
CREDENTIALS = 5_000
TIMES = 1_000
BODIES = 20_000
SERVERS = 4
"""At once, each for a part of the faults: most of their time is spent waiting."""


@pytest.fixture
async def provider() -> AsyncIterator[Simulator]:
    async with provider_of_both() as simulator:
        yield simulator


@asynccontextmanager
async def own_process(provider: Simulator, path: Path) -> AsyncIterator[str]:
    flags = ("--openai-url", provider.origin)
    async with server(provider, path, *flags, OPENAI_API_KEY=OPERATOR_CREDENTIAL) as running:
        yield running.origin


async def test_mutated_requests_reach_listed_addresses_only_and_each_message_has_its_row(
    provider: Simulator, database: Database, figure: Figure
) -> None:
    provider.choose = report_number
    key, _ = await database.create_key(requests_per_minute=10**6)
    mutated = list(itertools.islice(attempts(seed=PATHS), PATHS))
    async with own_process(provider, database.path) as origin:
        for attempt, seen in await sent_all(origin, mutated):
            require_clean_answer(attempt, seen)
        assert require_only_listed(provider) == Reached([], 0)
        sent = await sent_all(origin, mutated, f"authorization: Bearer {key}")
    for attempt, seen in sent:
        require_clean_answer(attempt, seen, "authorization")
    reached = require_only_listed(provider)
    require_one_row_each(database, reached.numbers)
    assert len(reached.numbers) > PATHS / 20
    assert {received.endpoint for received in provider.messages()} == set(METERED)
    statuses = Counter(seen.status for _, seen in sent)
    figure(
        "P9",
        f"{PATHS:,} mutated requests: without a key 0 reach the provider; with one {len(reached.numbers)} messages"
        f" ({len(reached.numbers)} rows) and {reached.lookups} lookups do, 0 at an unlisted address; answers out of"
        f" the envelope 0, echoes 0; statuses {told(statuses)}",
    )


async def test_wrong_credentials_open_nothing(provider: Simulator, database: Database, figure: Figure) -> None:
    statuses = await require_closed(provider, database, CREDENTIALS, seed=CREDENTIALS, serve=own_process)
    assert statuses.total() == CREDENTIALS
    figure(
        "P9",
        f"{CREDENTIALS:,} wrong credentials: calls of the provider 0, rows 0; statuses {told(statuses)}",
    )


async def test_keys_end_when_they_should(monkeypatch: pytest.MonkeyPatch, figure: Figure) -> None:
    await require_ends_in_time(monkeypatch, TIMES)
    figure(
        "P9",
        f"keys that end at a random time, refused from that millisecond on: {TIMES:,} of {TIMES:,}",
    )


def test_bodies_that_pass_are_read_in_one_way(figure: Figure) -> None:
    for name, form in FORMS.items():
        passed = require_one_reading(form, BODIES, seed=BODIES)
        assert passed > BODIES / 10
        figure(
            "P9",
            f"{BODIES:,} random bodies of {name}: {passed:,} passed; read otherwise first-wins, last-wins or in any"
            " case: 0",
        )


async def test_every_table_and_column_may_be_missing(tmp_path: Path, figure: Figure) -> None:
    """The page cache, the statements and the limits of a server see them go, one after the other."""
    faults = [*await all_faults(tmp_path / "model.db"), NO_TEXT, NO_RIGHT_TABLE, NO_ROW, LOCKED]
    parts = [faults[number::SERVERS] for number in range(SERVERS)]
    results = await asyncio.gather(
        *(
            require_gate_holds(Database(tmp_path / f"{number}.db"), part, own_process)
            for number, part in enumerate(parts)
        )
    )
    statuses = sum(results, Counter[int]())
    figure(
        "P9",
        f"{len(faults)} faults of the database under a running server: strangers let in 0, calls without a row 0,"
        f" keys not served again 0; what keys were told meanwhile {told(statuses)}",
    )


async def all_faults(path: Path) -> list[Fault]:
    database = Database(path)
    await database.create_key()
    with closing(connect_directly(path)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        columns = [
            (table, name)
            for table in tables
            for (name,) in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))
        ]
    return [*map(without_table, tables), *itertools.starmap(without_column, columns)]


def told(statuses: Counter[int]) -> str:
    return ", ".join(f"{status}: {count:,}" for status, count in sorted(statuses.items()))
