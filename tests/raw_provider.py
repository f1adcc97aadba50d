"""A provider whose every byte a test decides, for what the simulator is too well-mannered to do."""

import asyncio
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Self, TypeAlias

from gateway.core.protocols import Protocol
from gateway.core.settings import Settings
from gateway.core.upstreams import Access, plain_upstream
from gateway.core.wire import Endpoint
from gateway.upstream import Upstream

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"content-length: 5\r\n\r\nhello"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"

Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter
Handler = Callable[[Reader, Writer], Awaitable[None]]


class RawProvider:
    """A provider that does with each connection what `handle` says, and closes it then."""

    def __init__(self, handle: Handler, tls: ssl.SSLContext | None = None) -> None:
        self.connections = 0
        self.closed_by_client = asyncio.Event()
        self.closed = asyncio.Event()
        self._handle = handle
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.origin = f"{'https' if self._tls else 'http'}://localhost:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: Reader, writer: Writer) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._handle(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed_by_client.set()
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            writer.close()
            with suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()
            self.closed.set()


async def read_request(reader: Reader) -> bytes:
    """The body of the next request."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return await reader.readexactly(int(length[1]) if length else 0)


def reset(writer: Writer) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def answering(*answers: bytes, then: str = "stay") -> Handler:
    """Each request on a connection gets the next of the answers; after the last one: stay, close or reset."""

    async def handle(reader: Reader, writer: Writer) -> None:
        for answer in answers:
            await read_request(reader)
            writer.write(answer)
            await writer.drain()
        if then == "stay":
            await reader.readexactly(1)  # until the client closes
        if then == "reset":
            reset(writer)

    return handle


async def echo(reader: Reader, writer: Writer) -> None:
    """Answers each request with its own body, in two chunks."""
    while True:
        body = await read_request(reader)
        writer.write(CHUNKED + b"%x\r\n%b\r\n" % (len(body), body))
        await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")
        await writer.drain()


async def wait_forever(reader: Reader, writer: Writer) -> None:
    """Takes everything and says nothing."""
    del writer
    while await reader.read(2**20):
        pass
    raise ConnectionError


@asynccontextmanager
async def between(
    handle: Handler, tls: ssl.SSLContext | None = None, **settings: Any
) -> AsyncIterator[tuple[RawProvider, Upstream]]:
    async with RawProvider(handle, tls) as provider:
        upstream = upstream_at(provider.origin, **settings)
        try:
            yield provider, upstream
        finally:
            await upstream.close()


def upstream_at(origin: str, **settings: Any) -> Upstream:
    timeouts = replace(Settings(), **settings).timeouts
    plain = plain_upstream(Protocol.ANTHROPIC, origin, timeouts)
    return Upstream(Access(upstream=plain, credentials=("the-credential",)))


async def collect(upstream: Upstream, body: bytes = b"{}", into: bytearray | None = None) -> bytes:
    """The whole body of an answer; `into` holds what came, even if it breaks."""
    arrived = bytearray() if into is None else into
    async with upstream.send(Endpoint.MESSAGES, [("content-type", "application/json")], "", body) as answer:
        async for chunk in answer.chunks():
            arrived += chunk
    return bytes(arrived)
