"""Exchanges written down to the byte, and the two ends between which they are compared.

    Exchange(name="spaced", request=..., pieces=(b"...", b"..."))     what the client sends, and what it gets
    Player().handle                                 a provider that plays the answers, for `RawProvider`
    await Stage(...).play(exchanges)                all of them through a gateway, as both ends saw them

The next piece of an answer is sent only when the client has the one before. So each is a read of its own for the
gateway, and a piece that it held back would stop the exchange.
"""

import asyncio
import itertools
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import Literal

from gateway.core.records import Key
from gateway.core.usage import Usage
from tests.harness import Database, Row, ask
from tests.raw_client import Client, Seen, chunk, connect, request_bytes
from tests.raw_provider import Reader, Writer, reset

__all__ = ["Client", "Seen", "chunk", "connect", "request_bytes"]

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
    path: str = "/v1/messages"
    forwarded: bytes | None = None
    """What the provider gets, where that is not the request itself."""
    status: int = 200
    head: tuple[str, ...] = ("content-type: application/json",)
    framing: Framing = "chunked"
    pieces: tuple[bytes, ...] = ()
    withheld: bytes = b""
    """The one piece that the client does not see."""
    usage: Usage | None = None
    """By the provider's own count; `None`: to be estimated."""
    cut_at: int | None = None
    """So much is sent of it, head and framing included, and then comes the ending."""
    ending: Ending = "close"

    @property
    def answer(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def shown(self) -> bytes:
        """What the client sees of the answer."""
        return b"".join(piece for piece in self.pieces if not self.withheld or piece != self.withheld)

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


# The provider's end.


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
            sent_bytes += 0 if before == exchange.withheld else len(before)
            await seen.until_bytes(sent_bytes)
            writer.write(exchange.framed(piece))
        await seen.until_bytes(len(exchange.shown) if exchange.framing == "chunked" else 0)
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
        assert self.received == sha256(self.exchange.forwarded or self.exchange.request).hexdigest(), (
            self.exchange.name
        )

    def check_whole(self) -> None:
        """The same bytes on both sides, and the provider's status."""
        self.check_request()
        assert self.seen.is_whole, self.exchange.name
        assert self.seen.status == self.exchange.status, self.exchange.name
        assert sha256(self.seen.body).digest() == sha256(self.exchange.shown).digest(), self.exchange.name

    def check_broken(self) -> None:
        """No end that was not there; what came before it was the provider's, or an error of the gateway's."""
        self.check_request()
        if self.seen.status == self.exchange.status:
            assert not self.seen.is_whole, self.exchange
            assert self.exchange.shown.startswith(self.seen.body), self.exchange
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
        request = request_bytes(
            number, text, exchange.request, path=exchange.path, is_chunked=is_chunked, version=version
        )
        await client.ask(request, seen).end()
        return Played(exchange, self._player.received.pop(number, None), seen)

    def expect(self, exchange: Exchange, seen: Seen) -> str:
        """The number that a request has to carry to get this answer; `seen`: how far its client has come."""
        number = f"{next(self._numbers)}"
        self._player.under_way[number] = exchange, seen
        return number
