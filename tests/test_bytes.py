"""P6: what a client sends is what the provider gets, and the other way round, byte for byte and piece by piece; and
an answer that breaks upstream never looks whole. The whole corpus runs in `make prove`.
"""

import json
import re
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from http import HTTPStatus
from random import Random
from typing import Any, get_args

import anthropic
import httpx2
import pytest

from gateway.core.usage import NO_USAGE, Usage
from gateway.simulator import Script, Simulator
from gateway.simulator.answers import message_answer
from gateway.simulator.scripts import Ask
from tests.byte_corpus import Exchange, Framing, Player, Stage
from tests.harness import ALL_CREDENTIALS, MODEL, Database, ask, serving
from tests.raw_client import Seen, divided
from tests.raw_provider import RawProvider

FRAMINGS: tuple[Framing, ...] = get_args(Framing)
USAGE = Usage(input=11, output=22, cache_write=33, cache_read=44)
JSON = "content-type: application/json"
EVENTS = "content-type: text/event-stream; charset=utf-8"
WITHOUT_PATIENCE = {"first_byte_timeout_seconds": "1s", "silence_timeout_seconds": "1s", "drain_seconds": "1s"}
UNREADABLE = None
"""What the provider counted cannot be read, so it is estimated."""
RAW_TEXT = "Grüße \u2028 中文 \U0001f600 \x7f"
ESCAPED_TEXT = r"Gr\u00fc\u00dfe \ud83d\ude00 \/ \" \\ \n \u0000"


# Requests.


def request_forms() -> Iterator[tuple[str, bytes]]:
    """One JSON body in every way to write it."""
    body = ask(metadata={"user_id": None}, temperature=0.5, stop_sequences=[], unknown_field={"a": [1, {}]})
    text = json.dumps(body)
    yield "compact", json.dumps(body, separators=(",", ":")).encode()
    yield "spaced", text.encode()
    yield "tabs", json.dumps(body, indent="\t").encode()
    yield "CRLF between", json.dumps(body, indent=1).replace("\n", "\r\n").encode()
    yield "space around", b" \t\r\n" + text.encode() + b"\n\n \t"
    yield "spaces before colons", json.dumps(body, separators=("  , ", " :\n")).encode()
    yield "keys backwards", json.dumps(dict(reversed(body.items()))).encode()
    yield "raw unicode", with_text(RAW_TEXT.encode())
    yield "escapes", with_text(ESCAPED_TEXT.encode())
    yield "escaped name", text.replace('"model"', r'"m\u006fdel"').encode()
    yield (
        "numbers",
        text.replace("0.5", "5.0E-1").replace("[1,", "[-0, 1e400, 10000000000000000000000,").encode(),
    )
    yield "deep", text.replace("{}", "[" * 90 + "]" * 90).encode()


def with_text(text: bytes) -> bytes:
    return json.dumps(ask()).encode().replace(b"Hello there", text)


