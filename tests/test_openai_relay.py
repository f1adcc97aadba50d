"""Chat completions, responses and embeddings pass as they came, and are recorded as the provider counted them.

The one change to any bytes is the splice: a streamed chat whose client does not ask for its usage asks for it all
the same, and the chunk that answers is taken out again.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Literal

import aiohttp
import pytest

from gateway.core.estimate import BYTES_PER_TOKEN
from gateway.core.records import Key
from gateway.core.settings import Settings
from gateway.core.usage import NO_USAGE, Usage
from gateway.simulator import OPENAI_MODELS, Script, Simulator
from tests.harness import ALL_CREDENTIALS, MODEL, Database, serving, until

AliceKey = tuple[str, Key]
GPT, EMBEDDER = OPENAI_MODELS[0], OPENAI_MODELS[2]
MESSAGES = [{"role": "user", "content": "Hello there"}]
CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"
ASKS_FOR_USAGE = {"stream": True, "stream_options": {"include_usage": True}}
CACHED = Usage(input=70, output=90, cache_read=1_000)
LINGERING = b": the provider lingers\n\n"
MEGABYTES = 3_000_000


@dataclass(frozen=True, slots=True)
class Call:
    """One kind of request."""

    path: str
    body: dict[str, Any]

    def __or__(self, fields: dict[str, Any]) -> "Call":
        return Call(self.path, self.body | fields)


PLAIN_CHAT = Call(CHAT, {"model": GPT, "messages": MESSAGES, "max_completion_tokens": 100})
STREAMED_CHAT = PLAIN_CHAT | {"stream": True}
ASKING_CHAT = PLAIN_CHAT | ASKS_FOR_USAGE
PLAIN_RESPONSE = Call(RESPONSES, {"model": GPT, "input": "Hello there", "max_output_tokens": 100})
STREAMED_RESPONSE = PLAIN_RESPONSE | {"stream": True}
EMBEDDING = Call(EMBEDDINGS, {"model": EMBEDDER, "input": ["Hello", "there"], "dimensions": 8})
CALLS = {
    "chat": PLAIN_CHAT,
    "streamed chat": STREAMED_CHAT,
    "streamed chat that asks for usage": ASKING_CHAT,
    "response": PLAIN_RESPONSE,
    "streamed response": STREAMED_RESPONSE,
    "embeddings": EMBEDDING,
}
STREAMS = {name: call for name, call in CALLS.items() if call.body.get("stream")}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
every_stream = pytest.mark.parametrize("call", STREAMS.values(), ids=STREAMS)


@pytest.fixture
async def origin(provider: Simulator, database: Database, alice: AliceKey) -> AsyncIterator[str]:
    """A gateway with an upstream of each protocol."""
    del alice
    async with serving(provider, database.path, ALL_CREDENTIALS, default_output_tokens=700) as address:
        yield address


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", "content-type": "application/json"}


async def post(
    http: aiohttp.ClientSession, key: str, call: Call, body: bytes | None = None
) -> tuple[int, bytes, dict[str, str]]:
    data = json.dumps(call.body).encode() if body is None else body
    async with http.post(call.path, data=data, headers=bearer(key)) as answer:
        return answer.status, await answer.read(), {name.lower(): value for name, value in answer.headers.items()}


async def get(http: aiohttp.ClientSession, key: str, path: str) -> tuple[int, Any]:
    async with http.get(path, headers=bearer(key)) as answer:
        return answer.status, await answer.json()


def sent_by(provider: Simulator) -> bytes:
    """The body of the provider's last answer, as far as it was written."""
    return b"".join(provider.messages()[-1].answer_pieces)


def shown_to(call: Call, answer: bytes) -> bytes:
    """What the client of a call is to see of an answer with plain line ends."""
    if call != STREAMED_CHAT:
        return answer
    return b"".join(event for event in events_of(answer) if b'"choices":[],"usage":{' not in event)


def events_of(answer: bytes) -> list[bytes]:
    return re.findall(rb".*?\n\n", answer, re.DOTALL)


