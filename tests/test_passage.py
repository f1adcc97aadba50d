"""How an answer reaches its client: in which writes, when its head, and at whose pace."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.harness import CREDENTIALS, Database, ask, serving, until
from tests.raw_client import Seen, connect, request_bytes
from tests.raw_provider import CHUNKED, OK, Handler, RawProvider, Reader, Writer, read_request

TYPE = b"content-type: application/json\r\n"
MESSAGE = json.dumps({"type": "message", "usage": {"input_tokens": 3, "output_tokens": 4}}).encode()
WHOLE = OK + TYPE + b"content-length: %d\r\n\r\n" % len(MESSAGE) + MESSAGE
EVENTS = CHUNKED.replace(b"\r\n\r\n", b"\r\ncontent-type: text/event-stream\r\n\r\n")
NO_MODELS = OK + TYPE + b'content-length: 11\r\n\r\n{"data":[]}'
PIECE = b"data: " + b"x" * 65_000 + b"\n\n"


async def read_message(reader: Reader, writer: Writer) -> None:
    """Read up to the end of a request with a body; who asks for models gets none."""
    while not await read_request(reader):
        writer.write(NO_MODELS)


def saying(answer: bytes) -> Handler:
    async def handle(reader: Reader, writer: Writer) -> None:
        await read_message(reader, writer)
        writer.write(answer)
        await reader.read()

    return handle


@asynccontextmanager
async def asked(
    handle: Handler, path: Path, *, version: str = "1.1", header: bytes = b""
) -> AsyncIterator[tuple[Reader, Writer]]:
    """A client's connection to a gateway before a provider that does as `handle` says. A request has been sent."""
    database = Database(path / "opusmax.db")
    text, _ = await database.create_key()
    async with RawProvider(handle) as provider, serving(provider, database.path, CREDENTIALS) as origin:
        address = urlsplit(origin)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        request = request_bytes("1", text, json.dumps(ask()).encode(), version=version)
        writer.write(request.replace(b"\r\n", b"\r\n" + header, 1))
        try:
            async with asyncio.timeout(20):
                yield reader, writer
        finally:
            writer.close()


async def test_a_small_answer_is_one_write(tmp_path: Path) -> None:
    async with asked(saying(WHOLE), tmp_path) as (reader, _):
        received = await reader.read(2**16)
        assert received.endswith(b"\r\n\r\n" + MESSAGE)


async def test_a_head_does_not_wait_for_a_body_that_is_late(tmp_path: Path) -> None:
    may_go_on = asyncio.Event()

    async def handle(reader: Reader, writer: Writer) -> None:
        await read_message(reader, writer)
        writer.write(WHOLE.removesuffix(MESSAGE))
        await may_go_on.wait()
        writer.write(MESSAGE)
        await reader.read()

    async with asked(handle, tmp_path) as (reader, _):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        may_go_on.set()
        assert await reader.readexactly(len(MESSAGE)) == MESSAGE


async def test_a_client_that_reads_nothing_makes_the_provider_wait_and_then_gets_it_all(tmp_path: Path) -> None:
    count, sent = 400, 0

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal sent
        await read_message(reader, writer)
        writer.write(EVENTS)
        while sent < count:
            sent += 1
            writer.write(b"%x\r\n%b\r\n" % (len(PIECE), PIECE))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await reader.read()

    async with asked(handle, tmp_path) as (reader, _):
        await until(lambda: sent > 0)
        before = -1
        while sent > before:  # until it has come to a halt
            before = sent
            await asyncio.sleep(0.3)
        assert sent < count // 2
        received = bytearray()
        while not received.endswith(b"\r\n0\r\n\r\n"):
            received += await reader.read(2**16)
        assert received.count(b"data: ") == count


async def test_a_client_of_http_1_0_gets_an_answer_of_unknown_length_up_to_the_close(tmp_path: Path) -> None:
    chunked = EVENTS + b"6\r\ndata: \r\n3\r\nx\n\n\r\n0\r\n\r\n"
    async with asked(saying(chunked), tmp_path, version="1.0") as (reader, _):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.0 200 OK\r\n")
        assert b"transfer-encoding" not in head.lower()
        assert body == b"data: x\n\n"


@pytest.mark.parametrize(
    ("version", "header", "said"),
    [
        ("1.1", b"", None),
        ("1.1", b"connection: close\r\n", b"close"),
        ("1.0", b"", None),
        ("1.0", b"connection: keep-alive\r\n", b"keep-alive"),
    ],
)
async def test_a_client_is_told_of_what_is_not_usual_in_its_version(
    tmp_path: Path, version: str, header: bytes, said: bytes | None
) -> None:
    async with asked(saying(WHOLE), tmp_path, version=version, header=header) as (reader, _):
        received = await reader.readuntil(MESSAGE)
        assert re.findall(rb"\r\nconnection: (.*)\r\n", received) == ([] if said is None else [said])


async def test_an_answer_without_a_body_is_a_head(tmp_path: Path) -> None:
    async with asked(saying(b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n"), tmp_path) as (reader, _):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 204 No Content\r\n")
        for name in (b"transfer-encoding", b"content-length", b"content-type"):
            assert name not in head


@pytest.mark.parametrize("said", [b"", b"content-type:\r\n"])
async def test_an_answer_that_does_not_say_what_it_is_is_bytes(tmp_path: Path, said: bytes) -> None:
    async with asked(saying(OK + said + b"content-length: 2\r\n\r\n{}"), tmp_path) as (reader, _):
        received = await reader.readuntil(b"{}")
        assert re.findall(rb"\r\ncontent-type: *(.*)\r\n", received) == [b"application/octet-stream"]


async def test_a_chunked_body_that_comes_at_once_is_measured_all_the_same(tmp_path: Path) -> None:
    database = Database(tmp_path / "opusmax.db")
    text, _ = await database.create_key()
    async with (
        RawProvider(saying(WHOLE)) as provider,
        serving(provider, database.path, CREDENTIALS, max_body_bytes=2_000) as origin,
    ):
        client = await connect(origin)
        body = json.dumps(ask(metadata={"user_id": "x" * 2_000})).encode()
        seen = await client.ask(request_bytes("1", text, body, is_chunked=True), Seen()).end()
        assert seen.status == 413
