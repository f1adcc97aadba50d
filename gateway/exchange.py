"""One connection to the upstream, and one exchange after the other on it.

How it works. A `Connection` is an asyncio protocol around a parser of HTTP/1.1 answers. `ask` writes a request and
returns its `Answer` as soon as the head of it has come. Whatever one read from the socket holds goes through the
parser into that answer, which hands it on as a whole. `finish` ends the exchange.

- A body ends by its length, its last chunk, or - having neither - with the connection. Any other end is a failure.
- A connection carries another exchange only after a whole one, and an `Answer` belongs to one exchange: no byte of
  one can turn up in another. Bytes that nobody asked for close the connection.
- Its pool looks now and then whether the deadline of its answer, or of its idling, has passed.
"""

import asyncio
import math
import select
from collections.abc import Callable
from typing import cast

import httptools

from gateway.answer import Answer, Patience, Refused
from gateway.logs import Event

MAX_HEADER_BYTES = 64 * 2**10
"""Also the most that may come between two pieces of a body: sizes of chunks, trailers."""
MAX_HEADERS = 256
INFORMATIONAL = frozenset({100, 102, 103})
"""What may come before an answer, and is skipped: `103 Early Hints` and the like. Not `101`, another protocol."""
MAX_INFORMATIONAL = 16
READ_BUFFER_BYTES = 64 * 2**10
"""How much of an answer may wait for a slow client before the upstream is made to wait."""
_RECEIVED = memoryview(bytearray(64 * 2**10))
"""Where all connections receive, in turn: the parser copies out of it what it passes on, before anything else is
received. So no larger piece is ever passed on, and connections that wait own no buffer."""
_NOTHING = memoryview(b"")
WRITE_BYTES = 64 * 2**10
"""A request up to this size leaves in one write; a longer one in pieces, so that it is never copied as a whole."""


class Connection(asyncio.BufferedProtocol):
    """A connection: exchanges one after the other, as long as all goes well."""

    __slots__ = (
        "_answer",
        "_buffered_bytes",
        "_header_bytes",
        "_idle_until",
        "_informational",
        "_loop",
        "_may_read",
        "_may_write",
        "_names",
        "_on_lost",
        "_overhead_bytes",
        "_parser",
        "_patience",
        "_transport",
        "_unsent",
        "_upstream",
        "_values",
        "is_open",
    )

    _transport: asyncio.Transport

    def __init__(self, upstream: str, patience: Patience, on_lost: Callable[["Connection"], None]) -> None:
        """`upstream`: its name."""
        self.is_open = False
        """Whether a request may be sent on it, as far as the upstream has told."""
        self._upstream = upstream
        self._patience = patience
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._answer = Answer(upstream, patience, self._read_on)
        self._answer.end()  # none is under way
        self._idle_until = math.inf
        self._unsent = _NOTHING
        self._may_write = True
        self._may_read = True
        self._start()

    def _start(self) -> None:
        self._idle_until = math.inf
        self._names: list[bytes] = []
        self._values: list[bytes] = []
        self._header_bytes = 0
        self._informational = 0
        self._overhead_bytes = 0
        """Received since the request, or since a piece of the body."""
        self._buffered_bytes = 0

    def is_quiet(self) -> bool:
        """Whether it is open and the upstream has said nothing since the last exchange, neither a byte nor its end.

        The kernel is asked: what it has received and the event loop has not read yet would be seen only after a
        request had been written, and then nobody knows whether the request was processed.
        """
        if not self.is_open or self._transport.is_closing():
            return False
        waiting = select.poll()
        waiting.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not waiting.poll(0)

    async def ask(self, head: bytes, body: bytes) -> Answer:
        """Send a request; return its answer once the head is there. Raises `UpstreamBroke` or `UpstreamTimeout`.

        If the answer comes before all of a long body was sent, the rest is sent while it is read.
        """
        self._start()
        self._answer = Answer(self._upstream, self._patience, self._read_on)
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
            self._idle_until = self._loop.time() + self._patience.idle
            return True
        self.close()
        return False

    def close(self, event: Event = Event.UPSTREAM_BROKE) -> None:
        """Close it at once. An answer that is under way fails."""
        self.is_open = False
        self._answer.fail(event)
        self._transport.abort()

    def look(self, now: float) -> None:
        """Close it if its time is over, in the loop's time."""
        if now >= self._answer.deadline or now >= self._idle_until:
            self.close(Event.UPSTREAM_TIMED_OUT)

    def _read_on(self) -> None:
        self._buffered_bytes = 0
        if not self._may_read:
            self._may_read = True
            self._transport.resume_reading()

    def _send_on(self) -> None:
        while self._unsent and self._may_write and self.is_open:
            piece, self._unsent = self._unsent[:WRITE_BYTES], self._unsent[WRITE_BYTES:]
            self._transport.write(piece)
        if not self._unsent:
            self._unsent = _NOTHING  # even an empty view holds on to the body

    # What the event loop tells it:

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def get_buffer(self, sizehint: int) -> memoryview:
        del sizehint
        return _RECEIVED

    def buffer_updated(self, nbytes: int) -> None:
        if self._answer.has_ended:
            self.close()
            return
        self._overhead_bytes += nbytes
        self._buffered_bytes += nbytes
        try:
            self._parser.feed_data(_RECEIVED[:nbytes])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.close()
        self._answer.deliver()
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
        self.close()
        self._on_lost(self)
        self._answer.leave()
        del self._parser  # it leads back here, and only the garbage collector finds circles

    def pause_writing(self) -> None:
        self._may_write = False

    def resume_writing(self) -> None:
        self._may_write = True
        self._send_on()

    # What the parser tells it. Whatever is raised here ends the parsing.

    def on_message_begin(self) -> None:
        if self._answer.has_ended:
            raise Refused

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEADER_BYTES or len(self._names) == MAX_HEADERS:
            raise Refused
        self._names.append(name)
        self._values.append(value)

    def on_headers_complete(self) -> None:
        names, values = _texts(self._names), _texts(self._values)
        self._names, self._values = [], []  # trailers may follow: they are nobody's
        status = self._parser.get_status_code()
        if status >= 200:
            headers = [(name.lower(), value.strip(" \t")) for name, value in zip(names, values, strict=True)]
            self._answer.begin(status, headers)
            return
        self._informational += 1
        if status not in INFORMATIONAL or self._informational > MAX_INFORMATIONAL:
            raise Refused

    def on_body(self, piece: bytes) -> None:
        self._overhead_bytes = 0
        self._answer.add(piece)

    def on_message_complete(self) -> None:
        if self._answer.status:
            self.is_open = self.is_open and self._parser.should_keep_alive()
            self._answer.end()


def _texts(lines: list[bytes]) -> list[str]:
    """All decoded at once. None of them holds the end of a line: the parser would have refused it."""
    return b"\n".join(lines).decode("utf-8", "surrogateescape").split("\n") if lines else []
