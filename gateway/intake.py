"""The body of a request, read in good time and within the memory that there is for bodies.

Bodies stay in memory until they have been sent on, and nowhere else. What the server would have to decode on the
way is refused before it is read.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from aiohttp import web

from gateway.clients import ClientConnection
from gateway.core.errors import BadRequest, BodyTooLarge, RequestTimeout, UnsupportedBody

LARGE_BYTES = 256 * 2**10
"""A larger body counts against the memory for uploads, and is not parsed on the event loop."""
PATIENCE_SECONDS = 10
MIN_BYTES_PER_SECOND = 4 * 2**10
"""A body has `PATIENCE_SECONDS`, and one second more for each so many bytes that have come."""

T = TypeVar("T")


async def read_body(request: web.BaseRequest, max_bytes: int) -> bytes:
    """The body as it came, of at most `max_bytes`.

    Raises `UnsupportedBody`, `BodyTooLarge`, `RequestTimeout`, `Unavailable` where there is no memory for it, or
    `BadRequest` for one that is not framed well.
    """
    _check_form(request)
    announced = request.content_length or 0
    if announced > max_bytes:
        raise _too_large()
    if announced > LARGE_BYTES:
        ClientConnection.of(request).take_upload(announced)
    if request.content.is_eof():
        body = request.content.read_nowait()
        if len(body) > max_bytes:
            raise _too_large()
        return body
    if request.headers.get("expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    try:
        return await _receive(request, max_bytes, announced)
    except TimeoutError:
        raise RequestTimeout("The body of this request arrives too slowly.") from None
    except web.RequestPayloadError:
        raise BadRequest("The body of this request is not framed as HTTP asks for.") from None


async def parse(parser: Callable[[bytes], T], body: bytes) -> T:
    """What `parser` makes of a body, or the error that it raises.

    A large body is parsed on a thread: the loop then waits for one step of the parsing at a time, some ms each, and
    not for all of it.
    """
    if len(body) <= LARGE_BYTES:
        return parser(body)
    return await asyncio.to_thread(parser, body)


def _check_form(request: web.BaseRequest) -> None:
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedBody("The request body must not be encoded: send it without content-encoding.")
    if request.content_type != "application/json" and "content-type" in request.headers:
        raise UnsupportedBody("The request body must be JSON: send it with content-type: application/json.")


async def _receive(request: web.BaseRequest, max_bytes: int, announced: int) -> bytes:
    connection = ClientConnection.of(request)
    pieces: list[bytes] = []
    size, counted = 0, announced
    started = asyncio.get_running_loop().time()
    async with asyncio.timeout(PATIENCE_SECONDS) as patience:
        async for piece in request.content.iter_any():
            pieces.append(piece)
            size += len(piece)
            if size > max_bytes:
                raise _too_large()
            if size > max(counted, LARGE_BYTES):  # sent in chunks: nobody could tell before
                connection.take_upload(size - counted)
                counted = size
            patience.reschedule(started + PATIENCE_SECONDS + size / MIN_BYTES_PER_SECOND)
    return b"".join(pieces)


def _too_large() -> BodyTooLarge:
    return BodyTooLarge("The request body is larger than this server takes.")