def hold_of(call: Call) -> int:
    """A third of the body's bytes, and the maximum."""
    output = call.body.get("max_completion_tokens") or call.body["max_output_tokens"]
    return -(-len(json.dumps(call.body)) // BYTES_PER_TOKEN) + int(output)


# Bytes


@every_call
async def test_a_request_and_its_answer_pass_as_the_same_bytes(
    http: aiohttp.ClientSession, provider: Simulator, alice: AliceKey, call: Call
) -> None:
    body = json.dumps(call.body, indent=3).encode() + b" \r\n"
    status, answer, headers = await post(http, alice[0], call, body)
    [received] = provider.messages()
    assert (status, received.path) == (200, call.path)
    if call == STREAMED_CHAT:
        asking = b'"stream_options":{"include_usage":true},'
        assert received.body == body[:1] + asking + body[1:]
        assert answer == shown_to(call, sent_by(provider)) != sent_by(provider)
    else:
        assert received.body_sha256 == sha256(body).hexdigest()
        assert sha256(answer).hexdigest() == received.answer_sha256
    assert headers["openai-processing-ms"] == "412"
    assert headers["x-request-id"].startswith("req_")
    for withheld in ("set-cookie", "openai-organization", "openai-project", "x-ratelimit-limit-requests"):
        assert withheld not in headers


@every_call
async def test_the_provider_sees_the_operators_credential_as_bearer_and_never_the_clients_key(
    http: aiohttp.ClientSession, provider: Simulator, alice: AliceKey, call: Call
) -> None:
    await post(http, alice[0], call)
    [received] = provider.messages()
    assert received.header("authorization") == f"Bearer {ALL_CREDENTIALS['OPENAI_API_KEY']}"
    assert received.header("x-api-key") is None
    assert alice[0] not in str(received.headers)


@pytest.mark.parametrize("call", [PLAIN_CHAT, PLAIN_RESPONSE, EMBEDDING], ids=["chat", "response", "embeddings"])
@pytest.mark.parametrize("place", ["", "/v1/v1"])
async def test_other_spellings_of_the_base_address_lead_to_the_same_endpoint(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey, call: Call, place: str
) -> None:
    status, _, _ = await post(http, alice[0], replace(call, path=place + call.path.removeprefix("/v1")))
    assert (status, [received.path for received in provider.messages()]) == (200, [call.path])
    assert [row.status for row in database.rows(alice[1])] == [200]


# The splice


OPTIONS: list[dict[str, Any]] = [
    {},
    {"stream_options": None},
    {"stream_options": {}},
    {"stream_options": {"include_usage": False}},
    {"stream_options": {"include_obfuscation": False}},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
async def test_a_stream_whose_client_does_not_ask_for_usage_is_asked_for_it_and_nothing_else_changes(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey, options: dict[str, Any]
) -> None:
    provider.script = Script(obfuscation=True)
    call = STREAMED_CHAT | options
    _, answer, _ = await post(http, alice[0], call)
    [received] = provider.messages()
    asking = (options.get("stream_options") or {}) | {"include_usage": True}
    assert json.loads(received.body) == call.body | {"stream_options": asking}
    assert (b'"obfuscation"' in answer) == asking.get("include_obfuscation", True)
    assert answer == shown_to(STREAMED_CHAT, sent_by(provider)) != sent_by(provider)
    assert [(row.usage, row.estimated) for row in database.rows(alice[1])] == [(received.reported, False)]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("split_bytes", [0, 1, 2, 3, 61, 1_000])
@pytest.mark.parametrize("spaced", [False, True])
async def test_a_client_that_does_not_ask_sees_the_stream_without_the_usage_chunk_wherever_it_is_cut(
    http: aiohttp.ClientSession,
    provider: Simulator,
    database: Database,
    alice: AliceKey,
    line_end: Literal["\n", "\r\n", "\r"],
    split_bytes: int,
    spaced: bool,
) -> None:
    provider.script = Script(
        line_end=line_end,
        split_bytes=split_bytes,
        spaced_json=spaced,
        comments=2,
        unknown_events=1,
        trailing_bytes=b": bye\n\n",
    )
    _, answer, _ = await post(http, alice[0], STREAMED_CHAT)
    end = line_end.encode() * 2
    events = sent_by(provider).split(end)
    extra = [event for event in events if b'"prompt_tokens"' in event]
    assert len(extra) == 1
    assert answer == end.join(event for event in events if event not in extra)
    [row] = database.rows(alice[1])
    assert (row.usage, row.estimated) == (provider.messages()[0].reported, False)


@pytest.mark.parametrize("split_bytes", [0, 1, 61])
async def test_a_client_that_asks_for_usage_sees_it(
    http: aiohttp.ClientSession, provider: Simulator, alice: AliceKey, split_bytes: int
) -> None:
    provider.script = Script(split_bytes=split_bytes)
    _, answer, _ = await post(http, alice[0], ASKING_CHAT)
    assert answer == sent_by(provider)
    chunk = json.loads(events_of(answer)[-2].removeprefix(b"data: "))
    assert (chunk["choices"], chunk["usage"]["completion_tokens"]) == ([], 12)


# Counts


QUIRKS = {
    "as counted": Script(),
    "over the hold": Script(over_report=5_000),
    "cached": Script(usage=CACHED),
    "cached and written": Script(usage=Usage(input=70, output=90, cache_read=1_000, cache_write=33)),
    "cached, not told": Script(usage=CACHED, cached_tokens="nowhere"),
    "reasoning": Script(thinking="hidden", output_tokens=60),
    "incomplete": Script(output_tokens=200),
    "filtered": Script(content_filter=True),
    "tool": Script(tool_use=True),
    "noise": Script(comments=5, unknown_events=3, obfuscation=True, spaced_json=True, line_end="\r\n"),
    "split": Script(split_bytes=7, split_seed=4, usage=CACHED),
    "megabytes": Script(long_data_line_bytes=MEGABYTES),
    "megabytes in pieces": Script(long_data_line_bytes=MEGABYTES, split_bytes=65_536, usage=CACHED),
    "ends with the connection": Script(close_delimited=True),
    "in chunks": Script(chunked_json=True),
    "early hints": Script(informational=2),
}
CHAT_QUIRKS = {
    "DeepSeek's cache": Script(usage=CACHED, cached_tokens="prompt_cache_hit_tokens"),
    "Moonshot's cache": Script(usage=CACHED, cached_tokens="cached_tokens"),
    "reasoning apart": Script(reasoning_apart=True, thinking="shown", output_tokens=60),
    "last chunk": Script(chat_usage="last_chunk", usage=CACHED),
    "last choice": Script(chat_usage="last_choice", usage=CACHED),
    "every chunk": Script(chat_usage="every_chunk", usage=CACHED),
    "late choice": Script(chat_usage="late_choice", usage=CACHED),
    "Groq": Script(chat_usage="x_groq", usage=CACHED),
}


async def check_exact(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey, call: Call
) -> None:
    """One call comes whole, and its row says what the provider reported."""
    status, _, _ = await post(http, alice[0], call)
    [received] = provider.messages()
    assert (status, received.completed) == (200, True)
    [row] = database.rows(alice[1])
    assert (row.usage, row.estimated, row.status) == (received.reported, False, 200)
    assert row.model == call.body["model"]
    assert row.usage.charge > 0


@every_call
@pytest.mark.parametrize("script", QUIRKS.values(), ids=QUIRKS)
async def test_a_whole_answer_is_recorded_as_the_provider_counted_it(
    http: aiohttp.ClientSession,
    provider: Simulator,
    database: Database,
    alice: AliceKey,
    call: Call,
    script: Script,
) -> None:
    provider.script = script
    await check_exact(http, provider, database, alice, call)


@pytest.mark.parametrize("call", [PLAIN_CHAT, STREAMED_CHAT, ASKING_CHAT], ids=["plain", "spliced", "asking"])
@pytest.mark.parametrize("choices", [1, 3])
@pytest.mark.parametrize("script", CHAT_QUIRKS.values(), ids=CHAT_QUIRKS)
async def test_a_chat_is_recorded_wherever_a_vendor_reports_its_usage(
    http: aiohttp.ClientSession,
    provider: Simulator,
    database: Database,
    alice: AliceKey,
    call: Call,
    choices: int,
    script: Script,
) -> None:
    provider.script = script
    await check_exact(http, provider, database, alice, call | {"n": choices})


@pytest.mark.parametrize("call", [PLAIN_RESPONSE, STREAMED_RESPONSE], ids=["plain", "streamed"])
async def test_a_failed_response_is_recorded_as_it_reported(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey, call: Call
) -> None:
    provider.script = Script(response_failed=True, usage=CACHED)
    await check_exact(http, provider, database, alice, call)


@every_call
@pytest.mark.parametrize("script", [Script(omit_usage=True), Script(null_usage=True)], ids=["absent", "null"])
async def test_an_answer_without_usage_is_estimated_and_never_free(
    http: aiohttp.ClientSession,
    provider: Simulator,
    database: Database,
    alice: AliceKey,
    call: Call,
    script: Script,
) -> None:
    provider.script = script
    status, answer, _ = await post(http, alice[0], call)
    [row] = database.rows(alice[1])
    assert (status, answer) == (200, sent_by(provider))
    assert (row.status, row.estimated) == (200, True)
    assert row.usage.input == -(-len(json.dumps(call.body)) // BYTES_PER_TOKEN)
    assert (row.usage.output > 0) == (call != EMBEDDING)


# Answers that do not come to their end


async def take(http: aiohttp.ClientSession, key: str, call: Call, wanted: bytes | None) -> tuple[bytes, bool]:
    """What arrives, and whether it ended properly; the client leaves as soon as it has all that is `wanted`."""
    arrived = bytearray()
    try:
        async with http.post(call.path, json=call.body, headers=bearer(key)) as answer:
            assert answer.status == 200
            while wanted is None or len(arrived) < len(wanted):
                chunk = await answer.content.readany()
                if not chunk:
                    return bytes(arrived), True
                arrived += chunk
            answer.close()
    except aiohttp.ClientPayloadError:
        pass
    return bytes(arrived), False


async def check_charged(provider: Simulator, database: Database, key: Key, call: Call, status: int) -> None:
    """The newest row: at least what was reported, at most the larger of that and the hold."""
    received = provider.messages()[-1]
    await asyncio.wait_for(received.ended.wait(), 5)
    await until(
        lambda: [row.status for row in database.rows(key)] == [200] + [status] * (len(provider.messages()) - 1)
    )
    usage, estimated = database.rows(key)[-1].usage, database.rows(key)[-1].estimated
    assert 0 < usage.charge <= max(received.reported.charge, hold_of(call))
    assert received.reported.charge <= usage.charge
    assert estimated or usage == received.reported


@every_stream
@pytest.mark.parametrize("vendor", ["own_chunk", "every_chunk"])
async def test_a_client_that_leaves_anywhere_stops_the_provider_and_pays_for_what_it_used(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey, call: Call, vendor: Any
) -> None:
    script = Script(chat_usage=vendor, over_report=500 if vendor == "every_chunk" else 0)
    provider.script = script
    await post(http, alice[0], call)
    events = events_of(sent_by(provider))
    for number in range(1, len(events)):
        provider.script = replace(script, stall_after_events=number)
        wanted = shown_to(call, b"".join(events[:number]))
        assert await take(http, alice[0], call, wanted) == (wanted, False)
        await check_charged(provider, database, alice[1], call, 499)
        assert provider.messages()[-1].disconnected


@every_stream
@pytest.mark.parametrize("cut", ["reset", "close"])
async def test_a_stream_that_breaks_upstream_anywhere_breaks_for_the_client_and_is_charged(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey, call: Call, cut: Any
) -> None:
    await post(http, alice[0], call)
    events = events_of(sent_by(provider))
    for number in range(1, len(events)):
        provider.script = Script(cut_after_events=number, cut=cut)
        expected = shown_to(call, b"".join(events[:number]))
        assert await take(http, alice[0], call, None) == (expected, False)
        await check_charged(provider, database, alice[1], call, 502)


@every_stream
async def test_an_error_in_the_middle_passes_and_what_was_used_is_charged(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey, call: Call
) -> None:
    await post(http, alice[0], call)
    for number in range(1, len(events_of(sent_by(provider))) - 1):
        provider.script = Script(error_event_after_events=number)
        arrived, has_ended = await take(http, alice[0], call, None)
        assert has_ended
        assert b"told to fail" in arrived
        assert arrived == shown_to(call, sent_by(provider))
        await check_charged(provider, database, alice[1], call, 200)


@every_stream
async def test_a_client_that_leaves_at_the_terminal_event_has_the_whole_answer(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey, call: Call
) -> None:
    await post(http, alice[0], call)
    whole = sent_by(provider)
    provider.script = Script(trailing_bytes=LINGERING, stall_after_events=len(events_of(whole)))
    wanted = shown_to(call, whole)
    assert await take(http, alice[0], call, wanted) == (wanted, False)
    await asyncio.wait_for(provider.messages()[-1].ended.wait(), 5)
    first, second = database.rows(alice[1])
    assert (second.status, second.estimated, second.usage) == (200, False, first.usage)


@pytest.mark.parametrize("call", [PLAIN_CHAT, PLAIN_RESPONSE, EMBEDDING], ids=["chat", "response", "embeddings"])
async def test_a_json_answer_that_breaks_off_breaks_for_the_client(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey, call: Call
) -> None:
    provider.script = Script(cut_after_bytes=40, cut="close")
    arrived, has_ended = await take(http, alice[0], call, None)
    assert (len(arrived), has_ended) == (40, False)
    [row] = database.rows(alice[1])
    assert (row.status, row.estimated) == (502, True)
    assert row.usage.charge > 0


@every_call
@pytest.mark.parametrize("status", [400, 403, 404, 429, 500])
async def test_an_error_of_the_provider_passes_with_its_bytes_and_costs_nothing(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey, call: Call, status: int
) -> None:
    provider.script = Script(status=status, retry_after_seconds=7)
    seen, answer, headers = await post(http, alice[0], call)
    assert (seen, answer, headers["retry-after"]) == (status, sent_by(provider), "7")
    [row] = database.rows(alice[1])
    assert (row.status, row.usage) == (status, NO_USAGE)


async def test_a_refused_operator_credential_is_told_without_blaming_the_client(
    http: aiohttp.ClientSession, provider: Simulator, alice: AliceKey
) -> None:
    provider.script = Script(status=401, error_message="Incorrect API key provided: sk-proj-secret.")
    status, answer, headers = await post(http, alice[0], PLAIN_CHAT)
    assert (status, headers["x-should-retry"]) == (502, "false")
    assert json.loads(answer)["error"]["type"] == "server_error"
    assert b"secret" not in answer


# What is held


@pytest.mark.parametrize(
    ("call", "output"),
    [
        (Call(CHAT, {"model": GPT, "messages": MESSAGES}), 700),
        (Call(CHAT, {"model": GPT, "messages": MESSAGES, "n": 3}), 2_100),
        (Call(CHAT, {"model": GPT, "messages": MESSAGES, "max_tokens": 40, "n": 2}), 80),
        (Call(RESPONSES, {"model": GPT, "input": "Hello there"}), 700),
        (PLAIN_RESPONSE, 100),
        (EMBEDDING, 0),
    ],
    ids=["chat", "3 choices", "2 choices of 40", "response", "response of 100", "embeddings"],
)
async def test_without_a_maximum_the_default_is_held_while_the_request_runs(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey, call: Call, output: int
) -> None:
    provider.script = Script(first_byte_delay_seconds=0.3)
    asking = asyncio.create_task(post(http, alice[0], call))
    await until(lambda: bool(database.rows(alice[1])))
    [row] = database.rows(alice[1])
    assert (row.status, row.usage.output) == (None, output)
    tokens = -(-len(json.dumps(call.body)) // BYTES_PER_TOKEN)
    assert row.usage.input == tokens
    await asking
    [row] = database.rows(alice[1])
    assert (row.status, row.usage) == (200, provider.messages()[0].reported)


def test_the_default_maximum_is_16_000_tokens() -> None:
    assert Settings().default_output_tokens == 16_000


@pytest.mark.parametrize("stream", [False, True])
async def test_a_background_response_is_refused_and_nothing_is_sent(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: AliceKey, stream: bool
) -> None:
    status, answer, _ = await post(http, alice[0], PLAIN_RESPONSE | {"background": True, "stream": stream})
    error = json.loads(answer)["error"]
    assert (status, error["type"], error["param"], error["code"]) == (400, "invalid_request_error", None, None)
    assert error["message"].startswith("background: ")
    assert provider.messages() == []
    assert database.rows(alice[1]) == []
    assert (await post(http, alice[0], PLAIN_RESPONSE | {"background": False}))[0] == 200


# Models


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/v1/v1/models"])
async def test_models_are_listed_in_the_form_of_the_client_that_asks(
    http: aiohttp.ClientSession, provider: Simulator, alice: AliceKey, path: str
) -> None:
    status, listed = await get(http, alice[0], path)
    assert (status, listed["object"]) == (200, "list")
    assert [(model["id"], model["object"]) for model in listed["data"]] == [
        (name, "model") for name in OPENAI_MODELS
    ]
    assert provider.received[-1].path == "/v1/models"
    async with http.get(path, headers={"x-api-key": alice[0]}) as answer:
        assert (await answer.json())["first_id"] == MODEL


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/v1/v1/models"])
async def test_one_model_is_told_in_openais_form_and_an_unknown_one_is_404(
    http: aiohttp.ClientSession, database: Database, alice: AliceKey, path: str
) -> None:
    status, model = await get(http, alice[0], f"{path}/{GPT}")
    assert (status, model["id"], model["object"]) == (200, GPT, "model")
    for name in ("gpt-unknown", "gpt%2F..%2Fadmin"):
        status, body = await get(http, alice[0], f"{path}/{name}")
        assert (status, body["error"]["type"]) == (404, "invalid_request_error")
    assert database.rows(alice[1]) == []


async def test_a_key_for_some_models_sees_those_only(
    http: aiohttp.ClientSession, database: Database, alice: AliceKey
) -> None:
    await database.edit_key(alice[1], models=("gpt-5.6",))

    async def listed() -> list[str]:
        return [model["id"] for model in (await get(http, alice[0], "/v1/models"))[1]["data"]]

    async with asyncio.timeout(5):
        while await listed() != [GPT]:
            await asyncio.sleep(0.25)  # the server follows within a second
    status, body = await get(http, alice[0], f"/v1/models/{EMBEDDER}")
    assert (status, body["error"]["code"]) == (403, "model_not_found")
    assert (await get(http, alice[0], f"/v1/models/{GPT}"))[0] == 200
