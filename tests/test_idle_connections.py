"""A kept connection that ends just as it is taken: another one carries the request, unless a byte was written."""

import socket
from collections.abc import Callable

import pytest

from gateway.core.errors import UpstreamBroke
from gateway.core.wire import Endpoint
from gateway.upstream import Upstream
from tests.raw_provider import HELLO, Reader, Writer, answering, between, collect, read_request, reset

ENDS: dict[str, Callable[[Writer], None]] = {
    "its end": lambda writer: writer.get_extra_info("socket").shutdown(socket.SHUT_WR),
    "bytes that nobody asked for": lambda writer: writer.write(b"HTTP/1.1 408 Request Timeout\r\n\r\n"),
}


async def look_up(upstream: Upstream) -> bytes:
    """A GET, which costs nothing."""
    async with upstream.send(Endpoint.MODELS, []) as answer:
        return b"".join([chunk async for chunk in answer.chunks()])


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
async def test_what_the_kernel_has_received_is_heard_before_a_request_is_written(
    end: Callable[[Writer], None],
) -> None:
    """No turn of the event loop lies between the provider's end of the connection and the next request."""
    writers = []
    requests = 0

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal requests
        writers.append(writer)
        while True:
            await read_request(reader)
            requests += 1
            writer.write(HELLO)

    async with between(handle) as (provider, upstream):
        assert await collect(upstream) == b"hello"
        end(writers[0])
        assert await collect(upstream) == b"hello"
        assert await collect(upstream) == b"hello"
    assert (provider.connections, requests) == (2, 3)


@pytest.mark.parametrize("then", ["close", "reset"])
async def test_a_post_that_was_written_to_a_connection_that_ends_is_not_written_again(then: str) -> None:
    requests = 0

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal requests
        await read_request(reader)
        writer.write(HELLO)
        await read_request(reader)
        requests += 1
        if then == "reset":
            reset(writer)

    async with between(handle) as (provider, upstream):
        assert await collect(upstream) == b"hello"
        with pytest.raises(UpstreamBroke):
            await collect(upstream)
    assert (provider.connections, requests) == (1, 1)


async def test_a_lookup_that_got_no_answer_is_sent_once_more() -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(HELLO)
        await read_request(reader)
        reset(writer)

    async with between(handle) as (provider, upstream):
        assert [await look_up(upstream) for _ in range(3)] == [b"hello"] * 3
    assert provider.connections == 3


async def test_a_lookup_is_sent_twice_at_most() -> None:
    async with between(answering(b"nonsense\r\n\r\n", then="close")) as (provider, upstream):
        with pytest.raises(UpstreamBroke):
            await look_up(upstream)
    assert provider.connections == 2
