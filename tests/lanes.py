"""Requests whose rows can be told apart, each broken off at a chosen place.

Each request runs in a lane: a key of its own, one request at a time, so that the row that comes next is the row of
that request. The provider stops exactly where a case wants it to.
"""

import asyncio
import json
import re
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any, Literal

import aiohttp

from gateway.core.records import Key
from gateway.core.usage import Usage
from gateway.pages import ROWS_PER_PAGE
from gateway.simulator import Script, Simulator
from gateway.simulator.sending import Received
from tests.harness import Database, Row, ask, hold_of, until

NOTICED_WITHIN_SECONDS = 1.0
FOREVER_SECONDS = 3_600
BYTES_PER_TOKEN = 4
RESET_AT_CLOSE = struct.pack("ii", 1, 0)

LEAST_TOKENS = 20
"""Of output, for all of the streams below."""

Way = Literal["close", "reset"]
WAYS_TO_LEAVE: tuple[Way, ...] = ("close", "reset")

TEXT = Script(output_tokens=20, events=4)
STREAMS = {
    "text": TEXT,
    "thinking, all counts": Script(
        thinking="shown",
        output_tokens=40,
        message_deltas=3,
        pings=2,
        unknown_events=1,
        usage=Usage(input=9, output=20, cache_write=3_000, cache_read=40_001),
    ),
    "tool": Script(tool_use=True, output_tokens=20, restate_input=True, start_usage=Usage(input=3, output=0)),
    "over-reported": Script(over_report=700, message_deltas=2),
    "iterations": Script(
        iterations=(("message", Usage(input=50, output=9)), ("compaction", Usage(input=70, output=30)))
    ),
}
"""Usage is told at different places in each; in some, more of it than is held."""
_LANE = re.compile(rb"lane (\d+)\D")
_LAST_COUNTS = re.compile(rb'"type":"message_delta".*"stop_reason":"\w+".*\n\n')
_DELTAS = re.compile(rb'"type":"content_block_delta".*\n\n')
_TERMINAL_EVENT = re.compile(rb'"type":"message_stop".*\n\n')


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One answer and how it is broken off."""

    script: Script
    stream: bool = True
    leave_after_bytes: int | None = None
    """When the client leaves; `None`: it takes what comes."""
    leave_by: Way = "close"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of it: for the client, for the provider, in the ledger."""

    arrived: bytes
    has_ended: bool
    received: Received
    noticed_after_seconds: float
    """How long the provider's side was kept open after the client's."""
    row: Row
    hold: int

    @property
    def sent(self) -> bytes:
        return b"".join(self.received.answer_pieces)

    @property
    def is_complete(self) -> bool:
        """Whether the provider has sent the terminal event."""
        return _TERMINAL_EVENT.search(self.sent) is not None

    @property
    def delta_bytes(self) -> int:
        """All that could have been output, with what stands around it. A plain answer is taken as a whole."""
        found = _DELTAS.findall(self.sent)
        return sum(map(len, found)) if b"event:" in self.sent else len(self.sent) + BYTES_PER_TOKEN

    def check_row(self, status_if_incomplete: int) -> None:
        """The bounds of the charge, and that an estimate is called one."""
        row, reported = self.row, self.received.reported
        assert row.status == (200 if self.is_complete else status_if_incomplete)
        assert row.estimated == (_LAST_COUNTS.search(self.sent) is None)
        assert reported.charge <= row.usage.charge <= max(reported.charge, self.hold)
        assert row.usage.output <= max(reported.output, self.delta_bytes // BYTES_PER_TOKEN)
        assert row.usage.charge > 0
        assert row.estimated or row.usage == reported

    def check_left(self) -> None:
        """All that came was passed on; then the client was gone, and soon the provider's connection too."""
        assert self.arrived == self.sent
        assert self.received.disconnected
        assert self.noticed_after_seconds < NOTICED_WITHIN_SECONDS
        self.check_row(499)

    def check_broken(self, status: int) -> None:
        """All that came was passed on, and then nothing that looks like an end."""
        assert self.arrived == self.sent
        assert not self.has_ended
        self.check_row(status)


class Lane:
    """A client that makes one request at a time, with a key of its own."""

    def __init__(self, name: int, database: Database, text: str, key: Key, max_tokens: int) -> None:
        self.name = name
        self.max_tokens = max_tokens
        self.database = database
        self.text = text
        self.key = key
        self.script = Script()
        self.received: Received | None = None
        self._rows = 0

    def body(self, *, stream: bool) -> dict[str, Any]:
        messages = [{"role": "user", "content": f"lane {self.name} "}]
        return ask(messages=messages, max_tokens=self.max_tokens, stream=stream)

    async def run(self, http: aiohttp.ClientSession, case: Case) -> Result:
        self.script, self.received = case.script, None
        body = self.body(stream=case.stream)
        arrived, has_ended = await self._take(http, body, case)
        left = asyncio.get_running_loop().time()
        assert self.received is not None
        await asyncio.wait_for(self.received.ended.wait(), 10)
        noticed = asyncio.get_running_loop().time() - left
        return Result(
            arrived=arrived,
            has_ended=has_ended,
            received=self.received,
            noticed_after_seconds=noticed,
            row=await self.next_row(),
            hold=hold_of(body),
        )

    async def next_row(self) -> Row:
        """The one row that has been added, once it is settled."""
        self._rows += 1
        await until(lambda: all(row.status is not None for row in self._new_rows()))
        return self.database.rows(self.key)[-1]

    def _new_rows(self) -> list[Row]:
        rows = self.database.rows(self.key)
        assert len(rows) == self._rows
        return rows

    async def _take(self, http: aiohttp.ClientSession, body: dict[str, Any], case: Case) -> tuple[bytes, bool]:
        arrived = bytearray()
        try:
            async with http.post("/v1/messages", json=body, headers={"x-api-key": self.text}) as answer:
                while case.leave_after_bytes is None or len(arrived) < case.leave_after_bytes:
                    chunk = await answer.content.readany()
                    if not chunk:
                        return bytes(arrived), True
                    arrived += chunk
                leave(answer, case.leave_by)
        except aiohttp.ClientPayloadError:
            pass
        return bytes(arrived), False


def leave(answer: aiohttp.ClientResponse, how: Way) -> None:
    assert answer.connection is not None
    assert answer.connection.transport is not None
    if how == "reset":
        connection = answer.connection.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
    answer.close()


class Lanes:
    """Some lanes to one provider; cases are shared out among them."""

    def __init__(self, provider: Simulator, lanes: list[Lane]) -> None:
        self.lanes = lanes
        provider.choose = self._choose

    async def run(self, origin: str, cases: Iterable[Case]) -> list[tuple[Case, Result]]:
        waiting, results = iter(cases), []
        async with aiohttp.ClientSession(origin, connector=aiohttp.TCPConnector(limit=0)) as http:

            async def work(lane: Lane) -> None:
                for case in waiting:
                    results.append((case, await lane.run(http, case)))

            await asyncio.gather(*map(work, self.lanes))
        return results

    def _choose(self, received: Received) -> Script | None:
        found = _LANE.search(received.body)
        if found is None:
            return None
        lane = self.lanes[int(found[1])]
        lane.received = received
        return lane.script


async def make_lanes(provider: Simulator, database: Database, count: int, max_tokens: int = 400) -> Lanes:
    """With as little as `LEAST_TOKENS` to hold, the hold bounds what is charged; with more, what came does."""
    keys = [await database.create_key(f"lane {name}") for name in range(count)]
    return Lanes(provider, [Lane(name, database, *key, max_tokens) for name, key in enumerate(keys)])


# Where answers break.


async def whole_answer(lanes: Lanes, origin: str, script: Script, *, stream: bool = True) -> bytes:
    [(_, result)] = await lanes.run(origin, [Case(script=script, stream=stream)])
    assert result.has_ended
    assert result.arrived == result.sent
    return result.arrived


def boundaries(answer: bytes) -> list[int]:
    """Where its events end; first of all, where the first begins."""
    return [0, *(found.end() for found in re.finditer(rb"\n\n", answer))]


def paused_after(script: Script, sent_bytes: int) -> Script:
    """The provider sends so much of it, and then nothing more for a long time. A stream is not over even after its
    terminal event."""
    if sent_bytes == 0:
        return replace(script, stall_after_events=0)
    lingering = replace(script, trailing_bytes=b": and on\n\n")
    return replace(lingering, split_bytes=sent_bytes, pause_seconds=FOREVER_SECONDS)


def leavings(script: Script, places: Iterable[int], *, stream: bool = True) -> list[Case]:
    """The client leaves as soon as it has so much, in both ways in turn."""
    return [
        Case(script=paused_after(script, place), stream=stream, leave_after_bytes=place, leave_by=by)
        for place, by in zip(places, cycle(WAYS_TO_LEAVE), strict=False)
    ]


async def ask_by_http_1_0(lane: Lane, origin: str, script: Script) -> tuple[str, int | None]:
    """How the connection ended, and the status of the row. Such a client takes any close for the end."""
    lane.script = script
    body = json.dumps(lane.body(stream=True)).encode()
    head = f"POST /v1/messages HTTP/1.0\r\nx-api-key: {lane.text}\r\ncontent-length: {len(body)}\r\n\r\n"
    arrived = bytearray()
    try:
        await send_and_receive(int(origin.rpartition(":")[2]), head.encode() + body, arrived)
        ending = "ended"
    except ConnectionResetError:
        ending = "reset"
    assert arrived.startswith(b"HTTP/1.0 200 ")
    assert lane.received is not None
    sent = b"".join(lane.received.answer_pieces)
    assert arrived.partition(b"\r\n\r\n")[2] == sent
    return ending, (await lane.next_row()).status


async def send_and_receive(port: int, request: bytes, arrived: bytearray) -> None:
    """Until the other side ends it. What came before a reset is kept, which asyncio's streams would not do."""
    loop = asyncio.get_running_loop()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setblocking(False)
        await loop.sock_sendall(connection, request)
        while chunk := await loop.sock_recv(connection, 65_536):
            arrived += chunk


async def check_estimates_are_told_apart(origin: str, lane: Lane) -> None:
    """Row by row in the export, by their number on the first page, which has the newest."""
    estimated = [row.estimated for row in lane.database.rows(lane.key)]
    async with aiohttp.ClientSession(origin) as http:
        async with http.get("/usage.json", headers={"x-api-key": lane.text}) as answer:
            data = await answer.json()
        assert [bool(request["estimated"]) for request in reversed(data["requests"])] == estimated
        async with http.post("/usage", data={"key": lane.text}) as answer:
            page = await answer.text()
    shown = estimated[-ROWS_PER_PAGE:]
    assert len(re.findall(r"<td[^>]*>estimate</td>", page)) == shown.count(True)
    assert len(re.findall(r"<td[^>]*>provider</td>", page)) == shown.count(False)
