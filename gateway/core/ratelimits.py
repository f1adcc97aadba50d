"""A key's own limits in the headers that clients read.

Anthropic (PROTOCOLS A.7): `anthropic-ratelimit-{requests|tokens}-{limit|remaining|reset}` for per-minute limits,
reset in RFC 3339. `anthropic-ratelimit-unified-{5h|7d}-*` for windows of five hours and seven days, which Claude
Code shows, reset in epoch seconds.

OpenAI (PROTOCOLS B.1): `x-ratelimit-{limit|remaining|reset}-{requests|tokens}` for per-minute limits. The reset is
the time until all is there again, written as Go writes durations: `850ms`, `1.5s`, `6m0s`.
"""

from gateway.core import amounts
from gateway.core.protocols import Protocol
from gateway.core.status import BucketStatus, BudgetStatus, LimitsStatus

_UNIFIED_WINDOWS = {5 * amounts.HOUR_MS: "5h", 7 * amounts.DAY_MS: "7d"}
_CLAIMS = {"5h": "five_hour", "7d": "seven_day"}


def limit_headers(protocol: Protocol, status: LimitsStatus, now_ms: int, *, with_windows: bool) -> dict[str, str]:
    """A key's limits as clients of `protocol` read them. `with_windows`: see `anthropic_headers`."""
    if protocol is Protocol.OPENAI:
        return openai_headers(status, now_ms)
    return anthropic_headers(status, now_ms, with_windows=with_windows)


def anthropic_headers(status: LimitsStatus, now_ms: int, *, with_windows: bool) -> dict[str, str]:
    """The headers for one answer. `with_windows` is for answers that succeed or are refused by a budget: clients
    take their presence on a 429 for "the plan is used up"."""
    headers: dict[str, str] = {}
    for name, bucket in (("requests", status.requests), ("tokens", status.tokens)):
        if bucket is not None:
            headers.update(_bucket_headers(name, bucket))
    if with_windows:
        windows = {
            _UNIFIED_WINDOWS[budget.window_ms]: budget
            for budget in status.budgets
            if budget.window_ms in _UNIFIED_WINDOWS
        }
        headers.update(_window_headers(windows, now_ms))
    return headers


def openai_headers(status: LimitsStatus, now_ms: int) -> dict[str, str]:
    """The headers for one answer."""
    headers: dict[str, str] = {}
    for name, bucket in (("requests", status.requests), ("tokens", status.tokens)):
        if bucket is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(bucket.per_minute)
            headers[f"x-ratelimit-remaining-{name}"] = str(max(0, bucket.level))
            headers[f"x-ratelimit-reset-{name}"] = _go_duration(bucket.full_at_ms - now_ms)
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


def _bucket_headers(name: str, bucket: BucketStatus) -> dict[str, str]:
    prefix = f"anthropic-ratelimit-{name}"
    return {
        f"{prefix}-limit": str(bucket.per_minute),
        f"{prefix}-remaining": str(max(0, bucket.level)),
        f"{prefix}-reset": amounts.show_stamp(bucket.full_at_ms + amounts.SECOND_MS - 1),
    }


def _window_headers(windows: dict[str, BudgetStatus], now_ms: int) -> dict[str, str]:
    if not windows:
        return {}
    headers = {}
    for name, budget in windows.items():
        prefix = f"anthropic-ratelimit-unified-{name}"
        headers[f"{prefix}-status"] = _word(budget)
        headers[f"{prefix}-utilization"] = f"{budget.used / budget.tokens:.4f}"
        headers[f"{prefix}-reset"] = _reset(budget, now_ms)
    fullest = max(windows, key=lambda name: windows[name].used / windows[name].tokens)
    headers["anthropic-ratelimit-unified-status"] = _word(windows[fullest])
    headers["anthropic-ratelimit-unified-reset"] = _reset(windows[fullest], now_ms)
    headers["anthropic-ratelimit-unified-representative-claim"] = _CLAIMS[fullest]
    return headers


def _word(budget: BudgetStatus) -> str:
    return "allowed" if budget.left else "rejected"


def _reset(budget: BudgetStatus, now_ms: int) -> str:
    """When all has come back; an unused window is as new right now."""
    return str(-(-(budget.all_by_ms or now_ms) // amounts.SECOND_MS))
