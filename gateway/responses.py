"""A gateway error as the response that goes out."""

import secrets

from aiohttp import web

from gateway.core.envelopes import ErrorAnswer, render
from gateway.core.errors import GatewayError

SERVER = "opusmax"
"""What the `server` header says. Nobody needs to know which versions run here."""


def error_response(error: GatewayError) -> web.Response:
    """The response in the protocol's own form, under a request id of its own."""
    answer = _render(error)
    return web.Response(status=answer.status, headers=answer.headers, body=answer.body)


def raw_error(error: GatewayError) -> bytes:
    """The same as bytes, for a connection on which no request was understood. They announce its end."""
    answer = _render(error)
    headers = answer.headers | {"content-length": str(len(answer.body)), "connection": "close"}
    lines = [f"HTTP/1.1 {answer.status} ", *[f"{name}: {value}" for name, value in headers.items()], "\r\n"]
    return "\r\n".join(lines).encode("ascii") + answer.body


def _render(error: GatewayError) -> ErrorAnswer:
    answer = render(error, f"req_{secrets.token_hex(12)}")
    answer.headers["server"] = SERVER
    return answer