def long_requests(size: int) -> Iterator[tuple[str, bytes]]:
    yield "long text", with_text(b"A line of text.\\n" * (size // 16))
    source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo" * (size // 11)}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]
    yield "long image", json.dumps(ask(messages=[{"role": "user", "content": content}])).encode()


def requests(long_bytes: int) -> Iterator[Exchange]:
    """Each by its length and in chunks."""
    for name, body in [*request_forms(), *long_requests(long_bytes)]:
        for is_chunked in (False, True):
            yield replace(plain(), name=name, request=body, is_request_chunked=is_chunked)


# Answers.


def body_of(*, stream: bool, **script: object) -> bytes:
    """What the simulated provider says."""
    answer = message_answer(
        Script(usage=USAGE, **script),  # type: ignore[arg-type]  # fields of all kinds
        Ask(model=MODEL, input_tokens=9, max_tokens=100, streams=stream),
    )
    return b"".join(piece.data for piece in answer.pieces)


def plain(name: str = "plain", **script: object) -> Exchange:
    body = body_of(stream=False, **script)
    return Exchange(name=name, head=(JSON,), pieces=(body[:70], body[70:]), framing="length", usage=USAGE)


def streamed(name: str = "streamed", body: bytes = b"", **script: object) -> Exchange:
    """An event stream, event by event."""
    body = body or body_of(stream=True, **script)
    pieces = tuple(re.findall(rb".+?(?:\r\n\r\n|\n\n|\r\r|$)", body, re.DOTALL))
    return Exchange(name=name, head=(EVENTS,), pieces=pieces, usage=USAGE)


def streams() -> Iterator[Exchange]:
    """Every form that events may have."""
    for line_end in ("\n", "\r\n", "\r"):
        for spaced in (False, True):
            yield streamed(f"lines end with {line_end!r}", line_end=line_end, spaced_json=spaced)
    yield streamed("pings, news, thinking, a tool", pings=4, unknown_events=3, thinking="shown", tool_use=True)
    yield streamed("trailing bytes", trailing_bytes=b": more\n\nevent: late\ndata: {}\n\nhalf an ev")
    yield streamed("counts told often", message_deltas=3, restate_input=True)
    stream = body_of(stream=True)
    yield streamed("events without names", re.sub(rb"event: .*\n", b"", stream))
    yield streamed("no space after colons", stream.replace(b": {", b":{"))
    yield streamed("comments and other fields", stream.replace(b"\n\n", b"\n: hm\nid: 7\nretry\nodd: 1\n\n:\n\n"))
    several_lines = stream.replace(b',"', b',\ndata: "')
    yield streamed("data on several lines", several_lines)
    yield streamed("data on several lines, CRLF", several_lines.replace(b"\n", b"\r\n"))
    yield streamed("unknown fields", stream.replace(b'{"type"', b'{"new":{"usage":[]},"type"'))
    yield streamed("raw unicode", stream.replace(b"the ", RAW_TEXT.encode()))
    yield streamed("escapes", stream.replace(b"the ", ESCAPED_TEXT.encode()))
    yield streamed("a byte order mark", b"\xef\xbb\xbf" + stream)


def messages() -> Iterator[Exchange]:
    """Answers that are no stream."""
    yield plain()
    yield plain("spaced", spaced_json=True)
    message = body_of(stream=False)
    for name, body in [
        ("indented", json.dumps(json.loads(message), indent=2).replace("\n", "\r\n").encode()),
        ("raw unicode", message.replace(b"the ", RAW_TEXT.encode())),
        ("escapes", message.replace(b"the ", ESCAPED_TEXT.encode())),
        ("backwards", json.dumps(dict(reversed(json.loads(message).items()))).encode()),
    ]:
        yield replace(plain(name), pieces=tuple(divided(body, 99)))
    yield replace(plain("empty"), pieces=(), usage=UNREADABLE)
    yield replace(plain("not JSON"), pieces=(b"\0\xff\r\n", b"0\r\n\r\n"), usage=UNREADABLE)


def packed() -> Iterator[Exchange]:
    """Answers that come compressed though nobody asked for it, in pieces that tell nothing by themselves."""
    for stream in (False, True):
        original = body_of(stream=stream)
        for encoding, window_bits in (("gzip", 31), ("deflate", 15), ("deflate", -15)):
            packer = zlib.compressobj(wbits=window_bits)
            yield encoded(encoding, packer.compress(original) + packer.flush(), stream=stream, usage=USAGE)
        for encoding in ("br", "zstd", "its-own"):
            yield encoded(encoding, Random(encoding).randbytes(900), stream=stream, usage=UNREADABLE)
        yield encoded("gzip", b"\x1f\x8b" + Random(1).randbytes(900), stream=stream, usage=UNREADABLE)


def encoded(encoding: str, body: bytes, *, stream: bool, usage: Usage | None) -> Exchange:
    head = (EVENTS if stream else JSON, f"content-encoding: {encoding}")
    return Exchange(name=f"packed: {encoding}", head=head, pieces=tuple(divided(body, 60)), usage=usage)


def answers() -> Iterator[Exchange]:
    """All of them, in every framing."""
    for exchange in [*streams(), *messages(), *packed()]:
        for framing in FRAMINGS:
            yield replace(exchange, framing=framing)


def long_answers(size: int) -> Iterator[Exchange]:
    """One data line of so many bytes, or one JSON text."""
    for framing in FRAMINGS:
        yield replace(streamed("long data line", long_data_line_bytes=size), framing=framing)
        yield replace(plain("long message", long_data_line_bytes=size), framing=framing)


def byte_by_byte(exchange: Exchange) -> Exchange:
    return replace(exchange, pieces=tuple(bytes([byte]) for byte in exchange.answer))


def with_status(status: int) -> Iterator[Exchange]:
    """An answer with this status: JSON or not, empty, in each framing, or events."""
    succeeds = status < 300
    envelope = b'{"type":"error","error":{"type":"api_error","message":"No."}}'
    whole = plain() if succeeds else replace(plain(), pieces=(envelope,))
    page = replace(whole, head=("content-type: text/html",), pieces=(b"<h1>", b"No</h1>\n"), usage=UNREADABLE)
    empty = replace(page, pieces=())
    forms = [whole, replace(whole, framing="chunked"), replace(streamed(), framing="close"), page, empty]
    if status == HTTPStatus.NO_CONTENT:
        forms = [replace(empty, framing="close")]
    for exchange in forms:
        usage = exchange.usage if succeeds else NO_USAGE
        yield replace(exchange, name=f"{exchange.head[0]}, {status}", status=status, usage=usage)


def is_passed(status: int) -> bool:
    """Redirects lead elsewhere, other protocols do too, and a 401 speaks of the operator's credential."""
    return 200 <= status < 300 or (400 <= status < 600 and status != 401)


# What becomes of them.


@asynccontextmanager
async def stage(provider: Simulator, database: Database, lanes: int = 8) -> AsyncIterator[Stage]:
    """A gateway in front of a player instead of `provider`."""
    player = Player()
    keys = [await database.create_key(f"lane {name}") for name in range(lanes)]
    async with (
        RawProvider(player.handle) as raw,
        serving(
            provider,
            database.path,
            credentials=ALL_CREDENTIALS,
            anthropic_url=raw.origin,
            openai_url=raw.origin,
            **WITHOUT_PATIENCE,
        ) as origin,
    ):
        try:
            yield Stage(origin, player, database, keys)
        finally:
            player.close_all()  # a gateway that stops would wait for what still runs


async def pass_whole(stage: Stage, exchanges: list[Exchange]) -> int:
    """The same bytes on both sides, the same usage in the ledger. Returns how many bytes were compared."""
    results = await stage.play(exchanges)
    for played, row in results:
        exchange = played.exchange
        played.check_whole()
        assert (row.status, row.estimated) == (exchange.status, exchange.usage is UNREADABLE), exchange.name
        assert row.usage == (exchange.usage or row.usage), exchange.name
    assert len(results) == len(exchanges)
    return sum(len(exchange.request) + len(exchange.answer) for exchange in exchanges)


async def test_requests_in_every_form_arrive_as_the_same_bytes(provider: Simulator, database: Database) -> None:
    async with stage(provider, database) as running:
        await pass_whole(running, list(requests(300_000)))


async def test_answers_in_every_form_arrive_piece_by_piece_as_the_same_bytes(
    provider: Simulator, database: Database
) -> None:
    async with stage(provider, database) as running:
        await pass_whole(running, [*answers(), *long_answers(300_000)])


async def test_a_stream_that_comes_byte_by_byte_goes_out_so_and_is_metered_the_same(
    provider: Simulator, database: Database
) -> None:
    chosen = [exchange for exchange in streams() if "line" in exchange.name]
    async with stage(provider, database) as running:
        await pass_whole(running, [byte_by_byte(exchange) for exchange in chosen])


async def test_whatever_its_status_an_answer_passes_as_it_is(provider: Simulator, database: Database) -> None:
    statuses = (200, 201, 204, 206, 299, 400, 402, 404, 418, 429, 499, 500, 529, 599)
    async with stage(provider, database) as running:
        await pass_whole(running, [exchange for status in statuses for exchange in with_status(status)])


async def refuse(stage: Stage, exchanges: list[Exchange]) -> None:
    """The client is told by the gateway itself, with nothing of what the provider said."""
    for played, row in await stage.play(exchanges):
        played.check_request()
        assert (played.seen.status, played.seen.is_whole) == (502, True), played.exchange.name
        assert json.loads(played.seen.body)["error"]["type"] == "api_error"
        assert (row.status, row.usage) == (502, NO_USAGE)


async def test_answers_that_lead_elsewhere_are_not_passed_on(provider: Simulator, database: Database) -> None:
    async with stage(provider, database) as running:
        await refuse(
            running, [answer for status in (101, 199, 300, 304, 307, 401) for answer in with_status(status)]
        )


def cut(exchange: Exchange, step: int = 1) -> Iterator[Exchange]:
    """Cut off at every `step`th byte of what is sent, head and framing included. What has neither length nor chunks
    cannot be seen to be cut off by an orderly close: such an answer has no other end."""
    head_bytes = len(exchange.head_bytes)
    for cut_at in range(0, len(exchange.wire), step):
        if exchange.framing != "close" or cut_at < head_bytes:
            yield replace(exchange, cut_at=cut_at)
        yield replace(exchange, cut_at=cut_at, ending="reset")


def breakable() -> list[Exchange]:
    short = streamed(output_tokens=2, events=1, pings=0)
    return [short, replace(short, framing="close"), plain(), replace(plain(), framing="chunked")]


def is_complete(answer: bytes | bytearray) -> bool:
    """A stream that has said its last word has been answered, whatever becomes of its connection."""
    return any(end in answer for end in (b'"message_stop"}\n\n', b"data: [DONE]\n\n"))


async def break_visibly(stage: Stage, exchanges: list[Exchange], version: str = "1.1") -> int:
    results = await stage.play(exchanges, version)
    for played, row in results:
        played.check_broken()
        status = 504 if played.exchange.ending == "silence" else 502
        assert row.status == (200 if is_complete(played.seen.body) else status), played.exchange
    assert len(results) == len(exchanges)
    return len(results)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_an_answer_that_breaks_anywhere_never_looks_whole(
    provider: Simulator, database: Database, version: str
) -> None:
    async with stage(provider, database) as running:
        cuts = [exchange for whole in breakable() for exchange in cut(whole, step=61)]
        silences = [replace(exchange, ending="silence") for exchange in cuts[::12]][:8]
        await break_visibly(running, [*cuts, *silences], version)


async def raise_in_the_sdk(stage: Stage, exchanges: list[Exchange]) -> int:
    """The real client never returns a message out of an answer that broke, in any of its ways to take one."""
    async with anthropic.AsyncAnthropic(base_url=stage.origin, api_key=stage.keys[0][0], max_retries=0) as client:
        for exchange in exchanges:
            for take in (gather_stream, list_events) if EVENTS in exchange.head else (create,):
                number = stage.expect(exchange, Seen())
                with pytest.raises((anthropic.APIError, httpx2.TransportError)):
                    await take(client, ask() | {"extra_headers": {"x-client-request-id": number}})
    return len(exchanges)


async def gather_stream(client: anthropic.AsyncAnthropic, request: dict[str, Any]) -> None:
    async with client.messages.stream(**request) as stream:
        await stream.get_final_message()


async def list_events(client: anthropic.AsyncAnthropic, request: dict[str, Any]) -> None:
    async for _ in await client.messages.create(**request, stream=True):
        pass


async def create(client: anthropic.AsyncAnthropic, request: dict[str, Any]) -> None:
    await client.messages.create(**request)


async def test_the_real_client_raises_when_an_answer_breaks(provider: Simulator, database: Database) -> None:
    async with stage(provider, database, 1) as running:
        await raise_in_the_sdk(running, [cut_off for whole in breakable() for cut_off in cut(whole, step=333)])
