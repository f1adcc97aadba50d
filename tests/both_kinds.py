"""The SDKs of both providers, each with its asynchronous and its synchronous client, so that a test is for both.

    async with anthropic_client("sync", origin, key) as client:
        await taken(client, lambda client: client.messages.create(**ask))               what the call returns
        await taken(client, lambda client: client.messages.create(**ask, stream=True))  its events, to the end
        await taken(client, lambda client: client.models.list(limit=1))                 the items of all pages
        await left(client, lambda client: client.messages.create(**ask, stream=True), 8)  eight events, and hangs up

A synchronous client works in a thread: it would stop the event loop on which the gateway runs.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any, Literal, get_args

import anthropic
import openai

Kind = Literal["async", "sync"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Client = Any
"""Of either kind: methods have the same names and arguments, and what they return differs."""
Use = Callable[[Client], Any]

_ANTHROPIC = {"async": anthropic.AsyncAnthropic, "sync": anthropic.Anthropic}
_OPENAI = {"async": openai.AsyncOpenAI, "sync": openai.OpenAI}


@asynccontextmanager
async def anthropic_client(kind: Kind, origin: str, key: str, **options: Any) -> AsyncIterator[Client]:
    """Anthropic's client; it tries nothing twice unless `max_retries` says so."""
    settings = {"base_url": origin, "api_key": key, "max_retries": 0} | options
    async with _closing(_ANTHROPIC[kind](**settings)) as client:
        yield client


@asynccontextmanager
async def openai_client(kind: Kind, origin: str, key: str, **options: Any) -> AsyncIterator[Client]:
    """OpenAI's, likewise."""
    settings = {"base_url": f"{origin}/v1", "api_key": key, "max_retries": 0} | options
    async with _closing(_OPENAI[kind](**settings)) as client:
        yield client


@asynccontextmanager
async def _closing(client: Client) -> AsyncIterator[Client]:
    try:
        yield client
    finally:
        closed = client.close()
        if inspect.isawaitable(closed):
            await closed


def is_asynchronous(client: Client) -> bool:
    return isinstance(client, anthropic.AsyncAnthropic | openai.AsyncOpenAI)


async def taken(client: Client, use: Use) -> Any:
    """What a use comes to: a value, or a list of the events of a stream or of the items of all pages."""
    if is_asynchronous(client):
        return await _gathered(use(client))
    return await asyncio.to_thread(lambda: _gather(use(client)))


async def left(client: Client, use: Use, events: int) -> list[Any]:
    """The first events of a stream, whose connection is closed after them."""
    if is_asynchronous(client):
        async with await use(client) as stream:
            return [await anext(stream) for _ in range(events)]

    def leave() -> list[Any]:
        with use(client) as stream:
            return list(islice(stream, events))

    return await asyncio.to_thread(leave)


def plain(seen: Any) -> Any:
    """Whatever `taken` gave, as values that can be compared."""
    if isinstance(seen, list):
        return [plain(each) for each in seen]
    return seen.model_dump(warnings=False)  # OpenAI's helper puts types of its own where its models say others


async def check_same(one: Client, other: Client, use: Use) -> None:
    """Both clients get the same, and something at all."""
    seen = plain(await taken(one, use))
    assert seen == plain(await taken(other, use))
    assert seen


async def _gathered(given: Any) -> Any:
    value = await given if inspect.isawaitable(given) else given
    if hasattr(value, "__aenter__"):
        async with value as stream:
            return [event async for event in stream]
    if hasattr(value, "iter_pages"):
        return [item async for item in value]
    return value


def _gather(value: Any) -> Any:
    if hasattr(value, "__enter__"):
        with value as stream:
            return list(stream)
    return list(value) if hasattr(value, "iter_pages") else value
