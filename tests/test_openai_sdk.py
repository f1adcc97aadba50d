"""The real OpenAI SDK gives the same objects through the gateway as without it."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import openai
import pytest

from gateway.core.records import Key
from gateway.core.usage import Usage
from gateway.simulator import OPENAI_MODELS, Script, Simulator
from tests.harness import ALL_CREDENTIALS, OPERATOR_CREDENTIAL, Database, serving, until

AliceKey = tuple[str, Key]
Client = openai.AsyncOpenAI
Use = Callable[[Client], Awaitable[Any]]
GPT, EMBEDDER = OPENAI_MODELS[0], OPENAI_MODELS[2]
PICTURE = "data:image/png;base64," + "iVBORw0KGgo" * 200
CHAT: dict[str, Any] = {
    "model": GPT,
    "messages": [{"role": "user", "content": "Hey"}],
    "max_completion_tokens": 200,
}
RESPONSE: dict[str, Any] = {"model": GPT, "input": "Hey", "max_output_tokens": 200}
FUNCTION = {"name": "take_note", "description": "Takes a note", "parameters": {"type": "object", "properties": {}}}
SEEN_IN_CHAT = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": PICTURE}}]
SEEN_IN_RESPONSE = [{"type": "input_text", "text": "Well?"}, {"type": "input_image", "image_url": PICTURE}]
CHATS = {
    "text": CHAT,
    "tool": CHAT | {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "required"},
    "picture": CHAT | {"messages": [{"role": "user", "content": SEEN_IN_CHAT}]},
    "three choices": CHAT | {"n": 3},
}
RESPONSE_ASKS = {
    "text": RESPONSE,
    "tool": RESPONSE | {"tools": [FUNCTION | {"type": "function", "strict": False}], "tool_choice": "required"},
    "picture": RESPONSE | {"input": [{"role": "user", "content": SEEN_IN_RESPONSE}]},
    "too long": RESPONSE | {"max_output_tokens": 5},
}
STATUSES = {
    400: openai.BadRequestError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    429: openai.RateLimitError,
    500: openai.InternalServerError,
}


@pytest.fixture
async def origin(provider: Simulator, database: Database, alice: AliceKey) -> AsyncIterator[str]:
    del alice
    async with serving(provider, database.path, ALL_CREDENTIALS) as address:
        yield address


@pytest.fixture
async def direct(provider: Simulator) -> AsyncIterator[Client]:
    async with Client(base_url=f"{provider.origin}/v1", api_key=OPERATOR_CREDENTIAL, max_retries=0) as client:
        yield client


@pytest.fixture
async def through(origin: str, alice: AliceKey) -> AsyncIterator[Client]:
    async with Client(base_url=f"{origin}/v1", api_key=alice[0], max_retries=0) as client:
        yield client


def plain(seen: Any) -> Any:
    """Whatever the SDK gave, as values that can be compared."""
    return [each.model_dump() for each in seen] if isinstance(seen, list) else seen.model_dump()


async def check_same(through: Client, direct: Client, use: Use) -> None:
    seen = plain(await use(through))
    assert seen == plain(await use(direct))
    assert seen


async def all_of(stream: Any) -> list[Any]:
    return [event async for event in await stream]


@pytest.mark.parametrize("ask", CHATS.values(), ids=CHATS)
async def test_a_chat_is_the_same(through: Client, direct: Client, ask: dict[str, Any]) -> None:
    await check_same(through, direct, lambda client: client.chat.completions.create(**ask))


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}], ids=["plain", "with usage"])
@pytest.mark.parametrize("ask", CHATS.values(), ids=CHATS)
async def test_a_streamed_chat_is_the_same_chunk_by_chunk(
    through: Client, direct: Client, ask: dict[str, Any], options: dict[str, Any]
) -> None:
    await check_same(
        through, direct, lambda client: all_of(client.chat.completions.create(**ask, **options, stream=True))
    )


@pytest.mark.parametrize("ask", CHATS.values(), ids=CHATS)
async def test_the_helper_that_gathers_a_streamed_chat_gathers_the_same(
    through: Client, direct: Client, ask: dict[str, Any]
) -> None:
    async def gather(client: Client) -> Any:
        async with client.chat.completions.stream(**ask) as stream:
            async for event in stream:
                assert event.type
            return await stream.get_final_completion()

    await check_same(through, direct, gather)


@pytest.mark.parametrize("ask", RESPONSE_ASKS.values(), ids=RESPONSE_ASKS)
async def test_a_response_is_the_same(through: Client, direct: Client, ask: dict[str, Any]) -> None:
    await check_same(through, direct, lambda client: client.responses.create(**ask))


@pytest.mark.parametrize("ask", RESPONSE_ASKS.values(), ids=RESPONSE_ASKS)
async def test_a_streamed_response_is_the_same_event_by_event(
    through: Client, direct: Client, ask: dict[str, Any]
) -> None:
    await check_same(through, direct, lambda client: all_of(client.responses.create(**ask, stream=True)))


@pytest.mark.parametrize("options", [{}, {"dimensions": 8}, {"encoding_format": "float"}], ids=str)
async def test_embeddings_are_the_same(through: Client, direct: Client, options: dict[str, Any]) -> None:
    ask: dict[str, Any] = {"model": EMBEDDER, "input": ["one", "two"]} | options
    await check_same(through, direct, lambda client: client.embeddings.create(**ask))


async def test_models_are_the_same(through: Client, direct: Client) -> None:
    async def listed(client: Client) -> list[Any]:
        return [model async for model in client.models.list()]

    assert [model.id for model in await listed(through)] == list(OPENAI_MODELS)
    await check_same(through, direct, listed)
    await check_same(through, direct, lambda client: client.models.retrieve(GPT))
    for client in (through, direct):
        with pytest.raises(openai.NotFoundError) as missing:
            await client.models.retrieve("gpt-unknown")
        assert missing.value.code == "model_not_found"


async def test_the_synchronous_client_gets_the_same(direct: Client, origin: str, alice: AliceKey) -> None:
    def call() -> list[Any]:
        with openai.OpenAI(base_url=f"{origin}/v1", api_key=alice[0], max_retries=0) as client:
            return [
                plain(client.chat.completions.create(**CHAT)),
                plain(list(client.chat.completions.create(**CHAT, stream=True))),
                plain(client.responses.create(**RESPONSE)),
                plain(list(client.responses.create(**RESPONSE, stream=True))),
                plain(client.embeddings.create(model=EMBEDDER, input="one")),
                plain(list(client.models.list())),
            ]

    assert await asyncio.to_thread(call) == [
        plain(await direct.chat.completions.create(**CHAT)),
        plain(await all_of(direct.chat.completions.create(**CHAT, stream=True))),
        plain(await direct.responses.create(**RESPONSE)),
        plain(await all_of(direct.responses.create(**RESPONSE, stream=True))),
        plain(await direct.embeddings.create(model=EMBEDDER, input="one")),
        plain([model async for model in direct.models.list()]),
    ]


@pytest.mark.parametrize("place", ["", "/v1", "/v1/v1"])
async def test_any_spelling_of_the_base_address_works(origin: str, alice: AliceKey, place: str) -> None:
    async with Client(base_url=f"{origin}{place}", api_key=alice[0], max_retries=0) as client:
        assert (await client.chat.completions.create(**CHAT)).choices
        assert (await client.responses.create(**RESPONSE)).output_text
        assert [model async for model in client.models.list()]


# Errors


USES: dict[str, Use] = {
    "chat": lambda client: client.chat.completions.create(**CHAT),
    "streamed chat": lambda client: client.chat.completions.create(**CHAT, stream=True),
    "response": lambda client: client.responses.create(**RESPONSE),
    "embeddings": lambda client: client.embeddings.create(model=EMBEDDER, input="one"),
}
every_use = pytest.mark.parametrize("use", USES.values(), ids=USES)


@every_use
@pytest.mark.parametrize("status", STATUSES)
async def test_a_provider_error_is_the_same_exception(
    through: Client, direct: Client, provider: Simulator, use: Use, status: int
) -> None:
    provider.script = Script(status=status, error_param="model", error_code="of_the_provider")
    with pytest.raises(STATUSES[status]) as expected:
        await use(direct)
    with pytest.raises(STATUSES[status]) as raised:
        await use(through)
    assert raised.value.status_code == status
    assert raised.value.body == expected.value.body
    assert str(raised.value) == str(expected.value)
    assert raised.value.code == "of_the_provider"
    assert (raised.value.request_id or "").startswith("req_")


@every_use
async def test_a_key_that_is_unknown_is_the_exception_for_it_and_is_not_tried_again(
    origin: str, provider: Simulator, use: Use
) -> None:
    async with Client(base_url=f"{origin}/v1", api_key="sk-of-somebody-else") as client:
        with pytest.raises(openai.AuthenticationError) as raised:
            await use(client)
    assert (raised.value.code, raised.value.type) == ("invalid_api_key", "invalid_request_error")
    assert raised.value.response.headers["x-should-retry"] == "false"
    assert provider.messages() == []


async def test_a_refused_operator_credential_is_a_server_error_that_is_not_tried_again(
    origin: str, alice: AliceKey, provider: Simulator
) -> None:
    provider.script = Script(status=401)
    async with Client(base_url=f"{origin}/v1", api_key=alice[0]) as client:
        with pytest.raises(openai.InternalServerError) as raised:
            await client.responses.create(**RESPONSE)
    assert (raised.value.status_code, raised.value.type) == (502, "server_error")
    assert len(provider.messages()) == 1


async def test_an_error_in_the_middle_of_a_stream_is_seen_as_without_the_gateway(
    through: Client, direct: Client, provider: Simulator
) -> None:
    provider.script = Script(error_event_after_events=4)
    for client in (direct, through):
        with pytest.raises(openai.APIError, match="told to fail"):
            await all_of(client.chat.completions.create(**CHAT, stream=True))
    assert await response_stream_of(through) == await response_stream_of(direct)


async def response_stream_of(client: Client) -> Any:
    """Its events, or the exception."""
    try:
        return plain(await all_of(client.responses.create(**RESPONSE, stream=True)))
    except openai.APIError as error:
        return type(error), error.message


@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_a_stream_that_breaks_is_an_exception_and_not_an_end(
    through: Client, provider: Simulator, api: str
) -> None:
    provider.script = Script(cut_after_events=4)
    with pytest.raises(openai.APIConnectionError):
        await all_of(stream_of(through, api))


def stream_of(client: Client, api: str) -> Any:
    if api == "chat":
        return client.chat.completions.create(**CHAT, stream=True)
    return client.responses.create(**RESPONSE, stream=True)


@every_use
async def test_a_busy_provider_is_tried_again_after_the_time_that_it_says(
    origin: str, alice: AliceKey, provider: Simulator, database: Database, use: Use
) -> None:
    provider.next(Script(status=429, retry_after_seconds=1), Script(usage=Usage(input=9, output=5)))
    began = time.monotonic()
    async with Client(base_url=f"{origin}/v1", api_key=alice[0], max_retries=1) as client:
        seen = await use(client)
        if isinstance(seen, openai.AsyncStream):
            assert [event async for event in seen]
    assert time.monotonic() - began >= 1
    assert [received.header("x-stainless-retry-count") for received in provider.messages()] == ["0", "1"]
    await until(lambda: [row.status for row in database.rows(alice[1])] == [429, 200])


async def test_a_limit_of_the_gateway_is_waited_for_as_long_as_it_says(
    origin: str, database: Database, alice: AliceKey, provider: Simulator
) -> None:
    await database.edit_key(alice[1], concurrency=1)
    provider.next(Script(output_tokens=100, events=20, pause_seconds=0.1))
    async with Client(base_url=f"{origin}/v1", api_key=alice[0], max_retries=2) as client:
        await asyncio.sleep(1)  # the server follows within a second
        slow = asyncio.create_task(all_of(client.chat.completions.create(**CHAT, stream=True)))
        await provider.arrived(1)
        began = time.monotonic()
        response = await client.responses.create(**RESPONSE)
        waited = time.monotonic() - began
        await slow
    assert response.output_text
    assert 2 <= waited < 6
    assert len(provider.messages()) == 2


@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_leaving_a_stream_early_stops_the_provider(
    through: Client, provider: Simulator, database: Database, alice: AliceKey, api: str
) -> None:
    provider.script = Script(output_tokens=150, events=50, pause_seconds=0.02)
    async with await stream_of(through, api) as stream:
        for _ in range(8):
            await anext(stream)
    [received] = provider.messages()
    async with asyncio.timeout(5):
        await received.ended.wait()
    assert received.disconnected
    await until(lambda: database.rows(alice[1])[0].status is not None)
    [row] = database.rows(alice[1])
    assert (row.status, row.estimated) == (499, True)
    assert 0 < row.usage.output < 150
