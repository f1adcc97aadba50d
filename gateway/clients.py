"""The connections of clients: how many there may be, and how long each may take over what.

How it works. aiohttp's `RequestHandler` speaks HTTP; `ClientConnection` adds what it leaves open: a bound on the
size of a head, and times. `Clients` knows all connections and looks at them once a second, so that none needs a
timer or a task of its own.

- A connection waits, for a head to come or to be complete, or it has a request under way: `begin` and `end`.
- Who waits too long is cut off, and so is a client that takes nothing of its answer.
- When there are as many as there may be, the one that has waited longest makes room. So whoever only holds
  connections open keeps nobody out.
- The bytes of large bodies are counted over all connections: they are what fills the memory.
"""

import asyncio
import logging
import math
from collections.abc import Mapping
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from gateway.core.errors import BadRequest, GatewayError, HeadTooLarge, Unavailable
from gateway.logs import Event
from gateway.responses import error_response, raw_error, reset_at_close

MAX_HEAD_BYTES = 32 * 2**10
HEAD_SECONDS = 10
"""From the first byte of a head, or the opening of the connection, to the end of the head."""
IDLE_SECONDS = 75
"""From an answer to the next request: longer than the pools of clients keep a connection."""
UNREAD_SECONDS = 60
"""How long a client may take nothing of an answer that waits for it, here or in the system's own buffer."""
DISCARDS_PER_SECOND = 100
"""How often the rest of bodies that nobody wants is read, 256 KiB at most each, by all connections together: enough
for some clients to send it all and hear their answers, and little work when there are many."""
REFUSED_SECONDS = 2
"""For a client to read that its head was too large, before the connection is cut."""
LOOK_SECONDS = 1
REPORT_SECONDS = 60
"""How often at most the log tells that the server is full."""
UPLOAD_RETRY_SECONDS = 2
HTTP_OPTIONS: Mapping[str, Any] = {
    "access_log": None,
    "auto_decompress": False,  # packed bodies are refused, and never unpacked
    "keepalive_timeout": 2 * IDLE_SECONDS,  # aiohttp's own; ours come first
    "lingering_time": 15,  # how long the rest of a body that nobody wants may take
    "max_line_size": MAX_HEAD_BYTES,
    "max_field_size": MAX_HEAD_BYTES // 2,  # lists of beta features grow long
}
_TOO_LARGE = "The headers of this request are too long."
_HEAD_END = b"\r\n\r\n"

_log = logging.getLogger("opusmax.clients")


class Clients:
    """All connections of clients."""

    def __init__(self, max_connections: int, max_upload_bytes: int) -> None:
        self._max_connections = max_connections
        self._free_upload_bytes = max_upload_bytes
        self._all: set[ClientConnection] = set()
        self._waiting: dict[ClientConnection, None] = {}
        """Those without a request, the one that has waited longest first."""
        self._reported_at = -math.inf
        self._next_discard_at = -math.inf

    async def watch(self) -> None:
        """Look every second, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look(loop.time())

    def look(self, now: float) -> None:
        """Cut off whoever took too long until `now`, in the loop's time."""
        for connection in tuple(self._all):
            connection.look(now)

    def admit(self, connection: "ClientConnection", now: float) -> bool:
        """Take in a new connection, if there is room or room can be made."""
        if len(self._all) >= self._max_connections:
            self._report_full(now)
            if not self._waiting:
                return False
            next(iter(self._waiting)).cut()
        self._all.add(connection)
        self._waiting[connection] = None
        return True

    def leave(self, connection: "ClientConnection") -> None:
        self._all.discard(connection)
        self._waiting.pop(connection, None)

    def begin(self, connection: "ClientConnection") -> None:
        self._waiting.pop(connection, None)

    def end(self, connection: "ClientConnection") -> None:
        if connection in self._all:
            self._waiting[connection] = None

    def take_upload(self, size: int) -> None:
        """Raises `Unavailable` when the bodies of all clients together would take too much memory."""
        if size > self._free_upload_bytes:
            raise Unavailable(
                "Too many large requests are under way just now. Try again in a moment.",
                retry_after_seconds=UPLOAD_RETRY_SECONDS,
            )
        self._free_upload_bytes -= size

    def give_back_upload(self, size: int) -> None:
        self._free_upload_bytes += size

    def discard_at(self, now: float) -> float:
        """When a connection may read again what nobody wants."""
        self._next_discard_at = max(now, self._next_discard_at + 1 / DISCARDS_PER_SECOND)
        return self._next_discard_at

    def _report_full(self, now: float) -> None:
        if now >= self._reported_at + REPORT_SECONDS:
            self._reported_at = now
            _log.warning(Event.CONNECTIONS_FULL)


