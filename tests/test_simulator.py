"""The simulated provider keeps to Anthropic's protocol, does what its script says, and remembers it truly."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import aiohttp
import anthropic
import pytest

from gateway.core.keys import mint
from gateway.core.usage import NO_USAGE, Usage
from gateway.simulator import GATEWAY_KEY_MESSAGE, HTML_502, MODELS, Received, Script, Simulator, redirect

MODEL = "claude-opus-5-5"
ASK: dict[str, Any] = {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": "Hey"}]}
ASK_TOKENS = 9
"""A quarter of the bytes of `messages`, rounded up; with and without spaces in the JSON."""
STREAM = ASK | {"stream": True}
TOOL = {"name": "take_note", "input_schema": {"type": "object"}}
EVENTS = 10
"""Of a default stream: start, ping, block start, 4 deltas, block stop, message delta, message stop."""


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator() as running:
        yield running


@pytest.fixture
async def http(simulator: Simulator) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(simulator.origin) as session:
        yield session


@pytest.fixture
async def sdk(simulator: Simulator) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=simulator.origin, api_key="any", max_retries=0) as client:
        yield client


async def fetch(http: aiohttp.ClientSession, ask: dict[str, Any] = STREAM) -> bytes:
    async with http.post("/v1/messages", json=ask) as answer:
        return await answer.read()


async def fetch_broken(http: aiohttp.ClientSession, ask: dict[str, Any] = STREAM) -> bytes:
    """What arrives before the connection breaks; fails if it does not break."""
    arrived = bytearray()
    with pytest.raises((aiohttp.ClientPayloadError, ConnectionResetError)):  # noqa: PT012 - the body breaks anywhere
        async with http.post("/v1/messages", json=ask) as answer:
            async for chunk in answer.content.iter_any():
                arrived += chunk
    return bytes(arrived)


def event_names(stream: bytes) -> list[str]:
    return [line[7:].decode() for line in stream.splitlines() if line.startswith(b"event: ")]


async def test_a_plain_message_is_answered_truthfully(simulator: Simulator, sdk: anthropic.AsyncAnthropic) -> None:
    message = await sdk.messages.create(**ASK)
    assert message.stop_reason == "end_turn"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (ASK_TOKENS, 12)
    [received] = simulator.received
    assert received.reported == Usage(input=ASK_TOKENS, output=12) == simulator.reported_total()
    assert received.completed
    assert received.status == 200


async def test_a_streamed_message_says_the_same_as_a_plain_one(
    simulator: Simulator, sdk: anthropic.AsyncAnthropic
) -> None:
    plain = await sdk.messages.create(**ASK)
    async with sdk.messages.stream(**ASK) as stream:
        streamed = await stream.get_final_message()
    assert streamed.usage == plain.usage
    assert [block.to_dict() for block in streamed.content] == [block.to_dict() for block in plain.content]
    assert [received.reported for received in simulator.messages()] == [Usage(input=ASK_TOKENS, output=12)] * 2


async def test_output_never_exceeds_max_tokens(sdk: anthropic.AsyncAnthropic) -> None:
    message = await sdk.messages.create(**(ASK | {"max_tokens": 3}))
    assert message.usage.output_tokens == 3
    assert message.stop_reason == "max_tokens"


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "take_note"}])
async def test_a_forced_tool_is_called(sdk: anthropic.AsyncAnthropic, choice: dict[str, str]) -> None:
    ask = ASK | {"tools": [TOOL], "tool_choice": choice}
    plain = await sdk.messages.create(**ask)
    async with sdk.messages.stream(**ask) as stream:
        streamed = await stream.get_final_message()
    for message in (plain, streamed):
        [block] = message.content
        assert message.stop_reason == "tool_use"
        assert isinstance(block, anthropic.types.ToolUseBlock)
        assert block.name == "take_note"
        assert block.input == {"note": "the old cat sat and saw one big red "}


async def test_tools_are_called_unforced_only_if_the_script_says_so(
    simulator: Simulator, sdk: anthropic.AsyncAnthropic
) -> None:
    simulator.next(Script(), Script(tool_use=True))
    reasons = [(await sdk.messages.create(**(ASK | {"tools": [TOOL]}))).stop_reason for _ in range(2)]
    assert reasons == ["end_turn", "tool_use"]


async def test_everything_a_stream_may_hold_is_understood_by_the_sdk(
    simulator: Simulator, sdk: anthropic.AsyncAnthropic
) -> None:
    simulator.script = Script(
        thinking="shown", long_data_line_bytes=3_000_000, pings=3, unknown_events=2, message_deltas=3, events=7
    )
    async with sdk.messages.stream(**ASK) as stream:
        message = await stream.get_final_message()
    assert [block.type for block in message.content] == ["thinking", "web_search_tool_result", "text"]
    assert message.usage.output_tokens == 12


async def test_hidden_thinking_is_a_signature_only(simulator: Simulator, http: aiohttp.ClientSession) -> None:
    simulator.script = Script(thinking="hidden")
    stream = await fetch(http)
    assert b"signature_delta" in stream
    assert b"thinking_delta" not in stream


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (429, "rate_limit_error"), (500, "api_error"), (529, "overloaded_error")],
)
async def test_errors_come_in_the_protocols_envelope(
    simulator: Simulator, sdk: anthropic.AsyncAnthropic, status: int, kind: str
) -> None:
    simulator.next(Script(status=status, error_message="No.", extra_headers=(("retry-after", "7"),)))
    with pytest.raises(anthropic.APIStatusError) as caught:
        await sdk.messages.create(**ASK)
    body = caught.value.response.json()
    assert caught.value.status_code == status
    assert body["error"] == {"type": kind, "message": "No."}
    assert body["request_id"] == caught.value.request_id
    assert caught.value.response.headers["retry-after"] == "7"
    assert simulator.reported_total() == NO_USAGE


async def test_scripts_are_used_in_order_and_then_the_default_again(
    simulator: Simulator, http: aiohttp.ClientSession
) -> None:
    simulator.next(Script(status=500), HTML_502, redirect("https://example.com/"))
    seen = []
    for _ in range(4):
        async with http.post("/v1/messages", json=ASK, allow_redirects=False) as answer:
            seen.append((answer.status, answer.content_type, answer.headers.get("location")))
    assert seen == [
        (500, "application/json", None),
        (502, "text/html", None),
        (307, "application/json", "https://example.com/"),
        (200, "application/json", None),
    ]


async def test_a_function_of_the_request_may_choose_the_script_even_of_lookups(
    simulator: Simulator, http: aiohttp.ClientSession
) -> None:
    def choose(received: Received) -> Script | None:
        return Script(status=503) if received.endpoint == "/v1/models" or b"fail" in received.body else None

    simulator.choose = choose
    async with http.get("/v1/models") as models, http.post("/v1/messages", json=ASK) as message:
        assert (models.status, message.status) == (503, 200)


@pytest.mark.parametrize("header", ["x-api-key", "authorization", "x-anything"])
async def test_a_key_of_the_gateway_is_rejected_in_every_header(http: aiohttp.ClientSession, header: str) -> None:
    async with http.post("/v1/messages", json=ASK, headers={header: f"Bearer {mint().text}"}) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["message"] == GATEWAY_KEY_MESSAGE


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-api-key": "right"}, 200),
        ({"authorization": "Bearer right"}, 200),
        ({"x-api-key": "wrong"}, 401),
        ({}, 401),
    ],
)
async def test_only_its_own_credentials_are_accepted(headers: dict[str, str], status: int) -> None:
    async with (
        Simulator(credentials={"right"}) as simulator,
        aiohttp.ClientSession(simulator.origin, headers=headers) as http,
        http.post("/v1/messages", json=ASK) as answer,
    ):
        assert answer.status == status


@pytest.mark.parametrize(("accept_any_model", "status"), [(False, 404), (True, 200)])
async def test_unknown_models_are_not_found_unless_any_is_accepted(accept_any_model: bool, status: int) -> None:
    async with (
        Simulator(accept_any_model=accept_any_model) as simulator,
        aiohttp.ClientSession(simulator.origin) as http,
        http.post("/v1/messages", json=ASK | {"model": "another"}) as answer,
    ):
        assert answer.status == status


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"model":"claude-opus-5-5","messages":[]}', b'{"model":"\xff"}']
)
async def test_bodies_that_are_no_request_are_refused_and_use_up_no_script(
    simulator: Simulator, http: aiohttp.ClientSession, body: bytes
) -> None:
    simulator.next(Script(status=529))
    async with http.post("/v1/messages", data=body) as answer:
        assert answer.status == 400
    async with http.post("/v1/messages", json=ASK) as answer:
        assert answer.status == 529


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/messages"), ("POST", "/v1/files"), ("GET", "/")])
async def test_other_paths_are_not_found(http: aiohttp.ClientSession, method: str, path: str) -> None:
    async with http.request(method, path) as answer:
        assert answer.status == 404
        assert (await answer.json())["error"]["type"] == "not_found_error"


async def test_models_are_listed_in_pages_and_found_without_their_date(sdk: anthropic.AsyncAnthropic) -> None:
    assert [model.id async for model in sdk.models.list(limit=1)] == list(MODELS)
    backwards = await sdk.models.list(limit=1, before_id=MODELS[2])
    assert [model.id for model in backwards.data] == [MODELS[1]]
    assert backwards.has_more
    assert (await sdk.models.retrieve("claude-haiku-4-5")).id == "claude-haiku-4-5-20251001"
    with pytest.raises(anthropic.NotFoundError):
        await sdk.models.retrieve("another")


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "after_id=another"])
async def test_senseless_pages_are_refused(http: aiohttp.ClientSession, query: str) -> None:
    async with http.get(f"/v1/models?{query}") as answer:
        assert answer.status == 400


async def test_counting_tokens_agrees_with_the_message_and_is_not_metered(
    simulator: Simulator, sdk: anthropic.AsyncAnthropic
) -> None:
    counted = await sdk.messages.count_tokens(model=MODEL, messages=ASK["messages"])
    assert counted.input_tokens == ASK_TOKENS
    assert simulator.messages() == []
    assert simulator.reported_total() == NO_USAGE


async def test_images_do_not_count_by_their_bytes(simulator: Simulator, http: aiohttp.ClientSession) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "A" * 500_000}
    content = [{"type": "image", "source": source}]
    await fetch(http, ASK | {"messages": [{"role": "user", "content": content}]})
    assert 1_500 < simulator.received[-1].reported.input < 1_600


async def test_requests_are_remembered_as_they_came(simulator: Simulator, http: aiohttp.ClientSession) -> None:
    body = json.dumps(ASK, indent=3).encode()
    headers = [("X-Twice", "1"), ("X-Twice", "2")]
    async with http.post("/v1/messages?beta=true&%7e=%2F", data=body, headers=headers) as answer:
        written = await answer.read()
    [received] = simulator.received
    assert (received.body, received.body_length) == (body, len(body))
    assert received.body_sha256 == sha256(body).hexdigest()
    assert received.endpoint == "/v1/messages"
    assert [value for name, value in received.headers if name == "X-Twice"] == ["1", "2"]
    assert received.answer_sha256 == sha256(written).hexdigest()


async def test_the_raw_path_is_remembered(simulator: Simulator) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
    writer.write(b"GET /v1/models?%7e=%2F&a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    await reader.read()
    writer.close()
    await writer.wait_closed()
    assert simulator.received[-1].path == "/v1/models?%7e=%2F&a"


async def test_bodies_are_forgotten_on_demand_but_not_their_digests() -> None:
    async with Simulator(remember_bodies=False) as simulator, aiohttp.ClientSession(simulator.origin) as http:
        await fetch(http)
        [received] = simulator.received
        assert received.body == b""
        assert received.body_length > 0
        assert received.completed


async def test_answers_carry_what_a_gateway_must_drop(http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/messages", json=ASK) as answer:
        present = {name.lower() for name in answer.headers}
    assert {"request-id", "anthropic-organization-id", "set-cookie"} <= present
    assert "anthropic-ratelimit-tokens-remaining" in present


@pytest.mark.parametrize("cut", ["reset", "close"])
async def test_a_cut_at_any_event_breaks_the_body_there(
    simulator: Simulator, http: aiohttp.ClientSession, cut: Literal["reset", "close", "end"]
) -> None:
    whole = await fetch(http)
    for events in range(EVENTS + 1):
        simulator.next(Script(cut_after_events=events, cut=cut))
        arrived = await fetch_broken(http)
        assert whole.startswith(arrived)
        assert len(event_names(arrived)) == events
        received = simulator.received[-1]
        outputs = 0 if events == 0 else 1 if events < EVENTS - 1 else 12
        assert received.reported.output == outputs
        assert received.completed is (events == EVENTS)
        assert not received.disconnected


async def test_a_stream_can_end_properly_without_its_last_event(
    simulator: Simulator, http: aiohttp.ClientSession
) -> None:
    simulator.script = Script(cut_after_events=EVENTS - 1, cut="end")
    assert event_names(await fetch(http))[-1] == "message_delta"
    assert not simulator.received[-1].completed


@pytest.mark.parametrize("cut", ["reset", "close", "end"])
async def test_a_json_answer_can_be_cut_at_a_byte(
    simulator: Simulator, http: aiohttp.ClientSession, cut: Literal["reset", "close", "end"]
) -> None:
    simulator.script = Script(cut_after_bytes=100, cut=cut)
    assert len(await fetch_broken(http, ASK)) == 100
    assert simulator.received[-1].reported == NO_USAGE


async def test_a_reset_loses_nothing_that_was_written(simulator: Simulator, http: aiohttp.ClientSession) -> None:
    simulator.script = Script(long_data_line_bytes=3_000_000, cut_after_events=EVENTS)
    assert len(event_names(await fetch_broken(http))) == EVENTS


async def test_an_error_event_ends_the_stream(simulator: Simulator, sdk: anthropic.AsyncAnthropic) -> None:
    simulator.script = Script(error_event_after_events=4)
    with pytest.raises(anthropic.APIStatusError, match="told to fail"):
        async with sdk.messages.stream(**ASK) as stream:
            await stream.get_final_message()
    assert simulator.received[-1].reported == Usage(input=ASK_TOKENS, output=1)
    assert not simulator.received[-1].completed


@pytest.mark.parametrize("script", [Script(stall_after_events=3), Script(first_byte_delay_seconds=60)])
async def test_a_client_that_leaves_is_noticed_at_once(
    simulator: Simulator, http: aiohttp.ClientSession, script: Script
) -> None:
    simulator.script = script
    call = asyncio.ensure_future(fetch(http))
    await simulator.arrived(1)
    call.cancel()
    received = simulator.received[-1]
    await asyncio.wait_for(received.ended.wait(), timeout=1)
    assert received.disconnected
    assert not received.completed


async def test_stopping_breaks_streams_off_and_blames_no_client(
    simulator: Simulator, http: aiohttp.ClientSession
) -> None:
    simulator.script = Script(stall_after_events=3)
    call = asyncio.ensure_future(fetch_broken(http))
    await simulator.arrived(1)
    await simulator.stop()
    assert len(event_names(await call)) == 3
    assert not simulator.received[-1].disconnected


@pytest.mark.parametrize("stall_after_events", [0, 3])
async def test_a_stall_delays_only_what_comes_after_it(
    simulator: Simulator, http: aiohttp.ClientSession, stall_after_events: int
) -> None:
    simulator.script = Script(stall_after_events=stall_after_events, stall_seconds=0.05)
    async with http.post("/v1/messages", json=STREAM) as answer:
        assert not answer.content.at_eof()
        assert not simulator.received[-1].ended.is_set()
        assert len(event_names(await answer.read())) == EVENTS


async def test_paced_events_leave_one_by_one(simulator: Simulator, http: aiohttp.ClientSession) -> None:
    simulator.script = Script(pause_seconds=0.002)
    async with http.post("/v1/messages", json=STREAM) as answer:
        chunks = [chunk async for chunk, _ in answer.content.iter_chunks()]
    assert len(chunks) == EVENTS
    assert len(simulator.received[-1].answer_pieces) == EVENTS


@pytest.mark.parametrize("script", [Script(split_bytes=1), Script(split_bytes=40, split_seed=7)])
async def test_division_changes_no_byte(simulator: Simulator, http: aiohttp.ClientSession, script: Script) -> None:
    simulator.next(Script(), script, script)
    first, *others = [await fetch(http) for _ in range(3)]
    assert others == [first, first]
    _, once, again = simulator.received
    assert len(once.answer_pieces) > 10
    assert once.answer_pieces == again.answer_pieces


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("ask", [ASK, STREAM])
async def test_compression_comes_whether_asked_for_or_not(
    simulator: Simulator, http: aiohttp.ClientSession, encoding: Literal["gzip", "deflate"], ask: dict[str, Any]
) -> None:
    plain = await fetch(http, ask)
    simulator.script = Script(encoding=encoding)
    async with http.post("/v1/messages", json=ask, headers={"accept-encoding": "identity"}) as answer:
        assert answer.headers["content-encoding"] == encoding
        assert await answer.read() == plain


async def test_each_event_is_flushed_when_compressed(simulator: Simulator, http: aiohttp.ClientSession) -> None:
    simulator.script = Script(encoding="gzip", stall_after_events=3)
    async with http.post("/v1/messages", json=STREAM) as answer:
        arrived = b""
        while len(event_names(arrived)) < 3:
            arrived += await asyncio.wait_for(answer.content.readany(), timeout=1)
    assert arrived.endswith(b"\n\n")


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("spaced_json", [False, True])
async def test_line_ends_and_spacing_change_no_meaning(
    simulator: Simulator, http: aiohttp.ClientSession, line_end: Literal["\n", "\r\n", "\r"], spaced_json: bool
) -> None:
    usual = await fetch(http)
    simulator.script = Script(line_end=line_end, spaced_json=spaced_json)
    stream = await fetch(http)
    assert stream.endswith((line_end * 2).encode())
    data = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith(b"data: ")]
    assert data == [json.loads(line[6:]) for line in usual.splitlines() if line.startswith(b"data: ")]
    assert (b'": ' in stream) is spaced_json


FULL = Usage(input=100, output=50, cache_write=20, cache_read=1_000)


@pytest.mark.parametrize(
    ("script", "reported"),
    [
        (Script(usage=FULL), FULL),
        (Script(over_report=1_000), Usage(input=ASK_TOKENS, output=1_012)),
        (Script(usage=FULL, message_deltas=5), FULL),
        (Script(usage=FULL, start_usage=Usage(input=7, output=1)), Usage(input=7, output=50)),
        (Script(usage=FULL, start_usage=Usage(input=7, output=1), restate_input=True), FULL),
        (Script(usage=FULL, omit_start_usage=True), Usage(output=50)),
        (Script(usage=FULL, omit_start_usage=True, restate_input=True), FULL),
        (Script(omit_usage=True), NO_USAGE),
        (Script(null_usage=True), NO_USAGE),
        (
            Script(iterations=(("message", Usage(input=3, output=12)), ("compaction", Usage(input=90, output=5)))),
            Usage(input=93, output=17),
        ),
    ],
)
async def test_what_was_reported_is_what_a_reader_of_the_stream_finds(
    simulator: Simulator, http: aiohttp.ClientSession, script: Script, reported: Usage
) -> None:
    simulator.script = script
    found = usage_in(await fetch(http))
    assert simulator.received[-1].reported == reported == found


def usage_in(stream: bytes) -> Usage:
    """By the SDKs' rule: each field present overwrites; iterations count if they are more."""
    fields: dict[str, Any] = {}
    for line in stream.splitlines():
        if line.startswith(b"data: "):
            event = json.loads(line[6:])
            fields |= event.get("message", event).get("usage") or {}
    steps = fields.get("iterations", [])

    def count(name: str) -> int:
        return int(max(fields.get(name, 0), sum(step[name] for step in steps)))

    return Usage(
        input=count("input_tokens"),
        output=count("output_tokens"),
        cache_write=count("cache_creation_input_tokens"),
        cache_read=count("cache_read_input_tokens"),
    )


