"""A gateway error in the protocol's own form: the one place where an error becomes an answer.

Anthropic: `{"type":"error","error":{"type":T,"message":M},"request_id":R}`, with the same id in the `request-id`
header (PROTOCOLS A.6, A.8).
"""

from dataclasses import dataclass

import msgspec

from gateway.core.errors import GatewayError


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """Status, headers and body of an answer that tells of an error."""

    status: int
    headers: dict[str, str]
    body: bytes


def render(error: GatewayError, request_id: str) -> ErrorAnswer:
    """The answer for `error`. `request_id` is the gateway's own, random, and stands in header and body alike."""
    headers = {"content-type": "application/json", "cache-control": "no-store", "request-id": request_id}
    if error.should_retry is not None:
        headers["x-should-retry"] = "true" if error.should_retry else "false"
    if error.retry_after_seconds is not None:
        headers["retry-after"] = str(error.retry_after_seconds)
    headers.update(error.headers)
    body = {
        "type": "error",
        "error": {"type": error.kind, "message": error.message},
        "request_id": request_id,
    }
    return ErrorAnswer(error.status, headers, msgspec.json.encode(body))
