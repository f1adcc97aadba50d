"""The simulated provider's embeddings: numbers or base64, and no output to count."""

import struct
from base64 import b64decode

import aiohttp
import pytest

from gateway.core.usage import Usage
from gateway.simulator import Script, Simulator
from tests.openai_answers import (
    EMBEDDINGS,
    EMBEDDINGS_ASK,
    EMBEDDINGS_TOKENS,
    FULL,
    fetch_json,
    http,
    simulator,
)

__all__ = ["http", "simulator"]


async def test_embeddings_are_the_same_as_numbers_and_as_base64(
    simulator: Simulator, http: aiohttp.ClientSession
) -> None:
    numbers = await fetch_json(http, EMBEDDINGS, EMBEDDINGS_ASK)
    packed = await fetch_json(http, EMBEDDINGS, EMBEDDINGS_ASK | {"encoding_format": "base64"})
    vectors = [entry["embedding"] for entry in numbers["data"]]
    assert [len(vector) for vector in vectors] == [1_536] * 2
    assert vectors[0] != vectors[1]
    assert sum(value**2 for value in vectors[0]) == pytest.approx(1)
    unpacked = [list(struct.unpack("<1536f", b64decode(entry["embedding"]))) for entry in packed["data"]]
    assert unpacked == vectors
    assert packed["usage"] == {"prompt_tokens": EMBEDDINGS_TOKENS, "total_tokens": EMBEDDINGS_TOKENS}
    assert {entry.reported for entry in simulator.messages()} == {Usage(input=EMBEDDINGS_TOKENS)}


@pytest.mark.parametrize(
    ("given", "vectors", "tokens"),
    [("four", 1, 1), ([1, 2, 3], 1, 3), ([[1, 2, 3], [4]], 2, 4), (["one", "two"], 2, 2)],
)
async def test_embeddings_are_made_of_texts_and_of_tokens(
    http: aiohttp.ClientSession, given: object, vectors: int, tokens: int
) -> None:
    answer = await fetch_json(http, EMBEDDINGS, EMBEDDINGS_ASK | {"input": given, "dimensions": 4})
    assert [len(entry["embedding"]) for entry in answer["data"]] == [4] * vectors
    assert answer["usage"]["prompt_tokens"] == tokens


@pytest.mark.parametrize(
    ("script", "tokens"),
    [
        (Script(usage=FULL), 1_120),
        (Script(over_report=1_000), EMBEDDINGS_TOKENS + 1_000),
        (Script(omit_usage=True), 0),
        (Script(null_usage=True), 0),
    ],
)
async def test_what_embeddings_reported_is_what_a_reader_finds(
    simulator: Simulator, http: aiohttp.ClientSession, script: Script, tokens: int
) -> None:
    simulator.script = script
    usage = (await fetch_json(http, EMBEDDINGS, EMBEDDINGS_ASK)).get("usage") or {}
    assert simulator.received[-1].reported == Usage(input=tokens) == Usage(input=usage.get("prompt_tokens", 0))
