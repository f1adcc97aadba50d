"""Requests that no client of the protocols sends, made to get past the gate, and how they are sent.

Each carries its number in its body, so that what the provider sees and what the ledger holds can be told apart, and
some carry a word wherever a client can write, so that an echo of it shows.
"""

import asyncio
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httptools

from gateway.core.protocols import Protocol
from gateway.core.usage import Usage
from gateway.simulator import Script, Simulator
from gateway.simulator.sending import Received
from tests.gate_framings import BAD_FRAMINGS, ECHO, FRAMINGS, LENGTH, Framing
from tests.harness import ALL_CREDENTIALS, OPERATOR_CREDENTIAL, ask, serving
from tests.lanes import send_and_receive

ANSWERED_WITHIN_SECONDS = 20
AT_ONCE = 8
Serving = Callable[[Simulator, Path], AbstractAsyncContextManager[str]]
"""A server in front of a provider, in this process or in one of its own; gives its origin."""
_NUMBER = re.compile(rb"attempt (\d+) ")


def provider_of_both() -> Simulator:
    """It speaks both protocols, accepts the operator's credential only, and any model's name for either."""
    return Simulator(credentials={OPERATOR_CREDENTIAL}, accept_any_model=True)


def serving_both(provider: Simulator, path: Path) -> AbstractAsyncContextManager[str]:
    """A gateway with a credential for both protocols."""
    return serving(provider, path, credentials=ALL_CREDENTIALS)


@dataclass(slots=True)
class Seen:
    """What came back, as httptools reads it."""

    status: int = 0
    """Of the last answer; 0 if there is none."""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    raw: bytes = b""
    answers: int = 0

    def on_message_begin(self) -> None:
        self.headers, self.body = {}, b""
        self.answers += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode("latin-1")

    def on_body(self, piece: bytes) -> None:
        self.body += piece

    def require_envelope(self, protocol: Protocol | None = None) -> dict[str, Any]:
        """The error in it, in the form of this protocol; `None`: of either."""
        assert self.headers["content-type"].startswith("application/json"), self.raw
        told = json.loads(self.body)
        is_openai = told.keys() == {"error"}
        assert protocol in (None, Protocol.OPENAI if is_openai else Protocol.ANTHROPIC), self.raw
        error: dict[str, Any] = told["error"]
        if is_openai:
            assert error.keys() == {"message", "type", "param", "code"}
            assert self.headers["x-request-id"].startswith("req_")
            assert "request-id" not in self.headers
        else:
            assert (told.keys(), told["type"]) == ({"type", "error", "request_id"}, "error")
            assert told["request_id"] == self.headers["request-id"]
            assert error.keys() == {"type", "message"}
            assert "x-request-id" not in self.headers
        return error

    @property
    def is_of_the_provider(self) -> bool:
        """Its own words, which pass untouched."""
        request_id = self.headers.get("request-id") or self.headers.get("x-request-id") or ""
        return request_id.startswith("req_simulated")


async def exchange(origin: str, request: bytes) -> Seen:
    """Send these bytes, and read until the server closes, which it must."""
    arrived, seen = bytearray(), Seen()
    async with asyncio.timeout(ANSWERED_WITHIN_SECONDS):
        with suppress(ConnectionError):  # it closes with bytes of ours unread; what it said is here
            await send_and_receive(int(origin.rpartition(":")[2]), request, arrived)
    parser = httptools.HttpResponseParser(seen)
    with suppress(httptools.HttpParserUpgrade):
        parser.feed_data(bytes(arrived))
    seen.raw = bytes(arrived)
    seen.status = parser.get_status_code() if seen.answers else 0
    return seen


async def send_all(origin: str, requests: Iterable[bytes]) -> list[Seen]:
    """Some at once."""
    places = asyncio.Semaphore(AT_ONCE)

    async def send(request: bytes) -> Seen:
        async with places:
            return await exchange(origin, request)

    return await asyncio.gather(*map(send, requests))


