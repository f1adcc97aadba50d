"""A key's own limits in the headers that Anthropic's clients read (PROTOCOLS A.7).

Per-minute limits: `anthropic-ratelimit-{requests|tokens}-{limit|remaining|reset}`, reset in RFC 3339. Windows of
five hours and seven days, which Claude Code shows: `anthropic-ratelimit-unified-{5h|7d}-*`, reset in epoch seconds.
"""

from gateway.core import amounts
from gateway.core.status import BucketStatus, BudgetStatus, LimitsStatus

_UNIFIED_WINDOWS = {5 * amounts.HOUR_MS: "5h", 7 * amounts.DAY_MS: "7d"}
_CLAIMS = {"5h": "five_hour", "7d": "seven_day"}


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
