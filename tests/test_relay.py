"""Bytes pass untouched, answers break as they broke, and each request leaves one true row."""

import asyncio
import json
from hashlib import sha256
from typing import Any

import aiohttp
import pytest

from gateway.core.metering import BYTES_PER_OUTPUT_TOKEN
from gateway.core.records import UNKNOWN_MODEL, Key
from gateway.core.usage import NO_USAGE, Usage
from gateway.simulator import Script, Simulator, redirect
from tests.harness import MODEL, OPERATOR_CREDENTIAL, Database, ask, until

AliceKey = tuple[str, Key]


async def post(
    http: aiohttp.ClientSession, key: str, body: dict[str, Any] | bytes, path: str = "/v1/messages", **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"x-api-key": key, "content-type": "application/json", "anthropic-version": "2023-06-01"} | headers
    async with http.post(path, data=data, headers=sent) as answer:
        return answer.status, await answer.read(), {name.lower(): value for name, value in answer.headers.items()}


async def post_broken(http: aiohttp.ClientSession, key: str, body: dict[str, Any]) -> bytes:
    """What arrives before the answer breaks; fails if it ends as if it were whole."""
    arrived = bytearray()
    with pytest.raises((aiohttp.ClientPayloadError, ConnectionResetError)):  # noqa: PT012 - it breaks anywhere
        async with http.post("/v1/messages", json=body, headers={"x-api-key": key}) as answer:
            assert answer.status == 200
            async for chunk in answer.content.iter_any():
                arrived += chunk
    return bytes(arrived)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_and_its_answer_pass_as_the_same_bytes(
    http: aiohttp.ClientSession, provider: Simulator, alice: AliceKey, stream: bool
) -> None:
    body = json.dumps(ask(stream=stream), indent=3).encode() + b" \r\n"
    status, answer, _ = await post(http, alice[0], body)
    [received] = provider.messages()
    assert status == 200
    assert received.body_sha256 == sha256(body).hexdigest()
    assert sha256(answer).hexdigest() == received.answer_sha256


@pytest.mark.parametrize("stream", [False, True])
async def test_a_whole_answer_is_recorded_as_the_provider_counted_it(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey, stream: bool
) -> None:
    provider.script = Script(usage=Usage(input=11, output=22, cache_write=33, cache_read=44))
    await post(http, alice[0], ask(stream=stream))
    [row] = database.rows(alice[1])
    assert (row.model, row.status, row.estimated) == (MODEL, 200, False)
    assert row.usage == Usage(input=11, output=22, cache_write=33, cache_read=44)
    assert row.latency_ms is not None


@pytest.mark.parametrize("stream", [False, True])
async def test_the_row_is_on_disk_when_the_client_sees_the_end(
    http: aiohttp.ClientSession, database: Database, alice: AliceKey, stream: bool
) -> None:
    for count in range(1, 6):
        await post(http, alice[0], ask(stream=stream))
        assert [row.status for row in database.rows(alice[1])] == [200] * count


async def test_the_provider_sees_the_operators_credential_and_never_the_clients_key(
    http: aiohttp.ClientSession, provider: Simulator, alice: AliceKey
) -> None:
    for headers in ({"x-api-key": alice[0]}, {"authorization": f"Bearer {alice[0]}", "x-api-key": "other"}):
        async with http.post("/v1/messages", json=ask(), headers=headers | {"cookie": "a=b"}) as answer:
            assert answer.status == 200
    for received in provider.messages():
        assert received.header("x-api-key") == OPERATOR_CREDENTIAL
        assert received.header("authorization") is None
        assert received.header("cookie") is None
        assert alice[0] not in str(received.headers)


async def test_only_listed_headers_come_back(http: aiohttp.ClientSession, alice: AliceKey) -> None:
    _, _, headers = await post(http, alice[0], ask())
    assert headers["request-id"].startswith("req_")
    assert "set-cookie" not in headers
    assert "anthropic-organization-id" not in headers
    assert headers["server"] == "opusmax"


@pytest.mark.parametrize("path", ["/messages", "/v1/v1/messages", "/v1/messages?beta=true&x=y"])
async def test_other_spellings_of_the_base_address_lead_to_the_same_endpoint(
    http: aiohttp.ClientSession, provider: Simulator, alice: AliceKey, path: str
) -> None:
    status, _, _ = await post(http, alice[0], ask(), path)
    [received] = provider.messages()
    assert status == 200
    assert received.path == ("/v1/messages?beta=true" if "?" in path else "/v1/messages")


@pytest.mark.parametrize("status", [400, 403, 404, 413, 429, 500, 529])
async def test_an_error_of_the_provider_passes_with_its_bytes_and_costs_nothing(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey, status: int
) -> None:
    provider.script = Script(status=status, extra_headers=(("retry-after", "7"),))
    answer = await post(http, alice[0], ask(stream=True))
    [received] = provider.messages()
    assert answer[0] == status
    assert sha256(answer[1]).hexdigest() == received.answer_sha256
    assert answer[2]["retry-after"] == "7"
    [row] = database.rows(alice[1])
    assert (row.status, row.usage, row.model) == (status, NO_USAGE, UNKNOWN_MODEL)


async def test_a_refused_operator_credential_is_told_without_blaming_the_client(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey
) -> None:
    provider.script = Script(status=401, error_message="your key sk-ant-api03-secret is bad")
    status, body, headers = await post(http, alice[0], ask())
    assert (status, headers["x-should-retry"]) == (502, "false")
    assert b"secret" not in body
    assert [row.status for row in database.rows(alice[1])] == [502]