def body_of(number: int) -> bytes:
    """One that every metered endpoint takes."""
    text = f"attempt {number} {ECHO}"
    messages = [{"role": "user", "content": text}]
    return json.dumps(ask(messages=messages, input=text, max_tokens=number + 1)).encode()


def number_of(received: Received) -> int:
    found = _NUMBER.search(received.body)
    assert found is not None
    return int(found[1])


def report_number(received: Received) -> Script | None:
    """A provider that counts as many input tokens as the attempt's number, which then stands in its row."""
    return Script(usage=Usage(input=number_of(received), output=1)) if received.is_message else None


# An attempt


MESSAGES, CHAT, RESPONSES = "/v1/messages", "/v1/chat/completions", "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
METERED = (MESSAGES, CHAT, RESPONSES, EMBEDDINGS)
SERVED = (*METERED, "/v1/messages/count_tokens", "/v1/models", "/v1/models/claude-opus-5-5")
"""All of this is written down a second time on purpose, here and below."""


def aliases(*paths: str) -> tuple[str, ...]:
    return tuple(alias for path in paths for alias in (path, path.removeprefix("/v1"), f"/v1{path}"))


ALIASES = aliases(*SERVED)
OPENAI_ALIASES = aliases(CHAT, RESPONSES, EMBEDDINGS)
USER_AGENT = "somebody/1.0"
"""On every attempt, and on nothing that the gateway asks by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One request. Its headers may be anything but the key's."""

    target: str = MESSAGES
    method: str = "POST"
    hosts: tuple[str, ...] = ("127.0.0.1",)
    headers: tuple[str, ...] = ()
    framing: Framing = LENGTH
    connection: str = "close"

    def request(self, number: int, *credentials: str) -> bytes:
        """Its bytes; `credentials` are header lines."""
        body = body_of(number)
        lines = [
            f"{self.method} {self.target} {self.framing.version}",
            *[f"host: {host}" for host in self.hosts],
            *[line.format(length=len(body)) for line in self.framing.headers],
            f"user-agent: {USER_AGENT}",
            *self.headers,
            *credentials,
            f"connection: {self.connection}",
        ]
        head = "\r\n".join(lines).encode("utf-8", "surrogatepass")
        return head + b"\r\n\r\n" + self.framing.wrap(body)

    def protocol(self, *credentials: str) -> Protocol | None:
        """In whose form it is told of errors; `None`: nobody who speaks a protocol asks so."""
        path = "" if self.method == "CONNECT" else self.target.partition("?")[0]
        if path in OPENAI_ALIASES:
            return Protocol.OPENAI
        if path not in ALIASES:
            return None
        names = {line.partition(":")[0].strip().lower() for line in (*self.headers, *credentials)}
        is_openai = "/models" in path and names.isdisjoint({"x-api-key", "anthropic-version"})
        return Protocol.OPENAI if is_openai else Protocol.ANTHROPIC


