"""What other limits would have done to a key's past: its ledger, replayed through the limits themselves.

Theory: each request starts when it started, is admitted or refused by the very code that does so in the server
(limits.py), and is settled when it ended. One that is refused here uses nothing afterwards, as in life; whether its
client would have come again is not known, so it does not.

    budget 100k/5h, requests of 60k at 10:00, 12:00 and 15:30
    10:00 is admitted, 12:00 refused (60 + 60 > 100), 15:30 admitted: the first has left the window at 15:00

What a request held while it ran is not in the ledger once it has ended, so what it used stands for it. A real hold
is larger (it has the whole of max_tokens in it): the refusals told here are the fewest that there would have been,
unless `least_hold` says what the key's clients hold.
"""

from collections import Counter
from dataclasses import dataclass
from heapq import heappop, heappush

from gateway.core.amounts import DAY_MS, HOUR_MS, MINUTE_MS
from gateway.core.buckets import TokenBucket
from gateway.core.limits import BudgetDenial, Denial, Hold, KeyLimits
from gateway.core.peaks import Peak, Peaks
from gateway.core.records import Budget, Key, Refusal
from gateway.core.windows import RollingWindow

USUAL_WINDOWS = (5 * HOUR_MS, 7 * DAY_MS)
"""Measured where there is no budget to measure by: the windows that Claude Code shows its users."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """What one limit would have refused."""

    reason: Refusal
    budget: Budget | None
    """Which one, where the reason is a budget."""
    requests: int
    first_ms: int
    last_ms: int
    worst_hour_ms: int
    """When the hour of the clock (UTC) began in which there were most of them; the first one of several."""
    in_worst_hour: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a replay has shown. The peaks are of what the key really used, refused or not."""

    requests: int
    charge: int
    """Tokens that all these requests counted for."""
    refused: tuple[Refused, ...]
    """The most frequent first."""
    refused_charge: int
    """Tokens that the refused ones counted for."""
    windows: tuple[tuple[int | None, Peak], ...]
    """Tokens, by the window in milliseconds; `None`: in all."""
    requests_in_a_minute: Peak
    tokens_in_a_minute: Peak
    at_once: Peak

    @property
    def refused_requests(self) -> int:
        return sum(each.requests for each in self.refused)


class Replay:
    """Sees the requests of a key in the order of their start, and keeps score."""

    __slots__ = (
        "_charge",
        "_least_hold",
        "_limits",
        "_peaks",
        "_refused_charge",
        "_requests",
        "_running",
        "_since_ms",
        "_tallies",
    )

    def __init__(self, key: Key, *, since_ms: int, least_hold: int = 0) -> None:
        """The key with the limits to try. Requests before `since_ms` fill the windows and are not counted.

        Each request holds what it used, and at least `least_hold`, both in tokens.
        """
        # Nothing has happened before the first request, so the buckets are full, whatever time it is.
        paces = (key.requests_per_minute, key.tokens_per_minute)
        buckets = [None if pace is None else TokenBucket(pace, 0) for pace in paces]
        self._limits = KeyLimits(key, [RollingWindow(budget.window_ms) for budget in key.budgets], *buckets)
        self._peaks = Peaks(_windows(key), since_ms)
        self._since_ms = since_ms
        self._least_hold = least_hold
        self._running: list[tuple[int, int, int, Hold]] = []
        """Heap: when it ends, when it started, what it will count, what it holds: alike for those alike so far."""
        self._requests = self._charge = self._refused_charge = 0
        self._tallies: dict[tuple[Refusal, Budget | None], _Tally] = {}

    def see(self, started_ms: int, ended_ms: int, charge: int) -> None:
        """The next request: when it started and ended, and what it counted for in the end."""
        self._settle_until(started_ms)
        hold = Hold(input=max(charge, self._least_hold), output=0)
        denial = self._limits.admit(hold, started_ms)
        if denial is None:
            heappush(self._running, (ended_ms, started_ms, charge, hold))
        self._peaks.see(started_ms, ended_ms, charge)
        if started_ms >= self._since_ms:
            self._count(started_ms, charge, denial)

    def outcome(self) -> Outcome:
        """The score so far."""
        requests, tokens = self._peaks.in_a_minute()
        refused = [tally.told(*which) for which, tally in self._tallies.items()]
        return Outcome(
            requests=self._requests,
            charge=self._charge,
            refused=tuple(sorted(refused, key=lambda each: (-each.requests, each.first_ms))),
            refused_charge=self._refused_charge,
            windows=self._peaks.in_windows(),
            requests_in_a_minute=requests,
            tokens_in_a_minute=tokens,
            at_once=self._peaks.at_once,
        )

    def _settle_until(self, now_ms: int) -> None:
        running = self._running
        while running and running[0][0] <= now_ms:
            ended_ms, started_ms, charge, hold = heappop(running)
            self._limits.settle(hold, started_ms, charge, ended_ms)

    def _count(self, started_ms: int, charge: int, denial: Denial | None) -> None:
        self._requests += 1
        self._charge += charge
        if denial is None:
            return
        self._refused_charge += charge
        which = (denial.refusal, _budget_of(denial))
        if which not in self._tallies:
            self._tallies[which] = _Tally(started_ms)
        self._tallies[which].add(started_ms)


def begins_at(key: Key, since_ms: int) -> int:
    """From which time on a replay needs the ledger, so that every window is full when the counting begins."""
    lengths = [window_ms for window_ms in _windows(key) if window_ms is not None]
    if len(lengths) < len(_windows(key)):
        return 0
    return max(0, since_ms - max(lengths) - MINUTE_MS)


def _windows(key: Key) -> tuple[int | None, ...]:
    return tuple(budget.window_ms for budget in key.budgets) or USUAL_WINDOWS


def _budget_of(denial: Denial) -> Budget | None:
    if not isinstance(denial, BudgetDenial):
        return None
    return Budget(tokens=denial.budget.tokens, window_ms=denial.budget.window_ms)


class _Tally:
    """What one limit has refused so far."""

    __slots__ = ("_by_hour", "_first_ms", "_last_ms")

    def __init__(self, first_ms: int) -> None:
        self._first_ms = self._last_ms = first_ms
        self._by_hour: Counter[int] = Counter()

    def add(self, started_ms: int) -> None:
        self._last_ms = started_ms
        self._by_hour[started_ms - started_ms % HOUR_MS] += 1

    def told(self, reason: Refusal, budget: Budget | None) -> Refused:
        [(worst_hour_ms, in_worst_hour)] = self._by_hour.most_common(1)
        return Refused(
            reason=reason,
            budget=budget,
            requests=self._by_hour.total(),
            first_ms=self._first_ms,
            last_ms=self._last_ms,
            worst_hour_ms=worst_hour_ms,
            in_worst_hour=in_worst_hour,
        )
