"""Whoever breaks an answer off - the client, the provider, the network - it leaves one true row, and a client never
sees an end that was not there. The whole matrix runs in `make prove`.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import replace

import aiohttp
import pytest

from gateway.simulator import Simulator
from tests.harness import Database, serving, until
from tests.lanes import (
    STREAMS,
    TEXT,
    Case,
    Lanes,
    Way,
    ask_by_http_1_0,
    boundaries,
    check_estimates_are_told_apart,
    leavings,
    make_lanes,
    whole_answer,
)


@asynccontextmanager
async def lanes_of_a_server(
    provider: Simulator, database: Database, count: int
) -> AsyncIterator[tuple[Lanes, str]]:
    lanes = await make_lanes(provider, database, count)
    async with serving(provider, database.path, silence_timeout_seconds="1s") as origin:
        yield lanes, origin


async def test_a_client_that_leaves_anywhere_pays_for_what_it_used(provider: Simulator, database: Database) -> None:
    async with lanes_of_a_server(provider, database, 8) as (lanes, origin):
        script = STREAMS["thinking, all counts"]
        places = boundaries(await whole_answer(lanes, origin, script))
        for _, result in await lanes.run(origin, leavings(script, [*places, 1, places[1] + 7, places[-1] - 1])):
            result.check_left()


@pytest.mark.parametrize("cut", ["reset", "close"])
async def test_a_stream_cut_anywhere_breaks_for_the_client_after_all_that_came(
    provider: Simulator, database: Database, cut: Way
) -> None:
    async with lanes_of_a_server(provider, database, 8) as (lanes, origin):
        events = len(boundaries(await whole_answer(lanes, origin, STREAMS["over-reported"])))
        scripts = [replace(STREAMS["over-reported"], cut_after_events=n, cut=cut) for n in range(events)]
        for _, result in await lanes.run(origin, [Case(script=script) for script in scripts]):
            result.check_broken(502)


async def test_a_provider_that_falls_silent_breaks_the_stream(provider: Simulator, database: Database) -> None:
    async with lanes_of_a_server(provider, database, 12) as (lanes, origin):
        script = replace(TEXT, trailing_bytes=b": anything\n\n")
        cases = [Case(script=replace(script, stall_after_events=n)) for n in (0, 1, 5, 9, 10)]
        for _, result in await lanes.run(origin, cases):
            result.check_broken(504)


async def test_an_error_event_ends_a_stream_as_the_provider_ended_it(
    provider: Simulator, database: Database
) -> None:
    async with lanes_of_a_server(provider, database, 8) as (lanes, origin):
        cases = [Case(script=replace(STREAMS["tool"], error_event_after_events=n)) for n in range(10)]
        for _, result in await lanes.run(origin, cases):
            assert result.has_ended
            assert result.arrived == result.sent
            assert b"overloaded_error" in result.arrived
            result.check_row(200)


async def test_an_http_1_0_client_sees_a_reset_and_no_end(provider: Simulator, database: Database) -> None:
    async with lanes_of_a_server(provider, database, 1) as (lanes, origin):
        [lane] = lanes.lanes
        assert await ask_by_http_1_0(lane, origin, TEXT) == ("ended", 200)
        for n in (0, 1, 5, 10):
            script = replace(TEXT, cut_after_events=n, cut="close")
            assert await ask_by_http_1_0(lane, origin, script) == ("reset", 200 if n == 10 else 502)


async def test_who_leaves_while_the_last_event_waits_for_the_disk_has_the_whole_answer(
    provider: Simulator, database: Database
) -> None:
    async with lanes_of_a_server(provider, database, 1) as (lanes, origin), aiohttp.ClientSession(origin) as http:
        [lane] = lanes.lanes
        events = len(boundaries(await whole_answer(lanes, origin, TEXT))) - 1
        script = replace(TEXT, stall_after_events=events - 1, stall_seconds=0.4)
        asking = asyncio.create_task(lane.run(http, Case(script=script)))
        await until(lambda: len(database.rows(lane.key)) == 2)
        with locked(database):
            await until(lambda: provider.messages()[-1].completed)
            await asyncio.sleep(0.1)
            assert not asking.done()
            asking.cancel()
            await asyncio.sleep(0.1)
        row = await lane.next_row()
        assert (row.status, row.estimated) == (200, False)


@contextmanager
def locked(database: Database) -> Iterator[None]:
    """Another process writes, so that no commit goes through."""
    with closing(sqlite3.connect(database.path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


async def test_the_page_and_the_export_tell_estimates_apart(provider: Simulator, database: Database) -> None:
    async with lanes_of_a_server(provider, database, 2) as (lanes, origin):
        script = STREAMS["thinking, all counts"]
        places = boundaries(await whole_answer(lanes, origin, script))
        results = await lanes.run(origin, leavings(script, places))
        assert {result.row.estimated for _, result in results} == {True, False}
        for lane in lanes.lanes:
            await check_estimates_are_told_apart(origin, lane)
