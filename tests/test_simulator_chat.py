"""The simulated provider's chat completions, with the quirks of OpenAI's vendors, remembered truly."""

from typing import Any, Literal, get_args

import aiohttp
import pytest

from gateway.core.usage import NO_USAGE, Usage
from gateway.simulator import Script, Simulator
from tests.openai_answers import (
    CHAT,
    CHAT_ASK,
    CHAT_EVENTS,
    CHAT_TOKENS,
    FULL,
    MODEL,
    STREAM,
    TEXT,
    TOLD,
    TOOL_CALL,
    USAGE_ASKED,
    chunks_of,
    fetch,
    fetch_broken,
    fetch_json,
    http,
    joined,
    last_usage,
    read_chat_usage,
    simulator,
)

__all__ = ["http", "simulator"]


async def test_a_chat_is_answered_truthfully(simulator: Simulator, http: aiohttp.ClientSession) -> None:
    chat = await fetch_json(http, CHAT, CHAT_ASK)
    assert (chat["object"], chat["model"]) == ("chat.completion", MODEL)
    [choice] = chat["choices"]
    assert choice["message"] == {"role": "assistant", "content": TEXT, "refusal": None, "annotations": []}
    assert choice["finish_reason"] == "stop"
    assert read_chat_usage(chat["usage"]) == Usage(input=CHAT_TOKENS, output=12) == simulator.reported_total()
    [received] = simulator.messages()
    assert received.completed
    assert (received.status, received.model) == (200, MODEL)


async def test_a_streamed_chat_says_the_same_and_its_usage_only_when_asked(
    simulator: Simulator, http: aiohttp.ClientSession
) -> None:
    silent = chunks_of(await fetch(http, CHAT, CHAT_ASK | STREAM))
    asked = chunks_of(await fetch(http, CHAT, CHAT_ASK | USAGE_ASKED))
    for chunks in (silent, asked):
        assert joined(chunks, "content") == TEXT
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert not any("usage" in chunk for chunk in silent)
    assert [chunk["usage"] for chunk in asked[:-1]] == [None] * (CHAT_EVENTS - 2)
    assert asked[-1]["choices"] == []
    assert last_usage(asked) == Usage(input=CHAT_TOKENS, output=12)
    assert [entry.reported for entry in simulator.messages()] == [NO_USAGE, Usage(input=CHAT_TOKENS, output=12)]
    assert [entry.completed for entry in simulator.messages()] == [True, True]


async def test_every_choice_is_told_and_counted(simulator: Simulator, http: aiohttp.ClientSession) -> None:
    plain = await fetch_json(http, CHAT, CHAT_ASK | {"n": 3})
    chunks = chunks_of(await fetch(http, CHAT, CHAT_ASK | USAGE_ASKED | {"n": 3}))
    assert [choice["message"]["content"] for choice in plain["choices"]] == [TEXT] * 3
    assert [joined(chunks, "content", index) for index in range(3)] == [TEXT] * 3
    ends = [entry for chunk in chunks for entry in chunk["choices"] if entry["finish_reason"]]
    assert [(entry["index"], entry["delta"]) for entry in ends] == [(0, {}), (1, {}), (2, {})]
    assert {entry.reported for entry in simulator.messages()} == {Usage(input=CHAT_TOKENS, output=36)}


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_output_never_exceeds_the_maximum_of_a_chat(http: aiohttp.ClientSession, name: str) -> None:
    chat = await fetch_json(http, CHAT, CHAT_ASK | {name: 3})
    assert chat["usage"]["completion_tokens"] == 3
    assert chat["choices"][0]["finish_reason"] == "length"


def chat_tool(choice: object) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "take_note"}}], "tool_choice": choice}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "take_note"}}])
async def test_a_chat_calls_a_forced_tool(http: aiohttp.ClientSession, choice: object) -> None:
    ask = CHAT_ASK | chat_tool(choice)
    [plain] = (await fetch_json(http, CHAT, ask))["choices"]
    assert (plain["finish_reason"], plain["message"]["content"]) == ("tool_calls", None)
    assert plain["message"]["tool_calls"] == [{"id": "call_simulated", "type": "function", "function": TOOL_CALL}]
    chunks = chunks_of(await fetch(http, CHAT, ask | STREAM))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert "".join(call["function"]["arguments"] for call in calls) == TOOL_CALL["arguments"]
    assert calls[0]["function"]["name"] == "take_note"
    assert {call["index"] for call in calls} == {0}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("choice", ["auto", "none", None])
async def test_a_chat_calls_no_tool_unforced_unless_the_script_says_so(
    simulator: Simulator, http: aiohttp.ClientSession, choice: object
) -> None:
    simulator.next(Script(), Script(tool_use=True))
    reasons = [(await fetch_json(http, CHAT, CHAT_ASK | chat_tool(choice)))["choices"][0] for _ in range(2)]
    assert [reason["finish_reason"] for reason in reasons] == ["stop", "tool_calls"]


@pytest.mark.parametrize(("thinking", "thought"), [("shown", TEXT[:24]), ("hidden", "")])
async def test_reasoning_is_counted_and_told_if_shown(
    simulator: Simulator, http: aiohttp.ClientSession, thinking: Literal["shown", "hidden"], thought: str
) -> None:
    simulator.script = Script(thinking=thinking)
    plain = await fetch_json(http, CHAT, CHAT_ASK)
    chunks = chunks_of(await fetch(http, CHAT, CHAT_ASK | USAGE_ASKED))
    assert plain["choices"][0]["message"].get("reasoning_content", "") == thought
    assert joined(chunks, "reasoning_content") == thought
    assert joined(chunks, "content") == TEXT[:24]
    for usage in (plain["usage"], chunks[-1]["usage"]):
        assert usage["completion_tokens_details"]["reasoning_tokens"] == 6
        assert usage["completion_tokens"] == 12


