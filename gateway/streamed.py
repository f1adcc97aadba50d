"""A response whose head and pieces are there to be sent as they are: an upstream's answer, or an export.

aiohttp's own `StreamResponse` composes an answer: it keeps headers in a dictionary, finds out how the body is
framed, and passes each piece through three layers. Here all that is known beforehand. It stays a `StreamResponse`
for the server, which asks it whether the connection is kept and ends it.

The head waits for the first piece, so that a small answer is one write; `flush` sends it by itself. Until then
nothing has begun, and an error can still be told in its place.
"""

import time
from collections.abc import Iterable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from types import TracebackType
from typing import Self

from aiohttp import HttpVersion10, web
from aiohttp.abc import AbstractStreamWriter

from gateway.core.errors import ClientLeft
from gateway.responses import break_connection

_BODILESS = HTTPStatus.NO_CONTENT
_LAST_CHUNK = b"0\r\n\r\n"


class StreamedResponse(web.StreamResponse):
    """The answer to one request, begun by `begin`."""

    def __init__(self, request: web.BaseRequest) -> None:
        super().__init__()
        self._client = request
        self._head = b""
        """What of the head has not left yet."""
        self._has_begun = False
        self._is_chunked = False

    @property
    def prepared(self) -> bool:
        """Whether the client may have seen something of it."""
        return self._has_begun and not self._head

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Once the head is out, a failure can only be shown by breaking the connection."""
        if error is not None and self.prepared:
            break_connection(self._client)

    @property
    def is_slow(self) -> bool:
        """The client does not take what was written for it: `drain` before more is."""
        return self._client.protocol.writing_paused

    def begin(self, status: int, headers: Iterable[tuple[str, str]], length: int | None = None) -> None:
        """Set its head. A body whose `length` in bytes is not known goes out in chunks; to a client of HTTP/1.0,
        which knows none, it ends with the connection. Raises `ValueError` for a header that holds a line's end."""
        self.set_status(status)
        is_old = self._client.version <= HttpVersion10
        has_no_end = length is None and status != _BODILESS
        self._is_chunked = has_no_end and not is_old
        self._keep_alive = self._client.keep_alive and not (has_no_end and is_old)
        framing = [("transfer-encoding", "chunked")] if self._is_chunked else []
        if self._keep_alive is is_old:  # not as is usual in that version
            framing.append(("connection", "keep-alive" if is_old else "close"))
        lines = [f"{name}: {value}" for name, value in (*headers, ("date", _date(int(time.time()))), *framing)]
        head = "\r\n".join([f"HTTP/{'1.0' if is_old else '1.1'} {status} {self.reason}", *lines])
        if head.count("\n") != len(lines) or head.count("\r") != len(lines) or "\0" in head:
            raise ValueError("a header holds the end of a line")
        self._head = f"{head}\r\n\r\n".encode("utf-8", "surrogateescape")
        self._has_begun = True

    def flush(self) -> None:
        """Send the head if it has not left. Raises `ClientLeft`."""
        if self._head:
            self._send(b"")

    def send(self, piece: bytes) -> None:
        """Write a piece of the body; an empty one is none. Raises `ClientLeft`."""
        if piece:
            self._send(b"%x\r\n%b\r\n" % (len(piece), piece) if self._is_chunked else piece)

    async def drain(self) -> None:
        """Return once the client has taken most of what was written. Raises `ClientLeft`."""
        try:
            await self._client.writer.drain()
        except ConnectionError:
            raise _client_left() from None

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """What the server asks for before it ends a response; this one has begun."""
        del request
        return self._client.writer

    async def write_eof(self, data: bytes = b"") -> None:
        """End it: all of it was sent. Raises `ClientLeft`."""
        del data
        if self._is_chunked and not self._eof_sent:
            self._send(_LAST_CHUNK)
        self.flush()
        self._eof_sent = True

    def _send(self, data: bytes) -> None:
        transport = self._client.transport
        if transport is None or transport.is_closing():
            raise _client_left()
        transport.write(self._head + data)
        self._head = b""


def _client_left() -> ClientLeft:
    return ClientLeft("The client closed the connection.")


@lru_cache(1)
def _date(second: int) -> str:
    """The time as HTTP tells it: RFC 9110, 5.6.7."""
    return formatdate(second, usegmt=True)
