"""P5: whoever breaks a stream off, and wherever: one row, charged for what was used; no end that was not there."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random

import pytest

from gateway.simulator import Script, Simulator
from prove.conftest import Figure
from prove.load import held_data
from tests.harness import Database
from tests.lanes import (
    LEAST_TOKENS,
    NOTICED_WITHIN_SECONDS,
    STREAMS,
    TEXT,
    WAYS_TO_LEAVE,
    Case,
    Lane,
    Lanes,
    Result,
    ask_by_http_1_0,
    boundaries,
    check_estimates_are_told_apart,
    leavings,
    make_lanes,
    whole_answer,
)
from tests.test_server_process import server

CUTS = 500
AT_ONCE = 20
LINGERING = b": and on\n\n"
PLAIN = replace(TEXT, over_report=5)


@asynccontextmanager
async def lanes_of_a_server(
    provider: Simulator, database: Database, max_tokens: int = 400
) -> AsyncIterator[tuple[Lanes, str]]:
    lanes = await make_lanes(provider, database, AT_ONCE, max_tokens)
    async with server(provider, database.path, OPUSMAX_SILENCE_TIMEOUT_SECONDS="1s") as running:
        for lane in lanes.lanes:
            await held_data(running.origin, lane.text)  # proves the key, of which only a few may wait at once
        yield lanes, running.origin


async def client_cuts(lanes: Lanes, origin: str, random: Random) -> list[Case]:
    """At every event boundary of every stream, in both ways; the rest at random bytes, of plain answers too."""
    answers = {name: await whole_answer(lanes, origin, script) for name, script in STREAMS.items()}
    plain = await whole_answer(lanes, origin, PLAIN, stream=False)
    cases = [
        case
        for name, answer in answers.items()
        for case in leavings(STREAMS[name], [place for place in boundaries(answer) for _ in WAYS_TO_LEAVE])
    ]
    while len(cases) < CUTS:
        name = random.choice(list(answers))
        cases += leavings(STREAMS[name], [random.randrange(len(answers[name])) for _ in range(4)])
        cases += leavings(PLAIN, [random.randrange(len(plain))], stream=False)
    return cases[:CUTS]


@pytest.mark.parametrize("max_tokens", [LEAST_TOKENS, 400])
async def test_clients_that_leave_anywhere_stop_the_provider_and_pay_for_what_they_used(
    provider: Simulator, database: Database, figure: Figure, max_tokens: int
) -> None:
    async with lanes_of_a_server(provider, database, max_tokens) as (lanes, origin):
        results = await lanes.run(origin, await client_cuts(lanes, origin, Random(max_tokens)))
        for _, result in results:
            result.check_left()
        for lane in lanes.lanes:
            await check_estimates_are_told_apart(origin, lane)
    check_one_row_each(lanes, CUTS + len(STREAMS) + 1)
    slowest = max(result.noticed_after_seconds for _, result in results)
    exact = sum(not result.row.estimated for _, result in results)
    complete = sum(result.is_complete for _, result in results)
    assert exact > complete > 0
    figure(
        "P5",
        f"{CUTS} clients left (max_tokens {max_tokens}): one row each, charged from what was reported to the hold:"
        f" {CUTS - exact} estimates, {exact} exact, {complete} of them complete; the provider stopped within"
        f" {slowest * 1000:.0f} ms (promised: {NOTICED_WITHIN_SECONDS:.0f} s)",
    )


def check_one_row_each(lanes: Lanes, requests: int) -> None:
    [(rows,)] = lanes.lanes[0].database.query("SELECT count(*) FROM request WHERE status IS NOT NULL")
    assert rows == requests


Breaking = Callable[[Script, int], Script]


def cut_by(way: str) -> Breaking:
    return lambda script, events: replace(
        script, cut_after_events=events, cut="reset" if way == "reset" else "close"
    )


def stall(script: Script, events: int) -> Script:
    return replace(script, trailing_bytes=LINGERING, stall_after_events=events)


def error_event(script: Script, events: int) -> Script:
    return replace(script, error_event_after_events=events)


async def broken_everywhere(lanes: Lanes, origin: str, breaking: Breaking) -> list[Result]:
    """Every stream, broken after each number of its events."""
    cases: list[Case] = []
    for script in STREAMS.values():
        events = len(boundaries(await whole_answer(lanes, origin, script)))
        cases += [Case(script=breaking(script, number)) for number in range(events)]
    return [result for _, result in await lanes.run(origin, cases)]


@pytest.mark.parametrize(
    ("fault", "breaking", "status"),
    [("reset", cut_by("reset"), 502), ("close", cut_by("close"), 502), ("silence", stall, 504)],
)
async def test_a_stream_that_breaks_upstream_anywhere_breaks_for_the_client(
    provider: Simulator, database: Database, figure: Figure, fault: str, breaking: Breaking, status: int
) -> None:
    async with lanes_of_a_server(provider, database) as (lanes, origin):
        results = await broken_everywhere(lanes, origin, breaking)
    for result in results:
        result.check_broken(status)
    check_one_row_each(lanes, len(results) + len(STREAMS))
    figure("P5", f"upstream {fault} after each event: broken for the client, one row each: all {len(results)}")


async def test_an_error_event_passes_anywhere_and_what_was_used_is_charged(
    provider: Simulator, database: Database, figure: Figure
) -> None:
    async with lanes_of_a_server(provider, database) as (lanes, origin):
        results = await broken_everywhere(lanes, origin, error_event)
    for result in results:
        assert result.has_ended
        assert result.arrived == result.sent
        assert b"overloaded_error" in result.arrived
        result.check_row(200)
    check_one_row_each(lanes, len(results) + len(STREAMS))
    figure("P5", f"error event after each event: passed on, one row each: all {len(results)}")


async def test_streams_and_plain_answers_cut_at_random_bytes_break_for_the_client(
    provider: Simulator, database: Database, figure: Figure
) -> None:
    random, cases = Random(8), list[Case]()
    async with lanes_of_a_server(provider, database) as (lanes, origin):
        for stream, script in [(False, PLAIN), *((True, script) for script in STREAMS.values())]:
            answer = await whole_answer(lanes, origin, script, stream=stream)
            for cut in (cut_by("reset"), cut_by("close")):
                places = [random.randrange(len(answer)) for _ in range(25)]
                scripts = [replace(cut(script, 10**6), cut_after_bytes=place) for place in places]
                cases += [Case(script=script, stream=stream) for script in scripts]
        results = await lanes.run(origin, cases)
    for _, result in results:
        result.check_broken(502)
    figure("P5", f"upstream cut at a random byte, streams and plain: broken for the client: all {len(results)}")


async def test_http_1_0_clients_see_a_reset_wherever_a_stream_breaks(
    provider: Simulator, database: Database, figure: Figure
) -> None:
    async with lanes_of_a_server(provider, database) as (lanes, origin):
        breaks: list[tuple[Script, int]] = []
        for script in STREAMS.values():
            last = len(boundaries(await whole_answer(lanes, origin, script))) - 1
            for breaking, status in ((cut_by("reset"), 502), (cut_by("close"), 502), (stall, 504)):
                breaks += [(breaking(script, n), 200 if n == last else status) for n in range(last + 1)]
        waiting = iter(breaks)

        async def work(lane: Lane) -> None:
            assert await ask_by_http_1_0(lane, origin, TEXT) == ("ended", 200)
            for script, status in waiting:
                assert await ask_by_http_1_0(lane, origin, script) == ("reset", status)

        await asyncio.gather(*map(work, lanes.lanes))
    figure("P5", f"HTTP/1.0 clients: a reset wherever a stream broke, an end only at an end: all {len(breaks)}")
