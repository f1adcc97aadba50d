"""Bad input gets a clear error in the protocol's own form; nothing is forwarded and nothing is lost."""

import json
from typing import Any

import aiohttp
import pytest

from gateway.core.keys import ApiKey, mint, parse
from gateway.core.records import Key
from gateway.simulator import Simulator
from tests.harness import MODEL, Database, ask, serving

JSON = "application/json"
BODIES = [
    (b"", "not valid JSON"),
    (b"[]", "not a JSON object"),
    (b"{", "not valid JSON"),
    (b'{"model": "\xff"}', "not valid JSON in UTF-8"),
    (b'{"max_tokens": 5, "messages": []}', "model: Field required"),
    (b'{"model": 5, "max_tokens": 5}', "model: Input should be a string"),
    (json.dumps({"model": MODEL}).encode(), "max_tokens: Field required"),
    (json.dumps(ask(max_tokens=0)).encode(), "max_tokens: Input should be between 1"),
    (json.dumps(ask(max_tokens="9")).encode(), "max_tokens: Input should be a whole number"),
    (json.dumps(ask(stream="yes")).encode(), "stream: Input should be true or false"),
    (b'{"model": "a", "model": "b", "max_tokens": 5}', "names a field twice"),
    (b'{"model": "a", "mod\\u0065l": "b", "max_tokens": 5}', "names a field twice"),
]


async def error_of(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    """The error of an answer in the protocol's envelope, checked."""
    body = await answer.json()
    assert answer.content_type == JSON
    assert body["type"] == "error"
    assert body["request_id"] == answer.headers["request-id"]
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"type", "message"}
    return error


@pytest.mark.parametrize(("body", "said"), BODIES)
async def test_a_body_that_makes_no_sense_is_refused_with_what_is_wrong(
    http: aiohttp.ClientSession,
    provider: Simulator,
    database: Database,
    alice: tuple[str, Key],
    body: bytes,
    said: str,
) -> None:
    headers = {"x-api-key": alice[0], "content-type": JSON}
    async with http.post("/v1/messages", data=body, headers=headers) as answer:
        assert answer.status == 400
        error = await error_of(answer)
    assert (error["type"], said in error["message"]) == ("invalid_request_error", True)
    assert provider.messages() == []
    assert database.rows(alice[1]) == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": "sk-ant-api03-of-somebody-else"},
        {"authorization": "Basic YTpi"},
        {"x-api-key": mint().text},
        {"x-api-key": mint().text, "authorization": f"Bearer {mint().text}"},
        {"x-api-key": "é' OR 1=1"},
        {"x-api-key": "x" * 8_000},
    ],
)
async def test_who_has_no_key_of_ours_is_told_so_and_gets_nowhere(
    http: aiohttp.ClientSession, provider: Simulator, headers: dict[str, str]
) -> None:
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        async with http.post(path, json=ask(), headers=headers) as answer:
            assert (answer.status, answer.headers["x-should-retry"]) == (401, "false")
            assert (await error_of(answer))["type"] == "authentication_error"
    async with http.get("/v1/models", headers=headers) as answer:
        assert answer.status == 401
    assert [entry for entry in provider.received if entry.path != "/v1/models?limit=1000"] == []


async def test_a_secret_with_one_wrong_character_is_not_the_key(
    http: aiohttp.ClientSession, alice: tuple[str, Key]
) -> None:
    right = parse(alice[0])
    assert right is not None
    last = "a" if right.secret[-1] != "a" else "b"
    wrong = ApiKey(right.key_id, right.secret[:-1] + last).text
    for _ in range(2):  # the second time from memory
        async with http.post("/v1/messages", json=ask(), headers={"x-api-key": wrong}) as answer:
            assert answer.status == 401
            assert "not known here" in (await error_of(answer))["message"]
    async with http.post("/v1/messages", json=ask(), headers={"x-api-key": alice[0]}) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("POST", "/v1/messages/batches", 404, "not_found_error"),
        ("GET", "/v1/organizations/me", 404, "not_found_error"),
        ("POST", "/v1/messages/../files", 404, "not_found_error"),
        ("POST", "/V1/messages", 404, "not_found_error"),
        ("GET", "/v1/models/a%2fb", 404, "not_found_error"),
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("DELETE", "/v1/models", 405, "invalid_request_error"),
    ],
)
async def test_what_is_not_served_is_refused_in_the_envelope(
    http: aiohttp.ClientSession,
    provider: Simulator,
    alice: tuple[str, Key],
    method: str,
    path: str,
    status: int,
    kind: str,
) -> None:
    async with http.request(method, path, headers={"x-api-key": alice[0]}) as answer:
        assert answer.status == status
        assert (await error_of(answer))["type"] == kind
    assert [entry for entry in provider.received if entry.path != "/v1/models?limit=1000"] == []


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": JSON, "content-encoding": "gzip"},
        {"content-type": JSON, "content-encoding": "br"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/x-www-form-urlencoded"},
    ],
)
async def test_an_encoded_or_foreign_body_is_refused_unread(
    http: aiohttp.ClientSession, alice: tuple[str, Key], headers: dict[str, str]
) -> None:
    sent = headers | {"x-api-key": alice[0]}
    async with http.post("/v1/messages", data=b"\x1f\x8b" + b"0" * 1_000, headers=sent) as answer:
        assert answer.status == 415
        assert (await error_of(answer))["type"] == "invalid_request_error"


async def test_a_body_beyond_the_limit_is_refused(
    provider: Simulator, database: Database, alice: tuple[str, Key]
) -> None:
    async with (
        serving(provider, database.path, max_body_bytes="1k") as origin,
        aiohttp.ClientSession(origin) as session,
        session.post("/v1/messages", json=ask(system="x" * 2_000), headers={"x-api-key": alice[0]}) as answer,
    ):
        assert answer.status == 413
        assert (await error_of(answer))["type"] == "request_too_large"


async def test_a_key_in_the_address_is_refused(http: aiohttp.ClientSession, alice: tuple[str, Key]) -> None:
    async with http.get(f"/v1/models?api_key={alice[0]}", headers={"x-api-key": alice[0]}) as answer:
        assert answer.status == 400
        assert "never in the address" in (await error_of(answer))["message"]


async def test_probes_are_answered_without_a_key(http: aiohttp.ClientSession) -> None:
    for method, path in [
        ("HEAD", "/"),
        ("GET", "/"),
        ("HEAD", "/api/hello"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
    ]:
        async with http.request(method, path) as answer:
            assert answer.status == 200, path
            assert "set-cookie" not in answer.headers
