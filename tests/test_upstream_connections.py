"""Connections to a provider: when one is used again, when it is closed, and how long it is waited for."""

import asyncio
from random import Random

import pytest

from gateway.answer import Patience
from gateway.core.errors import ClientLeft, UpstreamBroke, UpstreamTimeout
from gateway.core.wire import Endpoint
from gateway.pool import Pool
from tests.harness import until
from tests.raw_provider import (
    CHUNKED,
    HELLO,
    OK,
    RawProvider,
    Reader,
    Writer,
    answering,
    between,
    collect,
    echo,
    read_request,
    wait_forever,
)

MEBIBYTE = 2**20


# Used again, or not.


async def test_a_connection_carries_one_request_after_the_other() -> None:
    async with between(echo) as (provider, upstream):
        for number in range(5):
            assert await collect(upstream, b"%d" % number) == b"%d" % number
    assert provider.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        OK + b"connection: close\r\ncontent-length: 5\r\n\r\nhello",
        HELLO + b"H",
        HELLO + HELLO,
        HELLO + b"surplus",
    ],
)
async def test_a_connection_that_is_not_in_order_is_not_used_again(answer: bytes) -> None:
    async with between(answering(answer, HELLO)) as (provider, upstream):
        assert await collect(upstream) == b"hello"
        assert await collect(upstream) == b"hello"
        await provider.closed_by_client.wait()
    assert provider.connections == 2


async def test_a_connection_that_the_provider_closed_is_not_used_again() -> None:
    async with between(answering(HELLO, then="close")) as (provider, upstream):
        for count in range(1, 4):
            assert await collect(upstream) == b"hello"
            await asyncio.wait_for(provider.closed.wait(), 5)
            provider.closed.clear()
            await asyncio.sleep(0.01)
            assert provider.connections == count


async def test_bytes_that_nobody_asked_for_close_an_idle_connection() -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(HELLO)
        await asyncio.sleep(0.05)
        writer.write(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
        await reader.readexactly(1)

    async with between(handle) as (provider, upstream):
        assert await collect(upstream) == b"hello"
        await provider.closed_by_client.wait()
        assert await collect(upstream) == b"hello"


async def test_an_idle_connection_is_given_up_after_a_while() -> None:
    async with RawProvider(answering(HELLO)) as provider:
        pool = Pool("a", provider.origin, Patience(connect=5, first_byte=5, silence=5, idle=0.05))
        connection = await pool.connect()
        answer = await connection.ask(b"GET / HTTP/1.1\r\n\r\n", b"")
        assert [chunk async for chunk in answer.chunks()] == [b"hello"]
        pool.give_back(connection)
        assert connection.is_open
        await asyncio.wait_for(provider.closed_by_client.wait(), 5)
        assert pool.take() is None
        await pool.close()


async def test_requests_at_once_never_see_each_others_answers() -> None:
    random = Random(7)

    async def one(number: int) -> None:
        body = b"%d " % number * random.randrange(1, 5_000)
        if random.random() < 0.3:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await collect(upstream, body)
        else:
            assert await collect(upstream, body) == body

    async with between(echo) as (provider, upstream):
        for _ in range(10):
            await asyncio.gather(*(one(number) for number in range(20)))
    assert 20 <= provider.connections < 150


# Left early.


async def test_leaving_the_block_closes_the_connection_at_once() -> None:
    async with between(answering(CHUNKED + b"5\r\nhello\r\n")) as (provider, upstream):
        async with upstream.send(Endpoint.MODELS, []) as answer:
            assert await anext(answer.chunks()) == b"hello"
        await asyncio.wait_for(provider.closed_by_client.wait(), 5)
        with pytest.raises(UpstreamBroke):
            await anext(answer.chunks())


async def test_cancelling_a_request_closes_its_connection_at_once() -> None:
    async with between(wait_forever) as (provider, upstream):
        asking = asyncio.create_task(collect(upstream))
        await until(lambda: provider.connections == 1)
        await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.wait_for(provider.closed_by_client.wait(), 5)


@pytest.mark.parametrize(
    "error", [ClientLeft("left"), TimeoutError(), ConnectionResetError(), OSError(), asyncio.CancelledError()]
)
async def test_what_the_block_raises_passes_as_it_is(error: BaseException) -> None:
    async with between(echo) as (_, upstream):
        with pytest.raises(type(error)) as raised:
            async with upstream.send(Endpoint.MESSAGES, [], "", b"{}"):
                raise error
    assert raised.value is error


# Waited for.


async def test_a_provider_that_does_not_begin_to_answer_times_out() -> None:
    async with between(wait_forever, first_byte_timeout_seconds=0.1) as (provider, upstream):
        with pytest.raises(UpstreamTimeout):
            await asyncio.wait_for(collect(upstream), 5)
        await asyncio.wait_for(provider.closed_by_client.wait(), 5)


async def test_early_hints_are_no_beginning() -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        while True:
            writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            await asyncio.sleep(0.06)

    async with between(handle, first_byte_timeout_seconds=0.1) as (_, upstream):
        with pytest.raises(UpstreamTimeout):
            await asyncio.wait_for(collect(upstream), 5)


async def test_a_provider_that_falls_silent_times_out_after_all_that_it_said() -> None:
    arrived = bytearray()
    async with between(answering(CHUNKED + b"5\r\nhello\r\n"), silence_timeout_seconds=0.1) as (_, upstream):
        with pytest.raises(UpstreamTimeout):
            await asyncio.wait_for(collect(upstream, into=arrived), 5)
    assert arrived == b"hello"


async def test_a_provider_that_goes_on_talking_does_not_time_out() -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(CHUNKED)
        for _ in range(10):
            await asyncio.sleep(0.05)
            writer.write(b"2\r\nhi\r\n")
        writer.write(b"0\r\n\r\n")

    async with between(handle, first_byte_timeout_seconds=0.2, silence_timeout_seconds=0.2) as (_, upstream):
        assert await collect(upstream) == b"hi" * 10


@pytest.mark.parametrize("size", [5, 16 * MEBIBYTE])
async def test_the_time_that_a_slow_client_takes_is_not_the_providers_silence(size: int) -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(CHUNKED + b"5\r\nhello\r\n")
        await asyncio.sleep(0.05)
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (size, bytes(size)))
        await writer.drain()
        await reader.readexactly(1)

    async with (
        between(handle, silence_timeout_seconds=0.1, first_byte_timeout_seconds=0.1) as (_, upstream),
        upstream.send(Endpoint.MODELS, []) as answer,
    ):
        arrived = []
        async for chunk in answer.chunks():
            arrived.append(len(chunk))
            if len(arrived) < 4:
                await asyncio.sleep(0.25)
    assert sum(arrived) == 5 + size


async def test_a_slow_client_makes_the_provider_wait() -> None:
    sent = 0

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(CHUNKED)
        while True:
            writer.write(b"10000\r\n%b\r\n" % bytes(0x10000))
            await writer.drain()
            sent += 0x10000

    async with between(handle) as (_, upstream), upstream.send(Endpoint.MODELS, []) as answer:
        await anext(answer.chunks())
        await asyncio.sleep(0.3)
        so_far = sent
        await asyncio.sleep(0.1)
        assert sent == so_far
        for _ in range(100):
            await anext(answer.chunks())
        await until(lambda: sent > so_far)
