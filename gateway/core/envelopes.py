"""A gateway error in the protocol's own form: the one place where an error becomes an answer.

Anthropic: `{"type":"error","error":{"type":T,"message":M},"request_id":R}`, with the same id in the `request-id`
header (PROTOCOLS A.6, A.8).

OpenAI: `{"error":{"message":M,"type":T,"param":null,"code":C}}`, the id in `x-request-id` (PROTOCOLS B.7). A budget
that is used up says `usage_limit_reached` and when it `resets_at`, in epoch seconds, which Codex shows; it has no
`retry-after`, which clients would sleep for.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from gateway.core.errors import GatewayError, NeverFits
from gateway.core.protocols import Protocol

_USED_UP = "usage_limit_reached"
_OPENAI_NAMES: Mapping[str, tuple[str, str | None]] = {
    "invalid_request_error": ("invalid_request_error", None),
    "authentication_error": ("invalid_request_error", "invalid_api_key"),
    "permission_error": ("invalid_request_error", "model_not_found"),
    "not_found_error": ("invalid_request_error", None),
    "request_too_large": ("invalid_request_error", None),
    "rate_limit_error": ("rate_limit_error", "rate_limit_exceeded"),
    "billing_error": (_USED_UP, "insufficient_quota"),
}
"""OpenAI's `type` and `code` for each kind of error. `model_not_found` is what it says, with 403, of a model that a
project may not use; by `insufficient_quota` many clients know not to try again."""
_OPENAI_FAILURE = ("server_error", None)


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """Status, headers and body of an answer that tells of an error."""

    status: int
    headers: dict[str, str]
    body: bytes


def render(error: GatewayError, request_id: str, protocol: Protocol = Protocol.ANTHROPIC) -> ErrorAnswer:
    """The answer for `error`. `request_id` is the gateway's own, random, and stands in header and body alike."""
    headers = {"content-type": "application/json", "cache-control": "no-store"}
    if error.should_retry is not None:
        headers["x-should-retry"] = "true" if error.should_retry else "false"
    if error.retry_after_seconds is not None:
        headers["retry-after"] = str(error.retry_after_seconds)
    headers.update(error.headers)
    if protocol is Protocol.OPENAI:
        return _openai(error, request_id, headers)
    return _anthropic(error, request_id, headers)


def _anthropic(error: GatewayError, request_id: str, headers: dict[str, str]) -> ErrorAnswer:
    headers["request-id"] = request_id
    body = {
        "type": "error",
        "error": {"type": error.kind, "message": error.message},
        "request_id": request_id,
    }
    return ErrorAnswer(error.status, headers, msgspec.json.encode(body))


def _openai(error: GatewayError, request_id: str, headers: dict[str, str]) -> ErrorAnswer:
    headers["x-request-id"] = request_id
    kind, code = _OPENAI_NAMES.get(error.kind, _OPENAI_FAILURE)
    if isinstance(error, NeverFits):
        code = "invalid_prompt"  # of this one Codex shows the text, of others the raw JSON
    told: dict[str, object] = {"message": error.message, "type": kind, "param": None, "code": code}
    if kind == _USED_UP:
        headers.pop("retry-after", None)
        told["resets_at"] = error.resets_at_seconds
    return ErrorAnswer(error.status, headers, msgspec.json.encode({"error": told}))
