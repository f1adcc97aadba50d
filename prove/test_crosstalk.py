"""P6 at full size: of 10,000 streams, many left by their clients, none mixes with another or leaves a rest."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.simulator import Simulator
from prove.conftest import Figure
from prove.load import held_data
from tests.harness import Database, until
from tests.raw_provider import RawProvider
from tests.test_crosstalk import (
    AT_ONCE,
    KEYS,
    Crowd,
    MarkingProvider,
    check_apart,
    crowd_in_one_process,
    descriptors,
    run_without_a_trace,
)
from tests.test_server_process import Server, server

STREAMS = 10_000
EARLY = 2_000
"""By then all that is made once is there, so what memory grows by afterwards would go on growing."""
GROWTH = 0.05
STREAMS_IN_PROCESS = 1_000


@asynccontextmanager
async def crowd_of_a_server(
    provider: Simulator, database: Database
) -> AsyncIterator[tuple[Crowd, MarkingProvider, Server]]:
    marking = MarkingProvider()
    keys = [await database.create_key(f"key {number}") for number in range(KEYS)]
    async with (
        RawProvider(marking.handle) as raw,
        server(provider, database.path, "--anthropic-url", raw.origin) as running,
    ):
        for text, _ in keys:
            await held_data(running.origin, text)  # proves the key
        yield Crowd(running.origin, database, keys), marking, running


def resident_kilobytes(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))


async def test_streams_never_mix_and_a_server_stays_as_it_was(
    provider: Simulator, database: Database, figure: Figure
) -> None:
    async with crowd_of_a_server(provider, database) as (crowd, marking, running):
        await crowd.run(range(EARLY))
        marking.close_idle()
        await asyncio.sleep(1)
        files, early = descriptors(running.process.pid), resident_kilobytes(running.process.pid)
        await crowd.run(range(EARLY, STREAMS))
        marking.close_idle()
        late = resident_kilobytes(running.process.pid)
        check_apart(crowd, marking)
        rows = await crowd.check_ledger()
        await until(lambda: descriptors(running.process.pid) == files)
    assert late / early < 1 + GROWTH
    tally = crowd.tally
    figure(
        "P6",
        f"{tally.streams:,} streams, {AT_ONCE} at once, {tally.left:,} left by their clients, {len(tally.whole):,}"
        f" whole: foreign bytes {tally.foreign_bytes} of {tally.body_bytes:,}, foreign heads {tally.mixed_heads},"
        f" foreign counts in 0 of {rows:,} rows",
    )
    figure(
        "P6",
        f"after them: descriptors {files} as before; memory {late / early - 1:+.1%} from {EARLY:,} streams"
        f" ({early / 1024:.0f} MB) to {STREAMS:,}",
    )


async def test_streams_leave_no_task_and_no_descriptor_behind(
    provider: Simulator, database: Database, figure: Figure
) -> None:
    async with crowd_in_one_process(provider, database) as (crowd, marking):
        await run_without_a_trace(crowd, marking, STREAMS_IN_PROCESS)
    figure("P6", f"{STREAMS_IN_PROCESS:,} streams in one process: tasks and descriptors left behind: 0")