async def test_a_redirect_is_neither_followed_nor_passed_on(
    http: aiohttp.ClientSession, provider: Simulator, alice: AliceKey
) -> None:
    provider.script = redirect(f"{provider.origin}/v1/models")
    status, _, headers = await post(http, alice[0], ask())
    assert status == 502
    assert "location" not in headers
    assert len(provider.messages()) == 1


async def test_a_provider_that_is_not_there_costs_nothing(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey
) -> None:
    await provider.stop()
    status, body, _ = await post(http, alice[0], ask())
    assert status == 502
    assert json.loads(body)["error"]["type"] == "api_error"
    [row] = database.rows(alice[1])
    assert (row.status, row.usage) == (502, NO_USAGE)


@pytest.mark.parametrize("cut", ["reset", "close"])
@pytest.mark.parametrize("events", [1, 3, 6, 9])
async def test_a_stream_that_breaks_upstream_breaks_for_the_client_and_is_charged(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey, cut: Any, events: int
) -> None:
    provider.script = Script(cut_after_events=events, cut=cut)
    arrived = await post_broken(http, alice[0], ask(stream=True))
    [received] = provider.messages()
    await received.ended.wait()
    assert b"message_stop" not in arrived
    [row] = database.rows(alice[1])
    assert row.status == 502
    assert row.usage.charge >= received.reported.charge > 0


async def test_a_json_answer_that_breaks_off_breaks_for_the_client(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey
) -> None:
    provider.script = Script(cut_after_bytes=40, cut="close")
    await post_broken(http, alice[0], ask())
    [row] = database.rows(alice[1])
    assert (row.status, row.estimated) == (502, True)
    assert row.usage.charge > 0


async def test_an_error_event_in_a_stream_passes_and_what_was_used_is_charged(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey
) -> None:
    provider.script = Script(error_event_after_events=5)
    status, body, _ = await post(http, alice[0], ask(stream=True))
    [received] = provider.messages()
    assert status == 200
    assert b"overloaded_error" in body
    [row] = database.rows(alice[1])
    assert row.usage.charge >= received.reported.charge > 0
    assert row.estimated


async def test_a_client_that_leaves_stops_the_provider_and_pays_for_what_came(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey
) -> None:
    provider.script = Script(output_tokens=90, events=30, pause_seconds=0.02)
    async with http.post("/v1/messages", json=ask(stream=True), headers={"x-api-key": alice[0]}) as answer:
        arrived = b""
        while arrived.count(b"content_block_delta") < 8:
            arrived += await answer.content.readany()
        answer.close()
    [received] = provider.messages()
    await received.ended.wait()
    assert received.disconnected
    await until(lambda: [row.status for row in database.rows(alice[1])] == [499])
    [row] = database.rows(alice[1])
    assert (row.status, row.estimated) == (499, True)
    assert row.usage.input == received.reported.input
    text_bytes = 8 * (90 // 30) * BYTES_PER_OUTPUT_TOKEN
    assert text_bytes // BYTES_PER_OUTPUT_TOKEN // 2 <= row.usage.output < 90


async def test_a_client_that_leaves_after_the_terminal_event_has_the_whole_answer(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey
) -> None:
    provider.script = Script(trailing_bytes=b": the provider lingers\n\n", stall_after_events=10, stall_seconds=5)
    async with http.post("/v1/messages", json=ask(stream=True), headers={"x-api-key": alice[0]}) as answer:
        arrived = b""
        while b"message_stop" not in arrived:
            arrived += await answer.content.readany()
        answer.close()
    [row] = database.rows(alice[1])
    assert (row.status, row.estimated) == (200, False)


async def test_a_client_that_leaves_before_the_answer_pays_for_the_input(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey
) -> None:
    provider.script = Script(first_byte_delay_seconds=5)
    asking = asyncio.create_task(post(http, alice[0], ask()))
    await provider.arrived(1)
    asking.cancel()
    await until(lambda: [row.status for row in database.rows(alice[1])] == [499])
    [row] = database.rows(alice[1])
    assert (row.status, row.estimated, row.usage.output) == (499, True, 0)
    assert row.usage.input > 0


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_comes_packed_all_the_same_passes_untouched_and_is_metered(
    provider: Simulator, database: Database, origin: str, alice: AliceKey, encoding: Any, stream: bool
) -> None:
    provider.script = Script(encoding=encoding)
    async with aiohttp.ClientSession(origin, auto_decompress=False) as raw:
        _, answer, headers = await post(raw, alice[0], ask(stream=stream))
    [received] = provider.messages()
    assert headers["content-encoding"] == encoding
    assert sha256(answer).hexdigest() == received.answer_sha256
    assert [(row.usage, row.estimated) for row in database.rows(alice[1])] == [(received.reported, False)]


async def test_a_model_name_that_nobody_lists_is_not_kept(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey
) -> None:
    provider.script = Script(status=200)
    status, _, _ = await post(http, alice[0], ask(model="my secret diary"))
    assert status == 404
    assert [row.model for row in database.rows(alice[1])] == [UNKNOWN_MODEL]


async def test_lookups_pass_and_leave_no_row(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey
) -> None:
    counted = await post(http, alice[0], ask(), "/v1/messages/count_tokens?beta=true")
    assert (counted[0], list(json.loads(counted[1]))) == (200, ["input_tokens"])
    for path in ("/v1/models?limit=1000", "/models", f"/v1/models/{MODEL}"):
        async with http.get(path, headers={"x-api-key": alice[0]}) as answer:
            assert answer.status == 200
    assert [entry.path for entry in provider.received[-4:]] == [
        "/v1/messages/count_tokens?beta=true",
        "/v1/models?limit=1000",
        "/v1/models",
        f"/v1/models/{MODEL}",
    ]
    assert database.rows(alice[1]) == []
