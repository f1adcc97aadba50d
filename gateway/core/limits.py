"""Whether a request may go: the one decision, over all limits of its key at once.

Theory: a request is admitted only if everything it may use at most (its *hold*) fits into every budget beside
what was used and what other running requests hold. The hold is taken in the same step, so however many requests
come at once, no two of them pass on the same last tokens. When a request ends it is *settled*: its hold goes, its
real charge stands in each window at the time it started.

    budget 200k/5h, 120k used, 40k held      a hold of 40k fits (120 + 40 + 40 = 200)
                                             a hold of 41k does not, but may once a running request ends
                                             a hold of 81k does not until some of the 120k leaves the window

Budgets are promises and count holds. Tokens/min is a pace: it is charged at settling, may run into debt, and
then the next requests wait. `overdraft` trades exactness for more requests at once: a request may start while
`used` is below the budget, and holds may reach beyond it by so much.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gateway.core.buckets import TokenBucket
from gateway.core.records import Key, Refusal
from gateway.core.status import BudgetStatus, LimitsStatus
from gateway.core.windows import RollingWindow

RUNNING_HINT_MS = 2_000
"""How soon to try again where running requests decide: nobody knows when they end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """What a request may use at most, in tokens."""

    input: int
    output: int
    hosted_tools: int = 0
    """Of `input`, what is held for tools that the provider runs. They may not have run at all, so an estimate of
    what was used leaves it out."""

    @property
    def charge(self) -> int:
        return self.input + self.output


