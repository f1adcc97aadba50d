"""What a request had at hand goes with it, at once: the garbage collector, which comes by rarely, finds nothing.

An error that is held by a frame in its own traceback is a circle, and keeps all that stands in its frames: the body
of the request for one.
"""

import gc
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import pytest
from aiohttp import web

import gateway
from gateway.answer import Answer
from gateway.exchange import Connection
from tests.harness import CREDENTIALS, Database, ask, serving, until
from tests.lanes import Way
from tests.raw_client import Seen, connect, request_bytes
from tests.raw_provider import CHUNKED, OK, Handler, RawProvider, Reader, Writer, read_request, reset

DAY_MS = 86_400_000
NO_MODELS = OK + b'content-length: 11\r\n\r\n{"data":[]}'
EVENTS = CHUNKED.replace(b"\r\n\r\n", b"\r\ncontent-type: text/event-stream\r\n\r\n")
PIECE = b"data: " + b"x" * 1_000 + b"\n\n"
CHUNK = b"%x\r\n%b\r\n" % (len(PIECE), PIECE)
ERROR = b'HTTP/1.1 400 Bad Request\r\ncontent-length: 9\r\n\r\n{"type":1'
GATEWAY = Path(gateway.__file__).parent
POOL = GATEWAY / "pool.py"


Remains = Callable[[], list[str]]
"""What the collector finds of requests since it was asked last."""


@pytest.fixture
def remains() -> Iterator[Remains]:
    """The collector comes when it is asked, and shows what it finds."""

    def find() -> list[str]:
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found = [name for thing in gc.garbage if (name := _name_of_ours(thing))]
        discard()
        return found

    def discard() -> None:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.collect()

    gc.disable()
    discard()
    try:
        yield find
    finally:
        discard()
        gc.enable()


def _name_of_ours(thing: object) -> str:
    """What something is called that belongs to a request; '' for anything else. A connection to the provider that
    was closed, or that asyncio could not open, is a circle too, and knows of no request."""
    if isinstance(thing, TracebackType):
        thing = thing.tb_frame
    if isinstance(thing, FrameType):
        file = Path(thing.f_code.co_filename)
        return thing.f_code.co_qualname if file.is_relative_to(GATEWAY) and file != POOL else ""
    kind = type(thing)
    is_ours = kind.__module__.startswith("gateway.") and kind not in (Connection, Answer)
    return kind.__qualname__ if is_ours or isinstance(thing, web.BaseRequest) else ""


def after_request(then: Handler) -> Handler:
    """A provider's connection: who asks for models gets none, and after a request with a body comes `then`."""

    async def handle(reader: Reader, writer: Writer) -> None:
        while True:
            while not await read_request(reader):
                writer.write(NO_MODELS)
            await then(reader, writer)

    return handle


async def answer_in_part(reader: Reader, writer: Writer) -> None:
    del reader
    writer.write(EVENTS + CHUNK)
    await writer.drain()
    reset(writer)


async def answer_dearly(reader: Reader, writer: Writer) -> None:
    del reader
    usage = json.dumps({"type": "message", "usage": {"input_tokens": 5_000, "output_tokens": 5_000}}).encode()
    writer.write(OK + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(usage), usage))


async def refuse(reader: Reader, writer: Writer) -> None:
    del reader
    writer.write(ERROR)