async def test_bytes_may_follow_the_end(simulator: Simulator, http: aiohttp.ClientSession) -> None:
    simulator.script = Script(trailing_bytes=b": bye\n\n")
    stream = await fetch(http)
    assert stream.endswith(b'data: {"type":"message_stop"}\n\n: bye\n\n')
    assert simulator.received[-1].completed


async def test_a_body_of_unknown_length_is_chunked_or_ends_with_the_connection(
    simulator: Simulator, http: aiohttp.ClientSession
) -> None:
    simulator.next(Script(), Script(chunked_json=True), Script(close_delimited=True))
    seen = []
    for _ in range(3):
        async with http.post("/v1/messages", json=ASK) as answer:
            known = "content-length" in answer.headers
            seen.append((known, answer.headers.get("transfer-encoding"), len(await answer.read()) > 100))
    assert seen == [(True, None, True), (False, "chunked", True), (False, None, True)]


async def test_early_hints_come_before_the_answer(simulator: Simulator, sdk: anthropic.AsyncAnthropic) -> None:
    simulator.script = Script(informational=2)
    assert (await sdk.messages.create(**ASK)).stop_reason == "end_turn"


async def test_a_raw_body_is_sent_as_it_is(simulator: Simulator, http: aiohttp.ClientSession) -> None:
    simulator.script = Script(body=b"data: nonsense\n\n", content_type="text/event-stream", usage=FULL)
    async with http.post("/v1/messages", json=STREAM) as answer:
        assert answer.content_type == "text/event-stream"
        assert await answer.read() == b"data: nonsense\n\n"
    assert simulator.reported_total() == FULL


async def test_two_hundred_streams_at_once_are_all_answered(
    simulator: Simulator, http: aiohttp.ClientSession
) -> None:
    streams = await asyncio.gather(*(fetch(http) for _ in range(200)))
    assert set(streams) == {streams[0]}
    assert simulator.reported_total() == Usage(input=200 * ASK_TOKENS, output=200 * 12)


async def test_it_runs_as_a_process_of_its_own() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.simulator", "--port", "0", "--output-tokens", "5", "--events", "2"),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    assert process.stdout is not None
    origin = (await asyncio.wait_for(process.stdout.readline(), timeout=5)).decode().strip()
    async with aiohttp.ClientSession(origin) as http:
        assert usage_in(await fetch(http)) == Usage(input=ASK_TOKENS, output=5)
    process.terminate()
    await process.wait()
