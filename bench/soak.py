"""Memory over a long run: 100,000 requests of all kinds, and what the process holds after every 10,000 or so.

All parts of the mix run at once: short answers and streams, errors of the provider, requests that are refused for
their key or their budget, and clients that leave in the middle of a stream. What counts is the rise of a line
through the second half: by then caches are full, and what the garbage collector has not looked at comes and goes.
"""

import sqlite3
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from statistics import linear_regression

from bench.machine import BenchError, own_memory_megabytes
from bench.measures import load
from bench.subjects import Running, new_key

REQUESTS = 100_000
STEP_REQUESTS = 10_000
FIRST_STEP_SECONDS = 4.0
QUIET_SECONDS = 1.5
"""After each step: the last rows are written, refusals are too, and clients that left are gone."""
REFUSED = -1
"""In the ledger a refusal is no row: it is counted with its key."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the mix."""

    mode: str
    flags: Mapping[str, float]
    recorded_as: int | None
    """The status of its requests in the ledger, or `REFUSED`; `None`: it does not know them."""
    has_budget: bool = True


MIX = (
    Part("json", {"lanes": 32}, 200),
    Part("streams", {"lanes": 16, "events": 5, "gap_us": 1_000}, 200),
    Part("leave", {"lanes": 4, "events": 100}, 499),
    Part("json", {"lanes": 4, "wish": 400, "expect": 400}, 400),
    Part("json", {"lanes": 2, "expect": 400}, REFUSED, has_budget=False),
    Part("json", {"lanes": 2, "expect": 401}, None),
)


@dataclass(frozen=True, slots=True)
class Point:
    """What the process held after so many requests, without what it maps from files."""

    requests: int
    megabytes: float


def soak(running: Running) -> list[Point]:
    """Raises `BenchError` if an answer was wrong, or the ledger has anything else than what the load saw."""
    poor = f"x-api-key: {new_key(running.environment, '--budget', '1/5h')}"
    time.sleep(QUIET_SECONDS)  # the server follows within a second
    seen = Counter({200: running.counts.requests})
    sent, seconds = 0, FIRST_STEP_SECONDS
    points = [_point(running, sent)]
    while sent < REQUESTS:
        began = time.monotonic()
        found = _step(running, poor, seconds)
        for part, requests in zip(MIX, found, strict=True):
            if part.recorded_as is not None:
                seen[part.recorded_as] += requests
        sent += sum(found)
        seconds = STEP_REQUESTS * (time.monotonic() - began) / sum(found)
        time.sleep(QUIET_SECONDS)
        points.append(_point(running, sent))
    _require_recorded(running, seen)
    return points


def growth_megabytes(points: Sequence[Point]) -> float:
    """How far the line through the second half of the points rises within half of the requests."""
    half = [point for point in points if point.requests >= REQUESTS / 2]
    line = linear_regression([point.requests for point in half], [point.megabytes for point in half])
    return line.slope * REQUESTS / 2


def table(points: Sequence[Point]) -> str:
    rows = [[f"{point.requests:,}" for point in points], ["---:"] * len(points)]
    rows.append([f"{point.megabytes:.1f}" for point in points])
    titles = ("requests", "---", "memory, MB")
    return "\n".join(f"| {' | '.join([title, *cells])} |" for title, cells in zip(titles, rows, strict=True))


def _point(running: Running, sent: int) -> Point:
    if running.process_id is None:
        raise BenchError("the soak needs a process of its own")
    return Point(sent, own_memory_megabytes(running.process_id))


def _step(running: Running, poor: str, seconds: float) -> list[int]:
    """All parts at once; returns how many requests each of them made."""

    def run(part: Part) -> int:
        header = running.header if part.has_budget else poor
        if part.recorded_as is None:
            header = "x-api-key: unknown"
        return int(load(running.address, header, part.mode, warm=0, seconds=seconds, **part.flags)["requests"])

    with ThreadPoolExecutor(len(MIX)) as threads:
        return list(threads.map(run, MIX))


def _require_recorded(running: Running, seen: Mapping[int, int]) -> None:
    with closing(sqlite3.connect(running.environment["OPUSMAX_DATABASE"])) as connection:
        found = dict(connection.execute("SELECT status, count(*) FROM request GROUP BY status"))
        ((found[REFUSED],),) = connection.execute("SELECT sum(refused_size) FROM key")
    if found != seen:
        raise BenchError(f"the ledger has {found}, the load saw {dict(seen)}")
