"""Reports read the ledger as it is: every sum exact, every row once, no row of another key."""

import random
from collections.abc import AsyncIterator
from pathlib import Path

import aiosqlite
import pytest

from gateway import history, reports
from gateway.core.account import ModelTotal, Position
from gateway.core.amounts import DAY_MS, HOUR_MS
from gateway.core.records import Budget, KeyRow, LedgerRow
from gateway.core.usage import Usage
from gateway.database import connect
from gateway.reports import (
    EXPORT_BATCH,
    SUMMARISE_HOURS,
    Grouping,
    read_columns,
    read_history,
    read_latencies,
    read_page,
    read_record,
    read_rows,
    read_running,
    stream_rows,
    summarise,
)
from tests.held_data import NOW, add_key, add_request, insert


@pytest.fixture
async def connection(tmp_path: Path) -> AsyncIterator[aiosqlite.Connection]:
    async with connect(tmp_path / "opusmax.db") as opened:
        yield opened


@pytest.fixture
async def key(connection: aiosqlite.Connection) -> KeyRow:
    row, _ = await add_key(connection, 2**46 + 1, "research")
    return row


@pytest.fixture
async def other_key(connection: aiosqlite.Connection) -> KeyRow:
    row, _ = await add_key(connection, 2**46 + 2, "other")
    return row


