"""A key's own limits in the headers that clients read.

Anthropic (PROTOCOLS A.7): `anthropic-ratelimit-{requests|tokens}-{limit|remaining|reset}` for per-minute limits,
reset in RFC 3339. `anthropic-ratelimit-unified-{5h|7d}-*` for windows of five hours and seven days, which Claude
Code shows, reset in epoch seconds.

OpenAI (PROTOCOLS B.1): `x-ratelimit-{limit|remaining|reset}-{requests|tokens}` for per-minute limits. The reset is
the time until all is there again, written as Go writes durations: `850ms`, `1.5s`, `6m0s`. Codex shows the same two
windows from `x-codex-{primary|secondary}-*`.
"""

from gateway.core import amounts
from gateway.core.errors import BudgetExceeded
from gateway.core.protocols import Protocol
from gateway.core.status import BucketStatus, BudgetStatus, LimitsStatus

_UNIFIED = "anthropic-ratelimit-unified"
_UNIFIED_WINDOWS = {5 * amounts.HOUR_MS: "5h", 7 * amounts.DAY_MS: "7d"}
_CLAIMS = {"5h": "five_hour", "7d": "seven_day"}
_CODEX_WINDOWS = {5 * amounts.HOUR_MS: "primary", 7 * amounts.DAY_MS: "secondary"}
_WARNINGS = (0.95, 0.75)
"""Claude Code warns its user where it is told that a window is used to one of these shares."""


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
    headers.pop(f"{_UNIFIED}-representative-claim", None)
    headers[f"{_UNIFIED}-status"] = "rejected"
    headers[f"{_UNIFIED}-overage-disabled-reason"] = "org_spend_cap_reached"
    if error.resets_at_seconds is not None:
        headers[f"{_UNIFIED}-reset"] = str(error.resets_at_seconds)
    return headers


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
    for budget in status.budgets:
        if budget.window_ms in _CODEX_WINDOWS:
            prefix = f"x-codex-{_CODEX_WINDOWS[budget.window_ms]}"
            headers[f"{prefix}-used-percent"] = f"{100 * budget.used / budget.tokens:.1f}"
            headers[f"{prefix}-window-minutes"] = str(budget.window_ms // amounts.MINUTE_MS)
            headers[f"{prefix}-reset-at"] = _reset(budget, now_ms)
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
        prefix = f"{_UNIFIED}-{name}"
        headers[f"{prefix}-status"] = _word(budget)
        headers[f"{prefix}-utilization"] = f"{budget.used / budget.tokens:.4f}"
        headers[f"{prefix}-reset"] = _reset(budget, now_ms)
        passed = [share for share in _WARNINGS if budget.used >= share * budget.tokens]
        if passed:
            headers[f"{prefix}-surpassed-threshold"] = str(passed[0])
    fullest = max(windows, key=lambda name: windows[name].used / windows[name].tokens)
    headers[f"{_UNIFIED}-status"] = _word(windows[fullest])
    headers[f"{_UNIFIED}-reset"] = _reset(windows[fullest], now_ms)
    headers[f"{_UNIFIED}-representative-claim"] = _CLAIMS[fullest]
    return headers


def _word(budget: BudgetStatus) -> str:
    if not budget.left:
        return "rejected"
    return "allowed_warning" if budget.used >= min(_WARNINGS) * budget.tokens else "allowed"


def _reset(budget: BudgetStatus, now_ms: int) -> str:
    """When all has come back; an unused window is as new right now."""
    return str(-(-(budget.all_by_ms or now_ms) // amounts.SECOND_MS))
