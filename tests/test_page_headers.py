"""Every answer carries exactly the headers that are written down here: the gateway's own ones, and relayed ones.

The lists are written a second time on purpose: what the product adds or forgets shows as a difference.
"""

import asyncio
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import aiohttp
import argon2
import pytest

from gateway import keystore
from gateway.core import keys
from gateway.core.keys import ApiKey
from gateway.core.records import Key
from gateway.database import connect
from gateway.hashing import hash_secret
from gateway.simulator import Script, Simulator
from tests.harness import Database, ask, now_ms, secret_of, serving
from tests.test_server_process import server

Headers = Mapping[str, str]

PROTECTING = {
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
"""On everything that a browser may show."""
ANY = "any"
"""In place of a value that differs each time."""
ALWAYS = {"server": "opusmax", "date": ANY}
SIZED = ALWAYS | {"content-length": ANY}

PAGE = PROTECTING | SIZED | {"content-type": "text/html; charset=utf-8"}
STYLE = PAGE | {"content-type": "text/css; charset=utf-8", "cache-control": "public, max-age=86400"}
ICON = STYLE | {"content-type": "image/svg+xml"}
PLAIN = PROTECTING | SIZED | {"content-type": "text/plain; charset=utf-8"}
ERROR = PROTECTING | SIZED | {"content-type": "application/json", "request-id": ANY}
REFUSED_KEY = ERROR | {"x-should-retry": "false"}
FILE = PROTECTING | ALWAYS | {"transfer-encoding": "chunked"}
TABLE = FILE | {
    "content-type": "text/csv; charset=utf-8",
    "content-disposition": 'attachment; filename="opusmax-usage.csv"',
}
DATA = FILE | {
    "content-type": "application/json",
    "content-disposition": 'attachment; filename="opusmax-usage.json"',
}
API_ERROR = {"cache-control": "no-store", "x-content-type-options": "nosniff", "content-type": "application/json"}

KEY = "KEY"
"""In place of the key itself."""

ANSWERS: list[tuple[str, str, dict[str, Any], set[int], Headers]] = [
    ("GET", "/", {}, {200}, PAGE),
    ("HEAD", "/", {}, {200}, PAGE),
    ("POST", "/", {}, {405}, ERROR),
    ("GET", "/usage", {}, {200}, PAGE),
    ("HEAD", "/usage", {}, {200}, PAGE),
    ("PUT", "/usage", {}, {405}, ERROR),
    ("OPTIONS", "/usage", {}, {405}, ERROR),
    ("GET", "/usage?key=x", {}, {400}, PAGE),
    ("GET", "/usage?ticket=x", {}, {401}, PAGE),
    ("POST", "/usage", {"data": {"key": KEY}}, {200}, PAGE),
    ("POST", "/usage", {"data": {"key": ""}}, {400}, PAGE),
    ("POST", "/usage", {"data": {"key": "x"}}, {401}, PAGE),
    ("POST", "/usage", {"data": {"key": "x" * 5_000}}, {413}, PAGE),
    ("POST", "/usage", {"json": {}}, {415}, PAGE),
    ("GET", "/usage.json", {"headers": {"x-api-key": KEY}}, {200}, DATA),
    ("GET", "/usage.json?x=1", {"headers": {"x-api-key": KEY}}, {400}, ERROR),
    ("GET", "/usage.json?ticket=x", {}, {401}, REFUSED_KEY),
    ("GET", "/usage.csv", {"headers": {"x-api-key": KEY}}, {200}, TABLE),
    ("GET", "/usage.csv", {}, {401}, REFUSED_KEY),
    ("POST", "/usage.csv", {}, {405}, ERROR),
    ("GET", "/privacy", {}, {200}, PAGE),
    ("DELETE", "/privacy", {}, {405}, ERROR),
    ("GET", "/static/style.css", {}, {200}, STYLE),
    ("GET", "/static/style.css?x", {}, {200}, STYLE),
    ("GET", "/static/icon.svg?x", {}, {200}, ICON),
    ("HEAD", "/static/icon.svg", {}, {200}, ICON),
    ("GET", "/static/", {}, {404}, ERROR),
    ("GET", "/static/../schema.sql", {}, {404}, ERROR),
    ("GET", "/favicon.ico", {}, {404}, ERROR),
    ("GET", "/healthz", {}, {200}, PLAIN),
    ("GET", "/readyz", {}, {200}, PLAIN),
    ("HEAD", "/api/hello", {}, {200}, PLAIN),
]

API_REFUSALS: list[tuple[str, str, dict[str, Any], int]] = [
    ("POST", "/v1/messages", {"json": {}}, 401),
    ("POST", "/v1/messages", {"data": "{", "headers": {"x-api-key": KEY, "content-type": "application/json"}}, 400),
    ("POST", "/v1/messages", {"data": "{}", "headers": {"x-api-key": KEY, "content-type": "text/plain"}}, 415),
    ("GET", "/v1/messages", {}, 405),
    ("OPTIONS", "/v1/messages", {"headers": {"origin": "https://elsewhere.example"}}, 405),
    ("POST", "/v1/files", {}, 404),
    ("GET", "/v1/models/no-such-one", {"headers": {"x-api-key": "x"}}, 401),
    ("POST", "/v1/messages/count_tokens", {"json": {}}, 401),
]

RELAYED = SIZED | {"content-type": "application/json", "request-id": ANY}
UPSTREAM_HEADERS = (
    *("set-cookie", "set-cookie2", "server", "via", "alt-svc", "cf-ray", "cf-cache-status", "x-served-by", "link"),
    *(
        "access-control-allow-origin",
        "access-control-expose-headers",
        "content-security-policy",
        "nel",
        "report-to",
    ),
    *("strict-transport-security", "content-disposition", "refresh", "location", "www-authenticate", "etag", "age"),
    *("openai-organization", "openai-project", "x-ratelimit-limit-requests", "anthropic-ratelimit-tokens-limit"),
    *("anthropic-organization-id", "anthropic-workspace-id", "anthropic-priority-input-tokens-limit"),
    *("x-powered-by", "x-request-cost", "x-envoy-upstream-service-time", "clear-site-data"),
)
"""What a provider may send, and nobody needs."""
CLIENT_HEADERS = (
    *(
        "cookie",
        "referer",
        "origin",
        "from",
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-real-ip",
        "via",
    ),
    *("accept-language", "sec-fetch-mode", "traceparent", "x-api-version", "proxy-authorization", "x-rewrite-url"),
)
"""What a client may send, and no provider may see."""
SEEN_BY_PROVIDER = {
    "host",
    "content-type",
    "content-length",
    "accept",
    "user-agent",
    "accept-encoding",
    "x-api-key",
}


def names_of(cases: Sequence[tuple[Any, ...]]) -> list[str]:
    return [f"{method} {path}" for method, path, *_ in cases]


def seen(answer: aiohttp.ClientResponse, expected: Headers) -> dict[str, str]:
    """All headers of an answer; `ANY` in place of values that differ each time. None comes twice."""
    names = [name.lower() for name in answer.headers]
    assert len(names) == len(set(names))
    headers = {name.lower(): value for name, value in answer.headers.items()}
    return {name: ANY if expected.get(name) == ANY else value for name, value in headers.items()}


def with_key(options: dict[str, Any], text: str) -> dict[str, Any]:
    """Options of a request with the key in its place."""
    return {
        name: {key: text if value == KEY else value for key, value in option.items()}
        if isinstance(option, dict)
        else option
        for name, option in options.items()
    }


@pytest.mark.parametrize(("method", "path", "options", "statuses", "expected"), ANSWERS, ids=names_of(ANSWERS))
async def test_every_answer_of_the_pages_has_exactly_its_headers(
    http: aiohttp.ClientSession,
    alice: tuple[str, Key],
    method: str,
    path: str,
    options: dict[str, Any],
    statuses: set[int],
    expected: Headers,
) -> None:
    async with http.request(method, path, **with_key(options, alice[0])) as answer:
        assert answer.status in statuses
        assert seen(answer, expected) == expected


@pytest.mark.parametrize(("method", "path", "options", "status"), API_REFUSALS, ids=names_of(API_REFUSALS))
async def test_every_refusal_of_the_api_is_neither_cached_nor_guessed_at(
    http: aiohttp.ClientSession,
    alice: tuple[str, Key],
    method: str,
    path: str,
    options: dict[str, Any],
    status: int,
) -> None:
    async with http.request(method, path, **with_key(options, alice[0])) as answer:
        assert answer.status == status
        assert {name: answer.headers.get(name) for name in API_ERROR} == API_ERROR
        assert answer.headers["server"] == "opusmax"
        assert not [name for name in answer.headers if name.lower().startswith(("access-control", "set-cookie"))]


async def test_too_many_keys_typed_at_once_are_refused_with_the_headers_of_a_page(
    provider: Simulator, database: Database
) -> None:
    api_key = await add_key_that_is_slow_to_check(database)
    async with serving(provider, database.path) as origin, aiohttp.ClientSession(origin) as http:

        async def guess(number: int) -> int:
            text = ApiKey(api_key.key_id, keys.mint().secret).text
            typed, sent = {"data": {"key": text}}, {"headers": {"x-api-key": text}}
            method, path, options, expected = (
                ("POST", "/usage", typed, PAGE) if number % 2 else ("GET", "/usage.csv", sent, ERROR)
            )
            async with http.request(method, path, **options) as answer:  # type: ignore[arg-type]
                if answer.status == 429:
                    assert seen(answer, expected | {"retry-after": ANY}) == expected | {"retry-after": ANY}
                return answer.status

        assert sorted(await asyncio.gather(*map(guess, range(6)))) == [401, 401, 429, 429, 429, 429]


async def add_key_that_is_slow_to_check(database: Database) -> ApiKey:
    api_key = keys.mint()
    key = Key(row=keystore.new_key_row(), name="slow", created=now_ms())
    slow = argon2.PasswordHasher(time_cost=8, memory_cost=2**16, parallelism=1)
    secret = replace(secret_of(key, api_key), hash=hash_secret(api_key.secret, slow))
    async with connect(database.path) as connection:
        await keystore.add_key(connection, key, secret)
    return api_key


async def test_a_server_that_is_stopping_says_so_with_the_same_headers(
    provider: Simulator, database: Database, alice: tuple[str, Key]
) -> None:
    provider.script = Script(stall_after_events=1)
    stopping = ERROR | {"retry-after": ANY}
    async with (
        server(provider, database.path) as running,
        aiohttp.ClientSession(running.origin) as http,
        http.post("/v1/messages", json=ask(stream=True), headers={"x-api-key": alice[0]}) as stream,
    ):
        await stream.content.readany()
        running.process.send_signal(signal.SIGTERM)
        status = 200
        while status == 200:
            async with http.get("/readyz") as answer:
                status = answer.status
                expected = PLAIN if status == 200 else stopping
                assert seen(answer, expected) == expected
        assert status == 503


async def test_a_page_that_fails_has_the_headers_of_every_error(
    http: aiohttp.ClientSession, database: Database, alice: tuple[str, Key]
) -> None:
    database.query("ALTER TABLE usage_by_hour RENAME TO broken")
    async with http.post("/usage", data={"key": alice[0]}) as answer:
        assert (answer.status, seen(answer, ERROR)) == (500, ERROR)
    async with http.get("/usage.json", headers={"x-api-key": alice[0]}) as answer:
        assert (answer.status, seen(answer, ERROR)) == (500, ERROR)


async def test_what_is_no_http_is_told_so_without_a_version_or_an_echo(origin: str) -> None:
    host, port = origin.removeprefix("http://").split(":")
    for request in (b"GET / HTTP/1.1\r\nHost: a\r\nHost: echo\r\n\r\n", b"echo\r\n\r\n"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request)
        answer = (await reader.read()).lower()
        writer.close()
        assert b" 400 " in answer.partition(b"\r\n")[0]
        assert [word for word in (b"python", b"aiohttp", b"echo", b"set-cookie") if word in answer] == []


async def test_of_what_a_provider_sends_only_the_listed_headers_arrive(
    http: aiohttp.ClientSession, provider: Simulator, alice: tuple[str, Key]
) -> None:
    provider.script = Script(extra_headers=tuple((name, f"{name}=1") for name in UPSTREAM_HEADERS))
    for method, path in (("POST", "/v1/messages"), ("POST", "/v1/messages/count_tokens"), ("GET", "/v1/models")):
        body = {"json": ask()} if method == "POST" else {}
        async with http.request(method, path, headers={"x-api-key": alice[0]}, **body) as answer:  # type: ignore[arg-type]
            assert answer.status == 200
            assert seen(answer, RELAYED) == RELAYED


async def test_of_what_a_client_sends_only_the_listed_headers_reach_the_provider(
    http: aiohttp.ClientSession, provider: Simulator, alice: tuple[str, Key]
) -> None:
    headers = {name: "1" for name in CLIENT_HEADERS} | {"x-api-key": alice[0]}
    async with http.post("/v1/messages", json=ask(), headers=headers) as answer:
        assert answer.status == 200
    [received] = provider.messages()
    assert {name.lower() for name, _ in received.headers} == SEEN_BY_PROVIDER
