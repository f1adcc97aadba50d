"""P6: whatever an upstream does, the client is told, or sees the answer break; one true row stays, and no more."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from gateway.core.records import Key
from gateway.simulator import Simulator
from prove.conftest import Figure
from prove.load import held_data
from tests.byte_corpus import Client, Exchange, NumberedProvider, Seen, chunk, connect, request_bytes
from tests.harness import CREDENTIALS, Database, serving, until
from tests.raw_provider import OK, RawProvider, Reader, Writer, echo, reset
from tests.test_bytes import plain, streamed
from tests.test_crosstalk import descriptors
from tests.test_server_process import server
from tests.test_upstream_trust import certificate, server_side

__all__ = ["certificate"]

AT_ONCE = 16
MIXED = 1_000
MIXED_IN_PROCESS = 300
UNCONNECTED = 100
FLIGHT_SECONDS = 0.02
DRIP_SECONDS = 0.005
ENOUGH_BYTES = 50_000
"""Of an endless answer."""
WITHOUT_PATIENCE = {"first_byte_timeout_seconds": "1s", "silence_timeout_seconds": "1s", "drain_seconds": "1s"}
ANSWERS = {"stream": streamed(), "plain": plain()}
KINDS = tuple(ANSWERS)


# The faults. Each is given the answer that it spoils.

Spoil = Callable[[Reader, Writer, Exchange], Awaitable[None]]


def half(answer: Exchange) -> bytes:
    return answer.wire[: len(answer.head_bytes) + len(answer.answer) // 2]


async def until_closed(reader: Reader) -> None:
    await reader.read(1)


async def hang_before_head(reader: Reader, writer: Writer, answer: Exchange) -> None:
    del writer, answer
    await until_closed(reader)


async def hang_in_body(reader: Reader, writer: Writer, answer: Exchange) -> None:
    writer.write(half(answer))
    await until_closed(reader)


async def reset_before_head(reader: Reader, writer: Writer, answer: Exchange) -> None:
    del reader, answer
    reset(writer)


async def reset_in_body(reader: Reader, writer: Writer, answer: Exchange) -> None:
    del reader
    writer.write(half(answer))
    await asyncio.sleep(FLIGHT_SECONDS)
    reset(writer)


async def garbage_head(reader: Reader, writer: Writer, answer: Exchange) -> None:
    del answer
    writer.write(b"\x16\x03\x01 200 OK\r\n\r\n")
    await until_closed(reader)


async def half_close(reader: Reader, writer: Writer, answer: Exchange) -> None:
    writer.write(half(answer))
    writer.write_eof()
    await until_closed(reader)


async def slow_drip(reader: Reader, writer: Writer, answer: Exchange) -> None:
    del reader
    for place in range(0, len(answer.wire), 16):
        writer.write(answer.wire[place : place + 16])
        await asyncio.sleep(DRIP_SECONDS)


async def endless(reader: Reader, writer: Writer, answer: Exchange) -> None:
    del reader
    lines = "\r\n".join([*answer.head, "transfer-encoding: chunked", "\r\n"])
    writer.write(OK + lines.encode())
    while True:
        writer.write(chunk(answer.pieces[0] * 20))
        await writer.drain()


async def oversize_header(reader: Reader, writer: Writer, answer: Exchange) -> None:
    writer.write(answer.wire.replace(b"\r\n", b"\r\nrequest-id: " + b"x" * 200_000 + b"\r\n", 1))
    await until_closed(reader)


async def short_body(reader: Reader, writer: Writer, answer: Exchange) -> None:
    del reader
    writer.write(half(answer))
    writer.close()


async def long_body(reader: Reader, writer: Writer, answer: Exchange) -> None:
    writer.write(answer.wire + b"and more that nobody asked for")
    await until_closed(reader)


async def bad_gzip(reader: Reader, writer: Writer, answer: Exchange) -> None:
    del reader
    writer.write(answer.wire.replace(b"\r\n", b"\r\ncontent-encoding: gzip\r\n", 1))


async def another_protocol(reader: Reader, writer: Writer, answer: Exchange) -> None:
    del answer
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: own\r\nconnection: upgrade\r\n\r\nhello")
    await until_closed(reader)


async def endless_hints(reader: Reader, writer: Writer, answer: Exchange) -> None:
    writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 100 + answer.wire)
    await until_closed(reader)


@dataclass(frozen=True, slots=True)
class Fault:
    """What the client and the ledger make of it."""

    spoil: Spoil
    status: int
    is_whole: bool
    row_status: int


FAULTS = {
    fault.spoil.__name__: fault
    for fault in [
        Fault(hang_before_head, 504, True, 504),
        Fault(hang_in_body, 200, False, 504),
        Fault(reset_before_head, 502, True, 502),
        Fault(reset_in_body, 200, False, 502),
        Fault(garbage_head, 502, True, 502),
        Fault(half_close, 200, False, 502),
        Fault(slow_drip, 200, True, 200),
        Fault(endless, 200, False, 499),
        Fault(oversize_header, 502, True, 502),
        Fault(short_body, 200, False, 502),
        Fault(long_body, 200, True, 200),
        Fault(bad_gzip, 200, True, 200),
        Fault(another_protocol, 502, True, 502),
        Fault(endless_hints, 502, True, 502),
    ]
}
Case = tuple[str, str]
"""The name of a fault and the kind of answer."""
ALL = [(name, kind) for name in FAULTS for kind in KINDS]


class FaultyProvider(NumberedProvider):
    """A request's number names its fault and the kind of answer."""

    async def answer(self, reader: Reader, writer: Writer, number: str, body: bytes) -> None:
        del body
        name, kind = number.split("/")
        await FAULTS[name].spoil(reader, writer, ANSWERS[kind])