PAGES = ("/", "/usage", "/usage.json", "/usage.csv", "/privacy", "/healthz", "/readyz", "/api/hello")
NOT_SERVED = (
    *("/v1/messages/batches", "/v1/messages/batches/msgbatch_1/results", "/v1/files", "/v1/files/file_1/content"),
    *("/v1/complete", "/v1/skills", "/v1/agents", "/v1/sessions", "/v1/environments", "/v1/vaults"),
    *("/v1/oauth/token", "/v1/organizations/me", "/v1/organizations/api_keys"),
    *("/v1/organizations/usage_report/messages", "/v1/completions", "/v1/responses/resp_1", "/v1/moderations"),
    *("/v1/responses/resp_1/cancel", "/v1/responses/resp_1/input_items", "/v1/responses/input_tokens"),
    *("/v1/responses/compact", "/v1/chat/completions/chatcmpl_1", "/v1/chat/completions/chatcmpl_1/messages"),
    *("/v1/chat", "/v1/conversations", "/v1/conversations/conv_1/items", "/v1/vector_stores", "/v1/containers"),
    *("/v1/audio/transcriptions", "/v1/images/edits", "/v1/videos", "/v1/organization/usage/completions"),
    *("/v1/organization/admin_api_keys", "/v1/evals", "/openai/v1/chat/completions", "/v1beta/models"),
    *("/v1/images/generations", "/v1/audio/speech", "/v1/realtime", "/v1/batches", "/v1/uploads"),
    *("/v1/fine_tuning/jobs", "/v1/assistants", "/v1/threads", "/metrics", "/admin", "/debug/pprof", "/.env"),
    *("/v2/messages", "/v1", "/v1/", "/static/", "/opusmax.db"),
)
HOSTS = (
    *("127.0.0.1", "localhost:8080", "gateway.example", "[::1]", "[::1]:8080"),
    *("GATEWAY.example.", "10.0.0.1:443"),
)
BAD_HOSTS = (
    *("", "a/?x#", "a/v1/files", "a?b", "a#b", "a b", "a\tb", "user@evil.example", "user:word@evil.example"),
    *("a\\b", "a,b", "a:b", "a:80:80", "[::1", "::1]", "[::1]x", "[]", "[evil]", "http://a"),
    *("a" * 5_000, "<b>a</b>", "'a'", '"a"', "a%00b", "a;b", "a|b", "{a}", "\u00e9.example"),
    f"{ECHO}/x",
)
BAD_TARGETS = (
    *("http://evil.example/v1/messages", "https://evil.example/v1/messages", "HTTP://127.0.0.1/v1/messages"),
    *("http://user:word@127.0.0.1/v1/messages", "ftp://evil.example/v1/messages", "evil.example:443"),
    *("127.0.0.1:80", "*", "v1/messages", "\\v1\\messages", "?beta=true", "file:///etc/passwd"),
    *("http:/v1/messages", "http:v1/messages", f"http://{ECHO}/v1/messages", f"{ECHO}:1", "/v1/messages#f"),
    *("/v1/messages#", "https://api.openai.com/v1/responses", "http://evil.example/v1/chat/completions"),
    *("v1/chat/completions", "/v1/embeddings#"),
)
METHODS = ("HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "MKCOL", "PURGE")
NO_METHODS = ("post", "Post", "FOO", "PRI", "GET\t", "POST,GET", "P\u00d6ST", "")
QUERIES = (
    *("?beta=true", "?beta=true&beta=true", "?limit=20", "?limit=1000&after_id=claude-opus-5-5"),
    *("?before_id=a:b@c", f"?x={ECHO}", "?beta=true;x=1", "?path=/v1/files", "?url=http://evil.example"),
    *("?_method=DELETE", "?%62eta=1", "?beta=../../files", "?after_id=a/../../b", "?before_id=%2e%2e%2f"),
    *("?beta=%0d%0ahost:%20evil", "?beta=a%26b%3dc", "?beta[]=1", "?BETA=1", "?%00", "?beta=%00", "?\u00e9"),
    *("?api-version=2024-10-21", "?stream=true", "?include[]=usage", "?model=other", "?limit=20&order=asc"),
    *("?beta=%ff", "?", "??beta=true", "?" + "a=1&" * 900),
)
EXTRA_HEADERS = (
    *("x-http-method-override: DELETE", "x-http-method: PUT", "x-method-override: GET"),
    *("x-original-url: /v1/files", "x-rewrite-url: /v1/files", "x-forwarded-host: evil.example"),
    *("x-forwarded-proto: http", "x-host: evil.example", "x-forwarded-prefix: /v1/files"),
    *("forwarded: for=1;host=evil.example", "x-forwarded-for: 127.0.0.1", "via: 1.1 a"),
    "upgrade: websocket\r\nsec-websocket-key: AAAA\r\nsec-websocket-version: 13",
    *("upgrade: h2c\r\nhttp2-settings: A", "expect: 100-continue", "te: trailers", "max-forwards: 0"),
    *("range: bytes=0-1", "proxy-connection: keep-alive", f"referer: http://{ECHO}/", f"cookie: a={ECHO}"),
    *("anthropic-base-url: http://evil.example", "content-type: application/json", "content-encoding: gzip"),
    *("content-type: multipart/form-data; boundary=a", f"x-{ECHO}: {ECHO}", f"openai-organization: {ECHO}"),
    *(f"openai-project: {ECHO}", "openai-beta: responses=v1", "openai-base-url: http://evil.example"),
    *("anthropic-version: 2023-06-01", "api-key: other"),
)
_ENDINGS = (
    *("/", "//", "/.", "/..", ";x", ";/../files", "%00", "%00.json", "%20", "%0d%0ahost:%20evil", "#f", "\\"),
    *("%5c", "%c0%af", "%ef%bc%8f", "%252f..", ".json", "*", "%ff", "\u00e9", "{x}", "'", '"', "<x>", "|"),
    *("/batches", "/../files", "/%2e%2e/files", "/..%2ffiles", "%2f..%2ffiles", "%3fbeta=true", "%23"),
    *("&beta=true", f"/{ECHO}", ":x", "@x"),
)
_BEGINNINGS = (
    *("/", "/.", "/..", "/v1", "/x/..", "/%2e", "/%2e%2e", "/;x", "//evil.example", "/http://evil.example"),
    *("/%2fv1", "/anthropic", "/openai", "/openai/deployments/a"),
)


def mutated_path(random: Random, path: str) -> str:
    """A path that means the same, or nearly, to somebody."""
    place = random.randrange(len(path))
    match random.randrange(8):
        case 0:
            return path + random.choice(_ENDINGS)
        case 1:
            return random.choice(_BEGINNINGS) + path
        case 2:
            return path[:place] + f"%{ord(path[place]) % 256:{random.choice(['02x', '02X'])}}" + path[place + 1 :]
        case 3:
            return path.replace("/", random.choice(["//", "/./", "/x/../", "%2f", "%2F", "\\", "/%2e/", "/;/"]))
        case 4:
            return path[:place] + path[place:].swapcase()
        case 5:
            return "".join(f"%{byte:02x}" for byte in path.encode())
        case 6:
            return path[:place] + random.choice(["%", "%0", "%zz", "\x7f", "\u017f", ".", "/"]) + path[place:]
        case _:
            return path[:place] or "/"


def attempts(seed: int) -> Iterator[Attempt]:
    """Mutations without end: mostly of what is served, and so that a good part of it gets through."""
    random = Random(seed)
    while True:
        path = _some(random, 0.25, [*PAGES, *NOT_SERVED], random.choice(ALIASES))
        method = "GET" if "model" in path or path in PAGES else "POST"
        for _ in range(random.choice([0, 0, 0, 1, 2])):
            path = mutated_path(random, path)
        yield Attempt(
            target=_some(random, 0.05, BAD_TARGETS, path + _some(random, 0.4, QUERIES, "")),
            method=_some(random, 0.2, [*METHODS, *NO_METHODS, "GET", "POST", "POST", "TRACE", "CONNECT"], method),
            hosts=_some(random, 0.15, [(), ("a", "a"), *[(host,) for host in (*HOSTS, *BAD_HOSTS)]], ("a",)),
            headers=_some(random, 0.3, [(line,) for line in EXTRA_HEADERS], ()),
            framing=_some(random, 0.2, [*FRAMINGS.values(), *BAD_FRAMINGS.values()], LENGTH),
        )


def _some(random: Random, share: float, odd: Sequence[Any], usual: Any) -> Any:
    return random.choice(odd) if random.random() < share else usual
