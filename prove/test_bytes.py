"""P6 at full size: the same bytes on both sides, however they are cut; breaks that show; and what the way costs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import accumulate, chain

import pytest

from gateway.simulator import Simulator
from prove.conftest import Figure
from prove.load import held_data
from tests.byte_corpus import (
    Exchange,
    NumberedProvider,
    Player,
    Seen,
    Stage,
    chunk,
    connect,
    request_bytes,
)
from tests.harness import Database
from tests.raw_provider import RawProvider, Reader, Writer
from tests.test_bytes import (
    answers,
    break_visibly,
    breakable,
    byte_by_byte,
    cut,
    is_passed,
    long_answers,
    pass_whole,
    raise_in_the_sdk,
    refuse,
    requests,
    streamed,
    streams,
    with_status,
)
from tests.test_server_process import server

AT_ONCE = 16
MEGABYTE = 10**6
PATIENCE = {"OPUSMAX_FIRST_BYTE_TIMEOUT_SECONDS": "1s", "OPUSMAX_SILENCE_TIMEOUT_SECONDS": "1s"}

EVENTS = 50
PACE_SECONDS = 0.020
STREAMS_AT_ONCE = 5
TURNS = 8


@asynccontextmanager
async def stage(provider: Simulator, database: Database) -> AsyncIterator[Stage]:
    """A server in front of a player instead of `provider`."""
    player = Player()
    keys = [await database.create_key(f"lane {name}") for name in range(AT_ONCE)]
    async with (
        RawProvider(player.handle) as raw,
        server(provider, database.path, "--anthropic-url", raw.origin, **PATIENCE) as running,
    ):
        for text, _ in keys:
            await held_data(running.origin, text)  # proves the key, of which only a few may wait at once
        yield Stage(running.origin, player, database, keys)


async def test_requests_arrive_as_the_same_bytes(provider: Simulator, database: Database, figure: Figure) -> None:
    exchanges = list(requests(10 * MEGABYTE))
    async with stage(provider, database) as running:
        compared = await pass_whole(running, exchanges)
    figure("P6", f"requests of up to 10 MB: hashes differ in 0 of {len(exchanges)}, {compared:,} bytes compared")


async def test_answers_arrive_as_the_same_bytes(provider: Simulator, database: Database, figure: Figure) -> None:
    exchanges = [*answers(), *long_answers(3 * MEGABYTE), *map(byte_by_byte, streams())]
    async with stage(provider, database) as running:
        compared = await pass_whole(running, exchanges)
    pieces = sum(len(exchange.pieces) for exchange in exchanges)
    figure(
        "P6",
        f"answers of up to 3 MB a line, with clients that had each of {pieces:,} pieces before the next was sent:"
        f" hashes or usage differ in 0 of {len(exchanges)}, {compared:,} bytes compared",
    )


def cut_in_two(exchange: Exchange) -> list[Exchange]:
    """At every place."""
    body = exchange.answer
    return [replace(exchange, pieces=(body[:place], body[place:])) for place in range(1, len(body))]


async def test_events_cut_at_every_place_pass_and_are_metered_the_same(
    provider: Simulator, database: Database, figure: Figure
) -> None:
    wholes = [exchange for exchange in streams() if "line" in exchange.name]
    exchanges = [exchange for whole in wholes for exchange in cut_in_two(whole)]
    async with stage(provider, database) as running:
        compared = await pass_whole(running, exchanges)
    figure(
        "P6",
        f"streams with LF, CRLF, CR cut in two at every byte: hashes or usage differ in 0 of {len(exchanges):,},"
        f" {compared:,} bytes compared",
    )


async def test_every_status_passes_or_is_refused(provider: Simulator, database: Database, figure: Figure) -> None:
    passed = [answer for status in range(200, 600) if is_passed(status) for answer in with_status(status)]
    refused = [
        answer for status in (101, *range(104, 600)) if not is_passed(status) for answer in with_status(status)
    ]
    async with stage(provider, database) as running:
        compared = await pass_whole(running, passed)
        await refuse(running, refused)
    figure(
        "P6",
        f"every status: hashes differ in 0 of {len(passed):,}, {compared:,} bytes compared; a 502 of the gateway's"
        f" own for 1xx, 3xx and 401: all {len(refused)}",
    )


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_an_answer_that_breaks_at_any_byte_never_looks_whole(
    provider: Simulator, database: Database, figure: Figure, version: str
) -> None:
    cuts = [exchange for whole in breakable() for exchange in cut(whole)]
    silences = [replace(exchange, ending="silence") for exchange in cuts[::28]]
    async with stage(provider, database) as running:
        broken = await break_visibly(running, [*cuts, *silences], version)
    figure(
        "P6",
        f"upstream close, reset or silence at every byte of head, framing and body, HTTP/{version} client: looks"
        f" whole in 0 of {broken:,}",
    )


async def test_the_real_client_raises_wherever_an_answer_breaks(
    provider: Simulator, database: Database, figure: Figure
) -> None:
    cuts = [exchange for whole in [streamed(), *breakable()] for exchange in cut(whole, step=17)]
    silences = [replace(exchange, ending="silence") for exchange in cuts[::100]]
    async with stage(provider, database) as running:
        broken = await raise_in_the_sdk(running, [*cuts, *silences])
    figure("P6", f"upstream close, reset or silence, Anthropic SDK: returns a message out of 0 of {broken}")


# What the way through costs.


class Pacer(NumberedProvider):
    """Its events come at a steady pace; it notes when it sends each."""

    stream = streamed(output_tokens=EVENTS, events=EVENTS)

    def __init__(self) -> None:
        super().__init__()
        self.sent_at: dict[str, list[float]] = {}

    async def answer(self, reader: Reader, writer: Writer, number: str, body: bytes) -> None:
        del reader, body
        sent_at = self.sent_at[number] = []
        now = asyncio.get_running_loop().time
        writer.write(self.stream.head_bytes)
        due = now()
        for piece in self.stream.pieces:
            sent_at.append(now())
            writer.write(chunk(piece))
            due += PACE_SECONDS
            await asyncio.sleep(due - now())
        writer.write(self.stream.end_bytes)

    def delays(self, number: str, seen: Seen) -> list[float]:
        """How long each event took, without the first and the last: those wait for the ledger's disk."""
        ends = accumulate(map(len, self.stream.pieces))
        arrived_at = [next(at for count, at in seen.arrivals if count >= end) for end in ends]
        return [there - here for here, there in zip(self.sent_at[number], arrived_at, strict=True)][1:-1]


