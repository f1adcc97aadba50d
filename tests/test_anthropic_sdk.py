"""The real Anthropic SDK gives the same objects through the gateway as without it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import anthropic
import pytest

from gateway.core.records import Key
from gateway.simulator import Script, Simulator
from tests.harness import MODEL, OPERATOR_CREDENTIAL, Database, until

AliceKey = tuple[str, Key]
ASK: dict[str, Any] = {"model": MODEL, "max_tokens": 200, "messages": [{"role": "user", "content": "Hey"}]}
TOOL = {"name": "take_note", "description": "Takes a note", "input_schema": {"type": "object"}}
TOOL_ASK = ASK | {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "take_note"}}


@pytest.fixture
async def direct(provider: Simulator) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        base_url=provider.origin, api_key=OPERATOR_CREDENTIAL, max_retries=0
    ) as client:
        yield client


@pytest.fixture
async def through(origin: str, alice: AliceKey) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=origin, api_key=alice[0], max_retries=0) as client:
        yield client


def same(one: Any, other: Any) -> bool:
    """Equal but for the ids, which the provider draws at random."""
    return bool(one.model_dump(exclude={"id"}) == other.model_dump(exclude={"id"}))


@pytest.mark.parametrize("ask", [ASK, TOOL_ASK], ids=["text", "tool use"])
async def test_a_message_is_the_same(
    direct: anthropic.AsyncAnthropic, through: anthropic.AsyncAnthropic, ask: dict[str, Any]
) -> None:
    assert same(await through.messages.create(**ask), await direct.messages.create(**ask))


@pytest.mark.parametrize("ask", [ASK, TOOL_ASK], ids=["text", "tool use"])
async def test_a_streamed_message_is_the_same_event_by_event(
    direct: anthropic.AsyncAnthropic, through: anthropic.AsyncAnthropic, ask: dict[str, Any]
) -> None:
    async def events(client: anthropic.AsyncAnthropic) -> tuple[list[Any], anthropic.types.Message]:
        async with client.messages.stream(**ask) as stream:
            types = [event.type async for event in stream]
            return types, await stream.get_final_message()

    types, message = await events(through)
    direct_types, direct_message = await events(direct)
    assert types == direct_types
    assert same(message, direct_message)


async def test_the_synchronous_client_gets_the_same(
    direct: anthropic.AsyncAnthropic, origin: str, alice: AliceKey
) -> None:
    def call() -> tuple[anthropic.types.Message, str]:
        with anthropic.Anthropic(base_url=origin, api_key=alice[0], max_retries=0) as client:
            message = client.messages.create(**ASK)
            with client.messages.stream(**ASK) as stream:
                return message, "".join(stream.text_stream)

    message, text = await asyncio.to_thread(call)
    expected = await direct.messages.create(**ASK)
    assert same(message, expected)
    assert isinstance(expected.content[0], anthropic.types.TextBlock)
    assert text == expected.content[0].text


async def test_counting_and_models_are_the_same(
    direct: anthropic.AsyncAnthropic, through: anthropic.AsyncAnthropic
) -> None:
    count: dict[str, Any] = {"model": MODEL, "messages": ASK["messages"]}
    assert await through.messages.count_tokens(**count) == await direct.messages.count_tokens(**count)
    assert [model async for model in through.models.list(limit=1)] == [
        model async for model in direct.models.list(limit=1)
    ]
    assert await through.models.retrieve(MODEL) == await direct.models.retrieve(MODEL)


@pytest.mark.parametrize("status", [400, 403, 404, 413, 429, 500, 529])
async def test_a_provider_error_is_the_same_exception(
    direct: anthropic.AsyncAnthropic, through: anthropic.AsyncAnthropic, provider: Simulator, status: int
) -> None:
    provider.script = Script(status=status)
    with pytest.raises(anthropic.APIStatusError) as expected:
        await direct.messages.create(**ASK)
    with pytest.raises(type(expected.value)) as raised:
        await through.messages.create(**ASK)
    assert raised.value.status_code == status
    body: Callable[[Any], Any] = lambda error: error.body["error"]  # noqa: E731 - reads as what it is
    assert body(raised.value) == body(expected.value)


async def test_an_error_in_the_middle_of_a_stream_is_raised(
    through: anthropic.AsyncAnthropic, provider: Simulator
) -> None:
    provider.script = Script(error_event_after_events=5)
    with pytest.raises(anthropic.APIError, match="told to fail"):
        async with through.messages.stream(**ASK) as stream:
            await stream.get_final_message()


async def test_leaving_a_stream_early_stops_the_provider(
    through: anthropic.AsyncAnthropic, provider: Simulator, database: Database, alice: AliceKey
) -> None:
    provider.script = Script(output_tokens=150, events=50, pause_seconds=0.02)
    async with through.messages.stream(**ASK) as stream:
        async for text in stream.text_stream:
            assert text
            break
    [received] = provider.messages()
    async with asyncio.timeout(5):
        await received.ended.wait()
    assert received.disconnected
    await until(lambda: database.rows(alice[1])[0].status is not None)
    [row] = database.rows(alice[1])
    assert (row.status, row.estimated) == (499, True)


async def test_a_used_up_budget_is_raised_at_once_with_the_gateways_own_text(
    origin: str, database: Database
) -> None:
    text, _ = await database.create_key("bob", budgets=[(100, 3_600_000)])
    async with anthropic.AsyncAnthropic(base_url=origin, api_key=text) as client:
        async with asyncio.timeout(5):
            while True:
                try:
                    await client.messages.create(**ASK)
                except anthropic.AuthenticationError:  # the gateway has not seen the new key yet
                    await asyncio.sleep(0.05)
                except anthropic.BadRequestError as error:
                    assert "can never fit" in str(error)  # noqa: PT017 - the loop waits for this very error
                    break
        small = ASK | {"max_tokens": 60}
        await client.messages.create(**small)
        with pytest.raises(anthropic.RateLimitError) as refused:
            await client.messages.create(**small)
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert "are left in 1h" in str(refused.value) or "used up" in str(refused.value)
