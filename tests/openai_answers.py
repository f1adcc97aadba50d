"""How the tests of the simulated provider ask OpenAI's endpoints, and read what it answers as a client would."""

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from gateway.core.usage import NO_USAGE, Usage
from gateway.simulator import Simulator

MODEL = "gpt-5.6"
CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"
CHAT_ASK: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hey"}]}
RESPONSE_ASK: dict[str, Any] = {"model": MODEL, "input": "Hey, you there"}
EMBEDDINGS_ASK: dict[str, Any] = {"model": "text-embedding-3-small", "input": ["one two", "three"]}
CHAT_TOKENS, RESPONSE_TOKENS, EMBEDDINGS_TOKENS = 9, 4, 4
"""A quarter of the bytes of the messages, of the input, of each text; rounded up."""
STREAM: dict[str, Any] = {"stream": True}
USAGE_ASKED: dict[str, Any] = STREAM | {"stream_options": {"include_usage": True}}
CHAT_EVENTS = 8
"""Of a default stream with usage: role, 4 deltas, finish reason, usage, [DONE]."""
RESPONSE_EVENTS = 12
"""Created, in progress, item, part, 4 deltas, text, part, item, completed."""
TEXT = "the old cat sat and saw one big red sun the old "
TOOL_CALL = {"name": "take_note", "arguments": '{"note": "the old cat sat and saw one big red "}'}
FULL = Usage(input=100, output=50, cache_write=20, cache_read=1_000)
TOLD = Usage(input=120, output=50, cache_read=1_000)
"""What a reader takes from it: what was written to the cache stays in the input."""


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator() as running:
        yield running


@pytest.fixture
async def http(simulator: Simulator) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(simulator.origin) as session:
        yield session


async def fetch(http: aiohttp.ClientSession, path: str, ask: dict[str, Any]) -> bytes:
    async with http.post(path, json=ask) as answer:
        assert answer.status == 200
        return await answer.read()


async def fetch_json(http: aiohttp.ClientSession, path: str, ask: dict[str, Any]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(await fetch(http, path, ask))
    return value


async def fetch_broken(http: aiohttp.ClientSession, path: str, ask: dict[str, Any]) -> bytes:
    """What arrives before the connection breaks; fails if it does not break."""
    arrived = bytearray()
    with pytest.raises((aiohttp.ClientPayloadError, ConnectionResetError)):  # noqa: PT012 - the body breaks anywhere
        async with http.post(path, json=ask) as answer:
            async for chunk in answer.content.iter_any():
                arrived += chunk
    return bytes(arrived)


async def refused(http: aiohttp.ClientSession, path: str, ask: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    async with http.post(path, json=ask) as answer:
        body = await answer.json()
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
        return answer.status, body["error"]


def data_of(stream: bytes) -> list[str]:
    return [line[6:].decode() for line in stream.splitlines() if line.startswith(b"data: ")]


def chunks_of(stream: bytes) -> list[dict[str, Any]]:
    """Of a whole chat."""
    *chunks, last = data_of(stream)
    assert last == "[DONE]"
    return [json.loads(chunk) for chunk in chunks]


def events_of(stream: bytes) -> list[dict[str, Any]]:
    """Of a response, whose names stand beside the data as well as in it."""
    events = [json.loads(data) for data in data_of(stream)]
    named = [line[7:].decode() for line in stream.splitlines() if line.startswith(b"event: ")]
    assert named == [event["type"] for event in events]
    return events


def joined(chunks: list[dict[str, Any]], field: str, choice: int = 0) -> str:
    deltas = [entry["delta"] for chunk in chunks for entry in chunk["choices"] if entry["index"] == choice]
    return "".join(delta.get(field) or "" for delta in deltas)


def read_chat_usage(usage: dict[str, Any]) -> Usage:
    """As a client reads it: cached tokens are part of the prompt, wherever they stand."""
    details = usage.get("prompt_tokens_details") or {}
    places = (details, "cached_tokens"), (usage, "prompt_cache_hit_tokens"), (usage, "cached_tokens")
    cached = next((place[name] for place, name in places if name in place), 0)
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens", 0)
    output = usage["total_tokens"] - usage["prompt_tokens"]
    assert output - usage["completion_tokens"] in (0, reasoning)
    return Usage(input=usage["prompt_tokens"] - cached, output=output, cache_read=cached)


def last_usage(chunks: list[dict[str, Any]]) -> Usage:
    """The last that is not null, wherever it stands."""
    places = [place for chunk in chunks for place in (chunk, chunk.get("x_groq", {}), *chunk["choices"])]
    found = [place["usage"] for place in places if place.get("usage")]
    return read_chat_usage(found[-1]) if found else NO_USAGE


def read_response_usage(usage: dict[str, Any]) -> Usage:
    cached = usage["input_tokens_details"]["cached_tokens"] if "input_tokens_details" in usage else 0
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    return Usage(input=usage["input_tokens"] - cached, output=usage["output_tokens"], cache_read=cached)
