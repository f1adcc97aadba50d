"""P6 for OpenAI's protocol at full size: every stream cut at every byte, with and without the one chunk that the
gateway takes out, and breaks that show.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from hashlib import sha256

import pytest

from gateway.simulator import Simulator
from prove.conftest import Figure
from prove.load import held_data
from prove.test_bytes import AT_ONCE
from tests.byte_corpus import Exchange, Player, Stage
from tests.harness import OPERATOR_CREDENTIAL, Database
from tests.raw_provider import RawProvider, Reader, Writer
from tests.test_bytes import FRAMINGS, break_visibly, byte_by_byte, cut, pass_whole
from tests.test_bytes_openai import CHAT, CHAT_BODY, LINE_ENDS, RESPONSE, answered, messages, spliced, streams
from tests.test_server_process import server

ASKING = CHAT_BODY | {"stream": True, "stream_options": {"include_usage": True}}
RESPONSE_BODY = {"model": RESPONSE.model, "input": "Hello there", "stream": True}
SHORT = {"output_tokens": 2, "events": 1}
FLIGHT_SECONDS = 0.002
"""From the player to the gateway: what is sent later than that is read by itself."""
COMPLETED = re.compile(rb'"type": ?"response.completed".*(\r\n\r\n|\n\n|\r\r)')


@dataclass(frozen=True, slots=True, kw_only=True)
class Halved(Exchange):
    """An exchange whose answer is sent in two parts, wherever its events end."""

    place: int
    """So many bytes of the answer are in the first part."""

    @property
    def passes_before(self) -> int:
        """What the client sees of the first part at least: its whole events, but for the one that is taken out."""
        end = shown = 0
        for piece in self.pieces:
            end += len(piece)
            if end > self.place:
                break
            shown += 0 if piece == self.withheld else len(piece)
        return shown


def halved(whole: Exchange) -> Iterator[Halved]:
    """Cut in two at every byte."""
    kept = {each.name: getattr(whole, each.name) for each in fields(whole)}
    for place in range(1, len(whole.answer)):
        yield Halved(**kept, place=place)


class HalvingPlayer(Player):
    """Sends the second part only when the first has gone through, as far as it may."""

    async def answer(self, reader: Reader, writer: Writer, number: str, body: bytes) -> None:
        exchange, seen = self.under_way[number]
        if not isinstance(exchange, Halved):
            await super().answer(reader, writer, number, body)
            return
        del self.under_way[number]
        self.received[number] = sha256(body).hexdigest()
        writer.write(exchange.head_bytes + exchange.framed(exchange.answer[: exchange.place]))
        await seen.until_bytes(exchange.passes_before)
        await asyncio.sleep(FLIGHT_SECONDS)
        writer.write(exchange.framed(exchange.answer[exchange.place :]) + exchange.end_bytes)


@asynccontextmanager
async def stage(provider: Simulator, database: Database) -> AsyncIterator[Stage]:
    """A server in front of a player instead of `provider`."""
    player = HalvingPlayer()
    keys = [await database.create_key(f"lane {name}") for name in range(AT_ONCE)]
    credential = {"OPENAI_API_KEY": OPERATOR_CREDENTIAL}
    async with (
        RawProvider(player.handle) as raw,
        server(provider, database.path, "--openai-url", raw.origin, **credential) as running,
    ):
        for text, _ in keys:
            await held_data(running.origin, text)  # proves the key, of which only a few may wait at once
        yield Stage(running.origin, player, database, keys)


def chats() -> Iterator[Exchange]:
    """Short ones with each end of a line, from clients that ask for their usage and from clients that do not."""
    for line_end in LINE_ENDS:
        for spaced in (False, True):
            form = {"line_end": line_end, "spaced_json": spaced}
            chat = answered(f"chat {form}", replace(CHAT, streams=True), ASKING, **form, **SHORT)
            yield from (chat, spliced(chat))


def responses() -> Iterator[Exchange]:
    for line_end in LINE_ENDS:
        said = replace(RESPONSE, streams=True)
        yield answered(f"response {line_end!r}", said, RESPONSE_BODY, line_end=line_end, **SHORT)


async def test_every_form_of_answer_passes(provider: Simulator, database: Database, figure: Figure) -> None:
    forms = [*streams(), *messages()]
    exchanges = [replace(each, framing=framing) for each in forms for framing in FRAMINGS]
    exchanges += [byte_by_byte(each) for each in forms if not each.withheld]
    async with stage(provider, database) as running:
        compared = await pass_whole(running, exchanges)
    figure(
        "P6",
        "OpenAI's chats, responses and embeddings, event by event and byte by byte: hashes or usage differ in"
        f" 0 of {len(exchanges)}, {compared:,} bytes compared",
    )


@pytest.mark.parametrize("kind", ["as asked", "spliced"])
async def test_streams_cut_at_every_byte_pass_and_are_metered_the_same(
    provider: Simulator, database: Database, figure: Figure, kind: str
) -> None:
    """A client that asked for no usage gets exactly what it would have got, and not one byte of the extra chunk."""
    is_spliced = kind == "spliced"
    wholes = [each for each in (*chats(), *responses(), *messages()) if bool(each.withheld) is is_spliced]
    exchanges: list[Exchange] = [each for whole in wholes for each in halved(whole)]
    async with stage(provider, database) as running:
        compared = await pass_whole(running, exchanges)
    what = (
        "chats whose client does not ask for usage, cut in two at every byte: more or less than the extra chunk"
        " taken out"
        if is_spliced
        else "OpenAI's streams and JSON answers cut in two at every byte: hashes or usage differ"
    )
    figure("P6", f"{what} in 0 of {len(exchanges):,}, {compared:,} bytes compared")


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_a_chat_or_an_embedding_that_breaks_at_any_byte_never_looks_whole(
    provider: Simulator, database: Database, figure: Figure, version: str
) -> None:
    chat, extra, *_ = chats()
    *_, embeddings = messages()
    cuts = [each for whole in (chat, extra, embeddings) for each in cut(whole)]
    async with stage(provider, database) as running:
        broken = await break_visibly(running, cuts, version)
    figure(
        "P6",
        f"upstream close or reset at every byte of a chat, a spliced chat and embeddings, HTTP/{version} client:"
        f" looks whole in 0 of {broken:,}",
    )


async def test_a_response_that_breaks_at_any_byte_never_looks_whole(
    provider: Simulator, database: Database, figure: Figure
) -> None:
    """One whose terminal event has come was answered, whatever becomes of its connection."""
    cuts = list(cut(next(responses())))
    async with stage(provider, database) as running:
        for played, row in await running.play(cuts):
            played.check_broken()
            assert row.status == (200 if COMPLETED.search(played.seen.body) else 502), played.exchange
    figure("P6", f"upstream close or reset at every byte of a response: looks whole in 0 of {len(cuts):,}")
