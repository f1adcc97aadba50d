"""A key's own limits in the headers that clients read.

Anthropic (PROTOCOLS A.7): `anthropic-ratelimit-{requests|tokens}-{limit|remaining|reset}` for per-minute limits,
reset in RFC 3339. `anthropic-ratelimit-unified-{5h|7d}-*` for windows of five hours and seven days, which Claude
Code shows, reset in epoch seconds.

OpenAI (PROTOCOLS B.1): `x-ratelimit-{limit|remaining|reset}-{requests|tokens}` for per-minute limits. The reset is
the time until all is there again, written as Go writes durations: `850ms`, `1.5s`, `6m0s`. Codex shows the same two
windows from `x-codex-{primary|secondary}-*`.
"""

from collections.abc import Mapping, Sequence

import msgspec

from gateway.core import amounts
from gateway.core.errors import BudgetExceeded
from gateway.core.protocols import Protocol
from gateway.core.status import BucketStatus, BudgetStatus, LimitsStatus

_STATUS = "anthropic-ratelimit-unified-status"
_RESET = "anthropic-ratelimit-unified-reset"
_CLAIM = "anthropic-ratelimit-unified-representative-claim"
_REASON = "anthropic-ratelimit-unified-overage-disabled-reason"
_LAST_WARNING, _FIRST_WARNING = 0.95, 0.75
"""Claude Code warns its user where it is told that a window is used to one of these shares."""


class _Bucket(msgspec.Struct, frozen=True):
    """What the headers of a per-minute limit are called."""

    limit: str
    remaining: str
    reset: str


class _Unified(msgspec.Struct, frozen=True):
    """What the headers of a window are called for Claude Code."""

    claim: str
    """The window itself, where it is the fullest."""
    status: str
    utilization: str
    reset: str
    threshold: str


class _Codex(msgspec.Struct, frozen=True):
    """What the headers of a window are called for Codex."""

    percent: str
    minutes: str
    reset: str
    length_minutes: str


_REQUESTS = _Bucket(
    "anthropic-ratelimit-requests-limit",
    "anthropic-ratelimit-requests-remaining",
    "anthropic-ratelimit-requests-reset",
)
_TOKENS = _Bucket(
    "anthropic-ratelimit-tokens-limit",
    "anthropic-ratelimit-tokens-remaining",
    "anthropic-ratelimit-tokens-reset",
)
_OPENAI_REQUESTS = _Bucket(
    "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"
)
_OPENAI_TOKENS = _Bucket("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens")

_UNIFIED_WINDOWS: Mapping[int | None, _Unified] = {
    5 * amounts.HOUR_MS: _Unified(
        "five_hour",
        "anthropic-ratelimit-unified-5h-status",
        "anthropic-ratelimit-unified-5h-utilization",
        "anthropic-ratelimit-unified-5h-reset",
        "anthropic-ratelimit-unified-5h-surpassed-threshold",
    ),
    7 * amounts.DAY_MS: _Unified(
        "seven_day",
        "anthropic-ratelimit-unified-7d-status",
        "anthropic-ratelimit-unified-7d-utilization",
        "anthropic-ratelimit-unified-7d-reset",
        "anthropic-ratelimit-unified-7d-surpassed-threshold",
    ),
}
_CODEX_WINDOWS: Mapping[int | None, _Codex] = {
    5 * amounts.HOUR_MS: _Codex(
        "x-codex-primary-used-percent",
        "x-codex-primary-window-minutes",
        "x-codex-primary-reset-at",
        length_minutes="300",
    ),
    7 * amounts.DAY_MS: _Codex(
        "x-codex-secondary-used-percent",
        "x-codex-secondary-window-minutes",
        "x-codex-secondary-reset-at",
        length_minutes="10080",
    ),
}


def limit_headers(protocol: Protocol, status: LimitsStatus, now_ms: int, *, with_windows: bool) -> dict[str, str]:
    """A key's limits as clients of `protocol` read them. `with_windows`: see `anthropic_headers`."""
    if protocol is Protocol.OPENAI:
        return openai_headers(status, now_ms)
    return anthropic_headers(status, now_ms, with_windows=with_windows)


