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

import msgspec

from gateway.core.buckets import TokenBucket
from gateway.core.records import Budget, Key, Refusal
from gateway.core.status import BudgetStatus, LimitsStatus
from gateway.core.windows import RollingWindow

RUNNING_HINT_MS = 2_000
"""How soon to try again where running requests decide: nobody knows when they end."""


class Hold(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a request may use at most, in tokens."""

    input: int
    output: int
    hosted_tools: int = 0
    """Of `input`, what is held for tools that the provider runs. They may not have run at all, so an estimate of
    what was used leaves it out."""

    @property
    def charge(self) -> int:
        return self.input + self.output


class PaceDenial(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A limit that gives back soon: concurrency, requests/min or tokens/min."""

    refusal: Refusal
    at_ms: int
    """When it would say yes if nothing else happened."""


class BudgetDenial(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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

    __slots__ = ("_budgets", "_requests", "_tokens", "held", "key", "running")

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
        self._budgets = tuple(zip(key.budgets, windows, strict=True))
        self._requests = requests
        self._tokens = tokens

    def adopt(self, fresh: "KeyLimits") -> None:
        """Put the limits of an edited key in force. What runs goes on, and a limit that did not change keeps its
        state."""
        if fresh.key.budgets != self.key.budgets:
            self._budgets = fresh._budgets
        if fresh.key.requests_per_minute != self.key.requests_per_minute:
            self._requests = fresh._requests
        if fresh.key.tokens_per_minute != self.key.tokens_per_minute:
            self._tokens = fresh._tokens
        self.key = fresh.key

    def admit(self, hold: Hold, now_ms: int) -> Denial | None:
        """Take the hold and return `None`, or take nothing and return the denial that lasts longest: waiting for
        another one would be in vain."""
        charge = hold.charge
        if not self._fits(charge, now_ms):
            denials: list[Denial] = [*self._deny_by_budgets(hold, now_ms), *self._deny_by_pace(now_ms)]
            return max(denials, key=_lasts)
        self.running += 1
        self.held += charge
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
        for _, window in self._budgets:
            window.advance(now_ms)
            window.add(started_ms, charge, now_ms)
        if self._tokens is not None:
            self._tokens.take(charge, now_ms)

    def status(self, now_ms: int) -> LimitsStatus:
        return LimitsStatus(
            budgets=tuple([self._budget_status(budget, window, now_ms) for budget, window in self._budgets]),
            requests=None if self._requests is None else self._requests.status(now_ms),
            tokens=None if self._tokens is None else self._tokens.status(now_ms),
            running=self.running,
            concurrency=self.key.concurrency,
        )

    def _budget_status(self, budget: Budget, window: RollingWindow, now_ms: int) -> BudgetStatus:
        window.advance(now_ms)
        return BudgetStatus(
            tokens=budget.tokens,
            window_ms=budget.window_ms,
            used=window.used,
            held=self.held,
            next_at_ms=window.falls_at(),
            all_by_ms=window.empty_at(),
        )

    def _deny_by_budgets(self, hold: Hold, now_ms: int) -> Iterator[BudgetDenial]:
        for budget, window in self._budgets:
            denial = self._deny_by_budget(budget, window, hold, now_ms)
            if denial is not None:
                yield denial

    def _deny_by_budget(
        self, budget: Budget, window: RollingWindow, hold: Hold, now_ms: int
    ) -> BudgetDenial | None:
        window.advance(now_ms)
        if self._has_room(budget, window, hold.charge):
            return None
        tokens, room = budget.tokens, budget.tokens + self.key.overdraft
        least = hold.input + 1
        refusal, by_running, at_ms = Refusal.BUDGET, False, None
        if hold.charge > room:
            refusal = Refusal.SIZE
            smaller_fits = all(least <= each.tokens + self.key.overdraft for each in self.key.budgets)
        else:
            by_running = window.used < tokens and window.used + hold.charge <= room
            at_ms = now_ms + RUNNING_HINT_MS
            if not by_running:
                at_ms = window.below_at(min(room - hold.charge, tokens - 1))
            smaller_fits = self._fits(least, now_ms)
        return BudgetDenial(
            refusal=refusal,
            budget=self._budget_status(budget, window, now_ms),
            at_ms=at_ms,
            by_running=by_running,
            smaller_fits=smaller_fits,
        )

    def _has_room(self, budget: Budget, window: RollingWindow, charge: int) -> bool:
        """Whether a hold fits into one budget, whose window is up to date."""
        tokens, used = budget.tokens, window.used
        return used < tokens and used + self.held + charge <= tokens + self.key.overdraft

    def _fits(self, charge: int, now_ms: int) -> bool:
        """Whether all limits admit a hold, as nearly all do. Where one does not, the denials say why."""
        for budget, window in self._budgets:
            window.advance(now_ms)
            if not self._has_room(budget, window, charge):
                return False
        return self._keeps_pace(now_ms)

    def _keeps_pace(self, now_ms: int) -> bool:
        """Whether the limits that give back soon admit one more."""
        concurrency, requests, tokens = self.key.concurrency, self._requests, self._tokens
        return (
            (concurrency is None or self.running < concurrency)
            and (requests is None or not requests.wait_for(1, now_ms))
            and (tokens is None or not tokens.wait_for(0, now_ms))
        )

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
