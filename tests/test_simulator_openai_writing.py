"""However the simulated provider cuts, divides or breaks OpenAI's streams: what it wrote is what it remembers."""

import asyncio
import json
from typing import Any, Literal

import aiohttp
import pytest

from gateway.core.usage import NO_USAGE
from gateway.simulator import Script, Simulator
from tests.openai_answers import (
    CHAT,
    CHAT_ASK,
    CHAT_EVENTS,
    EMBEDDINGS,
    EMBEDDINGS_ASK,
    RESPONSE_ASK,
    RESPONSE_EVENTS,
    RESPONSES,
    STREAM,
    USAGE_ASKED,
    data_of,
    fetch,
    fetch_broken,
    http,
    simulator,
)

__all__ = ["http", "simulator"]


STREAMS = [(CHAT, CHAT_ASK | USAGE_ASKED, CHAT_EVENTS), (RESPONSES, RESPONSE_ASK | STREAM, RESPONSE_EVENTS)]


@pytest.mark.parametrize("cut", ["reset", "close"])
@pytest.mark.parametrize(("path", "ask", "count"), STREAMS)
async def test_a_cut_at_any_event_breaks_the_stream_there(
    simulator: Simulator,
    http: aiohttp.ClientSession,
    path: str,
    ask: dict[str, Any],
    count: int,
    cut: Literal["reset", "close"],
) -> None:
    whole = await fetch(http, path, ask)
    [complete] = simulator.messages()
    for events in range(count + 1):
        simulator.next(Script(cut_after_events=events, cut=cut))
        arrived = await fetch_broken(http, path, ask)
        assert whole.startswith(arrived)
        assert len(data_of(arrived)) == events
        received = simulator.received[-1]
        has_usage = events >= (count - 1 if path == CHAT else count)
        assert received.reported == (complete.reported if has_usage else NO_USAGE)
        assert received.completed is (events == count)
        assert not received.disconnected


@pytest.mark.parametrize(("path", "ask", "count"), STREAMS)
async def test_a_cut_may_fall_on_any_byte_and_the_body_may_end_properly_all_the_same(
    simulator: Simulator, http: aiohttp.ClientSession, path: str, ask: dict[str, Any], count: int
) -> None:
    whole = await fetch(http, path, ask)
    for at in (1, len(whole) // 2, len(whole) - 1):
        simulator.next(Script(cut_after_bytes=at, cut="end"))
        assert await fetch(http, path, ask) == whole[:at]
        assert not simulator.received[-1].completed
    assert len(data_of(whole)) == count


@pytest.mark.parametrize(
    ("path", "ask"),
    [(path, ask) for path, ask, _ in STREAMS]
    + [(CHAT, CHAT_ASK), (RESPONSES, RESPONSE_ASK), (EMBEDDINGS, EMBEDDINGS_ASK)],
)
@pytest.mark.parametrize(
    "script",
    [
        Script(split_bytes=100, split_seed=7),
        Script(encoding="gzip", split_bytes=100),
        Script(encoding="deflate"),
        Script(close_delimited=True),
        Script(chunked_json=True, pause_seconds=0.0001),
        Script(informational=1),
    ],
)
async def test_how_it_is_written_changes_no_byte(
    simulator: Simulator, http: aiohttp.ClientSession, path: str, ask: dict[str, Any], script: Script
) -> None:
    simulator.next(Script(), script)
    assert await fetch(http, path, ask) == await fetch(http, path, ask)
    first, second = simulator.messages()
    assert first.reported == second.reported != NO_USAGE
    assert second.completed


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("path", "ask", "count"), STREAMS)
async def test_line_ends_and_spacing_change_no_meaning(
    simulator: Simulator,
    http: aiohttp.ClientSession,
    path: str,
    ask: dict[str, Any],
    count: int,
    line_end: Literal["\n", "\r\n", "\r"],
) -> None:
    usual = data_of(await fetch(http, path, ask))
    simulator.script = Script(line_end=line_end, spaced_json=True, trailing_bytes=b": bye\n\n")
    stream = await fetch(http, path, ask)
    assert stream.endswith((line_end * 2).encode() + b": bye\n\n")
    assert b'": ' in stream
    data = data_of(stream)
    assert len(data) == count
    assert [each.replace(" ", "") for each in data] == [each.replace(" ", "") for each in usual]
    assert simulator.received[-1].completed


@pytest.mark.parametrize(("path", "ask", "count"), STREAMS)
async def test_an_error_in_the_middle_ends_the_stream(
    simulator: Simulator, http: aiohttp.ClientSession, path: str, ask: dict[str, Any], count: int
) -> None:
    simulator.script = Script(error_event_after_events=4, error_message="No more.")
    *before, last = data_of(await fetch(http, path, ask))
    assert len(before) == 4 < count
    error = {"message": "No more.", "code": None, "param": None}
    if path == CHAT:
        assert json.loads(last) == {"error": error | {"type": "server_error"}}
    else:
        assert json.loads(last) == error | {"type": "error", "sequence_number": 4, "code": "server_error"}
    assert not simulator.received[-1].completed
    assert simulator.received[-1].reported == NO_USAGE


@pytest.mark.parametrize(("path", "ask", "count"), STREAMS)
async def test_a_client_that_leaves_is_noticed_wherever_it_does(
    simulator: Simulator, http: aiohttp.ClientSession, path: str, ask: dict[str, Any], count: int
) -> None:
    for events in (1, count):
        simulator.script = Script(stall_after_events=events, trailing_bytes=b": late\n\n")
        answer = await http.post(path, json=ask)
        arrived = b""
        while len(data_of(arrived)) < events:
            arrived += await asyncio.wait_for(answer.content.readany(), timeout=1)
        answer.close()
        received = simulator.received[-1]
        await asyncio.wait_for(received.ended.wait(), timeout=1)
        assert received.disconnected
        assert received.completed is (events == count)
        assert (received.reported != NO_USAGE) is (events == count)
        assert b"".join(received.answer_pieces) == arrived