async def test_a_content_filter_ends_a_chat(simulator: Simulator, http: aiohttp.ClientSession) -> None:
    simulator.script = Script(content_filter=True)
    assert (await fetch_json(http, CHAT, CHAT_ASK))["choices"][0]["finish_reason"] == "content_filter"


async def test_a_chat_may_hold_a_long_line_chunks_without_choices_comments_and_padding(
    simulator: Simulator, http: aiohttp.ClientSession
) -> None:
    simulator.script = Script(long_data_line_bytes=3_000_000, unknown_events=2, comments=3, obfuscation=True)
    stream = await fetch(http, CHAT, CHAT_ASK | USAGE_ASKED)
    chunks = chunks_of(stream)
    assert max(map(len, stream.splitlines())) > 3_000_000
    assert stream.count(b": keep-alive\n\n") == 3
    assert [bool(chunk.get("prompt_filter_results")) for chunk in chunks if not chunk["choices"]] == [
        *(True, True),
        False,
    ]
    assert sum("obfuscation" in chunk for chunk in chunks) == 6
    assert joined(chunks, "content") == TEXT
    declined = USAGE_ASKED | {"stream_options": {"include_obfuscation": False}}
    assert b"obfuscation" not in await fetch(http, CHAT, CHAT_ASK | declined)


@pytest.mark.parametrize(
    ("script", "reported"),
    [
        (Script(usage=FULL), TOLD),
        (Script(usage=FULL, chat_usage="last_chunk"), TOLD),
        (Script(usage=FULL, chat_usage="last_choice"), TOLD),
        (Script(usage=FULL, chat_usage="every_chunk"), TOLD),
        (Script(usage=FULL, chat_usage="late_choice"), TOLD),
        (Script(usage=FULL, chat_usage="x_groq"), TOLD),
        (Script(usage=FULL, cached_tokens="prompt_cache_hit_tokens", chat_usage="last_chunk"), TOLD),
        (Script(usage=FULL, cached_tokens="cached_tokens"), TOLD),
        (Script(usage=FULL, cached_tokens="nowhere"), Usage(input=1_120, output=50)),
        (Script(over_report=1_000), Usage(input=CHAT_TOKENS, output=1_012)),
        (Script(thinking="hidden", reasoning_apart=True), Usage(input=CHAT_TOKENS, output=12)),
        (Script(omit_usage=True), NO_USAGE),
        (Script(null_usage=True), NO_USAGE),
        (Script(null_usage=True, chat_usage="every_chunk"), NO_USAGE),
        (Script(null_usage=True, chat_usage="last_choice"), NO_USAGE),
        (Script(omit_usage=True, chat_usage="x_groq"), NO_USAGE),
    ],
)
async def test_what_a_chat_reported_is_what_a_reader_finds(
    simulator: Simulator, http: aiohttp.ClientSession, script: Script, reported: Usage
) -> None:
    simulator.script = script
    assert last_usage(chunks_of(await fetch(http, CHAT, CHAT_ASK | USAGE_ASKED))) == reported
    assert last_usage([await fetch_json(http, CHAT, CHAT_ASK)]) == reported
    assert [entry.reported for entry in simulator.messages()] == [reported] * 2


VendorPlace = Literal["last_chunk", "last_choice", "every_chunk", "late_choice", "x_groq"]


@pytest.mark.parametrize("place", get_args(VendorPlace))
async def test_vendors_report_unasked(
    simulator: Simulator, http: aiohttp.ClientSession, place: VendorPlace
) -> None:
    simulator.script = Script(chat_usage=place)
    chunks = chunks_of(await fetch(http, CHAT, CHAT_ASK | STREAM | {"n": 2}))
    assert all(chunk["choices"] for chunk in chunks)
    assert last_usage(chunks) == simulator.reported_total() == Usage(input=CHAT_TOKENS, output=24)


async def test_a_vendor_may_leave_the_reasoning_out_of_the_completion(
    simulator: Simulator, http: aiohttp.ClientSession
) -> None:
    simulator.script = Script(thinking="shown", reasoning_apart=True)
    usage = (await fetch_json(http, CHAT, CHAT_ASK))["usage"]
    assert (usage["completion_tokens"], usage["total_tokens"]) == (6, CHAT_TOKENS + 12)
    assert simulator.reported_total() == Usage(input=CHAT_TOKENS, output=12)


async def test_a_count_in_every_chunk_is_cumulative(simulator: Simulator, http: aiohttp.ClientSession) -> None:
    simulator.script = Script(chat_usage="every_chunk")
    chunks = chunks_of(await fetch(http, CHAT, CHAT_ASK | STREAM))
    outputs = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert outputs == sorted(outputs)
    assert outputs[-1] == 12
    assert outputs[0] < 12
    simulator.script = Script(chat_usage="every_chunk", cut_after_events=3)
    await fetch_broken(http, CHAT, CHAT_ASK | STREAM)
    assert simulator.received[-1].reported == Usage(input=CHAT_TOKENS, output=outputs[2])
