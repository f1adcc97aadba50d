"""A client's connection, written and read to the byte: of what comes, nothing goes unseen.

client = await connect(origin)
seen = await client.ask(request_bytes("1", key, body), Seen()).end()
assert seen.is_whole
"""

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

import httptools

from tests.lanes import RESET_AT_CLOSE, Way

PATIENCE_SECONDS = 20


def chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b""


def divided(body: bytes, most_bytes: int) -> Iterator[bytes]:
    """In pieces of 1 to `most_bytes`, at random but always the same."""
    random, start = Random(len(body)), 0
    while start < len(body):
        end = start + random.randint(1, most_bytes)
        yield body[start:end]
        start = end


@dataclass(slots=True)
class Seen:
    """What a client has seen of an answer."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    arrivals: list[tuple[int, float]] = field(default_factory=list)
    """How much of the body was there, and since when."""
    is_whole: bool = False
    """It came to a proper end, by its length, its last chunk, or an orderly close where it has neither."""
    is_over: bool = False
    """Nothing more will come."""
    _progressed: asyncio.Event = field(default_factory=asyncio.Event)

    def progress(self) -> None:
        self._progressed.set()

    async def until_bytes(self, count: int) -> None:
        """Return when so much of the body is there, or nothing more will come."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(self.body) < count and not self.is_over:
                self._progressed.clear()
                await self._progressed.wait()

    async def end(self) -> "Seen":
        await self.until_bytes(2**63)
        return self


class Client(asyncio.Protocol):
    """A client's connection: one exchange after the other, as long as it stays open."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self.is_open = True
        self.has_strays = False
        """Whether anything came that belongs to no answer."""
        self._seen = Seen(is_over=True)
        self._parser = httptools.HttpResponseParser(self)

    def ask(self, request: bytes, seen: Seen) -> Seen:
        """Send a request; what comes is noted in `seen`."""
        self._seen = seen
        self._transport.write(request)
        return seen

    def leave(self, how: Way = "close") -> None:
        if how == "reset":
            connection = self._transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        self.is_open = False
        self._transport.abort()

    def _finish(self, *, is_whole: bool) -> None:
        if not self._seen.is_over:
            self._seen.is_over, self._seen.is_whole = True, is_whole
            self._seen.progress()

    # What the event loop tells it:

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.has_strays = True
            self.leave()

    def eof_received(self) -> None:
        self.is_open = False
        headers = self._seen.headers
        has_no_other_end = not {"content-length", "transfer-encoding"} & headers.keys()
        self._finish(is_whole=bool(self._seen.status) and has_no_other_end)

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self.is_open = False
        self._finish(is_whole=False)

    # What the parser tells it:

    def on_message_begin(self) -> None:
        if self._seen.is_over:
            raise ValueError

    def on_header(self, name: bytes, value: bytes) -> None:
        self._seen.headers[name.decode().lower()] = value.decode()

    def on_headers_complete(self) -> None:
        self._seen.status = self._parser.get_status_code()

    def on_body(self, piece: bytes) -> None:
        self._seen.body += piece
        self._seen.arrivals.append((len(self._seen.body), asyncio.get_running_loop().time()))
        self._seen.progress()

    def on_message_complete(self) -> None:
        self.is_open = self.is_open and self._parser.should_keep_alive()
        self._finish(is_whole=True)


async def connect(origin: str) -> Client:
    host, _, port = origin.removeprefix("http://").partition(":")
    _, client = await asyncio.get_running_loop().create_connection(Client, host, int(port))
    return client


def request_bytes(
    number: str,
    key: str,
    body: bytes,
    *,
    path: str = "/v1/messages",
    is_chunked: bool = False,
    version: str = "1.1",
) -> bytes:
    """A request with a number that passes to the provider."""
    lines = [f"POST {path} HTTP/{version}", "host: localhost", f"x-api-key: {key}"]
    lines += ["content-type: application/json", f"x-client-request-id: {number}"]
    lines.append("transfer-encoding: chunked" if is_chunked else f"content-length: {len(body)}")
    if is_chunked:
        body = b"".join(map(chunk, divided(body, 1 + len(body) // 16))) + b"0\r\n\r\n"
    return "\r\n".join([*lines, "\r\n"]).encode() + body
