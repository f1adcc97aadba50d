"""Responses of the gateway's own, and what becomes of one that has begun and cannot be ended."""

import asyncio
import socket
import struct
from dataclasses import replace

from aiohttp import web

from gateway import request_ids
from gateway.core.envelopes import ErrorAnswer, render
from gateway.core.errors import GatewayError
from gateway.core.protocols import Protocol

SERVER = "opusmax"
"""What the `server` header says. Nobody needs to know which versions run here."""

OWN_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none';"
        " frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "server": SERVER,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""On everything that the gateway itself answers: nothing is cached, embedded or loaded from elsewhere, and no
script runs. A relayed answer has the provider's headers."""


_RESET = struct.pack("ii", 1, 0)


def error_response(error: GatewayError, protocol: Protocol = Protocol.ANTHROPIC) -> web.Response:
    """The response in the protocol's own form, under a request id of its own."""
    answer = _render(error, protocol)
    return web.Response(status=answer.status, headers=answer.headers, body=answer.body)


def raw_error(error: GatewayError) -> bytes:
    """The same as bytes, for a connection on which no request was understood. They announce its end."""
    answer = _render(error, Protocol.ANTHROPIC)
    headers = answer.headers | {"content-length": str(len(answer.body)), "connection": "close"}
    lines = [f"HTTP/1.1 {answer.status} ", *[f"{name}: {value}" for name, value in headers.items()], "\r\n"]
    return "\r\n".join(lines).encode("ascii") + answer.body


def _render(error: GatewayError, protocol: Protocol) -> ErrorAnswer:
    answer = render(error, request_ids.current() or request_ids.mint(), protocol)
    return replace(answer, headers=OWN_HEADERS | answer.headers)


def break_connection(request: web.BaseRequest) -> None:
    """Let the client see that the answer is not whole.

    With chunks or a length, a close that comes too early shows. An HTTP/1.0 client takes any close for the end, so
    it gets a reset.
    """
    transport = request.transport
    if transport is None:
        return
    if request.version < (1, 1):
        reset_at_close(transport)
        transport.abort()
    else:
        transport.close()


def reset_at_close(transport: asyncio.BaseTransport) -> None:
    """Closing the connection will reset it: what was not sent yet is dropped, and the client sees no proper end."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
