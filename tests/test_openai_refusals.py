"""What a client of OpenAI's paths is told when the gateway says no: in OpenAI's envelope, and true."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import openai
import pytest

from gateway.core.amounts import HOUR_MS
from gateway.core.records import Key
from gateway.core.usage import Usage
from gateway.simulator import OPENAI_MODELS, Script, Simulator
from tests.harness import ALL_CREDENTIALS, Database, now_ms, serving, until
from tests.test_server_process import server

GPT, EMBEDDER = OPENAI_MODELS[0], OPENAI_MODELS[2]
Body = dict[str, Any]
CHAT: Body = {"model": GPT, "messages": [{"role": "user", "content": "Hey"}], "max_completion_tokens": 100}
RESPONSE: Body = {"model": GPT, "input": "Hey", "max_output_tokens": 100}
EMBEDDING: Body = {"model": EMBEDDER, "input": "Hey"}
CALLS = {
    "/v1/chat/completions": CHAT,
    "/v1/responses": RESPONSE,
    "/v1/embeddings": EMBEDDING,
    "/chat/completions": CHAT | {"stream": True},
    "/v1/v1/responses": RESPONSE | {"stream": True},
}
every_call = pytest.mark.parametrize(("path", "body"), CALLS.items(), ids=CALLS)
ALL_USED = Usage(input=990, output=20)
"""Of a budget of 1,000."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One answer."""

    status: int
    headers: dict[str, str]
    body: Any

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's envelope, whose other fields are always there."""
        assert list(self.body) == ["error"]
        error: dict[str, Any] = self.body["error"]
        assert {"message", "type", "param", "code"} <= error.keys()
        assert self.headers["content-type"] == "application/json"
        assert self.headers["x-request-id"].startswith("req_")
        return error

    @property
    def kind(self) -> tuple[int, str, str | None]:
        return self.status, self.error["type"], self.error["code"]


class Caller:
    """A client with a key."""

    def __init__(self, http: aiohttp.ClientSession, origin: str, text: str, key: Key) -> None:
        self.http, self.origin, self.text, self.key = http, origin, text, key

    async def post(self, body: Body = CHAT, path: str = "/v1/chat/completions") -> Seen:
        headers = {"authorization": f"Bearer {self.text}"}
        async with self.http.post(path, json=body, headers=headers) as answer:
            raw = await answer.read()
            is_json = answer.content_type == "application/json"
            seen = {name.lower(): value for name, value in answer.headers.items()}
            return Seen(answer.status, seen, json.loads(raw) if is_json else raw)


@asynccontextmanager
async def caller(provider: Simulator, database: Database, **limits: Any) -> AsyncIterator[Caller]:
    """A key with limits, and a gateway that knows it."""
    text, key = await database.create_key("bob", **limits)
    async with (
        serving(provider, database.path, ALL_CREDENTIALS, contact="ops@example.org") as origin,
        aiohttp.ClientSession(origin) as http,
    ):
        yield Caller(http, origin, text, key)


