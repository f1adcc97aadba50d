"""Which upstreams there are: the plain ones, or those of the `[[upstream]]` tables of opusmax.toml.

    [[upstream]]
    name = "groq"
    protocol = "openai"
    url = "https://api.groq.com/openai/v1"
    credentials = "GROQ_API_KEY"
    models = ["llama-*", "qwen/*"]

`credentials` names where they are, and never holds one. Every mistake is a `SettingsError` that names the upstream
and the field, and repeats no value: it might be a secret in the wrong place.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from gateway.core import notation
from gateway.core.errors import SettingsError
from gateway.core.notation import LOOPBACK_HOSTS
from gateway.core.protocols import Protocol
from gateway.core.records import Budget

MOST_UPSTREAMS = 64
MOST_HEADERS = 32
MAX_HEADER_VALUE_LENGTH = 4_096

CREDENTIAL_VARIABLES = {Protocol.ANTHROPIC: "ANTHROPIC_API_KEY", Protocol.OPENAI: "OPENAI_API_KEY"}
"""Where the credentials of the plain upstreams are."""
CREDENTIAL_HEADERS = {Protocol.ANTHROPIC: "x-api-key", Protocol.OPENAI: "authorization"}

_RESERVED_HEADERS = frozenset(
    {
        *("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "expect", "via"),
        *("host", "content-length", "accept-encoding", "forwarded", "cookie"),
        *("authorization", "x-api-key", "api-key", "x-goog-api-key"),
        *("accept", "content-type", "content-encoding", "idempotency-key", "anthropic-version", "anthropic-beta"),
    }
)
"""What the gateway itself sets or drops, what carries credentials, and what a client says of its own request."""
_RESERVED_HEADER_PREFIXES = ("proxy-", "x-forwarded-")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)
_HEADER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,47}", re.ASCII)
_HEADER_VALUE = re.compile(r"[!-~](?:[ -~]*[!-~])?", re.ASCII)
_CREDENTIAL_NAME = re.compile(r"[A-Z][A-Z0-9]{0,18}(?:_[A-Z0-9]{1,19}){0,7}", re.ASCII)
"""As variables are written; a run of twenty characters without a `_` would rather be a secret."""
_CREDENTIAL_FILE = re.compile(r"\.{0,2}/[!-~]{1,255}", re.ASCII)
_RANDOM = re.compile(r"(?=[A-Za-z]*[0-9])(?=[a-z0-9]*[A-Z])(?=[A-Z0-9]*[a-z])[A-Za-z0-9]{20,}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long an upstream may take."""

    connect_seconds: int
    first_byte_seconds: int
    silence_seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSettings:
    """One upstream, as the operator configured it."""

    name: str
    """Unique; for logs, figures and `check`."""
    protocol: Protocol
    """Nothing is translated: a request goes to an upstream of its own protocol."""
    url: str
    """Scheme, host, perhaps a path, as the vendor prints it for clients of the protocol; no slash at its end."""
    credentials: tuple[str, ...]
    """Where they are: variables and systemd credentials by name, files by their path. Empty: it needs none."""
    credential_header: str
    """`authorization` carries them as `Bearer`, others as they are."""
    models: tuple[str, ...] = ()
    """Globs of the models that it serves; empty: all."""
    headers: tuple[tuple[str, str], ...] = ()
    """Sent with each request, in place of the client's of the same name; names in lower case."""
    timeouts: Timeouts
    budgets: tuple[Budget, ...] = ()
    splice_usage: bool = False
    """Ask for the usage of chat streams whose client did not, and take the answer out again (PROTOCOLS B.4)."""

    @property
    def origin(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def base_path(self) -> str:
        """What stands in place of the `/v1` with which the gateway's own paths begin.

        Anthropic's clients add `/v1` to a base address, those of OpenAI find it there (PROTOCOLS E): an address
        without any path means `/v1` for both.
        """
        path = urlsplit(self.url).path
        if self.protocol is Protocol.ANTHROPIC:
            return f"{path.removesuffix('/v1')}/v1"
        return path or "/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """An upstream, and what opens it."""

    upstream: UpstreamSettings
    credentials: tuple[str, ...] = field(repr=False)
    """At least one; a single '' where none is needed, and none is sent."""


def plain_upstream(protocol: Protocol, url: str, timeouts: Timeouts) -> UpstreamSettings:
    """The upstream of a protocol that needs no table, only its credential in the environment."""
    return UpstreamSettings(
        name=protocol.value,
        protocol=protocol,
        url=url,
        credentials=(CREDENTIAL_VARIABLES[protocol],),
        credential_header=CREDENTIAL_HEADERS[protocol],
        timeouts=timeouts,
        splice_usage=protocol is Protocol.OPENAI,
    )


def read_tables(tables: object, timeouts: Timeouts) -> tuple[UpstreamSettings, ...]:
    """The upstreams of the file's `[[upstream]]` tables, in their order; `timeouts` hold where a table has none."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise SettingsError("upstream: each one is a table of its own that begins with [[upstream]]")
    if len(tables) > MOST_UPSTREAMS:
        raise SettingsError(f"upstream: there are more than {MOST_UPSTREAMS}")
    upstreams = tuple(_read_table(table, place, timeouts) for place, table in enumerate(tables, 1))
    taken: set[str] = set()
    for upstream in upstreams:
        if upstream.name in taken:
            raise SettingsError(f"upstream {upstream.name}: name: another one has it already")
        taken.add(upstream.name)
    return upstreams


def _read_table(table: Mapping[str, object], place: int, timeouts: Timeouts) -> UpstreamSettings:
    name = table.get("name")
    label = name if isinstance(name, str) and _NAME.fullmatch(name) else str(place)
    given = _read_fields(table, label)
    for required in ("name", "protocol", "url"):
        if required not in given:
            raise SettingsError(f"upstream {label}: {required}: is missing")
    protocol = given["protocol"]
    own_timeouts = {part: given.pop(_TIMEOUTS[part], getattr(timeouts, part)) for part in _TIMEOUTS}
    defaults: dict[str, Any] = {
        "credentials": (),
        "credential_header": CREDENTIAL_HEADERS[protocol],
        "splice_usage": protocol is Protocol.OPENAI,
    }
    upstream = UpstreamSettings(**(defaults | given), timeouts=Timeouts(**own_timeouts))
    if not upstream.credentials and urlsplit(upstream.url).hostname not in LOOPBACK_HOSTS:
        raise SettingsError(f"upstream {label}: credentials: is missing; {_WHERE_CREDENTIALS_ARE}")
    return upstream


def _read_fields(table: Mapping[str, object], label: str) -> dict[str, Any]:
    try:
        notation.known_fields(table, _FORMS)
    except ValueError as error:
        raise SettingsError(f"upstream {label}: {error}") from None
    given = {}
    for name, value in table.items():
        try:
            given[name] = _FORMS[name](value)
        except ValueError as error:
            raise SettingsError(f"upstream {label}: {name}: {error}") from None
    return given


def _name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError("a name has at most 32 small letters, digits and -")
    return value


def _protocol(value: object) -> Protocol:
    try:
        return Protocol(str(value))
    except ValueError:
        raise ValueError(f"say {' or '.join(Protocol)}") from None


_WHERE_CREDENTIALS_ARE = (
    "it names a variable or systemd credential, such as GROQ_API_KEY, or a file by its path; the credential itself"
    " never stands here"
)


def _credentials(value: object) -> tuple[str, ...]:
    sources = notation.names(value)
    if not sources or not all(map(_is_source, sources)):
        raise ValueError(_WHERE_CREDENTIALS_ARE)
    return sources


def _is_source(text: str) -> bool:
    is_form = _CREDENTIAL_NAME.fullmatch(text) or (_CREDENTIAL_FILE.fullmatch(text) and not _RANDOM.search(text))
    return bool(is_form) and not notation.looks_like_secret(text)


def _credential_header(value: object) -> str:
    headers = ("authorization", "x-api-key", "api-key")
    if str(value).lower() not in headers:
        raise ValueError(f"say {', '.join(headers[:-1])} or {headers[-1]}")
    return str(value).lower()


def _headers(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict) or len(value) > MOST_HEADERS:
        raise ValueError(f'at most {MOST_HEADERS} headers look like {{ "x-title" = "our team" }}')
    headers = tuple(_header(name, text) for name, text in value.items())
    if len(dict(headers)) < len(headers):
        raise ValueError("there are two headers of the same name")
    return headers


def _header(name: str, value: object) -> tuple[str, str]:
    lower = name.lower()
    if not _HEADER_NAME.fullmatch(name) or notation.looks_like_secret(name):
        raise ValueError("a header's name has letters, digits, - and _ only")
    if lower in _RESERVED_HEADERS or lower.startswith(_RESERVED_HEADER_PREFIXES):
        raise ValueError(f"{lower} is not for you to set: the gateway or its clients do")
    if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value) or len(value) > MAX_HEADER_VALUE_LENGTH:
        raise ValueError(f"the value of {lower} is not plain text on one line")
    if notation.looks_like_secret(value):
        raise ValueError(f"the value of {lower} looks like a secret, which never stands here")
    return lower, value


_TIMEOUTS = {
    "connect_seconds": "connect_timeout_seconds",
    "first_byte_seconds": "first_byte_timeout_seconds",
    "silence_seconds": "silence_timeout_seconds",
}
"""The timeouts, and how the settings call them."""

_FORMS: Mapping[str, Callable[[object], object]] = {
    "name": _name,
    "protocol": _protocol,
    "url": notation.upstream_url,
    "credentials": _credentials,
    "credential_header": _credential_header,
    "models": notation.globs,
    "headers": _headers,
    "budgets": notation.budgets,
    "splice_usage": notation.flag,
    **dict.fromkeys(_TIMEOUTS.values(), notation.seconds),
}
"""The fields of a table, and how each is read."""