# Who meets them.


class Meeting:
    """Clients of a gateway, each with a key of its own and one fault at a time."""

    def __init__(self, origin: str, database: Database, keys: list[tuple[str, Key]]) -> None:
        self._origin = origin
        self._database = database
        self._keys = keys

    async def run(self, cases: Iterable[Case]) -> None:
        waiting = iter(cases)
        await asyncio.gather(*(self._work(waiting, *key) for key in self._keys))

    async def _work(self, waiting: Iterator[Case], text: str, key: Key) -> None:
        client, rows = await connect(self._origin), len(self._database.rows(key))
        for name, kind in waiting:
            if not client.is_open:
                client = await connect(self._origin)
            request = request_bytes(f"{name}/{kind}", text, ANSWERS[kind].request)
            check_seen(FAULTS[name], ANSWERS[kind], await take(client, request, leaves=name == "endless"))
            rows += 1
            await until(lambda: [row.status for row in self._database.rows(key)][-1] is not None)
            statuses = [row.status for row in self._database.rows(key)]
            assert (len(statuses), statuses[-1]) == (rows, FAULTS[name].row_status), name
        client.leave()


async def take(client: Client, request: bytes, *, leaves: bool) -> Seen:
    seen = client.ask(request, Seen())
    if leaves:
        await seen.until_bytes(ENOUGH_BYTES)
        client.leave()
    else:
        await seen.end()
    assert not client.has_strays
    return seen


def check_seen(fault: Fault, answer: Exchange, seen: Seen) -> None:
    """All of it, or a part that shows that it is one, or an error of the gateway's own."""
    assert (seen.status, seen.is_whole) == (fault.status, fault.is_whole), fault
    if fault.status != 200:
        assert b'"error"' in seen.body
    elif fault.is_whole:
        assert seen.body == answer.answer
    elif fault.spoil is not endless:
        assert answer.answer.startswith(seen.body)