async def add_requests(connection: aiosqlite.Connection, key: KeyRow, count: int) -> None:
    """Three in each millisecond, the newest now."""
    for number in range(count):
        await add_request(connection, key, started=NOW - number // 3, sequence=number % 3)


async def test_a_summary_charges_each_request_by_itself_and_rounds_it_up(
    connection: aiosqlite.Connection, key: KeyRow
) -> None:
    for sequence in range(3):
        await add_request(connection, key, sequence=sequence, input=1, output=0, cache_write=0, cache_read=1)
    (row,) = await summarise(connection, key=key, since=0, by=Grouping.MODEL)
    used = Usage(input=3, cache_read=3)
    assert (row.label, row.requests, row.usage, row.charge) == ("claude-x", 3, used, 6)


async def test_a_summary_equals_the_sum_of_the_charges_of_its_rows(
    connection: aiosqlite.Connection, key: KeyRow
) -> None:
    numbers = random.Random(1)
    for sequence in range(200):
        counts = {name: numbers.randrange(5_000) for name in ("input", "output", "cache_write", "cache_read")}
        await add_request(connection, key, sequence=sequence, **counts)
    rows = await read_rows(connection, key, before=None, limit=1_000)
    (summary,) = await summarise(connection, key=key, since=0, by=Grouping.KEY)
    assert summary.label == "research"
    assert summary.charge == sum(row.usage.charge for row in rows)
    assert summary.usage.cache_read == sum(row.usage.cache_read for row in rows)


@pytest.mark.parametrize(
    ("by", "labels"),
    [
        (Grouping.DAY, ["2026-09-20", "2026-09-21"]),
        (Grouping.HOUR, ["2026-09-20 14:00", "2026-09-21 13:00", "2026-09-21 14:00"]),
        (Grouping.MODEL, ["b", "a"]),
        (Grouping.STATUS, ["200", "499"]),
        (Grouping.KEY, ["research"]),
    ],
)
async def test_time_is_summed_up_in_order_and_everything_else_by_charge(
    connection: aiosqlite.Connection, key: KeyRow, by: Grouping, labels: list[str]
) -> None:
    await add_request(connection, key, model="a", input=1)
    await add_request(connection, key, model="a", input=2, started=NOW - HOUR_MS, status=499)
    await add_request(connection, key, model="b", input=100_000, started=NOW - DAY_MS)
    assert [row.label for row in await summarise(connection, key=key, since=0, by=by)] == labels


async def test_a_summary_has_the_usage_of_each_model_apart(
    connection: aiosqlite.Connection, key: KeyRow, other_key: KeyRow
) -> None:
    none = dict.fromkeys(("input", "output", "cache_write", "cache_read"), 0)
    for sequence, (model, owner, tokens) in enumerate([("a", key, 5), ("b", key, 7), ("a", other_key, 9)]):
        await add_request(connection, owner, sequence=sequence, model=model, **(none | {"output": tokens}))
    first, second = await summarise(connection, key=None, since=0, by=Grouping.KEY)
    assert (first.label, first.requests, first.charge) == ("research", 2, 12)
    assert first.parts == tuple(
        ModelTotal(model=model, requests=1, usage=Usage(output=tokens), charge=tokens)
        for model, tokens in (("a", 5), ("b", 7))
    )
    assert (second.label, dict(second.by_model)) == ("other", {"a": Usage(output=9)})
    (day,) = await summarise(connection, key=None, since=0, by=Grouping.DAY)
    assert dict(day.by_model) == {"a": Usage(output=14), "b": Usage(output=7)}


async def test_a_summary_leaves_out_what_is_hours_older_in_flight_or_another_keys(
    connection: aiosqlite.Connection, key: KeyRow, other_key: KeyRow
) -> None:
    await add_request(connection, key)
    await add_request(connection, key, started=NOW - HOUR_MS)
    await add_request(connection, key, sequence=1, status=None)
    await add_request(connection, other_key)
    (row,) = await summarise(connection, key=key, since=NOW, by=Grouping.DAY)
    assert row.requests == 1


async def test_a_summary_of_all_keys_names_each(
    connection: aiosqlite.Connection, key: KeyRow, other_key: KeyRow
) -> None:
    await add_request(connection, key)
    await add_request(connection, other_key, input=5_000)
    rows = await summarise(connection, key=None, since=0, by=Grouping.KEY)
    assert [(row.label, row.requests) for row in rows] == [("other", 1), ("research", 1)]


async def test_the_history_adds_up_to_the_summary(connection: aiosqlite.Connection, key: KeyRow) -> None:
    for sequence, (model, status) in enumerate([("a", 200), ("a", 200), ("a", 499), ("b", 200)]):
        await add_request(connection, key, sequence=sequence, model=model, status=status)
    await add_request(connection, key, started=NOW - DAY_MS)
    cells = await read_history(connection, key, since=0)
    (summary,) = await summarise(connection, key=key, since=0, by=Grouping.KEY)
    assert sorted(cell.requests for cell in cells) == [1, 1, 1, 2]
    assert {cell.day for cell in cells} == {NOW - NOW % DAY_MS, NOW - NOW % DAY_MS - DAY_MS}
    assert sum(cell.charge for cell in cells) == summary.charge


async def test_a_row_is_read_as_it_was_written(connection: aiosqlite.Connection, key: KeyRow) -> None:
    await add_request(connection, key)
    assert await read_rows(connection, key, before=None, limit=10) == [
        LedgerRow(
            key=key,
            started=NOW,
            sequence=0,
            model="claude-x",
            status=200,
            latency_ms=840,
            usage=Usage(input=100, output=50, cache_write=20, cache_read=1_001),
            estimated=False,
        )
    ]


async def test_paging_shows_every_request_once_newest_first(
    connection: aiosqlite.Connection, key: KeyRow, other_key: KeyRow
) -> None:
    await add_requests(connection, key, 25)
    await add_request(connection, other_key)
    seen: list[tuple[int, int]] = []
    before: Position | None = None
    for size in (10, 10, 5):
        page = await read_page(connection, key, before=before, limit=10)
        assert len(page.rows) == size
        seen += [(row.started, row.sequence) for row in page.rows]
        before = page.older
    assert before is None
    assert seen == sorted(set(seen), reverse=True)


async def test_a_full_last_page_leads_nowhere(connection: aiosqlite.Connection, key: KeyRow) -> None:
    await add_requests(connection, key, 10)
    assert (await read_page(connection, key, before=None, limit=10)).older is None


async def test_an_export_holds_every_request_once_also_over_several_batches(
    connection: aiosqlite.Connection, key: KeyRow, other_key: KeyRow
) -> None:
    await add_requests(connection, key, 2 * EXPORT_BATCH + 1)
    await add_request(connection, other_key)
    batches = [rows async for rows in stream_rows(connection, key)]
    assert [len(rows) for rows in batches] == [EXPORT_BATCH, EXPORT_BATCH, 1]
    assert len({(row.key, row.started, row.sequence) for rows in batches for row in rows}) == 2 * EXPORT_BATCH + 1


async def test_an_export_that_runs_while_requests_come_in_misses_none_of_the_older_ones(
    connection: aiosqlite.Connection, key: KeyRow
) -> None:
    await add_requests(connection, key, EXPORT_BATCH + 5)
    seen = 0
    async for rows in stream_rows(connection, key):
        seen += len(rows)
        await add_request(connection, key, started=NOW + seen)
    assert seen == EXPORT_BATCH + 5


async def test_only_requests_in_flight_are_running(
    connection: aiosqlite.Connection, key: KeyRow, other_key: KeyRow
) -> None:
    await add_request(connection, key)
    await add_request(connection, key, sequence=1, status=None, latency=None, estimated=1)
    await add_request(connection, other_key, status=None)
    assert [row.sequence for row in await read_running(connection, key)] == [1]


@pytest.mark.parametrize(
    ("latencies", "p50", "p95"),
    [([], None, None), ([7], 7, 7), ([30, 10, 20, None], 20, 30), (list(range(1, 101)), 50, 95)],
)
async def test_percentiles_are_latencies_that_were_measured(
    connection: aiosqlite.Connection,
    key: KeyRow,
    latencies: list[int | None],
    p50: int | None,
    p95: int | None,
) -> None:
    for sequence, latency in enumerate(latencies):
        await add_request(connection, key, sequence=sequence, latency=latency)
    read = await read_latencies(connection, key)
    assert (read.p50_ms, read.p95_ms) == (p50, p95)
    assert read.requests == len([latency for latency in latencies if latency is not None])


async def test_a_record_holds_the_key_its_secrets_without_hashes_and_its_budgets(
    connection: aiosqlite.Connection, key: KeyRow
) -> None:
    for window, tokens in ((None, 200), (7 * DAY_MS, 20), (5 * HOUR_MS, 2)):
        await insert(connection, "budget", {"key": key, "window": window, "tokens": tokens})
    record = await read_record(connection, key)
    assert record is not None
    assert (record.id, record.name, record.disabled) == (key, "research", False)
    assert record.budgets == (
        Budget(tokens=2, window_ms=5 * HOUR_MS),
        Budget(tokens=20, window_ms=7 * DAY_MS),
        Budget(tokens=200, window_ms=None),
    )
    assert [secret.prefix[:11] for secret in record.secrets] == ["sk-ant-om1-"]
    assert "HASH-OF-IT" not in repr(record)


async def test_there_is_no_record_of_a_key_that_is_gone(connection: aiosqlite.Connection, key: KeyRow) -> None:
    await connection.execute("DELETE FROM key WHERE id = ?", (key,))
    assert await read_record(connection, key) is None
    assert await read_rows(connection, key, before=None, limit=1) == []


async def test_the_columns_are_those_of_the_schema_in_its_order(connection: aiosqlite.Connection) -> None:
    columns = await read_columns(connection)
    assert columns[:2] == [("key", "id"), ("key", "name")]
    assert list(dict(columns)) == ["key", "secret", "budget", "request", "usage_by_hour", "erasure"]
    await connection.execute("CREATE TABLE later (made INTEGER, twice INTEGER AS (made * 2)) STRICT")
    assert (await read_columns(connection))[-2:] == [("later", "made"), ("later", "twice")]


@pytest.mark.parametrize("key_given", [True, False])
async def test_a_summary_seeks_in_the_ledger_and_never_scans_it(
    connection: aiosqlite.Connection, key: KeyRow, *, key_given: bool
) -> None:
    bound = {"by": "day", "key": key if key_given else None, "since": 0}
    plan = await connection.execute_fetchall(f"EXPLAIN QUERY PLAN {SUMMARISE_HOURS}", bound)
    assert any("SEARCH usage_by_hour USING PRIMARY KEY (key=? AND hour>?)" in row[3] for row in plan)


@pytest.mark.parametrize(
    ("statement", "bound", "wanted"),
    [
        (reports.SELECT_RUNNING, (1, 20), "INDEX request_in_flight (key=?)"),
        (history.SELECT_IN_FLIGHT, (1,), "INDEX request_in_flight (key=?)"),
        (history.SELECT_SHARED_SLOTS, (1, ""), "PRIMARY KEY (key=? AND started>?)"),
        (history.SELECT_SLOTS, (1, 1), "PRIMARY KEY (key=? AND started>?)"),
    ],
)
async def test_what_is_asked_often_reads_no_more_of_the_ledger_than_it_needs(
    connection: aiosqlite.Connection, statement: str, bound: tuple[object, ...], wanted: str
) -> None:
    plan = [row[3] for row in await connection.execute_fetchall(f"EXPLAIN QUERY PLAN {statement}", bound)]
    assert f"SEARCH request USING {wanted}" in plan
