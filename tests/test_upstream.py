"""The exchange with a provider: every byte that came is given out, and nothing else is taken for an answer."""

import asyncio
from hashlib import sha256
from random import Random

import pytest

from gateway.core.errors import BadRequest, GatewayError, UpstreamBroke, UpstreamCredentialRefused
from gateway.core.wire import Endpoint
from gateway.simulator import MODELS, Simulator
from tests.raw_provider import (
    CHUNKED,
    HELLO,
    OK,
    Reader,
    Writer,
    answering,
    between,
    collect,
    read_request,
    upstream_at,
)

LONG = Random(3).randbytes(20 * 2**20)

# Answers that are whole.


@pytest.mark.parametrize(
    "answer",
    [
        HELLO,
        CHUNKED + b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nx-trailer: y\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 15 + HELLO,
        b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        OK + b"connection: close\r\ncontent-length: 5\r\n\r\nhello",
        HELLO + b"HTTP/1.1 200 OK\r\n",
        HELLO + b"surplus",
    ],
)
async def test_whatever_frames_an_answer_it_is_given_out_whole(answer: bytes) -> None:
    async with between(answering(answer, answer)) as (_, upstream):
        assert await collect(upstream) == b"hello"
        assert await collect(upstream) == b"hello"


async def test_an_answer_without_length_ends_with_its_connection() -> None:
    async with between(answering(OK + b"\r\nhello", then="close")) as (provider, upstream):
        assert await collect(upstream) == b"hello"
        assert await collect(upstream) == b"hello"
    assert provider.connections == 2


async def test_an_answer_without_a_body_is_one() -> None:
    async with between(answering(b"HTTP/1.1 204 No Content\r\n\r\n", HELLO)) as (provider, upstream):
        assert await collect(upstream) == b""
        assert await collect(upstream) == b"hello"
    assert provider.connections == 1


async def test_a_head_is_given_as_it_came_with_names_in_lower_case() -> None:
    head = OK + b"X-A: 1\r\nContent-Type: a/b \r\nx-a: caf\xc3\xa9\r\ncontent-length: 0\r\n\r\n"
    async with (
        between(answering(head)) as (_, upstream),
        upstream.send(Endpoint.MODELS, []) as answer,
    ):
        assert (answer.status, answer.content_type, answer.content_length) == (200, "a/b", 0)
        assert list(answer.headers) == [
            ("x-a", "1"),
            ("content-type", "a/b"),
            ("x-a", "café"),
            ("content-length", "0"),
        ]


async def test_the_chunk_given_last_is_known_to_be_the_last() -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(CHUNKED + b"2\r\nhe\r\n")
        await asyncio.sleep(0.05)
        writer.write(b"3\r\nllo\r\n0\r\n\r\n")
        await reader.read()

    async with between(handle) as (_, upstream), upstream.send(Endpoint.MODELS, []) as answer:
        assert [(chunk, answer.is_exhausted) async for chunk in answer.chunks()] == [(b"he", False), (b"llo", True)]


# Answers that are not.


@pytest.mark.parametrize("then", ["close", "reset"])
@pytest.mark.parametrize(
    "answer",
    [
        OK + b"content-length: 9\r\n\r\nhello",
        CHUNKED + b"5\r\nhello\r\n",
        CHUNKED + b"9\r\nhello",
        CHUNKED + b"5\r\nhello\r\n0\r\n",
        CHUNKED + b"5\r\nhello\r\nno size\r\n",
        CHUNKED + b"5\r\nhello!!",
        CHUNKED + b"5\r\nhello\r\n0;" + b"x" * 200_000,
        CHUNKED + b"5\r\nhello\r\n0\r\n" + b"x: y\r\n" * 20_000,
    ],
)
async def test_all_that_came_of_a_broken_answer_is_given_out_before_the_failure(answer: bytes, then: str) -> None:
    arrived = bytearray()
    async with between(answering(answer, then=then)) as (_, upstream):
        with pytest.raises(UpstreamBroke, match="broke"):
            await collect(upstream, into=arrived)
    assert arrived == b"hello"


async def test_an_answer_without_length_is_broken_by_a_reset() -> None:
    arrived = bytearray()
    async with between(answering(OK + b"\r\nhello", then="reset")) as (_, upstream):
        with pytest.raises(UpstreamBroke):
            await collect(upstream, into=arrived)
    assert arrived == b"hello"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 000 Nothing\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100 + HELLO,
        OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\n",
        OK + b"transfer-encoding: gzip, chunked\r\n\r\n",
        OK + b"x: " + b"y" * 70_000 + b"\r\n\r\n",
        OK + b"x: " + b"y" * 300_000,
        OK + b"x: y\r\n" * 257 + b"\r\n",
    ],
)
async def test_what_is_no_answer_is_told_as_a_break(answer: bytes) -> None:
    async with between(answering(answer, then="close")) as (_, upstream):
        with pytest.raises(UpstreamBroke, match="broke"):
            await collect(upstream)


