"""No byte of one answer ever turns up in another, whoever breaks off which of them; and nothing is left behind.

Every stream has a marker in its head and in each of its events, and counts of its own. Many run at once over
connections that are used again and again, on both sides; some clients leave, at any moment, and some streams break
upstream. The full size runs in `make prove`.
"""

import asyncio
import itertools
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from random import Random

from gateway.core.records import Key
from gateway.simulator import Simulator
from tests.byte_corpus import Client, NumberedProvider, Seen, chunk, connect, request_bytes
from tests.harness import Database, ask, serving, until
from tests.lanes import WAYS_TO_LEAVE, Way
from tests.raw_provider import OK, RawProvider, Reader, Writer, reset

AT_ONCE = 64
KEYS = 8
LEAVING, BREAKING = 0.4, 0.1
"""Shares of the streams."""
LONGEST_STAY_SECONDS = 0.04
LONGEST_PAUSE_SECONDS = 0.004
_MARKER = re.compile(rb"mark-\d+-[0-9a-f]+")


# What is to happen.


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One stream, as its provider sends it and its client takes it."""

    marker: str
    request: bytes
    events: tuple[bytes, ...]
    pause_seconds: float
    counts: tuple[int, int]
    """Tokens of input and output that it reports; no two streams report the same."""
    leave_after_bytes: int | None = None
    leave_after_seconds: float | None = None
    leave_by: Way = "close"
    break_after_events: int | None = None
    break_by: Way = "close"

    @property
    def leaves(self) -> bool:
        return self.leave_after_bytes is not None or self.leave_after_seconds is not None


@lru_cache(maxsize=4 * AT_ONCE)
def plan(number: int) -> Plan:
    """Always the same for the same number, so that both sides know it."""
    random = Random(number)
    marker = f"mark-{number}-{random.randbytes(8).hex()}"
    counts = (number + 1, random.randint(1, 5_000))
    events = tuple(_events(marker, counts, random))
    return Plan(
        marker=marker,
        request=json.dumps(ask(stream=True, messages=[{"role": "user", "content": marker}])).encode(),
        events=events,
        pause_seconds=random.choice([0, random.uniform(0, LONGEST_PAUSE_SECONDS)]),
        counts=counts,
        **_fate(sum(map(len, events)), len(events), random),  # type: ignore[arg-type]  # fields of all kinds
    )


def _events(marker: str, counts: tuple[int, int], random: Random) -> Iterator[bytes]:
    start = {"id": marker, "usage": {"input_tokens": counts[0], "output_tokens": 1}}
    yield _event("message_start", message=start)
    for _ in range(random.randint(2, 9)):
        text = f"{marker} " * random.randint(1, 60)
        yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
    usage = {"output_tokens": counts[1]}
    yield _event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage, of=marker)
    yield _event("message_stop", of=marker)


def _event(name: str, **fields: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name} | fields)}\n\n".encode()


def _fate(size: int, events: int, random: Random) -> dict[str, object]:
    by = random.choice(WAYS_TO_LEAVE)
    share = random.random()
    if share < LEAVING / 2:
        return {"leave_after_bytes": random.randrange(size), "leave_by": by}
    if share < LEAVING:
        return {"leave_after_seconds": random.uniform(0, LONGEST_STAY_SECONDS), "leave_by": by}
    if share < LEAVING + BREAKING:
        return {"break_after_events": random.randrange(events), "break_by": by}
    return {}


# Who makes it happen.


class MarkingProvider(NumberedProvider):
    """Plays the plans."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed_requests = 0

    async def answer(self, reader: Reader, writer: Writer, number: str, body: bytes) -> None:
        planned = plan(int(number))
        self.mixed_requests += body != planned.request
        head = f"content-type: text/event-stream\r\nrequest-id: {planned.marker}\r\n"
        writer.write(OK + head.encode() + b"transfer-encoding: chunked\r\n\r\n")
        for event in planned.events[: planned.break_after_events]:
            writer.write(chunk(event))
            await asyncio.sleep(planned.pause_seconds)
        if planned.leaves:
            await reader.read(1)  # it never ends by itself: who leaves has to be followed by the gateway
        elif planned.break_after_events is None:
            writer.write(b"0\r\n\r\n")
        elif planned.break_by == "close":
            writer.close()
        else:
            reset(writer)


