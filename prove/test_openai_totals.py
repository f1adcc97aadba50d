"""P5 on OpenAI's endpoints: whatever a provider's quirks and whoever leaves, the ledger says what it reported."""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import aiohttp

from gateway.core.estimate import BYTES_PER_TOKEN
from gateway.core.records import Key
from gateway.core.usage import NO_USAGE, Usage
from gateway.simulator import OPENAI_MODELS, Script, Simulator
from gateway.simulator.content import add_up
from gateway.simulator.sending import Received
from prove.conftest import Figure
from prove.load import held_data
from tests.harness import ALL_CREDENTIALS, Database, Row, until
from tests.test_server_process import server

REQUESTS = 2_000
AT_ONCE = 20
LEAVING = 0.2
MAX_TOKENS = 100
FOREVER_SECONDS = 3_600
GPT, EMBEDDER = OPENAI_MODELS[0], OPENAI_MODELS[2]
CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"
_LANE = re.compile(rb"lane (\d+)\D")

QUIRKS: list[Mapping[str, Any]] = [
    *({"chat_usage": place} for place in ("last_chunk", "last_choice", "every_chunk", "late_choice", "x_groq")),
    *({"cached_tokens": place} for place in ("prompt_cache_hit_tokens", "cached_tokens", "nowhere")),
    *({"thinking": way, "reasoning_apart": apart} for way in ("shown", "hidden") for apart in (False, True)),
    *({"encoding": way} for way in ("gzip", "deflate")),
    *({"line_end": end, "comments": 2, "unknown_events": 2} for end in ("\n", "\r\n", "\r")),
    *({"split_bytes": most, "split_seed": most} for most in (3, 50, 1_000)),
    {"long_data_line_bytes": 300_000},
    {"output_tokens": 300},
    {"over_report": 5_000},
    {"response_failed": True},
    {"content_filter": True},
    {"tool_use": True},
    {"obfuscation": True, "spaced_json": True},
    {"trailing_bytes": b": bye\n\n"},
    {"pause_seconds": 0.002},
    {"first_byte_delay_seconds": 0.02},
    {"chunked_json": True},
    {"close_delimited": True},
    {"informational": 1},
    {},
]
"""What a provider that tells the truth may look like."""
SILENT: list[Mapping[str, Any]] = [{"omit_usage": True}, {"null_usage": True}]
BROKEN: list[Mapping[str, Any]] = [
    {"cut_after_events": 5},
    {"cut_after_bytes": 60, "cut": "close"},
    {"error_event_after_events": 4},
    *({"status": status} for status in (400, 404, 429, 500, 529)),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One request, its answer, and whether its client leaves."""

    path: str
    body: dict[str, Any]
    script: Script
    leaves: bool

    @property
    def hold(self) -> int:
        """Without the bytes of the body."""
        output = 0 if self.path == EMBEDDINGS else MAX_TOKENS
        return output * int(self.body.get("n", 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of it."""

    case: Case
    received: Received
    row: Row
    has_ended: bool
    arrived: bytes

    @property
    def is_exact(self) -> bool:
        """Whether the client has a whole answer that said what it used."""
        has_told = self.received.status == 200 and self.received.reported != NO_USAGE
        return has_told and self.has_ended and self.received.completed

    def check(self) -> None:
        row, reported = self.row, self.received.reported
        if self.received.status is not None and self.received.status >= 300:
            assert (row.usage, row.status) == (NO_USAGE, self.received.status)
            return
        if self.is_exact:
            assert (row.usage, row.estimated, row.status) == (reported, False, 200)
            return
        hold = self.case.hold + -(-self.received.body_length // BYTES_PER_TOKEN)
        assert row.usage.charge > 0
        assert reported.charge <= row.usage.charge <= max(reported.charge, hold)
        assert row.estimated or row.usage == reported
        if self.case.leaves:
            assert (row.status, self.received.disconnected) == (499, True)


class Lane:
    """A client with a key of its own that makes one request at a time, so that the next row is that request's."""

    def __init__(self, name: int, database: Database, text: str, key: Key) -> None:
        self.text = text
        self.key = key
        self.script = Script()
        self.received: Received | None = None
        self._greeting = f"lane {name} says hello"
        self._database = database
        self._rows = 0

    async def run(self, http: aiohttp.ClientSession, case: Case) -> Result:
        self.script, self.received = case.script, None
        place = "messages" if case.path == CHAT else "input"
        said: Any = [{"role": "user", "content": self._greeting}] if case.path == CHAT else self._greeting
        arrived, has_ended = await self._take(http, case, case.body | {place: said})
        assert self.received is not None
        await asyncio.wait_for(self.received.ended.wait(), 10)
        self._rows += 1
        await until(lambda: self._settled() == self._rows)
        row = self._database.rows(self.key)[-1]
        return Result(case=case, received=self.received, row=row, has_ended=has_ended, arrived=arrived)

    def _settled(self) -> int:
        [(rows, settled)] = self._database.query(
            "SELECT count(*), count(status) FROM request WHERE key = ?", self.key.row
        )
        assert rows == self._rows
        return int(settled)

    async def _take(self, http: aiohttp.ClientSession, case: Case, body: dict[str, Any]) -> tuple[bytes, bool]:
        arrived = bytearray()
        try:
            async with http.post(case.path, json=body, headers={"authorization": f"Bearer {self.text}"}) as answer:
                while not case.leaves or len(arrived) < await self._sent_before_the_pause():
                    chunk = await answer.content.readany()
                    if not chunk:
                        return bytes(arrived), True
                    arrived += chunk
                answer.close()
        except aiohttp.ClientPayloadError:
            pass
        return bytes(arrived), False

    async def _sent_before_the_pause(self) -> int:
        await until(lambda: self.received is not None and bool(self.received.answer_pieces))
        assert self.received is not None
        return len(self.received.answer_pieces[0])


def some_case(random: Random) -> Case:
    """Whoever leaves does so while the provider pauses, so that it is certain what has been reported by then."""
    path = random.choice([CHAT, CHAT, RESPONSES, RESPONSES, EMBEDDINGS])
    leaves = random.random() < LEAVING
    streams = path != EMBEDDINGS and random.random() < 0.7
    quirk = random.choice(QUIRKS if leaves else random.choice([SILENT, *[BROKEN] * 2, *[QUIRKS] * 7]))
    script = Script(events=6, output_tokens=random.randrange(20, MAX_TOKENS), usage=some_usage(random))
    script = replace(script, **quirk)
    if not streams:
        script = replace(script, cut_after_events=None)  # a reset after a whole answer would meet the next request
    if leaves:
        script = replace(script, encoding=None, split_seed=None)
        if streams:
            script = replace(script, stall_after_events=random.randrange(1, 7), split_bytes=0, pause_seconds=0)
        else:
            script = replace(script, split_bytes=random.randrange(20, 80), pause_seconds=FOREVER_SECONDS)
    return Case(path=path, body=some_body(random, path, streams=streams), script=script, leaves=leaves)


def some_usage(random: Random) -> Usage | None:
    if random.random() < 0.3:
        return None
    counts = [random.choice([0, random.randrange(1, most)]) for most in (3_000, 90_000)]
    output = random.randrange(1, MAX_TOKENS)
    return Usage(input=random.randrange(1, 5_000), output=output, cache_write=counts[0], cache_read=counts[1])


def some_body(random: Random, path: str, *, streams: bool) -> dict[str, Any]:
    if path == EMBEDDINGS:
        return {"model": EMBEDDER, "dimensions": 16}
    if path == RESPONSES:
        return {"model": GPT, "max_output_tokens": MAX_TOKENS, "stream": streams}
    body = {"model": GPT, "max_completion_tokens": MAX_TOKENS, "stream": streams, "n": random.choice([1, 1, 3])}
    options = random.choice([None, {"include_usage": True}, {"include_usage": False}])
    return body | ({"stream_options": options} if streams and random.random() < 0.6 else {})


async def run_all(lanes: list[Lane], origin: str, cases: list[Case]) -> list[Result]:
    waiting, results = iter(cases), list[Result]()

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(origin, connector=connector, auto_decompress=False) as http:

        async def work(lane: Lane) -> None:
            for case in waiting:
                results.append(await lane.run(http, case))

        await asyncio.gather(*map(work, lanes))
    return results


async def test_mixed_requests_are_in_the_ledger_as_the_provider_counted_them(
    provider: Simulator, database: Database, figure: Figure
) -> None:
    random = Random(20)
    keys = [await database.create_key(f"lane {name}") for name in range(AT_ONCE)]
    lanes = [Lane(name, database, *key) for name, key in enumerate(keys)]

    def choose(received: Received) -> Script | None:
        found = _LANE.search(received.body)
        if found is None:
            return None
        lane = lanes[int(found[1])]
        lane.received = received
        return lane.script

    provider.choose = choose
    cases = [some_case(random) for _ in range(REQUESTS)]
    environment: dict[str, str] = {"OPUSMAX_OPENAI_URL": provider.origin} | ALL_CREDENTIALS
    async with server(provider, database.path, **environment) as running:
        for lane in lanes:
            await held_data(running.origin, lane.text)  # proves the key, of which only a few may wait at once
        results = await run_all(lanes, running.origin, cases)
        pages = [(await held_data(running.origin, lane.text))["key"] for lane in lanes]

    for result in results:
        result.check()
    exact = [result for result in results if result.is_exact]
    left = [result for result in results if result.case.leaves]
    told = add_up(result.received.reported for result in exact)
    assert add_up(result.row.usage for result in exact) == told
    everything = add_up(result.row.usage for result in results)
    assert sum(page["total_requests"] for page in pages) == REQUESTS == len(provider.messages())
    for name in ("input", "output", "cache_write", "cache_read"):
        assert sum(page[f"total_{name}"] for page in pages) == getattr(everything, name)
    assert REQUESTS * 0.15 < len(left) < REQUESTS * 0.25
    assert len(exact) > REQUESTS // 2
    figure(
        "P5",
        f"OpenAI's endpoints, {REQUESTS:,} mixed requests: {len(exact):,} whole answers told"
        f" {told.input + told.output + told.cache_read:,} tokens, recorded the same to the token;"
        f" {len(left)} clients left in the middle: one row each, charged from what was reported to the hold",
    )