async def left_nothing(meeting: Meeting, faulty: FaultyProvider, mixed: int, count: Callable[[], object]) -> object:
    """Each fault once, then `mixed` of them at random; `count()` stays as it was. Returns it."""
    await meeting.run(ALL)
    faulty.close_idle()
    await asyncio.sleep(0.5)
    before = count()
    await meeting.run(Random(1).choices(ALL, k=mixed))
    faulty.close_idle()
    await until(lambda: count() == before)
    return before


@asynccontextmanager
async def meeting_a_server(
    provider: Simulator, database: Database
) -> AsyncIterator[tuple[Meeting, FaultyProvider, int]]:
    faulty = FaultyProvider()
    keys = [await database.create_key(f"key {number}") for number in range(AT_ONCE)]
    impatient = {f"OPUSMAX_{name.upper()}": value for name, value in WITHOUT_PATIENCE.items()}
    async with (
        RawProvider(faulty.handle) as raw,
        server(provider, database.path, "--anthropic-url", raw.origin, **impatient) as running,
    ):
        for text, _ in keys:
            await held_data(running.origin, text)  # proves the key
        yield Meeting(running.origin, database, keys), faulty, running.process.pid


async def test_upstream_faults_are_told_or_seen_and_leave_no_descriptor(
    provider: Simulator, database: Database, figure: Figure
) -> None:
    async with meeting_a_server(provider, database) as (meeting, faulty, process):
        open_files = await left_nothing(meeting, faulty, MIXED, lambda: descriptors(process))
    figure(
        "P6",
        f"{len(FAULTS)} upstream faults, streams and plain: told as 502 or 504, or seen to break, one true row:"
        f" all {len(ALL) + MIXED:,}; descriptors after {MIXED:,} mixed: {open_files} as before",
    )


async def test_upstream_faults_leave_no_task(provider: Simulator, database: Database, figure: Figure) -> None:
    faulty = FaultyProvider()
    keys = [await database.create_key(f"key {number}") for number in range(AT_ONCE)]
    async with (
        RawProvider(faulty.handle) as raw,
        serving(provider, database.path, CREDENTIALS, anthropic_url=raw.origin, **WITHOUT_PATIENCE) as origin,
    ):
        try:
            meeting = Meeting(origin, database, keys)
            count = lambda: (len(asyncio.all_tasks()), descriptors())  # noqa: E731 - reads as what it is
            await left_nothing(meeting, faulty, MIXED_IN_PROCESS, count)
        finally:
            faulty.close_all()  # a gateway that stops would wait for what still runs
    figure("P6", f"{MIXED_IN_PROCESS} faults mixed in one process: tasks and descriptors left behind: 0")


@pytest.mark.parametrize("fault", ["refused", "unknown name", "unproven name"])
async def test_a_provider_that_cannot_be_reached_is_told_and_leaves_nothing(
    provider: Simulator, database: Database, figure: Figure, certificate: Path, fault: str
) -> None:
    text, key = await database.create_key()
    async with RawProvider(echo, server_side(certificate)) as raw:
        origins = {"refused": "http://127.0.0.1:9", "unknown name": "https://no-such-host.invalid"}
        async with serving(provider, database.path, anthropic_url=origins.get(fault, raw.origin)) as origin:
            await fail_to_connect(origin, text, 1)
            before = len(asyncio.all_tasks()), descriptors()
            await fail_to_connect(origin, text, UNCONNECTED)
            await until(lambda: (len(asyncio.all_tasks()), descriptors()) == before)
        assert raw.connections == 0
    assert [row.status for row in database.rows(key)] == [502] * (1 + UNCONNECTED)
    figure("P6", f"provider {fault}: 502, one row each, nothing left behind: all {UNCONNECTED}")


async def fail_to_connect(origin: str, key: str, count: int) -> None:
    for number in range(count):
        client = await connect(origin)
        request = request_bytes("none", key, ANSWERS[KINDS[number % 2]].request)
        seen = await take(client, request, leaves=False)
        assert (seen.status, seen.is_whole) == (502, True)
        assert b'"error"' in seen.body
        client.leave()
        await asyncio.sleep(0)  # a transport lets go of its socket one turn of the loop later
