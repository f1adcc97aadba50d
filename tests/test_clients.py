"""Connections of clients: no head is endless, nobody holds a place for ever or keeps others out.

Times are not waited for: the test says what the loop's clock would say.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import pytest
from aiohttp import web

from gateway.clients import (
    HEAD_SECONDS,
    IDLE_SECONDS,
    MAX_HEAD_BYTES,
    REFUSED_SECONDS,
    UNREAD_SECONDS,
    ClientConnection,
    Clients,
)
from gateway.dispatch import Handler, dispatching
from gateway.figures import Answers
from gateway.intake import LARGE_BYTES, read_body
from tests.harness import until

GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
MOST = 3
UPLOADS = 3 * LARGE_BYTES
LARGE = 2 * LARGE_BYTES
ENDLESS_BYTES = 64 * 2**20

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(slots=True)
class Door:
    """A server that takes few connections; its handlers wait, or send without end."""

    clients: Clients
    port: int = 0
    release: asyncio.Event = field(default_factory=asyncio.Event)
    opened: list[asyncio.StreamWriter] = field(default_factory=list)
    begun: int = 0
    ended: int = 0

    async def connect(self, sent: bytes = b"") -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.opened.append(writer)
        writer.write(sent)
        await asyncio.sleep(0.02)
        return reader, writer

    def later(self, seconds: float) -> None:
        """What the server does when so much time has gone by."""
        self.clients.look(asyncio.get_running_loop().time() + seconds)

    async def wait(self, _request: web.BaseRequest) -> web.StreamResponse:
        await self.release.wait()
        return web.Response(text="done")

    async def read(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await read_body(request, ENDLESS_BYTES)
        await self.release.wait()
        return web.Response(text=str(len(body)))

    async def refuse(self, _request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=503, text="no")

    async def send(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(ENDLESS_BYTES // 2**16):
            await response.write(b"x" * 2**16)
        return response

    def counting(self, handler: Handler) -> Handler:
        async def counted(request: web.BaseRequest) -> web.StreamResponse:
            self.begun += 1
            try:
                return await handler(request)
            finally:
                self.ended += 1

        return counted


@asynccontextmanager
async def a_door() -> AsyncIterator[Door]:
    loop = asyncio.get_running_loop()
    door = Door(Clients(MOST, UPLOADS))
    methods = {"GET": door.wait, "POST": door.read, "PUT": door.refuse, "PATCH": door.send}
    routes = {"/": {method: door.counting(handler) for method, handler in methods.items()}}
    runner = web.ServerRunner(
        web.Server(dispatching(routes, Answers().count), handler_cancellation=True), shutdown_timeout=0
    )
    await runner.setup()
    server = await loop.create_server(
        lambda: ClientConnection(door.clients, cast(web.Server, runner.server), loop), "127.0.0.1", 0
    )
    door.port = server.sockets[0].getsockname()[1]
    try:
        async with asyncio.timeout(20):
            yield door
    finally:
        for writer in door.opened:
            writer.transport.abort()
        server.close()
        await runner.cleanup()


async def is_cut(client: Client) -> bool:
    """Whether the server closes the connection, having said nothing more."""
    try:
        async with asyncio.timeout(0.2):
            return await client[0].read(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize("sent", [b"", b"GE", GET[:-2], b"\r\n\r\n", b"\r\n\r\nGET /"])
async def test_a_head_that_does_not_come_to_its_end_is_not_waited_for(sent: bytes) -> None:
    async with a_door() as door:
        client = await door.connect(sent)
        door.later(HEAD_SECONDS - 1)
        assert not await is_cut(client)
        door.later(HEAD_SECONDS + 1)
        assert await is_cut(client)


async def test_between_two_requests_a_client_may_take_its_time_but_not_within_the_second() -> None:
    async with a_door() as door:
        door.release.set()
        idle, begun = await door.connect(GET), await door.connect(GET)
        await idle[0].readuntil(b"done")
        await begun[0].readuntil(b"done")
        begun[1].write(b"G")
        await asyncio.sleep(0.02)
        door.later(HEAD_SECONDS + 1)
        assert (await is_cut(begun), await is_cut(idle)) == (True, False)
        door.later(IDLE_SECONDS + 1)
        assert await is_cut(idle)


async def test_a_request_that_is_under_way_is_cut_by_no_time() -> None:
    async with a_door() as door:
        reader, _writer = await door.connect(GET)
        door.later(10 * IDLE_SECONDS)
        door.release.set()
        assert (await reader.readuntil(b"done")).startswith(b"HTTP/1.1 200")


async def test_a_client_that_takes_nothing_of_its_answer_is_cut_and_its_request_ends() -> None:
    async with a_door() as door:
        _reader, writer = await door.connect(b"PATCH / HTTP/1.1\r\nHost: here\r\n\r\n")
        await asyncio.sleep(0.1)
        door.later(UNREAD_SECONDS - 1)
        assert door.ended == 0
        door.later(UNREAD_SECONDS + 1)
        await until(lambda: door.ended == 1)
        writer.close()


async def test_a_client_that_takes_a_little_of_its_answer_is_served_on() -> None:
    async with a_door() as door:
        reader, writer = await door.connect(b"PATCH / HTTP/1.1\r\nHost: here\r\n\r\n")
        await asyncio.sleep(0.1)
        for _ in range(100):  # until the sockets' buffers have room again, and the server can send
            await reader.read(2**18)
        door.later(UNREAD_SECONDS - 1)
        door.later(UNREAD_SECONDS - 1)
        assert door.ended == 0
        writer.close()


@pytest.mark.parametrize("lines", [1, 50])
@pytest.mark.parametrize("in_pieces_of", [1_000, 2**20])
async def test_a_head_that_is_too_large_is_refused_in_a_word(lines: int, in_pieces_of: int) -> None:
    head = GET[:-2] + b"".join(b"X-%d: %b\r\n" % (n, b"x" * (2 * MAX_HEAD_BYTES // lines)) for n in range(lines))
    async with a_door() as door:
        reader, writer = await door.connect()
        for start in range(0, len(head), in_pieces_of):
            writer.write(head[start : start + in_pieces_of])
            await writer.drain()
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert b'"message":"The headers of this request are too long."' in answer
        door.later(REFUSED_SECONDS + 1)
        assert (door.begun, await is_cut((reader, writer))) == (0, True)


async def test_a_large_body_is_no_large_head_wherever_the_head_is_cut() -> None:
    body = b"x" * (2 * MAX_HEAD_BYTES)
    sent = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with a_door() as door:
        door.release.set()
        reader, writer = await door.connect()
        for cut in range(1, sent.index(b"\r\n\r\n") + 6):
            writer.write(sent[:cut])
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
            writer.write(sent[cut:])
            assert (await reader.readuntil(str(len(body)).encode())).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("size", [1, 2**16, 2**20])
async def test_a_body_that_nobody_wants_can_be_sent_to_its_end_and_the_answer_is_heard(size: int) -> None:
    async with a_door() as door:
        reader, writer = await door.connect()
        writer.write(b"PUT / HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % (size + 1) + b"x" * size)
        await writer.drain()
        answer = await reader.readuntil(b"no")
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"Connection: close" in answer
        writer.write(b"x" + GET)
        door.release.set()
        assert (await is_cut((reader, writer)), door.begun) == (False, 1)


async def test_at_the_most_connections_the_one_that_has_waited_longest_makes_room() -> None:
    async with a_door() as door:
        busy = await door.connect(GET)
        slow, idle = await door.connect(b"GET"), await door.connect()
        newest = await door.connect(GET)
        assert [await is_cut(client) for client in (busy, slow, idle, newest)] == [False, True, False, False]
        door.release.set()
        for reader, _writer in (busy, newest):
            assert await reader.readuntil(b"done")


async def test_where_all_have_a_request_under_way_a_new_connection_is_closed() -> None:
    async with a_door() as door:
        busy = [await door.connect(GET) for _ in range(MOST)]
        assert await is_cut(await door.connect(GET))
        door.release.set()
        for reader, _writer in busy:
            assert await reader.readuntil(b"done")
        assert not await is_cut(await door.connect())


async def test_large_bodies_of_all_clients_share_their_memory_and_give_it_back() -> None:
    large = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % LARGE + b"x" * LARGE
    chunked = b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked += b"%x\r\n" % LARGE + b"x" * LARGE + b"\r\n0\r\n\r\n"
    small = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 5\r\n\r\nsmall"
    async with a_door() as door:
        first = await door.connect(large)
        await until(lambda: door.begun == 1)
        for refused in (large, chunked):
            reader, writer = await door.connect(refused)
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 503")
            writer.close()
            await asyncio.sleep(0.02)
        little = await door.connect(small)
        door.release.set()
        for reader, _writer in (first, little, await door.connect(chunked)):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