def budget_headers(protocol: Protocol, status: LimitsStatus, now_ms: int, error: BudgetExceeded) -> dict[str, str]:
    """The same for a refusal by a budget, with what makes clients show its text.

    Codex has words of its own and puts `promo-message` into them. Claude Code, told that it uses a gateway, has
    words of its own wherever a claim stands, calls a refusal without a reason "not your usage limit", and shows the
    text where there is a reason and no claim. The reset is the time that the text names.
    """
    headers = limit_headers(protocol, status, now_ms, with_windows=True)
    if protocol is Protocol.OPENAI:
        if error.message.isascii() and error.message.isprintable():  # it names a contact, which may be anything
            headers["x-codex-promo-message"] = error.message
        return headers
    headers.pop(_CLAIM, None)
    headers[_STATUS] = "rejected"
    headers[_REASON] = "org_spend_cap_reached"
    if error.resets_at_seconds is not None:
        headers[_RESET] = str(error.resets_at_seconds)
    return headers


def anthropic_headers(status: LimitsStatus, now_ms: int, *, with_windows: bool) -> dict[str, str]:
    """The headers for one answer. `with_windows` is for answers that succeed or are refused by a budget: clients
    take their presence on a 429 for "the plan is used up"."""
    headers: dict[str, str] = {}
    for names, bucket in ((_REQUESTS, status.requests), (_TOKENS, status.tokens)):
        if bucket is not None:
            full_at = amounts.show_stamp(bucket.full_at_ms + amounts.SECOND_MS - 1)
            headers |= _bucket_headers(names, bucket, full_at)
    if with_windows:
        headers |= _unified_headers(status.budgets, now_ms)
    return headers


def openai_headers(status: LimitsStatus, now_ms: int) -> dict[str, str]:
    """The headers for one answer."""
    headers: dict[str, str] = {}
    for names, bucket in ((_OPENAI_REQUESTS, status.requests), (_OPENAI_TOKENS, status.tokens)):
        if bucket is not None:
            headers |= _bucket_headers(names, bucket, _go_duration(bucket.full_at_ms - now_ms))
    for budget in status.budgets:
        codex = _CODEX_WINDOWS.get(budget.window_ms)
        if codex is not None:
            headers[codex.percent] = f"{100 * budget.used / budget.tokens:.1f}"
            headers[codex.minutes] = codex.length_minutes
            headers[codex.reset] = _reset(budget, now_ms)
    return headers


def _go_duration(duration_ms: int) -> str:
    """`0s`, `850ms`, `1.5s`, `6m0s`, `1h0m3.25s`."""
    if 0 < duration_ms < amounts.SECOND_MS:
        return f"{duration_ms}ms"
    minutes, rest_ms = divmod(max(0, duration_ms), amounts.MINUTE_MS)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{rest_ms / amounts.SECOND_MS:g}s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def _bucket_headers(names: _Bucket, bucket: BucketStatus, full_at: str) -> dict[str, str]:
    return {
        names.limit: str(bucket.per_minute),
        names.remaining: str(max(0, bucket.level)),
        names.reset: full_at,
    }


def _unified_headers(budgets: Sequence[BudgetStatus], now_ms: int) -> dict[str, str]:
    """Each window that Claude Code shows, and the fullest of them once more, as the one that counts."""
    headers: dict[str, str] = {}
    fullest: dict[str, str] = {}
    most_used = -1.0
    for budget in budgets:
        names = _UNIFIED_WINDOWS.get(budget.window_ms)
        if names is None:
            continue
        share, word, reset = budget.used / budget.tokens, _word(budget), _reset(budget, now_ms)
        headers[names.status] = word
        headers[names.utilization] = f"{share:.4f}"
        headers[names.reset] = reset
        if budget.used >= _FIRST_WARNING * budget.tokens:
            is_last = budget.used >= _LAST_WARNING * budget.tokens
            headers[names.threshold] = str(_LAST_WARNING if is_last else _FIRST_WARNING)
        if share > most_used:
            most_used, fullest = share, {_STATUS: word, _RESET: reset, _CLAIM: names.claim}
    return headers | fullest


def _word(budget: BudgetStatus) -> str:
    if budget.used >= budget.tokens:
        return "rejected"
    return "allowed_warning" if budget.used >= _FIRST_WARNING * budget.tokens else "allowed"


def _reset(budget: BudgetStatus, now_ms: int) -> str:
    """When all has come back; an unused window is as new right now."""
    return str(-(-(budget.all_by_ms or now_ms) // amounts.SECOND_MS))
