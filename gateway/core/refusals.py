"""A denial in words that the client's user can act on: figures first, then when it works again, then what helps.

    Token budget used up: 2,000,000 of 2,000,000 in 5h. Room again at 14:30 UTC (in 2h 10m). Usage: <origin>/usage
    This request may need 91,000 tokens; 80,000 of 200,000 are left in 5h. It fits again at 14:30 UTC (in 2h 10m);
    a smaller max_tokens works now.

A text says "used up" only of what is used up. Waits are told in whole seconds, rounded up.
"""

from dataclasses import dataclass

from gateway.core import amounts
from gateway.core.errors import BudgetExceeded, GatewayError, LimitExceeded, NeverFits
from gateway.core.limits import BudgetDenial, Denial, Hold, PaceDenial
from gateway.core.records import Key, Refusal
from gateway.core.status import BudgetStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Signpost:
    """Where texts send their readers."""

    usage_url: str
    contact: str
    """Whom to ask; '' = the administrator, without a name."""

    @property
    def whom_to_ask(self) -> str:
        return f"the administrator ({self.contact})" if self.contact else "the administrator"


THIS_KEY = "this key"


def explain(
    denial: Denial, hold: Hold, key: Key, now_ms: int, signpost: Signpost, *, whose: str = THIS_KEY
) -> GatewayError:
    """The error that tells a client of `denial`. `whose`: who may use the budget."""
    if isinstance(denial, PaceDenial):
        return _pace_error(denial, key, now_ms, signpost)
    if denial.refusal is Refusal.SIZE:
        return NeverFits(_never_fits(denial, hold, key.overdraft, signpost, whose), refusal=denial.refusal)
    return _budget_error(denial, hold, now_ms, signpost, whose)


def _pace_error(denial: PaceDenial, key: Key, now_ms: int, signpost: Signpost) -> LimitExceeded:
    reached = {
        Refusal.CONCURRENCY: f"This key may run {_requests(key.concurrency)} at once, and as many are running.",
        Refusal.REQUESTS: f"Rate limit reached: {_requests(key.requests_per_minute)} per minute.",
        Refusal.TOKENS: f"Rate limit reached: {key.tokens_per_minute} tokens per minute.",
    }
    wait_seconds = _seconds(denial.at_ms - now_ms)
    return LimitExceeded(
        f"{reached[denial.refusal]} Try again in {wait_seconds} s. Usage: {signpost.usage_url}",
        refusal=denial.refusal,
        retry_after_seconds=wait_seconds,
    )


def _never_fits(denial: BudgetDenial, hold: Hold, overdraft: int, signpost: Signpost, whose: str) -> str:
    budget = denial.budget
    room = budget.tokens + overdraft
    if hold.input > room:
        part = f"its input alone is estimated at {hold.input:,} tokens"
    elif hold.output > room:
        part = f"its largest output alone is {hold.output:,}"
    else:
        smaller = "; a smaller max_tokens helps" if denial.smaller_fits else ""
        part = f"input about {hold.input:,}, max_tokens {hold.output:,}{smaller}"
    return (
        f"This request may need {hold.charge:,} tokens and can never fit: {whose} may use {room:,}"
        f" {_in_window(budget)} ({part}). Ask {signpost.whom_to_ask} for a larger budget."
    )


def _budget_error(denial: BudgetDenial, hold: Hold, now_ms: int, signpost: Signpost, whose: str) -> GatewayError:
    budget, at_ms = denial.budget, denial.at_ms
    sharers = "" if whose == THIS_KEY else f" for {whose}"
    asking = f"Ask {signpost.whom_to_ask} for more." if sharers or at_ms is None else ""
    ending = f"{asking} Usage: {signpost.usage_url}".strip()
    wait_seconds = None if at_ms is None else _seconds(at_ms - now_ms)
    if denial.by_running:
        return LimitExceeded(
            f"This request may need {hold.charge:,} tokens; {budget.left:,} of {budget.tokens:,} are left"
            f"{sharers} {_in_window(budget)}, and running requests hold {min(budget.held, budget.left):,} of them"
            f" for now. Try again in {wait_seconds} s. {ending}",
            refusal=denial.refusal,
            retry_after_seconds=wait_seconds,
        )
    tell = _does_not_fit if budget.left else _used_up
    return BudgetExceeded(
        f"{tell(denial, hold, now_ms, sharers)} {ending}",
        refusal=denial.refusal,
        retry_after_seconds=wait_seconds,
        resets_at_seconds=None if at_ms is None else -(-at_ms // amounts.SECOND_MS),
    )


def _used_up(denial: BudgetDenial, _hold: Hold, now_ms: int, sharers: str) -> str:
    budget = denial.budget
    over = f" (over by {budget.over:,})" if budget.over else ""
    text = f"Token budget{sharers} used up: {budget.used:,} of {budget.tokens:,} {_in_window(budget)}{over}."
    return text if denial.at_ms is None else f"{text} Room again at {_when(denial.at_ms, now_ms)}."


def _does_not_fit(denial: BudgetDenial, hold: Hold, now_ms: int, sharers: str) -> str:
    budget = denial.budget
    text = (
        f"This request may need {hold.charge:,} tokens; {budget.left:,} of {budget.tokens:,} are left"
        f"{sharers} {_in_window(budget)}."
    )
    if denial.at_ms is None:
        return f"{text} A smaller max_tokens works now." if denial.smaller_fits else text
    smaller = "; a smaller max_tokens works now" if denial.smaller_fits else ""
    return f"{text} It fits again at {_when(denial.at_ms, now_ms)}{smaller}."


def _when(at_ms: int, now_ms: int) -> str:
    return f"{amounts.show_clock(at_ms, now_ms)} (in {amounts.show_wait(at_ms - now_ms)})"


def _in_window(budget: BudgetStatus) -> str:
    return "in all" if budget.window_ms is None else f"in {amounts.show_duration(budget.window_ms)}"


def _requests(count: int | None) -> str:
    return "1 request" if count == 1 else f"{count} requests"


def _seconds(duration_ms: int) -> int:
    return max(1, -(-duration_ms // amounts.SECOND_MS))