async def turn(pacer: Pacer, origin: str, key: str, name: str) -> list[float]:
    """The delays of some streams at once."""

    async def one(number: int) -> list[float]:
        client, seen = await connect(origin), Seen()
        await client.ask(request_bytes(f"{name}-{number}", key, pacer.stream.request), seen).end()
        client.leave()
        assert seen.is_whole
        return pacer.delays(f"{name}-{number}", seen)

    return list(chain.from_iterable(await asyncio.gather(*map(one, range(STREAMS_AT_ONCE)))))


async def test_events_keep_their_pace(provider: Simulator, database: Database, figure: Figure) -> None:
    pacer, (key, _) = Pacer(), await database.create_key()
    direct, through = list[float](), list[float]()
    async with (
        RawProvider(pacer.handle) as raw,
        server(provider, database.path, "--anthropic-url", raw.origin) as running,
    ):
        await held_data(running.origin, key)
        for number in range(TURNS):
            direct += await turn(pacer, raw.origin, key, f"direct-{number}")
            through += await turn(pacer, running.origin, key, f"through-{number}")
    added = [1000 * (quantile(through, share) - quantile(direct, share)) for share in (0.5, 0.99)]
    assert added[0] < 1000 * PACE_SECONDS
    figure(
        "P6",
        f"added to each event, {STREAMS_AT_ONCE} streams of {PACE_SECONDS * 1000:.0f} ms events:"
        f" p50 {added[0]:.2f} ms, p99 {added[1]:.2f} ms (direct and through in turns, {len(through):,} each)",
    )


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]