class ClientConnection(web.RequestHandler):
    """A connection of a client."""

    __slots__ = (
        "_clients",
        "_deadline",
        "_head_bytes",
        "_head_tail",
        "_is_over",
        "_reads_head",
        "_socket",
        "_unread_bytes",
        "_unread_since",
        "_upload_bytes",
    )

    _socket: asyncio.Transport

    def __init__(self, clients: Clients, manager: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(manager, loop=loop, **HTTP_OPTIONS)
        self._clients = clients
        self._deadline = math.inf
        """Until when the next thing has to have happened, in the loop's time."""
        self._is_over = False
        """Nothing that comes is wanted any more."""
        self._reads_head = True
        self._head_bytes = 0
        self._head_tail = b""
        self._unread_since = math.inf
        self._unread_bytes = 0
        self._upload_bytes = 0

    @classmethod
    def of(cls, request: web.BaseRequest) -> "ClientConnection":
        """The connection that a request came on."""
        return cast(ClientConnection, request.protocol)

    def begin(self) -> None:
        """A request has come, and is under way now."""
        self._reads_head = False
        self._deadline = math.inf
        self._clients.begin(self)

    def end(self, *, is_read: bool) -> None:
        """The request is over; its answer may still be on its way. `is_read`: all of its body has come."""
        self.release_upload()
        self._is_over = not is_read
        self._reads_head = True
        self._head_bytes, self._head_tail = 0, b""
        self._deadline = self._loop.time() + IDLE_SECONDS
        self._clients.end(self)

    def take_upload(self, size: int) -> None:
        """Count bytes of the request's body, until it is released or the request ends. Raises `Unavailable`."""
        self._clients.take_upload(size)
        self._upload_bytes += size

    def release_upload(self) -> None:
        """The request's body is needed no more."""
        if self._upload_bytes:
            self._clients.give_back_upload(self._upload_bytes)
            self._upload_bytes = 0

    def look(self, now: float) -> None:
        """Cut the connection if its time is over."""
        if self.writing_paused:
            unread_bytes = self._socket.get_write_buffer_size()
            if unread_bytes < self._unread_bytes:
                self._unread_since = now
            self._unread_bytes = unread_bytes
        if now >= self._deadline or now >= self._unread_since + UNREAD_SECONDS:
            self.cut()

    def cut(self) -> None:
        """Close the connection at once. A request that is under way ends as if its client had gone."""
        self._clients.leave(self)
        if self._socket.get_write_buffer_size():
            reset_at_close(self._socket)  # else the system would go on offering it the rest
        self._socket.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What aiohttp answers to what it does not understand, in our form: nothing is repeated, nor logged."""
        del message
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        error: GatewayError = BadRequest("This is not a well-formed HTTP request.")
        if isinstance(exc, LineTooLong):
            error = HeadTooLarge(_TOO_LARGE)
        elif status >= 500:
            _log.error(Event.HANDLER_FAILED, exc_info=exc)
            error = GatewayError("Internal error of the gateway.")
        response = error_response(error)
        response.force_close()
        return response

    # What the event loop tells it:

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast(asyncio.Transport, transport)
        now = self._loop.time()
        self._deadline = now + HEAD_SECONDS
        if self._clients.admit(self, now):
            super().connection_made(transport)
        else:
            self._socket.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        del exc  # its traceback may lead to the request, in which aiohttp would keep it: a circle
        self._clients.leave(self)
        super().connection_lost(None)

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            self._socket.pause_reading()
            self._loop.call_at(self._clients.discard_at(self._loop.time()), self._socket.resume_reading)
        elif data and self._reads_head and self._is_head_too_large(data):
            self._refuse(HeadTooLarge(_TOO_LARGE))
        else:
            super().data_received(data)

    def resume_reading(self, resume_parser: bool = True) -> None:
        """aiohttp asks for this at the end of each body, and parses nothing once more; most were never paused."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_since = self._loop.time()
        self._unread_bytes = self._socket.get_write_buffer_size()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread_since = math.inf

    def _is_head_too_large(self, data: bytes) -> bool:
        """Count the bytes of a head up to its end."""
        if self._head_bytes == 0:
            self._deadline = min(self._deadline, self._loop.time() + HEAD_SECONDS)
            data = data.lstrip(b"\r\n")  # empty lines before a request are no head, and do not end one
        seen = self._head_tail + data
        end = seen.find(_HEAD_END)
        self._reads_head = end < 0
        self._head_bytes += (len(seen) if self._reads_head else end) - len(self._head_tail)
        self._head_tail = seen[1 - len(_HEAD_END) :]
        return self._head_bytes > MAX_HEAD_BYTES

    def _refuse(self, error: GatewayError) -> None:
        """Tell the client, let it read that for a moment, and take no more from it."""
        self._is_over = True
        self._deadline = self._loop.time() + REFUSED_SECONDS
        self._socket.write(raw_error(error))
        if self._socket.can_write_eof():
            self._socket.write_eof()