async def redirect(reader: Reader, writer: Writer) -> None:
    del reader
    writer.write(b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n")


async def refuse_credential(reader: Reader, writer: Writer) -> None:
    del reader
    writer.write(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n")


async def reset_at_once(reader: Reader, writer: Writer) -> None:
    del reader
    reset(writer)


async def write_on(reader: Reader, writer: Writer) -> None:
    """Until nobody listens."""
    del reader
    writer.write(EVENTS)
    while True:
        writer.write(CHUNK)
        await writer.drain()


@asynccontextmanager
async def asking(then: Handler, path: Path, **limits: Any) -> AsyncIterator[tuple[str, Callable[..., bytes]]]:
    """A gateway before a provider; gives its origin, and what makes a request of a body."""
    database = Database(path / "opusmax.db")
    text, _ = await database.create_key(**limits)
    async with (
        RawProvider(after_request(then)) as provider,
        serving(provider, database.path, CREDENTIALS) as origin,
    ):
        yield origin, lambda body: request_bytes("1", text, body)


BODY = json.dumps(ask()).encode()


@pytest.mark.parametrize(
    ("then", "body", "limits", "status"),
    [
        pytest.param(refuse, b'{"model": ', {}, 400, id="a body that is no JSON"),
        pytest.param(refuse, b"[1]", {}, 400, id="a body that is no object"),
        pytest.param(refuse, json.dumps(ask(max_tokens=-1)).encode(), {}, 400, id="a body with a wrong field"),
        pytest.param(refuse, BODY, {"models": ("others-*",)}, 403, id="a model that the key may not use"),
        pytest.param(refuse, BODY, {"budgets": [(100, DAY_MS)]}, 400, id="a request larger than a budget"),
        pytest.param(answer_dearly, BODY, {"budgets": [(2_000, DAY_MS)]}, 429, id="a used-up budget"),
        pytest.param(answer_dearly, BODY, {"requests_per_minute": 1}, 429, id="too many requests"),
        pytest.param(refuse, BODY, {}, 400, id="an error of the provider"),
        pytest.param(redirect, BODY, {}, 502, id="an answer that is not passed on"),
        pytest.param(refuse_credential, BODY, {}, 502, id="a credential that the provider refuses"),
        pytest.param(reset_at_once, BODY, {}, 502, id="a provider that breaks before its answer"),
        pytest.param(answer_dearly, BODY, {}, 200, id="an answer"),
    ],
)
async def test_nothing_remains_of_a_request_once_it_is_answered(
    tmp_path: Path, remains: Remains, then: Handler, body: bytes, limits: dict[str, Any], status: int
) -> None:
    async with asking(then, tmp_path, **limits) as (origin, request):
        client = await connect(origin)
        await client.ask(request(body), Seen()).end()  # the first one may also prove the key and use a budget up
        remains()
        seen = await client.ask(request(body), Seen()).end()
        assert (seen.status, seen.is_whole) == (status, True)
        assert remains() == []


async def test_nothing_remains_of_a_request_that_no_provider_could_be_asked(
    tmp_path: Path, remains: Remains
) -> None:
    database = Database(tmp_path / "opusmax.db")
    text, _ = await database.create_key()
    async with RawProvider(after_request(refuse)) as provider:
        pass
    async with serving(provider, database.path, CREDENTIALS) as origin:
        client = await connect(origin)
        await client.ask(request_bytes("1", text, BODY), Seen()).end()
        remains()
        seen = await client.ask(request_bytes("2", text, BODY), Seen()).end()
        assert (seen.status, seen.is_whole) == (502, True)
        assert remains() == []


async def test_nothing_remains_of_an_answer_that_broke(tmp_path: Path, remains: Remains) -> None:
    async with asking(answer_in_part, tmp_path) as (origin, request):
        for _ in range(2):
            remains()
            client = await connect(origin)
            seen = await client.ask(request(BODY), Seen()).end()
            assert (seen.status, bytes(seen.body), seen.is_whole) == (200, PIECE, False)
        assert remains() == []


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_nothing_remains_of_an_answer_whose_client_left_in_the_middle_of_it(
    tmp_path: Path, remains: Remains, how: Way
) -> None:
    async with asking(write_on, tmp_path) as (origin, request):
        for _ in range(10):  # the next piece comes now before the client's end is seen, now after it
            client = await connect(origin)
            await client.ask(request(BODY), Seen()).until_bytes(len(PIECE))
            client.leave(how)
        database = Database(tmp_path / "opusmax.db")
        await until(lambda: database.query("SELECT count(*) FROM request WHERE status IS NOT NULL") == [(10,)])
        assert remains() == []
