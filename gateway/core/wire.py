"""What may cross the gateway: endpoints, headers and query parameters, each list a constant in this one place.

A path or query that a client sends never becomes part of an upstream address: it picks one endpoint out of the
closed list below, and the upstream's address is built from that endpoint's own constant.
"""

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from urllib.parse import parse_qsl, unquote, urlencode

from gateway.core.errors import BadRequest, UnknownPath
from gateway.core.keys import PREFIX
from gateway.core.protocols import Protocol

MODEL_PLACE = "{model_id}"
"""Where a path has the name of a model."""


class Endpoint(Enum):
    """The upstream endpoints that the gateway relays: method and path."""

    MESSAGES = ("POST", "/v1/messages")
    COUNT_TOKENS = ("POST", "/v1/messages/count_tokens")
    CHAT = ("POST", "/v1/chat/completions")
    RESPONSES = ("POST", "/v1/responses")
    EMBEDDINGS = ("POST", "/v1/embeddings")
    MODELS = ("GET", "/v1/models")
    MODEL = ("GET", f"/v1/models/{MODEL_PLACE}")

    def __init__(self, method: str, path: str) -> None:
        self.method = method
        self.path = path

    @property
    def paths(self) -> tuple[str, ...]:
        """The canonical path, and those that clients with another idea of the base address make of it."""
        return (self.path, self.path.removeprefix("/v1"), f"/v1{self.path}")


OPENAI_PATHS = frozenset(
    path for endpoint in (Endpoint.CHAT, Endpoint.RESPONSES, Endpoint.EMBEDDINGS) for path in endpoint.paths
)

_ANTHROPIC_HEADERS = frozenset({"anthropic-version", "x-api-key"})

MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}", re.ASCII)
"""What a model's name in an upstream's path may look like: nothing that means anything in an address."""
_MODEL_PREFIXES = tuple(path.removesuffix(MODEL_PLACE) for path in Endpoint.MODEL.paths)
_MAX_MODEL_NAME_LENGTH = 128

REQUEST_HEADERS = frozenset(
    {
        "accept",
        "content-type",
        "idempotency-key",
        "openai-beta",
        "originator",
        "session-id",
        "thread-id",
        "user-agent",
        "x-app",
        "x-client-request-id",
    }
)
REQUEST_HEADER_PREFIXES = ("anthropic-", "x-anthropic-", "x-claude-code-", "x-codex-", "x-stainless-")

ANSWER_HEADERS = frozenset(
    {
        "cache-control",
        "content-encoding",
        "content-length",
        "content-type",
        "openai-processing-ms",
        "openai-version",
        "request-id",
        "retry-after",
        "retry-after-ms",
        "x-request-id",
        "x-should-retry",
    }
)
ANSWER_HEADER_PREFIXES = ("anthropic-",)
WITHHELD_ANSWER_HEADER_PREFIXES = (
    "anthropic-organization",
    "anthropic-workspace",
    "anthropic-ratelimit",
    "anthropic-priority",
    "anthropic-fast",
)
"""They name the operator's account, or tell of its limits and not of the key's."""

QUERY_PARAMETERS: Mapping[Endpoint, frozenset[str]] = {
    Endpoint.MESSAGES: frozenset({"beta"}),
    Endpoint.COUNT_TOKENS: frozenset({"beta"}),
    Endpoint.CHAT: frozenset(),
    Endpoint.RESPONSES: frozenset(),
    Endpoint.EMBEDDINGS: frozenset(),
    Endpoint.MODELS: frozenset({"beta", "limit", "after_id", "before_id", "lifecycle"}),
    Endpoint.MODEL: frozenset({"beta"}),
}
_PLAIN_QUERY_VALUE = re.compile(r"[A-Za-z0-9._-]{1,256}", re.ASCII)
"""One in which there is nothing to encode, nor another parameter."""
_QUERY_VALUE = re.compile(r"[A-Za-z0-9._:@=-]{1,256}", re.ASCII)

Headers = Iterable[tuple[str, str]]


def request_headers(headers: Headers) -> list[tuple[str, str]]:
    """Of a client's headers, those that the upstream may see; names in lower case, order and repetition kept.

    Raises `BadRequest` if one of them holds an API key of ours, which is for nobody else to see.
    """
    kept = [
        (lower, value)
        for name, value in headers
        if (lower := name.lower()) in REQUEST_HEADERS or lower.startswith(REQUEST_HEADER_PREFIXES)
    ]
    refuse_key("\n".join([value for _, value in kept]), "another header")
    # An answer that comes compressed could not be metered without unpacking it on the way.
    kept.append(("accept-encoding", "identity"))
    return kept


def answer_headers(headers: Headers) -> list[tuple[str, str]]:
    """Of an upstream's headers, those that the client may see."""
    return [
        (lower, value)
        for name, value in headers
        if (lower := name.lower()) in ANSWER_HEADERS
        or (lower.startswith(ANSWER_HEADER_PREFIXES) and not lower.startswith(WITHHELD_ANSWER_HEADER_PREFIXES))
    ]


def upstream_query(endpoint: Endpoint, raw_query: str) -> str:
    """The protocol's own parameters out of a client's query, encoded anew; others are dropped.

    Raises `BadRequest` for a parameter with a value that no client of the protocol sends, and for a key in
    the address, where proxies and histories would keep it.
    """
    if not raw_query:
        return ""
    refuse_key(unquote(raw_query))
    allowed = QUERY_PARAMETERS[endpoint]
    name, _, value = raw_query.partition("=")
    if name in allowed and _PLAIN_QUERY_VALUE.fullmatch(value):
        return raw_query  # such as beta=true, by far the most
    kept = [(name, value) for name, value in parse_qsl(raw_query) if name in allowed]
    for name, value in kept:
        if not _QUERY_VALUE.fullmatch(value):
            raise BadRequest(f"The query parameter {name} has a value that makes no sense.")
    return urlencode(kept)


def is_of_a_model(path: str) -> bool:
    """Whether a path is that of a model, whatever its name."""
    return path.startswith(_MODEL_PREFIXES)


def model_in_path(path: str) -> str:
    """The model's name at the end of a path. Raises `UnknownPath` for what is no name, `BadRequest` for a key.

    Some vendors have names of several parts, such as `qwen/qwen3-32b`, each of which looks like a name itself. SDKs
    write their slash as `%2F`, people as it is. A name with a slash is for a list to be searched for, and never
    becomes part of an upstream's address, where it could lead elsewhere.
    """
    prefix = next(prefix for prefix in _MODEL_PREFIXES if path.startswith(prefix))
    name = path.removeprefix(prefix)
    refuse_key(name)
    if len(name) > _MAX_MODEL_NAME_LENGTH or not all(map(MODEL_ID.fullmatch, name.split("/"))):
        raise UnknownPath("model: there is none with such a name.")
    return name


def refuse_key(text: str, place: str = "the address") -> None:
    """Raises `BadRequest` if a key stands where others would see it."""
    if PREFIX in text:
        raise BadRequest(f"The API key belongs in the x-api-key or authorization header, never in {place}.")


def protocol_of(path: str, header_names: Iterable[str]) -> Protocol:
    """In whose form the answer to a request is. Clients of both protocols ask for lists of models, and for what is
    not served here; their headers tell them apart (PROTOCOLS E)."""
    is_openai = path in OPENAI_PATHS
    if "/models" in path or (path.startswith("/v1/") and "/messages" not in path):
        is_openai = is_openai or _ANTHROPIC_HEADERS.isdisjoint(map(str.lower, header_names))
    return Protocol.OPENAI if is_openai else Protocol.ANTHROPIC
