"""How the simulated provider writes an answer to its socket, and the record of it that stays."""

import asyncio
import fcntl
import socket
import struct
import sys
import termios
from dataclasses import dataclass, field
from hashlib import sha256

from aiohttp import web
from multidict import CIMultiDict

from gateway.core.usage import NO_USAGE, Usage
from gateway.simulator.pieces import Answer, Piece
from gateway.simulator.protocols import METERED

_FLUSH_POLL_SECONDS = 0.001
_NO_LINGER = struct.pack("ii", 1, 0)
"""`SO_LINGER` of zero seconds: closing sends a reset."""
_EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nlink: </simulated>; rel=preload\r\n\r\n"


@dataclass(slots=True, kw_only=True)
class Received:
    """One request, and what became of its answer: the second half fills up while the answer is written."""

    method: str
    path: str
    """Raw, with the query."""
    headers: tuple[tuple[str, str], ...]
    body: bytes = field(repr=False)
    """Empty if bodies are not remembered."""
    body_length: int
    body_sha256: str

    model: str | None = None
    """The one that a metered call asks for."""
    status: int | None = None
    """`None`: the answer has not begun."""
    reported: Usage = NO_USAGE
    """The usage that the answer has reported so far, as a reader who keeps to the protocol sees it."""
    completed: bool = False
    """Whether the terminal event, or the whole body, was written."""
    disconnected: bool = False
    """Whether the client left before the end."""
    ended: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    """Set when nothing more will be written."""
    answer_pieces: list[bytes] = field(default_factory=list, repr=False)

    @property
    def endpoint(self) -> str:
        return self.path.partition("?")[0]

    @property
    def is_message(self) -> bool:
        """Whether it is a metered call: a message, a chat completion, a response, embeddings."""
        return self.method == "POST" and self.endpoint in METERED

    @property
    def credential(self) -> str | None:
        """The key, as `x-api-key` or as bearer."""
        bearer = self.header("authorization")
        return self.header("x-api-key") or (bearer.removeprefix("Bearer ") if bearer else None)

    @property
    def answer_sha256(self) -> str:
        """Of the body as far as it was written."""
        return sha256(b"".join(self.answer_pieces)).hexdigest()

    def header(self, name: str) -> str | None:
        """Its first value."""
        return next((value for known, value in self.headers if known.lower() == name), None)

    def note(self, piece: Piece) -> None:
        """The piece is on its way."""
        self.reported = piece.reported
        self.completed = piece.completes
        self.answer_pieces.append(piece.data)


class _CloseDelimited(web.StreamResponse):
    """Ends with its connection. aiohttp would use chunks; this is how its own web sockets stop it."""

    _length_check = False


async def send(request: web.BaseRequest, answer: Answer, received: Received, request_id: str) -> web.StreamResponse:
    """Writes the whole answer, as its script says, and notes in `received` how far it came."""
    kind = _CloseDelimited if answer.framing == "close" else web.StreamResponse
    headers = CIMultiDict((*answer.headers, (answer.request_id_header, request_id)))
    response = kind(status=answer.script.status, headers=headers)
    if answer.framing == "close":
        response.force_close()
    try:
        await _write(request, response, answer, received)
    except ConnectionError:
        received.disconnected = True
    return response


async def _write(
    request: web.BaseRequest, response: web.StreamResponse, answer: Answer, received: Received
) -> None:
    transport = request.transport
    if transport is None:
        raise ConnectionResetError
    if answer.script.first_byte_delay_seconds:
        await asyncio.sleep(answer.script.first_byte_delay_seconds)
    if answer.script.informational:
        transport.write(_EARLY_HINTS * answer.script.informational)
    received.status = answer.script.status
    writer = await response.prepare(request)
    if writer is not None and answer.pieces[0].pause_seconds is not None:
        writer.send_headers()
    await _write_pieces(response, answer, received)
    if answer.is_cut:
        await _cut(transport, answer)


async def _write_pieces(response: web.StreamResponse, answer: Answer, received: Received) -> None:
    """Keeps to the times that the pauses add up to, however late a single piece was."""
    now = asyncio.get_running_loop().time
    due = now()
    for piece in answer.pieces:
        if piece.pause_seconds is not None:
            due += piece.pause_seconds
            await asyncio.sleep(due - now())
        await response.write(piece.data)
        received.note(piece)


async def _cut(transport: asyncio.Transport, answer: Answer) -> None:
    """Ends the connection, or the body, where the script says. Nothing that was written is lost by it."""
    if answer.script.cut == "end" and answer.framing == "chunked":
        return
    if answer.script.cut == "reset":
        while _unsent(transport):  # noqa: ASYNC110 - the kernel tells nobody when its queue is empty
            await asyncio.sleep(_FLUSH_POLL_SECONDS)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        transport.abort()
    else:
        transport.close()


def _unsent(transport: asyncio.Transport) -> int:
    """Bytes that the other side's kernel does not have yet; a reset would drop them."""
    in_kernel = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    return transport.get_write_buffer_size() + int.from_bytes(in_kernel, sys.byteorder)
