"""What surrounds all answers of the simulated provider on OpenAI's paths: models, headers, errors, credentials."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.core.usage import NO_USAGE, Usage
from gateway.simulator import ANTHROPIC, MODELS, OPENAI, OPENAI_MODELS, Script, Simulator
from tests.openai_answers import (
    CHAT,
    CHAT_ASK,
    CHAT_TOKENS,
    EMBEDDINGS,
    EMBEDDINGS_ASK,
    EMBEDDINGS_TOKENS,
    MODEL,
    RESPONSE_ASK,
    RESPONSE_TOKENS,
    RESPONSES,
    STREAM,
    USAGE_ASKED,
    chunks_of,
    fetch,
    http,
    last_usage,
    refused,
    simulator,
)

__all__ = ["http", "simulator"]


@pytest.mark.parametrize(
    ("headers", "is_openai"),
    [
        ({"authorization": "Bearer x"}, True),
        ({"authorization": "Bearer x", "anthropic-version": "2026-10-21"}, False),
        ({"authorization": "Bearer x", "x-api-key": "x"}, False),
        ({}, False),
    ],
)
async def test_the_headers_say_in_which_shape_models_are_listed(
    http: aiohttp.ClientSession, headers: dict[str, str], is_openai: bool
) -> None:
    async with http.get("/v1/models", headers=headers) as answer:
        models = await answer.json()
    assert [model["id"] for model in models["data"]] == list(OPENAI_MODELS if is_openai else MODELS)
    assert ("has_more" in models) is not is_openai
    name = models["data"][1]["id"]
    async with http.get(f"/v1/models/{name}", headers=headers) as answer:
        assert await answer.json() == models["data"][1]
    async with http.get("/v1/models/another", headers=headers) as answer:
        assert answer.status == 404
        assert (await answer.json())["error"].get("code") == ("model_not_found" if is_openai else None)


async def test_a_provider_of_one_protocol_has_nothing_of_the_other() -> None:
    for protocol, path in ((OPENAI, "/v1/messages"), (ANTHROPIC, CHAT)):
        async with (
            Simulator(protocol=protocol) as simulator,
            aiohttp.ClientSession(simulator.origin) as http,
            http.post(path, json=CHAT_ASK | {"max_tokens": 5}) as answer,
            http.get("/v1/models") as models,
        ):
            assert answer.status == 404
            assert ("request_id" in await answer.json()) is (protocol is ANTHROPIC)
            assert ("object" in await models.json()) is (protocol is OPENAI)


@pytest.mark.parametrize(("path", "ask"), [(CHAT, CHAT_ASK), (CHAT, CHAT_ASK | {"model": "another"})])
async def test_answers_carry_what_a_gateway_must_drop(
    http: aiohttp.ClientSession, path: str, ask: dict[str, Any]
) -> None:
    async with http.post(path, json=ask) as answer:
        headers = answer.headers
    assert headers["x-request-id"].startswith("req_")
    assert {"openai-organization", "openai-project", "openai-processing-ms", "openai-version"} <= set(headers)
    assert headers["x-ratelimit-reset-tokens"] == "6m0s"
    assert len(headers.getall("set-cookie")) == 2
    assert not any(name.lower().startswith(("anthropic-", "request-id")) for name in headers)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (Script(status=400), ("invalid_request_error", None)),
        (Script(status=401), ("invalid_request_error", "invalid_api_key")),
        (Script(status=403), ("invalid_request_error", None)),
        (Script(status=429, retry_after_seconds=7), ("requests", "rate_limit_exceeded")),
        (
            Script(status=429, error_type="insufficient_quota", error_code="insufficient_quota"),
            ("insufficient_quota", "insufficient_quota"),
        ),
        (Script(status=500), ("server_error", None)),
        (Script(status=503), ("server_error", None)),
    ],
)
async def test_errors_come_in_openais_envelope(
    simulator: Simulator, http: aiohttp.ClientSession, script: Script, error: tuple[str, str | None]
) -> None:
    for path, ask in ((CHAT, CHAT_ASK | STREAM), (RESPONSES, RESPONSE_ASK), (EMBEDDINGS, EMBEDDINGS_ASK)):
        simulator.next(script)
        async with http.post(path, json=ask) as answer:
            body = await answer.json()
            assert answer.status == script.status
            assert answer.headers.get("retry-after") == (str(script.retry_after_seconds or "") or None)
        kind, code = error
        assert body == {"error": {"message": script.error_message, "type": kind, "param": None, "code": code}}
    assert simulator.reported_total() == NO_USAGE


@pytest.mark.parametrize(
    ("path", "ask", "status", "param"),
    [
        (CHAT, {"messages": []}, 400, "model"),
        (CHAT, {"model": MODEL}, 400, "messages"),
        (CHAT, CHAT_ASK | {"model": "another"}, 404, "model"),
        (CHAT, CHAT_ASK | {"stream_options": {"include_usage": True}}, 400, "stream_options"),
        (CHAT, CHAT_ASK | {"max_tokens": 1, "max_completion_tokens": 1}, 400, None),
        (CHAT, CHAT_ASK | {"n": 0}, 400, "n"),
        (CHAT, CHAT_ASK | {"max_tokens": "many"}, 400, None),
        (RESPONSES, {"model": MODEL}, 400, "input"),
        (RESPONSES, RESPONSE_ASK | {"background": True}, 400, "background"),
        (EMBEDDINGS, {"model": "text-embedding-3-small"}, 400, "input"),
        (EMBEDDINGS, EMBEDDINGS_ASK | {"input": []}, 400, "input"),
        (EMBEDDINGS, EMBEDDINGS_ASK | {"encoding_format": "hex"}, 400, "encoding_format"),
        ("/v1/files", {}, 404, None),
    ],
)
async def test_what_is_no_request_is_refused_and_uses_up_no_script(
    path: str, ask: dict[str, Any], status: int, param: str | None
) -> None:
    async with Simulator(protocol=OPENAI) as simulator, aiohttp.ClientSession(simulator.origin) as http:
        simulator.next(Script(status=503))
        code, error = await refused(http, path, ask)
        assert (code, error["param"]) == (status, param)
        assert (await refused(http, CHAT, CHAT_ASK))[0] == 503


async def test_a_body_that_is_no_json_is_refused(http: aiohttp.ClientSession) -> None:
    for body in (b"", b"{", b'{"model":"\xff"}', b"[]"):
        async with http.post(CHAT, data=body) as answer:
            assert answer.status == 400


async def test_a_credential_comes_as_bearer_and_a_wrong_one_is_quoted() -> None:
    async with Simulator(credentials={"sk-right"}) as simulator, aiohttp.ClientSession(simulator.origin) as http:
        seen = []
        for headers in (
            {"authorization": "Bearer sk-right"},
            {"x-api-key": "sk-right"},
            {"authorization": "Bearer sk-0bad"},
        ):
            async with http.post(CHAT, json=CHAT_ASK, headers=headers) as answer:
                seen.append((answer.status, await answer.text()))
    assert [status for status, _ in seen] == [200, 401, 401]
    assert "sk-********************0bad" in seen[2][1]
    assert "sk-right" not in seen[1][1]


async def test_a_rule_answers_by_credential_and_by_model(simulator: Simulator, http: aiohttp.ClientSession) -> None:
    mini = "gpt-5.6-mini"
    simulator.when(Script(status=401), credential="bad")
    simulator.when(Script(status=500), model=mini)
    simulator.when(Script(status=429, retry_after_seconds=30), credential="busy", model=MODEL)

    async def status(credential: str, model: str, path: str = CHAT) -> int:
        headers = {"authorization": f"Bearer {credential}"}
        async with http.post(path, json=CHAT_ASK | {"model": model, "input": "x"}, headers=headers) as answer:
            assert (answer.headers.get("retry-after") == "30") is (answer.status == 429)
            return answer.status

    async def lookup(credential: str) -> int:
        async with http.get("/v1/models", headers={"authorization": f"Bearer {credential}"}) as answer:
            return answer.status

    assert [await status("bad", MODEL), await status("bad", mini), await lookup("bad")] == [401, 401, 401]
    assert [await status("busy", MODEL), await status("busy", mini), await lookup("busy")] == [429, 500, 200]
    assert [await status("good", MODEL), await status("good", mini, RESPONSES)] == [200, 500]
    simulator.when(None, credential="busy", model=MODEL)
    assert await status("busy", MODEL) == 200
    assert [entry.credential for entry in simulator.messages()][-2:] == ["good", "busy"]


async def test_a_rule_is_for_anthropics_endpoints_too(simulator: Simulator, http: aiohttp.ClientSession) -> None:
    simulator.when(Script(status=529, retry_after_seconds=3), credential="a")
    ask = {"model": MODELS[0], "max_tokens": 5, "messages": []}
    seen = []
    for credential in ("a", "b"):
        async with http.post("/v1/messages", json=ask, headers={"x-api-key": credential}) as answer:
            seen.append((answer.status, answer.headers.get("retry-after")))
    assert seen == [(529, "3"), (200, None)]


async def test_pictures_do_not_count_by_their_bytes(simulator: Simulator, http: aiohttp.ClientSession) -> None:
    url = {"url": f"data:image/png;base64,{'A' * 500_000}"}
    sound = {"data": "A" * 500_000, "format": "wav"}
    content = [{"type": "image_url", "image_url": url}, {"type": "input_audio", "input_audio": sound}]
    await fetch(http, CHAT, CHAT_ASK | {"messages": [{"role": "user", "content": content}]})
    assert 3_000 < simulator.received[-1].reported.input < 3_100


async def test_the_totals_are_those_of_all_protocols_together(
    simulator: Simulator, http: aiohttp.ClientSession
) -> None:
    message = {"model": MODELS[0], "max_tokens": 5, "messages": []}
    calls = [(CHAT, CHAT_ASK), (RESPONSES, RESPONSE_ASK), (EMBEDDINGS, EMBEDDINGS_ASK), ("/v1/messages", message)]
    await asyncio.gather(*(fetch(http, path, ask) for path, ask in calls * 20))
    assert len(simulator.messages()) == 80
    tokens = CHAT_TOKENS + RESPONSE_TOKENS + EMBEDDINGS_TOKENS + 1
    assert simulator.reported_total() == Usage(input=20 * tokens, output=20 * (12 + 12 + 5))


async def test_it_serves_openai_as_a_process_of_its_own() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.simulator", "--protocol", "openai", "--output-tokens", "5"),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    assert process.stdout is not None
    origin = (await asyncio.wait_for(process.stdout.readline(), timeout=5)).decode().strip()
    async with aiohttp.ClientSession(origin) as http:
        chunks = chunks_of(await fetch(http, CHAT, CHAT_ASK | USAGE_ASKED))
        assert last_usage(chunks) == Usage(input=CHAT_TOKENS, output=5)
        async with http.post("/v1/messages", json=CHAT_ASK) as answer:
            assert answer.status == 404
    process.terminate()
    await process.wait()