def milliseconds(duration: str) -> int:
    """Out of Go's way to write it, and nothing but that."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?|(\d+)ms", duration)
    assert found is not None, duration
    hours, minutes, seconds, rest = found.groups()
    return round((int(hours or 0) * 60 + int(minutes or 0)) * 60_000 + float(seconds or 0) * 1_000) + int(rest or 0)


# Paces


@every_call
async def test_a_pace_is_told_with_the_time_after_which_it_works_again(
    provider: Simulator, database: Database, path: str, body: Body
) -> None:
    async with caller(provider, database, requests_per_minute=30) as bob:
        began = time.monotonic()
        while (seen := await bob.post(body, path)).status == 200:
            assert time.monotonic() - began < 10
        sent = len(provider.messages())
        assert seen.kind == (429, "rate_limit_error", "rate_limit_exceeded")
        assert seen.error["message"].startswith("Rate limit reached: 30 requests per minute. Try again in ")
        assert "x-should-retry" not in seen.headers
        assert "resets_at" not in seen.error
        wait = int(seen.headers["retry-after"])
        assert 1 <= wait <= 2
        assert sent >= 30
        await asyncio.sleep(wait)
        assert (await bob.post(body, path)).status == 200
        assert len(provider.messages()) == sent + 1


async def test_tokens_per_minute_in_debt_are_told_with_the_time_until_they_are_back(
    provider: Simulator, database: Database
) -> None:
    async with caller(provider, database, tokens_per_minute=600) as bob:
        provider.script = Script(usage=Usage(input=600, output=20))
        assert (await bob.post()).status == 200
        seen = await bob.post()
        assert seen.kind == (429, "rate_limit_error", "rate_limit_exceeded")
        assert seen.headers["x-ratelimit-remaining-tokens"] == "0"
        assert 1 <= int(seen.headers["retry-after"]) <= 3
        await asyncio.sleep(int(seen.headers["retry-after"]))
        assert (await bob.post()).status == 200


async def test_running_requests_are_a_hint_of_two_seconds(provider: Simulator, database: Database) -> None:
    async with caller(provider, database, concurrency=1) as bob:
        provider.script = Script(first_byte_delay_seconds=0.5)
        running = asyncio.create_task(bob.post())
        await provider.arrived(1)
        seen = await bob.post(RESPONSE, "/v1/responses")
        assert seen.kind == (429, "rate_limit_error", "rate_limit_exceeded")
        assert seen.headers["retry-after"] == "2"
        assert (await running).status == 200


# Budgets


@every_call
async def test_a_used_up_budget_says_when_it_resets_and_is_not_tried_again(
    provider: Simulator, database: Database, path: str, body: Body
) -> None:
    async with caller(provider, database, budgets=[(1_000, HOUR_MS)]) as bob:
        provider.script = Script(usage=ALL_USED)
        began = now_ms()
        assert (await bob.post()).status == 200
        ended = now_ms()
        seen = await bob.post(body, path)
    assert seen.kind == (429, "usage_limit_reached", "insufficient_quota")
    assert began + HOUR_MS <= seen.error["resets_at"] * 1_000 <= ended + HOUR_MS + 1_000
    assert seen.headers["x-should-retry"] == "false"
    assert "retry-after" not in seen.headers
    message = (
        r"Token budget used up: 1,010 of 1,000 in 1h \(over by 10\)\. Room again at .* UTC \(in .*\)\. Usage: .*"
    )
    assert re.fullmatch(message, seen.error["message"])
    assert len(provider.messages()) == 1


async def test_a_request_that_does_not_fit_now_is_told_what_is_left_and_a_smaller_one_works(
    provider: Simulator, database: Database
) -> None:
    async with caller(provider, database, budgets=[(1_000, HOUR_MS)]) as bob:
        provider.script = Script(usage=Usage(input=880, output=20))
        assert (await bob.post()).status == 200
        seen = await bob.post()
        assert seen.kind == (429, "usage_limit_reached", "insufficient_quota")
        assert "; 100 of 1,000 are left in 1h" in seen.error["message"]
        assert "used up" not in seen.error["message"]
        assert "retry-after" not in seen.headers
        assert (await bob.post(CHAT | {"max_completion_tokens": 10})).status == 200


async def test_a_lifetime_budget_says_whom_to_ask_and_no_time(provider: Simulator, database: Database) -> None:
    async with caller(provider, database, budgets=[(1_000, None)]) as bob:
        provider.script = Script(usage=ALL_USED)
        assert (await bob.post()).status == 200
        seen = await bob.post(RESPONSE, "/v1/responses")
    assert seen.kind == (429, "usage_limit_reached", "insufficient_quota")
    assert seen.error["resets_at"] is None
    assert seen.headers["x-should-retry"] == "false"
    assert "retry-after" not in seen.headers
    assert "in all (over by 10). Ask the administrator (ops@example.org) for more." in seen.error["message"]


@pytest.mark.parametrize(
    ("path", "body", "part"),
    [
        ("/v1/chat/completions", CHAT | {"max_completion_tokens": 1_001}, "1,001"),
        ("/v1/chat/completions", CHAT | {"n": 11}, "1,100"),
        ("/v1/responses", {"model": GPT, "input": "Hey"}, "16,000"),
        ("/v1/embeddings", EMBEDDING | {"input": "x" * 3_300}, "its input alone is estimated at 1,1"),
    ],
    ids=["maximum", "choices", "no maximum", "input"],
)
async def test_what_never_fits_is_a_bad_request_that_names_the_part_that_is_too_large(
    provider: Simulator, database: Database, path: str, body: Body, part: str
) -> None:
    async with caller(provider, database, budgets=[(1_000, HOUR_MS)]) as bob:
        seen = await bob.post(body, path)
    assert seen.kind == (400, "invalid_request_error", "invalid_prompt")
    assert "can never fit: this key may use 1,000 in 1h" in seen.error["message"]
    assert part in seen.error["message"]
    assert "retry-after" not in seen.headers
    assert provider.messages() == []


# Keys


@every_call
async def test_a_model_that_a_key_may_not_use_is_forbidden(
    provider: Simulator, database: Database, path: str, body: Body
) -> None:
    async with caller(provider, database, models=("claude-*",)) as bob:
        seen = await bob.post(body, path)
    assert seen.kind == (403, "invalid_request_error", "model_not_found")
    assert "Allowed: claude-*." in seen.error["message"]
    assert seen.headers["x-should-retry"] == "false"
    assert provider.messages() == []
    assert database.rows(bob.key) == []


@every_call
@pytest.mark.parametrize(("limits", "word"), [({"disabled": True}, "disabled"), ({"expires": 1_000}, "expired")])
async def test_a_key_that_is_no_longer_good_is_unauthorized_and_told_which_it_is(
    provider: Simulator, database: Database, path: str, body: Body, limits: dict[str, Any], word: str
) -> None:
    async with caller(provider, database, **limits) as bob:
        seen = await bob.post(body, path)
    assert seen.kind == (401, "invalid_request_error", "invalid_api_key")
    assert word in seen.error["message"]
    assert "ops@example.org" in seen.error["message"]
    assert seen.headers["x-should-retry"] == "false"
    assert provider.messages() == []


@every_call
async def test_other_refusals_have_openais_envelope_too(
    provider: Simulator, database: Database, path: str, body: Body
) -> None:
    async with caller(provider, database) as bob:
        assert (await bob.post({"model": 7}, path)).kind == (400, "invalid_request_error", None)
        headers = {"authorization": f"Bearer {bob.text}", "content-encoding": "gzip"}
        async with bob.http.post(path, data=b"x", headers=headers) as answer:
            assert (answer.status, (await answer.json())["error"]["type"]) == (415, "invalid_request_error")
        async with bob.http.get(path, headers=headers) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (405, None)
        await provider.stop()
        assert (await bob.post(body, path)).kind == (502, "server_error", None)


async def test_a_server_that_stops_says_so_and_when_to_come_back(provider: Simulator, database: Database) -> None:
    text, key = await database.create_key("bob")
    provider.script = Script(output_tokens=100, events=20, pause_seconds=0.1)
    everything: dict[str, str] = {"OPUSMAX_OPENAI_URL": provider.origin} | ALL_CREDENTIALS
    async with (
        server(provider, database.path, **everything) as running,
        aiohttp.ClientSession(running.origin) as http,
    ):
        bob = Caller(http, running.origin, text, key)
        streams = [asyncio.create_task(bob.post(CHAT | {"stream": True})) for _ in range(2)]
        await provider.arrived(2)
        provider.script = Script()
        assert (await bob.post()).status == 200  # leaves an open connection: who stops takes no new ones
        running.process.terminate()
        async with asyncio.timeout(1.5):
            while (seen := await bob.post()).status == 200:
                await asyncio.sleep(0.02)
        assert seen.kind == (503, "server_error", None)
        assert "stopping" in seen.error["message"]
        assert int(seen.headers["retry-after"]) >= 1
        for stream in streams:
            assert b"[DONE]" in (await stream).body
        assert await running.process.wait() == 0


# The headers that tell of limits, and what the SDK shows


@every_call
async def test_every_answer_tells_of_the_keys_own_limits_and_never_of_the_operators(
    provider: Simulator, database: Database, path: str, body: Body
) -> None:
    limits = {"requests_per_minute": 2, "tokens_per_minute": 6_000}
    async with caller(provider, database, budgets=[(100_000, HOUR_MS)], **limits) as bob:
        provider.script = Script(usage=Usage(input=1_500, output=0))
        answers = [await bob.post(body, path) for _ in range(3)]
    assert [seen.status for seen in answers] == [200, 200, 429]
    told = [{name: value for name, value in seen.headers.items() if "ratelimit" in name} for seen in answers]
    names = {
        f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")
    }
    assert [headers.keys() for headers in told] == [names] * 3
    assert {headers["x-ratelimit-limit-requests"] for headers in told} == {"2"}
    assert {headers["x-ratelimit-limit-tokens"] for headers in told} == {"6000"}
    assert [headers["x-ratelimit-remaining-requests"] for headers in told] == ["1", "0", "0"]
    resets = [milliseconds(headers["x-ratelimit-reset-requests"]) for headers in told]
    assert 29_000 < resets[0] <= 30_000
    assert all(58_000 < reset <= 60_000 for reset in resets[1:])
    assert int(told[0]["x-ratelimit-remaining-tokens"]) == 6_000
    assert 3_000 <= int(told[2]["x-ratelimit-remaining-tokens"]) < 3_300
    assert 27_000 < milliseconds(told[2]["x-ratelimit-reset-tokens"]) <= 30_000


async def test_a_used_up_budget_has_the_headers_too(provider: Simulator, database: Database) -> None:
    async with caller(provider, database, budgets=[(1_000, HOUR_MS)], requests_per_minute=60) as bob:
        provider.script = Script(usage=ALL_USED)
        await bob.post()
        seen = await bob.post()
    assert seen.status == 429
    assert seen.headers["x-ratelimit-limit-requests"] == "60"


SDK_USES: dict[str, Callable[[openai.AsyncOpenAI], Any]] = {
    "chat": lambda client: client.chat.completions.create(**CHAT),
    "response": lambda client: client.responses.create(**RESPONSE),
    "streamed response": lambda client: client.responses.create(**RESPONSE, stream=True),
    "embeddings": lambda client: client.embeddings.create(**EMBEDDING),
}


@pytest.mark.parametrize("use", SDK_USES.values(), ids=SDK_USES)
async def test_the_sdk_raises_a_used_up_budget_at_once_and_shows_the_text(
    provider: Simulator, database: Database, use: Callable[[openai.AsyncOpenAI], Any]
) -> None:
    async with caller(provider, database, budgets=[(1_000, HOUR_MS)]) as bob:
        provider.script = Script(usage=ALL_USED)
        assert (await bob.post()).status == 200
        async with openai.AsyncOpenAI(base_url=f"{bob.origin}/v1", api_key=bob.text) as client:
            with pytest.raises(openai.RateLimitError) as raised:
                await use(client)
        await until(lambda: database.query("SELECT sum(refused_budget) FROM key") == [(1,)])
    assert "Token budget used up: 1,010 of 1,000 in 1h" in str(raised.value)
    assert (raised.value.type, raised.value.code) == ("usage_limit_reached", "insufficient_quota")
    assert isinstance(raised.value.body, dict)
    assert raised.value.body["resets_at"] > time.time()
    assert (raised.value.request_id or "").startswith("req_")


async def test_the_sdk_shows_the_headers_of_an_answer(provider: Simulator, database: Database) -> None:
    async with (
        caller(provider, database, requests_per_minute=60) as bob,
        openai.AsyncOpenAI(base_url=f"{bob.origin}/v1", api_key=bob.text) as client,
    ):
        raw = await client.responses.with_raw_response.create(**RESPONSE)
    assert raw.headers["x-ratelimit-limit-requests"] == "60"
    assert raw.headers["x-ratelimit-remaining-requests"] == "59"
    assert 0 < milliseconds(raw.headers["x-ratelimit-reset-requests"]) <= 1_000
