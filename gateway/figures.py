"""What is counted while requests pass: plain integers, so that it costs next to nothing. metrics.py tells them.

Every label comes from a closed list of ours: an endpoint, a status, a reason. Nothing of a request can become one.
"""

import asyncio
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial

import aiosqlite

from gateway.core.records import KeyRow, LedgerRow, Refusal
from gateway.core.usage import Usage
from gateway.core.wire import MODEL_PLACE, Endpoint
from gateway.ledger import Ledger

OTHER = "other"
"""Pages, probes, and whatever is not served."""
KINDS = Usage.__struct_fields__

COMMIT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds; the last is how long an answer waits for the disk."""

_LABELS = {path: endpoint.path for endpoint in Endpoint for path in endpoint.paths}


class Answers:
    """How often each endpoint was answered with each status."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, int]] = Counter()
        """(path of the endpoint or `OTHER`, status)."""

    def count(self, path: str, status: int) -> None:
        """Count an answer. A client that leaves is a 499, as in the ledger."""
        self.counts[_label(path), status] += 1


def _label(path: str) -> str:
    return _LABELS.get(path) or _LABELS.get(f"{path.rpartition('/')[0]}/{MODEL_PLACE}", OTHER)


class CountedLedger(Ledger):
    """The ledger, with counts of what went through it since the start."""

    def __init__(
        self, connection: aiosqlite.Connection, on_change: Callable[[aiosqlite.Connection], Awaitable[None]]
    ) -> None:
        super().__init__(connection, on_change)
        self.admitted = 0
        self.settled = 0
        self.input = self.output = self.cache_write = self.cache_read = 0
        """Tokens of settled requests, by kind: the fields of `Usage`."""
        self.refusals: Counter[Refusal] = Counter()
        self.commits = [0] * (len(COMMIT_BUCKETS) + 1)
        """How many commits were done within each of `COMMIT_BUCKETS`, and not the one before; then later."""
        self.commit_seconds = 0.0
        """Of all of them together."""
        self._is_timing = False
        """A row is on its way whose time is taken: one at a time, since a commit carries many."""

    @property
    def queue(self) -> int:
        """Rows that are on their way to the disk."""
        return sum(map(len, self.uncommitted()))

    def open(self, row: LedgerRow) -> asyncio.Future[None]:
        self.admitted += 1
        return super().open(row)

    def settle(self, row: LedgerRow) -> asyncio.Future[None]:
        self.settled += 1
        usage = row.usage
        self.input += usage.input
        self.output += usage.output
        self.cache_write += usage.cache_write
        self.cache_read += usage.cache_read
        is_safe = super().settle(row)
        if not self._is_timing:
            self._is_timing = True
            is_safe.add_done_callback(partial(self._note_commit, time.perf_counter()))
        return is_safe

    def count_refusal(self, key: KeyRow, refusal: Refusal) -> None:
        self.refusals[refusal] += 1
        super().count_refusal(key, refusal)

    def _note_commit(self, asked_at: float, _is_safe: asyncio.Future[None]) -> None:
        self._is_timing = False
        seconds = time.perf_counter() - asked_at
        self.commits[bisect_left(COMMIT_BUCKETS, seconds)] += 1
        self.commit_seconds += seconds
