"""The simulated provider's responses: OpenAI's events in their order, and a usage that can be found in them."""

from typing import Any, Literal

import aiohttp
import pytest

from gateway.core.usage import NO_USAGE, Usage
from gateway.simulator import Script, Simulator
from tests.openai_answers import (
    FULL,
    RESPONSE_ASK,
    RESPONSE_EVENTS,
    RESPONSE_TOKENS,
    RESPONSES,
    STREAM,
    TEXT,
    TOLD,
    TOOL_CALL,
    events_of,
    fetch,
    fetch_json,
    http,
    read_response_usage,
    simulator,
)

__all__ = ["http", "simulator"]


async def test_a_response_is_answered_truthfully(simulator: Simulator, http: aiohttp.ClientSession) -> None:
    response = await fetch_json(http, RESPONSES, RESPONSE_ASK)
    assert (response["object"], response["status"], response["error"]) == ("response", "completed", None)
    [item] = response["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [{"type": "output_text", "annotations": [], "logprobs": [], "text": TEXT}]
    assert read_response_usage(response["usage"]) == Usage(input=RESPONSE_TOKENS, output=12)
    assert simulator.reported_total() == Usage(input=RESPONSE_TOKENS, output=12)


async def test_a_streamed_response_has_the_real_events_in_order(
    simulator: Simulator, http: aiohttp.ClientSession
) -> None:
    plain = await fetch_json(http, RESPONSES, RESPONSE_ASK)
    events = events_of(await fetch(http, RESPONSES, RESPONSE_ASK | STREAM))
    assert [event["type"].removeprefix("response.") for event in events] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * 4,
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert [event["sequence_number"] for event in events] == list(range(RESPONSE_EVENTS))
    assert "".join(event["delta"] for event in events if "delta" in event) == TEXT
    assert [event["response"]["usage"] for event in events[:2]] == [None, None]
    assert events[-1]["response"] == plain
    assert {entry.reported for entry in simulator.messages()} == {Usage(input=RESPONSE_TOKENS, output=12)}


async def test_usage_is_not_the_last_field_of_a_response_and_the_request_is_echoed(
    http: aiohttp.ClientSession,
) -> None:
    said = {"metadata": {"usage": "canary"}, "instructions": "Be brief.", "max_output_tokens": 50, "store": False}
    response = await fetch_json(http, RESPONSES, RESPONSE_ASK | said)
    assert {name: response[name] for name in said} == said
    assert list(response)[-3:] == ["usage", "user", "metadata"]
    assert response["usage"]["input_tokens"] == RESPONSE_TOKENS + 3
    assert "input" not in response


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "take_note"}])
async def test_a_response_calls_a_forced_tool(http: aiohttp.ClientSession, choice: object) -> None:
    ask = RESPONSE_ASK | {"tools": [{"type": "function", "name": "take_note"}], "tool_choice": choice}
    events = events_of(await fetch(http, RESPONSES, ask | STREAM))
    [item] = (await fetch_json(http, RESPONSES, ask))["output"]
    assert {name: item[name] for name in TOOL_CALL} == TOOL_CALL
    assert (item["type"], item["call_id"]) == ("function_call", "call_simulated")
    names = [event["type"] for event in events]
    deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(deltas) == TOOL_CALL["arguments"]
    assert "response.function_call_arguments.done" in names
    assert events[-1]["response"]["output"] == [item]


@pytest.mark.parametrize("thinking", ["shown", "hidden"])
async def test_a_response_reasons_before_it_speaks(
    simulator: Simulator, http: aiohttp.ClientSession, thinking: Literal["shown", "hidden"]
) -> None:
    simulator.script = Script(thinking=thinking)
    events = events_of(await fetch(http, RESPONSES, RESPONSE_ASK | STREAM))
    response = events[-1]["response"]
    assert [item["type"] for item in response["output"]] == ["reasoning", "message"]
    thought = [part["text"] for part in response["output"][0]["summary"]]
    deltas = [event["delta"] for event in events if event["type"] == "response.reasoning_summary_text.delta"]
    assert "".join(deltas) == "".join(thought) == (TEXT[:24] if thinking == "shown" else "")
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == 6
    assert response["usage"]["output_tokens"] == 12


async def test_a_terminal_event_of_megabytes_states_the_whole_output_again(
    simulator: Simulator, http: aiohttp.ClientSession
) -> None:
    simulator.script = Script(long_data_line_bytes=3_000_000)
    stream = await fetch(http, RESPONSES, RESPONSE_ASK | STREAM)
    events = events_of(stream)
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert events[-1]["response"]["output"] == done
    assert [item["type"] for item in done] == ["image_generation_call", "message"]
    assert sum(len(line) > 3_000_000 for line in stream.splitlines()) == 2
    assert read_response_usage(events[-1]["response"]["usage"]) == simulator.reported_total()


@pytest.mark.parametrize(
    ("script", "ask", "status", "reason"),
    [
        (Script(), {"max_output_tokens": 3}, "incomplete", "max_output_tokens"),
        (Script(content_filter=True), {}, "incomplete", "content_filter"),
        (Script(response_failed=True), {}, "failed", None),
        (Script(response_failed=True, null_usage=True), {}, "failed", None),
    ],
)
async def test_a_response_may_end_otherwise_and_is_complete_all_the_same(
    simulator: Simulator,
    http: aiohttp.ClientSession,
    script: Script,
    ask: dict[str, Any],
    status: str,
    reason: str | None,
) -> None:
    simulator.script = script
    last = events_of(await fetch(http, RESPONSES, RESPONSE_ASK | ask | STREAM))[-1]
    response = last["response"]
    assert (last["type"], response["status"]) == (f"response.{status}", status)
    assert response["incomplete_details"] == ({"reason": reason} if reason else None)
    assert (response["error"] is not None) is (status == "failed")
    assert response == await fetch_json(http, RESPONSES, RESPONSE_ASK | ask)
    assert (response["usage"] is None) is script.null_usage
    assert all(entry.completed for entry in simulator.messages())


@pytest.mark.parametrize(
    ("script", "reported"),
    [
        (Script(usage=FULL), TOLD),
        (Script(usage=FULL, cached_tokens="nowhere"), Usage(input=1_120, output=50)),
        (Script(over_report=1_000), Usage(input=RESPONSE_TOKENS, output=1_012)),
        (Script(omit_usage=True), NO_USAGE),
        (Script(null_usage=True), NO_USAGE),
    ],
)
async def test_what_a_response_reported_is_what_a_reader_finds(
    simulator: Simulator, http: aiohttp.ClientSession, script: Script, reported: Usage
) -> None:
    simulator.script = script
    response = events_of(await fetch(http, RESPONSES, RESPONSE_ASK | STREAM))[-1]["response"]
    usage = response.get("usage")
    assert ("usage" in response) is not script.omit_usage
    assert simulator.received[-1].reported == reported == (read_response_usage(usage) if usage else NO_USAGE)


async def test_sequence_numbers_rise_over_unknown_events_and_comments_have_none(
    simulator: Simulator, http: aiohttp.ClientSession
) -> None:
    simulator.script = Script(comments=3, unknown_events=30, obfuscation=True)
    stream = await fetch(http, RESPONSES, RESPONSE_ASK | STREAM)
    events = events_of(stream)
    assert [event["sequence_number"] for event in events] == list(range(RESPONSE_EVENTS + 30))
    assert stream.count(b": keep-alive\n\n") == 3
    assert all("obfuscation" in event for event in events if "delta" in event)