@dataclass(slots=True)
class Tally:
    """What the clients saw."""

    streams: int = 0
    whole: set[int] = field(default_factory=set)
    left: int = 0
    body_bytes: int = 0
    foreign_bytes: int = 0
    mixed_heads: int = 0
    """Heads that belong to another stream, and bytes between answers."""

    def note(self, number: int, seen: Seen, client: Client) -> None:
        planned, body = plan(number), bytes(seen.body)
        expected = b"".join(planned.events)
        self.streams += 1
        self.body_bytes += len(body)
        self.mixed_heads += client.has_strays
        if seen.status != 200:
            assert seen.status in ({0, 502} if planned.break_after_events is not None else {0}), planned
            self.foreign_bytes += sum(map(len, _MARKER.findall(body)))
            return
        self.mixed_heads += seen.headers["request-id"] != planned.marker
        self.foreign_bytes += len(body) - shared_bytes(body, expected)
        if seen.is_whole:
            assert body == expected
            assert planned.break_after_events is None
            self.whole.add(number)
        else:
            assert planned.leaves or planned.break_after_events is not None, planned


def shared_bytes(one: bytes, other: bytes) -> int:
    """How far they begin alike."""
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return len(one) if other.startswith(one) else sum(1 for _ in alike)


class Crowd:
    """Clients, each with one connection as long as it lasts, and one stream at a time."""

    def __init__(self, origin: str, database: Database, keys: list[tuple[str, Key]]) -> None:
        self.tally = Tally()
        self.database = database
        self.keys = keys
        self._origin = origin

    async def run(self, numbers: Iterable[int]) -> None:
        waiting = iter(numbers)
        await asyncio.gather(*(self._work(waiting) for _ in range(AT_ONCE)))

    async def _work(self, waiting: Iterator[int]) -> None:
        client = await connect(self._origin)
        for number in waiting:
            if not client.is_open:
                client = await connect(self._origin)
            text, _ = self.keys[number % KEYS]
            seen = client.ask(request_bytes(str(number), text, plan(number).request), Seen())
            await self._take(client, seen, plan(number))
            self.tally.note(number, seen, client)
        client.leave()

    async def _take(self, client: Client, seen: Seen, planned: Plan) -> None:
        if planned.leave_after_bytes is not None:
            await seen.until_bytes(planned.leave_after_bytes)
        elif planned.leave_after_seconds is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(seen.end(), planned.leave_after_seconds)
        else:
            await seen.end()
        if not seen.is_over:
            self.tally.left += 1
            client.leave(planned.leave_by)

    async def check_ledger(self) -> int:
        """Each stream's own counts, under its own key, are there once. Returns the number of rows."""
        rows, exact = 0, Counter[int]()
        for place, (_, key) in enumerate(self.keys):
            await until(partial(self._is_settled, key))
            for row in self.database.rows(key):
                rows += 1
                if not row.estimated and row.usage.input:
                    number = row.usage.input - 1
                    assert number % KEYS == place
                    assert (row.usage.input, row.usage.output) == plan(number).counts
                    exact[number] += 1
        assert exact.keys() >= self.tally.whole
        assert not exact or max(exact.values()) == 1
        return rows

    def _is_settled(self, key: Key) -> bool:
        return not self.database.query("SELECT 1 FROM request WHERE key = ? AND status IS NULL", key.row)


def descriptors(process: int | str = "self") -> int:
    """How many files and sockets a process has open. Another one's only root may count, if it is hardened."""
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


@asynccontextmanager
async def crowd_in_one_process(
    provider: Simulator, database: Database
) -> AsyncIterator[tuple[Crowd, MarkingProvider]]:
    marking = MarkingProvider()
    keys = [await database.create_key(f"key {number}") for number in range(KEYS)]
    async with (
        RawProvider(marking.handle) as raw,
        serving(provider, database.path, anthropic_url=raw.origin, drain_seconds="1s") as origin,
    ):
        try:
            yield Crowd(origin, database, keys), marking
        finally:
            marking.close_all()  # a gateway that stops would wait for what still runs


async def run_without_a_trace(crowd: Crowd, marking: MarkingProvider, streams: int) -> None:
    """No stream in another, and afterwards as many descriptors and tasks as before."""

    def left_over() -> tuple[int, int]:
        return descriptors(), len(asyncio.all_tasks())

    await crowd.run(range(AT_ONCE))  # what is opened once and for all
    marking.close_idle()
    await asyncio.sleep(0.2)
    before = left_over()
    await crowd.run(range(AT_ONCE, AT_ONCE + streams))
    marking.close_idle()
    await until(lambda: left_over() == before)
    check_apart(crowd, marking)
    await crowd.check_ledger()


def check_apart(crowd: Crowd, marking: MarkingProvider) -> None:
    tally = crowd.tally
    assert (tally.foreign_bytes, tally.mixed_heads, marking.mixed_requests) == (0, 0, 0)
    assert len(tally.whole) > tally.streams / 3
    assert tally.left > tally.streams / 3


async def test_streams_that_run_at_once_never_mix_and_leave_nothing_behind(
    provider: Simulator, database: Database
) -> None:
    async with crowd_in_one_process(provider, database) as (crowd, marking):
        await run_without_a_trace(crowd, marking, 300)
