"""One connection to the upstream, and the exchange that is under way on it.

How it works. A `Connection` is an asyncio protocol around a parser of HTTP/1.1 answers. `ask` writes a request and
returns its `Answer` as soon as the head of it has come. Each read from the socket goes through the parser into that
answer's buffer, whole, and wakes whoever waits for it; for a chunk there is no task, no timer and no lock.

- What was received is given out before a failure is told: an upstream that reported usage and then reset the
  connection has still reported it.
- A body ends by its length, its last chunk, or - having neither - with the connection. Any other end is a failure.
- A connection carries another exchange only after a whole one, and an `Answer` belongs to one exchange: no byte of
  one can turn up in another. Bytes that nobody asked for close the connection.
- One coarse timer for each connection looks at its deadline. There is one only while somebody waits for the
  upstream, or the connection is idle: time that a slow client takes is never held against the upstream.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import cast

import httptools

from gateway.core.errors import GatewayError, UpstreamBroke, UpstreamTimeout
from gateway.core.wire import Headers
from gateway.logs import Event

MAX_HEADER_BYTES = 64 * 2**10
"""Also the most that may come between two pieces of a body: sizes of chunks, trailers."""
MAX_HEADERS = 256
INFORMATIONAL = frozenset({100, 102, 103})
"""What may come before an answer, and is skipped: `103 Early Hints` and the like. Never `101`, another protocol."""
MAX_INFORMATIONAL = 16
READ_BUFFER_BYTES = 64 * 2**10
"""How much of an answer may wait for a slow client before the upstream is made to wait."""
WRITE_BYTES = 64 * 2**10
"""A request up to this size leaves in one write; a longer one in pieces, so that it is never copied as a whole."""

_log = logging.getLogger("opusmax.upstream")


def report(event: Event, error: GatewayError) -> GatewayError:
    """Log what went wrong with the upstream, and return the error that tells of it."""
    _log.warning(event)
    return error


class _Refused(Exception):
    """An answer that no provider gives; told to the parser, which stops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for an upstream, in seconds."""

    connect: float
    first_byte: float
    """From a request to the head of its answer."""
    silence: float
    """Within an answer."""
    idle: float
    """For the next request; then the connection is closed."""

    @property
    def shortest(self) -> float:
        """Of those that a connection keeps an eye on by itself."""
        return min(self.first_byte, self.silence, self.idle)


class Answer:
    """An upstream's answer, its head known, its body still to come."""

    def __init__(self, connection: "Connection") -> None:
        self.status = 0
        self.headers: Headers = ()
        """In order, names in lower case."""
        self.content_type = ""
        self.content_encoding = ""
        self.content_length: int | None = None
        self.has_ended = False
        """Whether the upstream has sent all of it."""
        self._connection = connection
        self._ends_with_connection = False
        self._pieces: list[bytes] = []
        self._failure: Event | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_exhausted(self) -> bool:
        """Whether the chunk given last was the last one."""
        return self.has_ended and not self._pieces

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body, in pieces as they were received. Ends only where the upstream ended it properly.

        Otherwise it raises `UpstreamBroke` or `UpstreamTimeout`, after everything that was received.
        """
        while not self.is_exhausted:
            if self._pieces:
                pieces, self._pieces = self._pieces, []
                self._connection.read_on()
                yield pieces[0] if len(pieces) == 1 else b"".join(pieces)
            else:
                await self._progress(self._connection.patience.silence)

    async def arrive(self) -> None:
        """Return once the head is there. Raises `UpstreamBroke` or `UpstreamTimeout`."""
        while not self.status:
            await self._progress(self._connection.patience.first_byte)

    async def _progress(self, seconds: float) -> None:
        if self._failure is Event.UPSTREAM_TIMED_OUT:
            raise report(self._failure, UpstreamTimeout("The provider did not answer in time."))
        if self._failure is not None:
            raise report(self._failure, UpstreamBroke("The connection to the provider broke."))
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        self._connection.deadline = loop.time() + seconds
        try:
            await self._waiter
        finally:
            self._waiter = None
            self._connection.deadline = math.inf

    # What its connection tells it:

    def begin(self, status: int, headers: list[tuple[str, str]]) -> None:
        """The head is there. Raises `_Refused` if the body is coded in a way that could not be passed on."""
        first = dict(reversed(headers))
        length, coding = first.get("content-length"), first.get("transfer-encoding")
        if coding is not None and coding.lower() != "chunked":
            raise _Refused
        self.status = status
        self.headers = headers
        self.content_type = first.get("content-type", "")
        self.content_encoding = first.get("content-encoding", "")
        self.content_length = None if length is None else int(length)
        self._ends_with_connection = length is None and coding is None
        self._wake()

    def add(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._wake()

    def end(self) -> None:
        self.has_ended = True
        self._wake()

    def end_with_connection(self) -> None:
        """The upstream has closed the connection in good order, and some answers have no other end."""
        if self.status and self._ends_with_connection:
            self.end()

    def fail(self, event: Event) -> None:
        """Nothing more will come. To an answer that has ended, or failed before, this means nothing."""
        if not self.has_ended and self._failure is None:
            self._failure = event
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Connection(asyncio.Protocol):
    """A connection: one exchange after the other, as long as all goes well."""

    _transport: asyncio.Transport

    def __init__(self, patience: Patience, on_lost: Callable[["Connection"], None]) -> None:
        self.patience = patience
        self.is_open = False
        """Whether a request may be sent on it, as far as the upstream has told."""
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._answer = Answer(self)
        self._answer.end()  # none is under way
        self.deadline = math.inf
        """When it fails, or is given up, unless something happens before."""
        self._timer: asyncio.TimerHandle | None = None
        self._unsent = memoryview(b"")
        self._may_write = True
        self._may_read = True

    async def ask(self, head: bytes, body: bytes) -> Answer:
        """Send a request; return its answer once the head is there. Raises `UpstreamBroke` or `UpstreamTimeout`.

        If the answer comes before all of a long body was sent, the rest is sent while it is read.
        """
        self._answer = Answer(self)
        self._headers: list[tuple[str, str]] = []
        self._header_bytes = self._overhead_bytes = self._buffered_bytes = self._informational = 0
        self._unsent = memoryview(body)[WRITE_BYTES:]
        self._transport.write(head + body[:WRITE_BYTES])
        self._send_on()
        await self._answer.arrive()
        return self._answer

    def finish(self) -> bool:
        """The exchange is over. Returns whether another may follow; else the connection is closed, and the upstream
        can stop working."""
        is_sent = not self._unsent and not self._transport.get_write_buffer_size()
        if self.is_open and is_sent and self._answer.is_exhausted:
            self.deadline = self._loop.time() + self.patience.idle
            return True
        self.close()
        return False

    def close(self, event: Event = Event.UPSTREAM_BROKE) -> None:
        """Close it at once. An answer that is under way fails."""
        self.is_open = False
        self._answer.fail(event)
        self._transport.abort()

    def read_on(self) -> None:
        """All that was received has been taken."""
        self._buffered_bytes = 0
        if not self._may_read:
            self._may_read = True
            self._transport.resume_reading()

    # What the event loop tells it:

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True
        self._watch()

    def data_received(self, data: bytes) -> None:
        if self._answer.has_ended:
            self.close()
            return
        self._overhead_bytes += len(data)
        self._buffered_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.close()
        if self._overhead_bytes > MAX_HEADER_BYTES:
            self.close()
        elif self._buffered_bytes > READ_BUFFER_BYTES and self.is_open:
            self._may_read = False
            self._transport.pause_reading()

    def eof_received(self) -> None:
        self._answer.end_with_connection()
        self.close()

    def connection_lost(self, error: Exception | None) -> None:
        del error
        if self._timer is not None:
            self._timer.cancel()
        self.close()
        self._on_lost(self)

    def pause_writing(self) -> None:
        self._may_write = False

    def resume_writing(self) -> None:
        self._may_write = True
        self._send_on()

    def _send_on(self) -> None:
        while self._unsent and self._may_write and self.is_open:
            piece, self._unsent = self._unsent[:WRITE_BYTES], self._unsent[WRITE_BYTES:]
            self._transport.write(piece)

    def _watch(self) -> None:
        """Look at the deadline, now and in time for the next one: none is set nearer than `patience.shortest`."""
        now = self._loop.time()
        if now >= self.deadline:
            self.close(Event.UPSTREAM_TIMED_OUT)
        else:
            self._timer = self._loop.call_at(min(self.deadline, now + self.patience.shortest), self._watch)

    # What the parser tells it. Whatever is raised here ends the parsing.

    def on_message_begin(self) -> None:
        if self._answer.has_ended:
            raise _Refused

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEADER_BYTES or len(self._headers) == MAX_HEADERS:
            raise _Refused
        self._headers.append((name.decode().lower(), value.decode("utf-8", "surrogateescape").strip()))

    def on_headers_complete(self) -> None:
        headers, self._headers = self._headers, []  # trailers may follow: they are nobody's
        status = self._parser.get_status_code()
        if status >= 200:
            self._answer.begin(status, headers)
            return
        self._informational += 1
        if status not in INFORMATIONAL or self._informational > MAX_INFORMATIONAL:
            raise _Refused

    def on_body(self, piece: bytes) -> None:
        self._overhead_bytes = 0
        self._answer.add(piece)

    def on_message_complete(self) -> None:
        if self._answer.status:
            self.is_open = self.is_open and self._parser.should_keep_alive()
            self._answer.end()
