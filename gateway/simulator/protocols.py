"""What the two protocols do differently around any answer: endpoints, headers, and how an error is put."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gateway.simulator.scripts import Script

MODELS_PATH = "/v1/models"
MESSAGES = "/v1/messages"
CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"

CREATED = 1_790_000_000
"""Unix time, in OpenAI's answers. Always the same, so that answers are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """One of the two."""

    name: Literal["anthropic", "openai"]
    metered: Collection[str]
    """The endpoints that use tokens."""
    request_id_header: str
    headers: tuple[tuple[str, str], ...]
    """On every answer, as the real provider and its edge send them; among them what a gateway must not pass on."""

    def error(self, script: Script, request_id: str) -> dict[str, Any]:
        """The envelope of the error that is scripted."""
        return _anthropic_error(script, request_id) if self.name == "anthropic" else {"error": openai_error(script)}


ANTHROPIC = Protocol(
    name="anthropic",
    metered=frozenset({MESSAGES}),
    request_id_header="request-id",
    headers=(
        ("anthropic-organization-id", "5f3a0c1e-0000-4000-8000-00000000051d"),
        ("anthropic-ratelimit-requests-limit", "4000"),
        ("anthropic-ratelimit-requests-remaining", "3999"),
        ("anthropic-ratelimit-requests-reset", "2099-01-01T00:00:00Z"),
        ("anthropic-ratelimit-tokens-limit", "2400000"),
        ("anthropic-ratelimit-tokens-remaining", "2399000"),
        ("anthropic-ratelimit-tokens-reset", "2099-01-01T00:00:00Z"),
        ("set-cookie", "__cf_bm=simulated-cookie; path=/; HttpOnly"),
        ("cf-ray", "8f00simulated-FRA"),
    ),
)

OPENAI = Protocol(
    name="openai",
    metered=frozenset({CHAT, RESPONSES, EMBEDDINGS}),
    request_id_header="x-request-id",
    headers=(
        ("openai-organization", "simulated-organization"),
        ("openai-project", "proj_simulated"),
        ("openai-processing-ms", "412"),
        ("openai-version", "2020-10-01"),
        ("x-ratelimit-limit-requests", "10000"),
        ("x-ratelimit-remaining-requests", "9999"),
        ("x-ratelimit-reset-requests", "6ms"),
        ("x-ratelimit-limit-tokens", "30000000"),
        ("x-ratelimit-remaining-tokens", "29999984"),
        ("x-ratelimit-reset-tokens", "6m0s"),
        ("strict-transport-security", "max-age=31536000; includeSubDomains; preload"),
        ("set-cookie", "__cf_bm=simulated-cookie; path=/; domain=.api.openai.com; HttpOnly; Secure; SameSite=None"),
        (
            "set-cookie",
            "_cfuvid=simulated-visitor; path=/; domain=.api.openai.com; HttpOnly; Secure; SameSite=None",
        ),
        ("cf-ray", "8f00simulated-FRA"),
        ("alt-svc", 'h3=":443"; ma=86400'),
    ),
)

METERED = {path: protocol for protocol in (ANTHROPIC, OPENAI) for path in protocol.metered}


def protocol_of(path: str, headers: Mapping[str, str]) -> Protocol:
    """Whose a request is that goes to a provider of both (PROTOCOLS E).

    Where the path is in both, as that of the models: OpenAI's only with a bearer and no sign of Anthropic.
    """
    if path in METERED:
        return METERED[path]
    is_anthropic = path.startswith(MESSAGES) or "anthropic-version" in headers or "x-api-key" in headers
    return OPENAI if "authorization" in headers and not is_anthropic else ANTHROPIC


_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_OPENAI_TYPES = {
    401: ("invalid_request_error", "invalid_api_key"),
    429: ("requests", "rate_limit_exceeded"),
}
"""Type and code (PROTOCOLS B.7)."""


def _anthropic_error(script: Script, request_id: str) -> dict[str, Any]:
    kind = script.error_type or _ANTHROPIC_TYPES.get(script.status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": script.error_message}, "request_id": request_id}


def openai_error(script: Script) -> dict[str, Any]:
    """What stands in OpenAI's envelope, and in the middle of a stream. A stream's own status is no error's."""
    usual = (
        ("server_error", None) if script.status >= 500 or script.status < 300 else ("invalid_request_error", None)
    )
    kind, code = _OPENAI_TYPES.get(script.status, usual)
    return {
        "message": script.error_message,
        "type": script.error_type or kind,
        "param": script.error_param,
        "code": script.error_code or code,
    }
