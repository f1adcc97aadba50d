"""What clients of Anthropic's protocol send besides bodies: versions, betas, credentials, counts, probes."""

import asyncio
import json
from hashlib import sha256
from typing import Any

import aiohttp
import pytest

from gateway.core.records import Key
from gateway.simulator import MODELS, Simulator
from tests.harness import OPERATOR_CREDENTIAL, Database, ask, serving

AliceKey = tuple[str, Key]
Headers = list[tuple[str, str]]
MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
BURST = 15
"""So many counts does Claude Code ask for at once."""
FOREIGN = "sk-ant-api03-" + "A" * 95
both_posts = pytest.mark.parametrize("path", [MESSAGES, COUNT])


async def post(origin: str, headers: Headers, path: str = MESSAGES) -> tuple[int, Any]:
    async with aiohttp.ClientSession(origin) as http, http.post(path, json=ask(), headers=headers) as answer:
        return answer.status, await answer.json()


def sent(provider: Simulator, name: str) -> list[str]:
    """The values of a header as the last request had them."""
    return [value for known, value in provider.received[-1].headers if known.lower() == name]


# Versions and betas.


@both_posts
@pytest.mark.parametrize("version", ["2023-06-01", "2026-10-21", "2031-01-01", None])
async def test_the_version_passes_as_the_client_wrote_it_and_none_is_added(
    origin: str, provider: Simulator, alice: AliceKey, path: str, version: str | None
) -> None:
    given = [("anthropic-version", version)] if version else []
    assert (await post(origin, [("x-api-key", alice[0]), *given], path))[0] == 200
    assert sent(provider, "anthropic-version") == [value for _, value in given]


@both_posts
async def test_betas_on_several_lines_pass_in_their_order(
    origin: str, provider: Simulator, alice: AliceKey, path: str
) -> None:
    betas = ["context-management-2025-06-27,advisor-tool-2026-03-01", "a-beta-of-tomorrow", "one,  two ,three"]
    headers = [("x-api-key", alice[0]), *(("anthropic-beta", beta) for beta in betas)]
    assert (await post(origin, headers, path))[0] == 200
    assert sent(provider, "anthropic-beta") == betas


@pytest.mark.parametrize("query", ["?beta=true", "?beta=true&trace=1", ""])
@both_posts
async def test_the_mark_of_the_sdks_beta_passes_and_no_other_parameter(
    origin: str, provider: Simulator, alice: AliceKey, path: str, query: str
) -> None:
    assert (await post(origin, [("x-api-key", alice[0])], path + query))[0] == 200
    assert provider.received[-1].path == path + ("?beta=true" if query else "")


# Credentials.


@both_posts
@pytest.mark.parametrize(
    "headers",
    [
        [("x-api-key", "ALICE")],
        [("authorization", "Bearer ALICE")],
        [("authorization", "bearer ALICE")],
        [("x-api-key", "ALICE"), ("authorization", "Bearer ALICE")],
        [("x-api-key", "ALICE"), ("authorization", f"Bearer {FOREIGN}")],
        [("x-api-key", FOREIGN), ("authorization", "Bearer ALICE")],
        [("x-api-key", ""), ("authorization", "Bearer ALICE")],
    ],
    ids=["x-api-key", "bearer", "small letters", "both", "foreign bearer", "foreign x-api-key", "empty x-api-key"],
)
async def test_a_key_works_in_either_header_and_the_operators_credential_goes_on(
    origin: str, provider: Simulator, database: Database, alice: AliceKey, headers: Headers, path: str
) -> None:
    given = [(name, value.replace("ALICE", alice[0])) for name, value in headers]
    assert (await post(origin, given, path))[0] == 200
    assert (sent(provider, "x-api-key"), sent(provider, "authorization")) == ([OPERATOR_CREDENTIAL], [])
    assert len(database.rows(alice[1])) == (path == MESSAGES)


@both_posts
@pytest.mark.parametrize(
    "headers",
    [
        [("x-api-key", "ALICE"), ("authorization", "Bearer BOB")],
        [("x-api-key", "BOB"), ("authorization", "Bearer ALICE")],
        [("x-api-key", "ALICE"), ("x-api-key", "BOB")],
        [("x-api-key", FOREIGN), ("authorization", f"Bearer {FOREIGN}")],
        [("x-api-key", f"Bearer {FOREIGN}")],
        [],
    ],
    ids=["two of ours", "two of ours, turned", "two in one header", "both foreign", "foreign", "none"],
)
async def test_two_keys_of_ours_or_none_are_refused_and_nothing_is_sent(
    provider: Simulator, database: Database, headers: Headers, path: str
) -> None:
    (alice, _), (bob, _) = await database.create_key("alice"), await database.create_key("bob")
    given = [(name, value.replace("ALICE", alice).replace("BOB", bob)) for name, value in headers]
    async with serving(provider, database.path) as origin:
        status, body = await post(origin, given, path)
    assert (status, body["type"], body["error"]["type"]) == (401, "error", "authentication_error")
    assert [received for received in provider.received if received.method == "POST"] == []
    assert database.query("SELECT count(*) FROM request") == [(0,)]


# Counting and listing.


async def test_bursts_of_counts_are_free_and_leave_the_pace_of_messages_alone(
    provider: Simulator, database: Database
) -> None:
    """A key with a small pace and a small budget, both of which the counts would fill at once."""
    text, key = await database.create_key("bob", requests_per_minute=5, tokens_per_minute=400, concurrency=2)
    headers = [("x-api-key", text)]
    async with serving(provider, database.path) as origin:
        counted = await asyncio.gather(*(post(origin, headers, COUNT + "?beta=true") for _ in range(BURST)))
        answered = [await post(origin, headers) for _ in range(5)]
        counted += await asyncio.gather(*(post(origin, headers, COUNT) for _ in range(BURST)))
        refused, body = await post(origin, headers)
    assert [status for status, _ in counted] == [200] * 2 * BURST
    assert len({json.dumps(body) for _, body in counted}) == 1
    assert [status for status, _ in answered] == [200] * 5
    assert (refused, body["error"]["type"]) == (429, "rate_limit_error")
    assert len(database.rows(key)) == len(provider.messages()) == 5


async def test_clients_that_look_for_models_get_the_providers_whole_list(
    origin: str, provider: Simulator, alice: AliceKey
) -> None:
    """As Claude Code asks: by bearer, and for as many as there may be."""
    headers = [("authorization", f"Bearer {alice[0]}"), ("anthropic-version", "2023-06-01")]
    async with (
        aiohttp.ClientSession(origin) as http,
        http.get("/v1/models?limit=1000", headers=headers) as answer,
    ):
        body = await answer.read()
    received = provider.received[-1]
    assert received.path == "/v1/models?limit=1000"
    assert sha256(body).hexdigest() == received.answer_sha256
    assert [model["id"] for model in json.loads(body)["data"]] == list(MODELS)


@pytest.mark.parametrize("path", ["/", "/api/hello"])
async def test_the_probes_of_claude_code_are_answered_without_a_key(
    origin: str, provider: Simulator, path: str
) -> None:
    async with aiohttp.ClientSession(origin) as http, http.head(path) as answer:
        assert (answer.status, await answer.read()) == (200, b"")
    assert [received for received in provider.received if received.method != "GET"] == []