@dataclass(frozen=True, slots=True, kw_only=True)
class PaceDenial:
    """A limit that gives back soon: concurrency, requests/min or tokens/min."""

    refusal: Refusal
    at_ms: int
    """When it would say yes if nothing else happened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetDenial:
    """A budget that the hold does not fit into."""

    refusal: Refusal
    """`SIZE`: it never will. `BUDGET`: it does not now."""
    budget: BudgetStatus
    at_ms: int | None
    """When it would fit if nothing else happened; `None`: never."""
    by_running: bool
    """It would fit once running requests end, so `at_ms` is a hint."""
    smaller_fits: bool
    """With the least of output the request would be admitted now (`SIZE`: by a key that has used nothing)."""


Denial = PaceDenial | BudgetDenial


class KeyLimits:
    """The living limits of one key."""

    __slots__ = ("_requests", "_tokens", "_windows", "held", "key", "running")

    def __init__(
        self,
        key: Key,
        windows: Sequence[RollingWindow],
        requests: TokenBucket | None,
        tokens: TokenBucket | None,
    ) -> None:
        """Nothing running. `windows` belong to `key.budgets`, one each, in their order."""
        self.key = key
        self.held = 0
        self.running = 0
        self._windows = tuple(windows)
        self._requests = requests
        self._tokens = tokens

    def adopt(self, fresh: "KeyLimits") -> None:
        """Put the limits of an edited key in force. What runs goes on, and a limit that did not change keeps its
        state."""
        if fresh.key.budgets != self.key.budgets:
            self._windows = fresh._windows
        if fresh.key.requests_per_minute != self.key.requests_per_minute:
            self._requests = fresh._requests
        if fresh.key.tokens_per_minute != self.key.tokens_per_minute:
            self._tokens = fresh._tokens
        self.key = fresh.key

    def admit(self, hold: Hold, now_ms: int) -> Denial | None:
        """Take the hold and return `None`, or take nothing and return the denial that lasts longest: waiting for
        another one would be in vain."""
        denials: list[Denial] = [*self._deny_by_budgets(hold, now_ms), *self._deny_by_pace(now_ms)]
        if denials:
            return max(denials, key=_lasts)
        self.running += 1
        self.held += hold.charge
        self.count_start(now_ms)
        return None

    def settle(self, hold: Hold, started_ms: int, charge: int, now_ms: int) -> None:
        """Give the hold back and count what was used. Call it once for each admission."""
        self.running -= 1
        self.held -= hold.charge
        self.count(started_ms, charge, now_ms)

    def count_start(self, now_ms: int) -> None:
        """Count a request that was admitted."""
        if self._requests is not None:
            self._requests.take(1, now_ms)

    def count(self, started_ms: int, charge: int, now_ms: int) -> None:
        """Count what a request used."""
        for window in self._windows:
            window.advance(now_ms)
            window.add(started_ms, charge, now_ms)
        if self._tokens is not None:
            self._tokens.take(charge, now_ms)

    def status(self, now_ms: int) -> LimitsStatus:
        return LimitsStatus(
            budgets=tuple(self._budget_status(place, now_ms) for place in range(len(self._windows))),
            requests=None if self._requests is None else self._requests.status(now_ms),
            tokens=None if self._tokens is None else self._tokens.status(now_ms),
            running=self.running,
            concurrency=self.key.concurrency,
        )

    def _budget_status(self, place: int, now_ms: int) -> BudgetStatus:
        budget, window = self.key.budgets[place], self._windows[place]
        window.advance(now_ms)
        return BudgetStatus(
            tokens=budget.tokens,
            window_ms=budget.window_ms,
            used=window.used,
            held=self.held,
            next_at_ms=window.below_at(window.used - 1),
            all_by_ms=window.empty_at(),
        )

    def _deny_by_budgets(self, hold: Hold, now_ms: int) -> Iterator[BudgetDenial]:
        for place in range(len(self._windows)):
            denial = self._deny_by_budget(place, hold, now_ms)
            if denial is not None:
                yield denial

    def _deny_by_budget(self, place: int, hold: Hold, now_ms: int) -> BudgetDenial | None:
        window, tokens = self._windows[place], self.key.budgets[place].tokens
        window.advance(now_ms)
        if self._has_room(place, hold.charge):
            return None
        room = tokens + self.key.overdraft
        least = hold.input + 1
        refusal, by_running, at_ms = Refusal.BUDGET, False, None
        if hold.charge > room:
            refusal = Refusal.SIZE
            smaller_fits = all(least <= budget.tokens + self.key.overdraft for budget in self.key.budgets)
        else:
            by_running = window.used < tokens and window.used + hold.charge <= room
            at_ms = now_ms + RUNNING_HINT_MS
            if not by_running:
                at_ms = window.below_at(min(room - hold.charge, tokens - 1))
            smaller_fits = self._fits_now(least, now_ms)
        return BudgetDenial(
            refusal=refusal,
            budget=self._budget_status(place, now_ms),
            at_ms=at_ms,
            by_running=by_running,
            smaller_fits=smaller_fits,
        )

    def _has_room(self, place: int, charge: int) -> bool:
        """Whether a hold fits into one budget, whose window is up to date."""
        tokens, used = self.key.budgets[place].tokens, self._windows[place].used
        return used < tokens and used + self.held + charge <= tokens + self.key.overdraft

    def _fits_now(self, charge: int, now_ms: int) -> bool:
        """Whether a hold would be admitted by all limits."""
        for window in self._windows:
            window.advance(now_ms)
        has_room = all(self._has_room(place, charge) for place in range(len(self._windows)))
        return has_room and not any(self._deny_by_pace(now_ms))

    def _deny_by_pace(self, now_ms: int) -> Iterator[PaceDenial]:
        concurrency = self.key.concurrency
        if concurrency is not None and self.running >= concurrency:
            yield PaceDenial(refusal=Refusal.CONCURRENCY, at_ms=now_ms + RUNNING_HINT_MS)
        if self._requests is not None and (wait_ms := self._requests.wait_for(1, now_ms)):
            yield PaceDenial(refusal=Refusal.REQUESTS, at_ms=now_ms + wait_ms)
        if self._tokens is not None and (wait_ms := self._tokens.wait_for(0, now_ms)):
            yield PaceDenial(refusal=Refusal.TOKENS, at_ms=now_ms + wait_ms)


def _lasts(denial: Denial) -> tuple[bool, bool, int]:
    """Orders denials: too large for ever, then without an end, then by their end."""
    return denial.refusal is Refusal.SIZE, denial.at_ms is None, denial.at_ms or 0
