"""The real Anthropic SDK, with either kind of client, gets the same through the gateway as without it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx2
import pytest

from gateway.core.records import Key
from gateway.core.usage import Usage
from gateway.simulator import MODELS, Script, Simulator
from tests.both_kinds import KINDS, Client, Kind, Use, anthropic_client, check_same, left, taken
from tests.harness import MODEL, OPERATOR_CREDENTIAL, Database, until

AliceKey = tuple[str, Key]
Request = dict[str, Any]
ASK: Request = {"model": MODEL, "max_tokens": 200, "messages": [{"role": "user", "content": "Hey"}]}
TOOL = {"name": "take_note", "description": "Takes a note", "input_schema": {"type": "object"}}
PICTURE = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo" * 200}
SEEN = [{"type": "image", "source": PICTURE}, {"type": "text", "text": "What is it?"}]
CALL = {"type": "tool_use", "id": "toolu_1", "name": "take_note", "input": {"note": "a"}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "image", "source": PICTURE}]}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
ASKS: dict[str, Request] = {
    "text": ASK,
    "tool": ASK | {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "take_note"}},
    "picture": ASK | {"messages": [{"role": "user", "content": SEEN}]},
    "tool result": ASK
    | {
        "tools": [TOOL],
        "messages": [
            *ASK["messages"],
            {"role": "assistant", "content": [CALL]},
            {"role": "user", "content": [RESULT]},
        ],
    },
    "cached": ASK | {"system": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}]},
    "thinking": ASK | {"thinking": {"type": "adaptive"}},
    "structured": ASK | {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
    "too long": ASK | {"max_tokens": 5},
}
SCRIPTS = {"thinking": Script(thinking="shown")}
USAGE = Usage(input=9, output=5, cache_read=70)
every_ask = pytest.mark.parametrize("name", ASKS)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    which: Kind = request.param
    return which


@pytest.fixture
async def direct(provider: Simulator, kind: Kind) -> AsyncIterator[Client]:
    async with anthropic_client(kind, provider.origin, OPERATOR_CREDENTIAL) as client:
        yield client


@pytest.fixture
async def through(origin: str, alice: AliceKey, kind: Kind) -> AsyncIterator[Client]:
    async with anthropic_client(kind, origin, alice[0]) as client:
        yield client


async def check_recorded(database: Database, alice: AliceKey, provider: Simulator) -> None:
    """One row for the request through the gateway, with what the provider reported."""
    [row] = database.rows(alice[1])
    reported = {received.reported for received in provider.messages()}
    assert (row.status, row.estimated, {row.usage}) == (200, False, reported)


# Messages


@every_ask
async def test_a_message_is_the_same(
    through: Client, direct: Client, provider: Simulator, database: Database, alice: AliceKey, name: str
) -> None:
    provider.script = SCRIPTS.get(name, Script())
    await check_same(through, direct, lambda client: client.messages.create(**ASKS[name]))
    await check_recorded(database, alice, provider)


@every_ask
async def test_a_streamed_message_is_the_same_event_by_event(
    through: Client, direct: Client, provider: Simulator, database: Database, alice: AliceKey, name: str
) -> None:
    provider.script = SCRIPTS.get(name, Script())
    await check_same(through, direct, lambda client: client.messages.create(**ASKS[name], stream=True))
    await check_recorded(database, alice, provider)


@every_ask
async def test_the_helper_that_gathers_a_streamed_message_gathers_the_same(
    through: Client, direct: Client, provider: Simulator, name: str
) -> None:
    """Its last event holds the whole message."""
    provider.script = SCRIPTS.get(name, Script())
    await check_same(through, direct, lambda client: client.messages.stream(**ASKS[name]))


async def test_events_that_the_sdk_does_not_know_yet_are_the_same(
    through: Client, direct: Client, provider: Simulator
) -> None:
    provider.script = Script(unknown_events=3, pings=4, comments=2, message_deltas=3, long_data_line_bytes=99_000)
    await check_same(through, direct, lambda client: client.messages.create(**ASK, stream=True))


@pytest.mark.parametrize("query", [{}, {"beta": "true"}], ids=["now", "before version 2"])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_beta_resource_gets_the_same_and_its_marks_reach_the_provider(
    through: Client, direct: Client, provider: Simulator, query: dict[str, str], stream: bool
) -> None:
    ask = ASK | {"betas": ["advisor-tool-2026-03-01", "of-tomorrow"], "stream": stream, "extra_query": query}
    provider.script = Script(iterations=(("message", USAGE), ("compaction", USAGE)), restate_input=True)
    await check_same(through, direct, lambda client: client.beta.messages.create(**ask))
    for received in provider.messages():
        assert received.path == "/v1/messages" + ("?beta=true" if query else "")
        assert received.header("anthropic-beta") == "advisor-tool-2026-03-01,of-tomorrow"


async def test_the_provider_gets_the_same_request_but_for_the_credential(
    through: Client, direct: Client, provider: Simulator
) -> None:
    """The version of the protocol and what the SDK says of itself included."""
    for client in (through, direct):
        await taken(client, lambda client: client.messages.create(**ASK))
    relayed, plain = provider.messages()
    assert relayed.body_sha256 == plain.body_sha256
    for name in ("anthropic-version", "user-agent", "accept", "content-type", "x-stainless-async"):
        assert relayed.header(name) == plain.header(name) is not None
    assert relayed.header("anthropic-version") == "2026-10-21"


# Lookups


LOOKUPS: dict[str, Use] = {
    "count": lambda client: client.messages.count_tokens(model=MODEL, messages=ASK["messages"]),
    "count with a picture": lambda client: client.messages.count_tokens(
        model=MODEL, messages=ASKS["picture"]["messages"], tools=[TOOL]
    ),
    "beta count": lambda client: client.beta.messages.count_tokens(model=MODEL, messages=ASK["messages"]),
    "models": lambda client: client.models.list(),
    "models in pages of one": lambda client: client.models.list(limit=1),
    "models in one page": lambda client: client.models.list(limit=1_000),
    "models of the beta resource": lambda client: client.beta.models.list(limit=2),
    "one model": lambda client: client.models.retrieve(MODELS[-1]),
}


@pytest.mark.parametrize("use", LOOKUPS.values(), ids=LOOKUPS)
async def test_what_is_looked_up_is_the_same_and_is_free(
    through: Client, direct: Client, database: Database, alice: AliceKey, use: Use
) -> None:
    await check_same(through, direct, use)
    assert database.rows(alice[1]) == []


async def test_all_models_are_found_page_by_page(through: Client) -> None:
    for limit in (1, 2, 1_000):
        found = await taken(through, LOOKUPS["models"] if limit == 1_000 else paged(limit))
        assert [model.id for model in found] == list(MODELS)


def paged(limit: int) -> Use:
    return lambda client: client.models.list(limit=limit)


# Streams that do not come to their end


async def test_an_error_in_the_middle_of_a_stream_is_the_same_exception(
    through: Client, direct: Client, provider: Simulator
) -> None:
    provider.script = Script(error_event_after_events=5)
    for use in STREAMS:
        errors = []
        for client in (direct, through):
            with pytest.raises(anthropic.APIError, match="told to fail") as raised:
                await taken(client, use)
            errors.append((type(raised.value), str(raised.value), raised.value.body))
        assert errors[0] == errors[1]


STREAMS: list[Use] = [
    lambda client: client.messages.create(**ASK, stream=True),
    lambda client: client.messages.stream(**ASK),
]


@pytest.mark.parametrize("use", STREAMS, ids=["events", "helper"])
async def test_a_stream_that_breaks_is_an_exception_and_not_an_end(
    through: Client, provider: Simulator, database: Database, alice: AliceKey, use: Use
) -> None:
    provider.script = Script(cut_after_events=6)
    with pytest.raises((anthropic.APIError, httpx2.TransportError)):
        await taken(through, use)
    await until(lambda: [row.status for row in database.rows(alice[1])] == [502])


async def test_leaving_a_stream_early_stops_the_provider_and_is_charged(
    through: Client, provider: Simulator, database: Database, alice: AliceKey
) -> None:
    provider.script = Script(output_tokens=150, events=50, pause_seconds=0.02)
    assert len(await left(through, STREAMS[0], 8)) == 8
    [received] = provider.messages()
    async with asyncio.timeout(5):
        await received.ended.wait()
    assert received.disconnected
    await until(lambda: database.rows(alice[1])[0].status is not None)
    [row] = database.rows(alice[1])
    assert (row.status, row.estimated, row.usage.input) == (499, True, received.reported.input)
    assert 0 < row.usage.output < 150