@pytest.mark.parametrize(
    ("status", "error"), [(401, UpstreamCredentialRefused), (302, UpstreamBroke), (307, UpstreamBroke)]
)
async def test_an_answer_that_is_not_for_clients_closes_its_connection(
    status: int, error: type[GatewayError]
) -> None:
    answer = b"HTTP/1.1 %d X\r\nlocation: /\r\ncontent-length: 5\r\n\r\nhello" % status
    async with between(answering(answer)) as (provider, upstream):
        with pytest.raises(error):
            await collect(upstream)
        await provider.closed_by_client.wait()


# What is sent.


async def test_a_request_is_what_was_given_and_no_more() -> None:
    requests = []

    async def handle(reader: Reader, writer: Writer) -> None:
        requests.append(await reader.read(65_536))
        writer.write(HELLO)

    async with between(handle) as (provider, upstream):
        headers = [("User-Agent", "x/1"), ("accept", "*/*"), ("x-a", "1"), ("x-a", "caf\udcc3\udca9")]
        async with upstream.send(Endpoint.MESSAGES, headers, "beta=true", b'{"a": 1}'):
            pass
        async with upstream.send(Endpoint.MODEL, [], model_id="some-model"):
            pass
    host = provider.origin.removeprefix("http://").encode()
    credential = b"x-api-key: the-credential\r\n"
    assert requests == [
        b"POST /v1/messages?beta=true HTTP/1.1\r\nhost: %b\r\nUser-Agent: x/1\r\naccept: */*\r\nx-a: 1\r\n"
        b"x-a: caf\xc3\xa9\r\n%bcontent-length: 8\r\n\r\n" % (host, credential) + b'{"a": 1}',
        b"GET /v1/models/some-model HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (host, credential),
    ]


@pytest.mark.parametrize(
    "header",
    [
        ("a", "b\r\nx-evil: 1"),
        ("a", "b\nx-evil: 1"),
        ("a", "b\r"),
        ("a", "b\0"),
        ("a: b\r\nx-evil", "1"),
        ("a b", "1"),
        ("a:", "1"),
        ("", "1"),
        ("ä", "1"),
    ],
)
async def test_a_header_that_would_change_the_requests_shape_is_refused(header: tuple[str, str]) -> None:
    async with between(answering(HELLO)) as (provider, upstream):
        with pytest.raises(BadRequest):
            async with upstream.send(Endpoint.MESSAGES, [header], "", b"{}"):
                pass
    assert provider.connections == 0


@pytest.mark.parametrize("model_id", ["a b", "a\r\nx-evil: 1", "a\x7f", "ä"])
async def test_a_path_that_would_change_the_requests_shape_is_refused(model_id: str) -> None:
    async with between(answering(HELLO)) as (provider, upstream):
        with pytest.raises(BadRequest):
            async with upstream.send(Endpoint.MODEL, [], model_id=model_id):
                pass
    assert provider.connections == 0


async def test_a_long_request_arrives_whole_at_a_provider_that_reads_slowly() -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        seen, missing = sha256(), len(LONG)
        while missing:
            piece = await reader.read(700_000)
            await asyncio.sleep(0)
            seen.update(piece)
            missing -= len(piece)
        writer.write(OK + b"content-length: 64\r\n\r\n" + seen.hexdigest().encode())
        await reader.readexactly(1)

    async with between(handle) as (_, upstream):
        assert await collect(upstream, LONG) == sha256(LONG).hexdigest().encode()


async def test_an_answer_that_comes_before_the_request_is_sent_is_read_and_ends_the_connection() -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\n\r\nhello")
        await writer.drain()
        await asyncio.sleep(0.1)
        while await reader.read(65_536):
            pass
        left.set()

    left = asyncio.Event()
    async with between(handle) as (provider, upstream):
        assert await collect(upstream, LONG) == b"hello"
        await asyncio.wait_for(left.wait(), 5)
        assert await collect(upstream) == b"hello"
    assert provider.connections == 2


async def test_the_rest_of_a_long_request_follows_while_its_answer_is_read() -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED + b"5\r\nhello\r\n")
        body = await reader.readexactly(len(LONG))
        writer.write(b"40\r\n%b\r\n0\r\n\r\n" % sha256(body).hexdigest().encode())
        await reader.readexactly(1)

    async with between(handle) as (_, upstream):
        assert await collect(upstream, LONG) == b"hello" + sha256(LONG).hexdigest().encode()


# The list of models.


async def test_the_models_of_the_provider_are_listed() -> None:
    async with Simulator() as simulator:
        upstream = upstream_at(simulator.origin)
        assert [model.id for model in await upstream.list_models()] == list(MODELS)
        await upstream.close()


@pytest.mark.parametrize(
    "answer", [HELLO, OK + b"content-length: 20000000\r\n\r\n" + b" " * 20_000_000, b"HTTP/1.1 200"]
)
async def test_a_list_of_models_that_cannot_be_read_or_is_too_long_is_told_as_a_break(answer: bytes) -> None:
    async with between(answering(answer, then="close")) as (_, upstream):
        with pytest.raises(UpstreamBroke):
            await upstream.list_models()
