"""A gateway error as the response that goes out."""

import secrets
from dataclasses import replace

from aiohttp import web

from gateway.core.envelopes import ErrorAnswer, render
from gateway.core.errors import GatewayError

PROTECTING_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none';"
        " frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""On everything that the gateway itself answers: nothing is cached, embedded or loaded from elsewhere, and no
script runs. A relayed answer has the provider's headers."""

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
    return replace(answer, headers=PROTECTING_HEADERS | answer.headers | {"server": SERVER})
