"""The real OpenAI SDK, with either kind of client, gets the same through the gateway as without it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from gateway.core.records import Key
from gateway.core.usage import Usage
from gateway.simulator import OPENAI_MODELS, Script, Simulator
from tests.both_kinds import KINDS, Client, Kind, Use, check_same, left, openai_client, plain, taken
from tests.harness import ALL_CREDENTIALS, OPERATOR_CREDENTIAL, Database, serving, until

AliceKey = tuple[str, Key]
Request = dict[str, Any]
GPT, EMBEDDER = OPENAI_MODELS[0], OPENAI_MODELS[2]
PICTURE = "data:image/png;base64," + "iVBORw0KGgo" * 200
CHAT: Request = {
    "model": GPT,
    "messages": [{"role": "user", "content": "Hey"}],
    "max_completion_tokens": 200,
}
RESPONSE: Request = {"model": GPT, "input": "Hey", "max_output_tokens": 200}
FUNCTION = {"name": "take_note", "description": "Takes a note", "parameters": {"type": "object", "properties": {}}}
SEEN_IN_CHAT = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": PICTURE}}]
SEEN_IN_RESPONSE = [{"type": "input_text", "text": "Well?"}, {"type": "input_image", "image_url": PICTURE}]
CHATS = {
    "text": CHAT,
    "tool": CHAT | {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "required"},
    "picture": CHAT | {"messages": [{"role": "user", "content": SEEN_IN_CHAT}]},
    "structured": CHAT | {"response_format": {"type": "json_object"}},
    "three choices": CHAT | {"n": 3},
}
RESPONSE_ASKS = {
    "text": RESPONSE,
    "tool": RESPONSE | {"tools": [FUNCTION | {"type": "function", "strict": False}], "tool_choice": "required"},
    "picture": RESPONSE | {"input": [{"role": "user", "content": SEEN_IN_RESPONSE}]},
    "structured": RESPONSE | {"text": {"format": {"type": "json_object"}}},
    "too long": RESPONSE | {"max_output_tokens": 5},
}
STREAMS: list[Use] = [
    lambda client: client.chat.completions.create(**CHAT, stream=True),
    lambda client: client.responses.create(**RESPONSE, stream=True),
]
WHOLE: list[Use] = [
    lambda client: client.chat.completions.create(**CHAT),
    lambda client: client.responses.create(**RESPONSE),
    lambda client: client.embeddings.create(model=EMBEDDER, input="one"),
]


@pytest.fixture
async def origin(provider: Simulator, database: Database, alice: AliceKey) -> AsyncIterator[str]:
    del alice
    async with serving(provider, database.path, ALL_CREDENTIALS) as address:
        yield address


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    which: Kind = request.param
    return which


@pytest.fixture
async def direct(provider: Simulator, kind: Kind) -> AsyncIterator[Client]:
    async with openai_client(kind, provider.origin, OPERATOR_CREDENTIAL) as client:
        yield client


@pytest.fixture
async def through(origin: str, alice: AliceKey, kind: Kind) -> AsyncIterator[Client]:
    async with openai_client(kind, origin, alice[0]) as client:
        yield client


@pytest.mark.parametrize("ask", CHATS.values(), ids=CHATS)
async def test_a_chat_is_the_same(through: Client, direct: Client, ask: Request) -> None:
    await check_same(through, direct, lambda client: client.chat.completions.create(**ask))


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}], ids=["plain", "with usage"])
@pytest.mark.parametrize("ask", CHATS.values(), ids=CHATS)
async def test_a_streamed_chat_is_the_same_chunk_by_chunk(
    through: Client, direct: Client, ask: Request, options: Request
) -> None:
    await check_same(through, direct, lambda client: client.chat.completions.create(**ask, **options, stream=True))


@pytest.mark.parametrize("ask", CHATS.values(), ids=CHATS)
async def test_the_helper_that_gathers_a_streamed_chat_gathers_the_same(
    through: Client, direct: Client, ask: Request
) -> None:
    """Its last events hold whole messages."""
    await check_same(through, direct, lambda client: client.chat.completions.stream(**ask))


@pytest.mark.parametrize("ask", RESPONSE_ASKS.values(), ids=RESPONSE_ASKS)
async def test_a_response_is_the_same(through: Client, direct: Client, ask: Request) -> None:
    await check_same(through, direct, lambda client: client.responses.create(**ask))


@pytest.mark.parametrize("ask", RESPONSE_ASKS.values(), ids=RESPONSE_ASKS)
async def test_a_streamed_response_is_the_same_event_by_event(
    through: Client, direct: Client, ask: Request
) -> None:
    await check_same(through, direct, lambda client: client.responses.create(**ask, stream=True))


@pytest.mark.parametrize("options", [{}, {"dimensions": 8}, {"encoding_format": "float"}], ids=str)
async def test_embeddings_are_the_same(through: Client, direct: Client, options: Request) -> None:
    ask: Request = {"model": EMBEDDER, "input": ["one", "two"]} | options
    await check_same(through, direct, lambda client: client.embeddings.create(**ask))


@pytest.mark.parametrize("ask", RESPONSE_ASKS.values(), ids=RESPONSE_ASKS)
async def test_the_helper_that_gathers_a_streamed_response_gathers_the_same(
    through: Client, direct: Client, ask: Request
) -> None:
    await check_same(through, direct, lambda client: client.responses.stream(**ask))


async def test_what_a_client_did_not_ask_for_is_counted_all_the_same(
    through: Client, provider: Simulator, database: Database, alice: AliceKey
) -> None:
    """Each use leaves one row with what the provider reported, of streams whose client sees no usage as well."""
    uses = [*STREAMS, *WHOLE]
    for number, use in enumerate(uses, start=1):
        provider.next(Script(usage=Usage(input=100 * number, output=7, cache_read=3)))
        await taken(through, use)
    rows = database.rows(alice[1])
    assert [(row.status, row.estimated) for row in rows] == [(200, False)] * len(uses)
    assert [row.usage for row in rows] == [received.reported for received in provider.messages()]


async def test_models_are_the_same_and_free(
    through: Client, direct: Client, database: Database, alice: AliceKey
) -> None:
    await check_same(through, direct, lambda client: client.models.list())
    await check_same(through, direct, lambda client: client.models.retrieve(GPT))
    assert [model.id for model in await taken(through, lambda client: client.models.list())] == list(OPENAI_MODELS)
    for client in (through, direct):
        with pytest.raises(openai.NotFoundError) as missing:
            await taken(client, lambda client: client.models.retrieve("gpt-unknown"))
        assert missing.value.code == "model_not_found"
    assert database.rows(alice[1]) == []


@pytest.mark.parametrize("place", ["", "/v1", "/v1/v1"])
async def test_any_spelling_of_the_base_address_works(origin: str, alice: AliceKey, kind: Kind, place: str) -> None:
    async with openai_client(kind, origin, alice[0], base_url=f"{origin}{place}") as client:
        for use in (*STREAMS, *WHOLE, lambda client: client.models.list()):
            assert await taken(client, use)


# Streams that do not come to their end


async def test_an_error_in_the_middle_of_a_stream_is_seen_as_without_the_gateway(
    through: Client, direct: Client, provider: Simulator
) -> None:
    provider.script = Script(error_event_after_events=4)
    for use in STREAMS:
        assert await outcome(through, use) == await outcome(direct, use)
    for client in (direct, through):
        with pytest.raises(openai.APIError, match="told to fail"):
            await taken(client, STREAMS[0])


async def outcome(client: Client, use: Use) -> Any:
    """The events, or the exception."""
    try:
        return plain(await taken(client, use))
    except openai.APIError as error:
        return type(error), error.message, error.body


@pytest.mark.parametrize("use", STREAMS, ids=["chat", "responses"])
async def test_a_stream_that_breaks_is_an_exception_and_not_an_end(
    through: Client, provider: Simulator, database: Database, alice: AliceKey, use: Use
) -> None:
    provider.script = Script(cut_after_events=4)
    with pytest.raises(openai.APIConnectionError):
        await taken(through, use)
    await until(lambda: [row.status for row in database.rows(alice[1])] == [502])


@pytest.mark.parametrize("use", STREAMS, ids=["chat", "responses"])
async def test_leaving_a_stream_early_stops_the_provider_and_is_charged(
    through: Client, provider: Simulator, database: Database, alice: AliceKey, use: Use
) -> None:
    provider.script = Script(output_tokens=150, events=50, pause_seconds=0.02)
    assert len(await left(through, use, 8)) == 8
    [received] = provider.messages()
    async with asyncio.timeout(5):
        await received.ended.wait()
    assert received.disconnected
    await until(lambda: database.rows(alice[1])[0].status is not None)
    [row] = database.rows(alice[1])
    assert (row.status, row.estimated) == (499, True)
    assert 0 < row.usage.output < 150
