"""Exchanges written down to the byte, and the two ends between which they are compared.

    Exchange(name="spaced", request=..., pieces=(b"...", b"..."))     what the client sends, and what it gets
    Player().handle                                 a provider that plays the answers, for `RawProvider`
    Client                                          a client's connection, of which no byte goes unseen
    await Stage(...).play(exchanges)                all of them through a gateway, as both ends saw them

The next piece of an answer is sent only when the client has the one before. So each is a read of its own for the
gateway, and a piece that it held back would stop the exchange.
"""

import asyncio
import itertools
import json
import re
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from random import Random
from typing import Literal

import httptools

from gateway.core.records import Key
from gateway.core.usage import Usage
from tests.harness import Database, Row, ask
from tests.lanes import RESET_AT_CLOSE, Way
from tests.raw_provider import Reader, Writer, reset

PATIENCE_SECONDS = 20
NUMBER = re.compile(rb"x-client-request-id: (\S+)\r\n")
"""Of the exchange, in a header that passes the gateway."""
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n")
_NO_LIST_OF_MODELS = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
_FLIGHT_SECONDS = 0.002
"""A reset would drop what is still on its way."""

Framing = Literal["length", "chunked", "close"]
Ending = Literal["close", "reset", "silence"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A request, the answer to it piece by piece, and what the ledger has to say of it."""

    name: str
    request: bytes = json.dumps(ask()).encode()
    is_request_chunked: bool = False
    status: int = 200
    head: tuple[str, ...] = ("content-type: application/json",)
    framing: Framing = "chunked"
    pieces: tuple[bytes, ...] = ()
    usage: Usage | None = None
    """By the provider's own count; `None`: to be estimated."""
    cut_at: int | None = None
    """So much is sent of it, head and framing included, and then comes the ending."""
    ending: Ending = "close"

    @property
    def answer(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def head_bytes(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} Some Reason", *self.head]
        if self.framing == "length":
            lines.append(f"content-length: {len(self.answer)}")
        if self.framing == "chunked":
            lines.append("transfer-encoding: chunked")
        return "\r\n".join([*lines, "\r\n"]).encode()

    @property
    def end_bytes(self) -> bytes:
        return b"0\r\n\r\n" if self.framing == "chunked" else b""

    @property
    def wire(self) -> bytes:
        """All of the answer as it is sent."""
        return self.head_bytes + b"".join(map(self.framed, self.pieces)) + self.end_bytes

    def framed(self, piece: bytes) -> bytes:
        return chunk(piece) if self.framing == "chunked" else piece


def chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b""


def divided(body: bytes, most_bytes: int) -> Iterator[bytes]:
    """In pieces of 1 to `most_bytes`, at random but always the same."""
    random, start = Random(len(body)), 0
    while start < len(body):
        end = start + random.randint(1, most_bytes)
        yield body[start:end]
        start = end


# The two ends.


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


def request_bytes(number: str, key: str, body: bytes, *, is_chunked: bool = False, version: str = "1.1") -> bytes:
    """A request with a number that passes to the provider."""
    lines = [f"POST /v1/messages HTTP/{version}", "host: localhost", f"x-api-key: {key}"]
    lines += ["content-type: application/json", f"x-client-request-id: {number}"]
    lines.append("transfer-encoding: chunked" if is_chunked else f"content-length: {len(body)}")
    if is_chunked:
        body = b"".join(map(chunk, divided(body, 1 + len(body) // 16))) + b"0\r\n\r\n"
    return "\r\n".join([*lines, "\r\n"]).encode() + body


async def read_whole_request(reader: Reader) -> tuple[bytes, bytes]:
    """Head and body. The gateway always knows how long the body is, and says so."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    length = _CONTENT_LENGTH.search(head)
    return head, await reader.readexactly(int(length[1]) if length else 0)


class NumberedProvider(ABC):
    """A provider that decides by the number of a request what to answer; `handle` is for `RawProvider`."""

    def __init__(self) -> None:
        self._idle: set[Writer] = set()
        self._busy: set[Writer] = set()

    async def handle(self, reader: Reader, writer: Writer) -> None:
        try:
            while not writer.is_closing():
                self._idle.add(writer)
                head, body = await read_whole_request(reader)
                self._idle.discard(writer)
                self._busy.add(writer)
                if number := NUMBER.search(head):
                    await self.answer(reader, writer, number[1].decode(), body)
                else:
                    writer.write(_NO_LIST_OF_MODELS)
                self._busy.discard(writer)
        finally:
            self._idle.discard(writer)
            self._busy.discard(writer)

    def close_idle(self) -> None:
        """Close the connections on which nothing runs: the gateway may keep those, and no others."""
        for writer in self._idle:
            writer.close()

    def close_all(self) -> None:
        for writer in self._idle | self._busy:
            writer.close()

    @abstractmethod
    async def answer(self, reader: Reader, writer: Writer, number: str, body: bytes) -> None:
        """Answer one request."""


class Player(NumberedProvider):
    """The provider's side of the exchanges."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way: dict[str, tuple[Exchange, Seen]] = {}
        self.received: dict[str, str] = {}
        """The hash of each request's body, by the number of its exchange."""

    async def answer(self, reader: Reader, writer: Writer, number: str, body: bytes) -> None:
        self.received[number] = sha256(body).hexdigest()
        exchange, seen = self.under_way.pop(number)
        if exchange.cut_at is not None:
            await _break_off(reader, writer, exchange)
            return
        writer.write(exchange.head_bytes + exchange.framed(b"".join(exchange.pieces[:1])))
        sent_bytes = 0
        for before, piece in pairwise(exchange.pieces):
            sent_bytes += len(before)
            await seen.until_bytes(sent_bytes)
            writer.write(exchange.framed(piece))
        await seen.until_bytes(len(exchange.answer) if exchange.framing == "chunked" else 0)
        writer.write(exchange.end_bytes)
        if exchange.framing == "close":
            writer.close()


async def _break_off(reader: Reader, writer: Writer, exchange: Exchange) -> None:
    writer.write(exchange.wire[: exchange.cut_at])
    match exchange.ending:
        case "close":
            writer.close()
        case "reset":
            await asyncio.sleep(_FLIGHT_SECONDS)
            reset(writer)
        case "silence":
            await reader.read(1)  # until the other side closes


# Between them a gateway.


@dataclass(frozen=True, slots=True)
class Played:
    """An exchange as both ends saw it."""

    exchange: Exchange
    received: str | None
    """The hash of the request's body as the provider has it."""
    seen: Seen

    def check_request(self) -> None:
        assert self.received == sha256(self.exchange.request).hexdigest(), self.exchange.name

    def check_whole(self) -> None:
        """The same bytes on both sides, and the provider's status."""
        self.check_request()
        assert self.seen.is_whole, self.exchange.name
        assert self.seen.status == self.exchange.status, self.exchange.name
        assert sha256(self.seen.body).digest() == sha256(self.exchange.answer).digest(), self.exchange.name

    def check_broken(self) -> None:
        """No end that was not there; what came before it was the provider's, or an error of the gateway's."""
        self.check_request()
        if self.seen.status == self.exchange.status:
            assert not self.seen.is_whole, self.exchange
            assert self.exchange.answer.startswith(self.seen.body), self.exchange
        else:
            assert self.seen.status in {502, 504}, self.exchange
            assert b"error" in self.seen.body, self.exchange


class Stage:
    """A gateway between a player and clients, each with a key of its own and one exchange at a time."""

    def __init__(self, origin: str, player: Player, database: Database, keys: list[tuple[str, Key]]) -> None:
        self.origin = origin
        self.database = database
        self.keys = keys
        self._player = player
        self._numbers = itertools.count()

    async def play(self, exchanges: Iterable[Exchange], version: str = "1.1") -> list[tuple[Played, Row]]:
        """Each exchange once, with its row."""
        waiting = iter(exchanges)
        results = await asyncio.gather(*(self._work(waiting, *key, version) for key in self.keys))
        return [result for lane in results for result in lane]

    async def _work(
        self, waiting: Iterator[Exchange], text: str, key: Key, version: str
    ) -> list[tuple[Played, Row]]:
        client, before, played = await connect(self.origin), len(self.database.rows(key)), list[Played]()
        for exchange in waiting:
            if not client.is_open:
                client = await connect(self.origin)
            played.append(await self._one(client, exchange, text, version))
            assert not client.has_strays, exchange.name
        client.leave()
        return list(zip(played, self.database.rows(key)[before:], strict=True))

    async def _one(self, client: Client, exchange: Exchange, text: str, version: str) -> Played:
        seen = Seen()
        number = self.expect(exchange, seen)
        is_chunked = exchange.is_request_chunked
        request = request_bytes(number, text, exchange.request, is_chunked=is_chunked, version=version)
        await client.ask(request, seen).end()
        return Played(exchange, self._player.received.pop(number, None), seen)

    def expect(self, exchange: Exchange, seen: Seen) -> str:
        """The number that a request has to carry to get this answer; `seen`: how far its client has come."""
        number = f"{next(self._numbers)}"
        self._player.under_way[number] = exchange, seen
        return number
