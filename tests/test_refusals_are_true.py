"""What a refusal says is true: its figures, its times, its advice, and the status and headers that go with it."""

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.amounts import DAY_MS, HOUR_MS, SECOND_MS
from gateway.core.buckets import TokenBucket
from gateway.core.envelopes import render
from gateway.core.errors import BudgetExceeded, GatewayError, InvalidKey, LimitExceeded, ModelNotAllowed, NeverFits
from gateway.core.limits import Hold, KeyLimits
from gateway.core.protocols import Protocol
from gateway.core.ratelimits import anthropic_headers, budget_headers, openai_headers
from gateway.core.records import Budget, Key, KeyRow, Refusal
from gateway.core.refusals import Signpost, explain
from gateway.core.windows import RollingWindow

NOW_MS = 1_790_079_600_000
"""2026-09-22 12:20 UTC."""
SIGNPOST = Signpost(usage_url="https://gateway.example/usage", contact="ada@example.org")
PLAIN = Key(row=KeyRow(1), name="alice", created=0)
FIVE_HOURS, WEEK = 5 * HOUR_MS, 7 * DAY_MS
hypothesis = settings(deadline=None, max_examples=200)


def key_with(*budgets: tuple[int, int | None], overdraft: int = 0) -> Key:
    """A key with budgets out of (tokens, window)."""
    made = tuple(Budget(tokens=tokens, window_ms=window_ms) for tokens, window_ms in budgets)
    return replace(PLAIN, budgets=made, overdraft=overdraft)


def limits_of(key: Key, *used: tuple[int, int]) -> KeyLimits:
    """Limits with nothing running, after charges out of (milliseconds ago, charge)."""
    rpm, tpm = key.requests_per_minute, key.tokens_per_minute
    limits = KeyLimits(
        key,
        [RollingWindow(budget.window_ms) for budget in key.budgets],
        None if rpm is None else TokenBucket(rpm, NOW_MS),
        None if tpm is None else TokenBucket(tpm, NOW_MS),
    )
    for ago_ms, charge in used:
        limits.count(NOW_MS - ago_ms, charge, NOW_MS)
    return limits


def refuse(limits: KeyLimits, hold: Hold, signpost: Signpost = SIGNPOST) -> GatewayError:
    denial = limits.admit(hold, NOW_MS)
    assert denial is not None
    error = explain(denial, hold, limits.key, NOW_MS, signpost)
    assert error.refusal is denial.refusal
    return error


def half(tokens: int) -> Hold:
    return Hold(input=tokens // 2, output=tokens - tokens // 2)


# The texts, word for word


def test_a_used_up_budget_is_told_as_designed() -> None:
    limits = limits_of(key_with((2_000_000, FIVE_HOURS)), (FIVE_HOURS - 130 * 60_000 + 1, 2_000_000))
    error = refuse(limits, half(91_000))
    assert error.message == (
        "Token budget used up: 2,000,000 of 2,000,000 in 5h. Room again at 14:30 UTC (in 2h 10m)."
        " Usage: https://gateway.example/usage"
    )
    assert isinstance(error, BudgetExceeded)
    assert error.retry_after_seconds == 7_800


def test_a_request_that_does_not_fit_is_told_as_designed() -> None:
    limits = limits_of(key_with((200_000, FIVE_HOURS)), (FIVE_HOURS - 130 * 60_000 + 1, 120_000))
    error = refuse(limits, Hold(input=27_000, output=64_000))
    assert error.message == (
        "This request may need 91,000 tokens; 80,000 of 200,000 are left in 5h."
        " It fits again at 14:30 UTC (in 2h 10m); a smaller max_tokens works now."
        " Usage: https://gateway.example/usage"
    )
    assert isinstance(error, BudgetExceeded)
    assert error.retry_after_seconds == 7_800


def test_what_is_over_a_budget_is_told_as_such() -> None:
    error = refuse(limits_of(key_with((1_000, FIVE_HOURS)), (SECOND_MS, 1_250)), half(10))
    assert error.message.startswith("Token budget used up: 1,250 of 1,000 in 5h (over by 250). Room again at ")


def test_a_lifetime_budget_tells_whom_to_ask_and_no_time() -> None:
    used_up = refuse(limits_of(key_with((1_000, None)), (0, 1_000)), half(10))
    assert used_up.message == (
        "Token budget used up: 1,000 of 1,000 in all. Ask the administrator (ada@example.org) for more."
        " Usage: https://gateway.example/usage"
    )
    too_full = refuse(limits_of(key_with((1_000, None)), (0, 700)), Hold(input=100, output=300))
    assert too_full.message == (
        "This request may need 400 tokens; 300 of 1,000 are left in all."
        " A smaller max_tokens works now. Ask the administrator (ada@example.org) for more."
        " Usage: https://gateway.example/usage"
    )
    no_help = refuse(limits_of(key_with((1_000, None)), (0, 700)), Hold(input=300, output=100))
    assert "in all. Ask the administrator (ada@example.org) for more." in no_help.message
    for error in (used_up, too_full, no_help):
        assert isinstance(error, BudgetExceeded)
        assert "retry-after" not in render(error, "req_1").headers


def test_without_a_contact_the_administrator_has_no_name() -> None:
    error = refuse(limits_of(key_with((10, None)), (0, 10)), half(2), Signpost(usage_url="/usage", contact=""))
    assert error.message.endswith("Ask the administrator for more. Usage: /usage")


@pytest.mark.parametrize(
    ("hold", "part"),
    [
        (Hold(input=60_000, output=1), "its input alone is estimated at 60,000 tokens"),
        (Hold(input=10, output=64_000), "its largest output alone is 64,000"),
        (Hold(input=30_000, output=30_000), "input about 30,000, max_tokens 30,000; a smaller max_tokens helps"),
    ],
)
def test_a_request_that_never_fits_names_the_part_that_is_too_large(hold: Hold, part: str) -> None:
    error = refuse(limits_of(key_with((40_000, FIVE_HOURS), overdraft=10_000)), hold)
    assert isinstance(error, NeverFits)
    assert (error.status, error.refusal, error.retry_after_seconds) == (400, Refusal.SIZE, None)
    assert error.message == (
        f"This request may need {hold.charge:,} tokens and can never fit: this key may use 50,000 in 5h ({part})."
        " Ask the administrator (ada@example.org) for a larger budget."
    )


def test_where_running_requests_decide_the_wait_is_a_hint_of_two_seconds() -> None:
    limits = limits_of(key_with((1_000, FIVE_HOURS)), (SECOND_MS, 200))
    assert limits.admit(half(500), NOW_MS) is None
    error = refuse(limits, half(400))
    assert isinstance(error, LimitExceeded)
    assert (error.status, error.kind, error.refusal) == (429, "rate_limit_error", Refusal.BUDGET)
    assert error.message == (
        "This request may need 400 tokens; 800 of 1,000 are left in 5h, and running requests hold 500 of them"
        " for now. Try again in 2 s. Usage: https://gateway.example/usage"
    )
    assert error.retry_after_seconds == 2


PACES = [
    ({"concurrency": 1}, Refusal.CONCURRENCY, "This key may run 1 ", 2),
    ({"requests_per_minute": 1}, Refusal.REQUESTS, "Rate limit reached: 1 request per minute.", 60),
    ({"tokens_per_minute": 600}, Refusal.TOKENS, "Rate limit reached: 600 tokens per minute.", 31),
]


@pytest.mark.parametrize(("limit", "refusal", "beginning", "wait_seconds"), PACES)
def test_a_pace_is_told_with_its_figure_and_its_wait(
    limit: dict[str, int], refusal: Refusal, beginning: str, wait_seconds: int
) -> None:
    key = replace(PLAIN, **limit)  # type: ignore[arg-type]  # one of three integers
    limits = limits_of(key, (0, 900))
    if refusal is not Refusal.TOKENS:
        assert limits.admit(half(10), NOW_MS) is None
    error = refuse(limits, half(10))
    assert isinstance(error, LimitExceeded)
    assert (error.status, error.kind, error.refusal) == (429, "rate_limit_error", refusal)
    assert error.message.startswith(beginning)
    assert f" Try again in {wait_seconds} s." in error.message
    assert error.retry_after_seconds == wait_seconds


# Statuses and headers


@pytest.mark.parametrize(
    ("error", "status", "kind", "headers"),
    [
        (InvalidKey("x"), 401, "authentication_error", {"x-should-retry": "false"}),
        (ModelNotAllowed("x"), 403, "permission_error", {"x-should-retry": "false"}),
        (NeverFits("x"), 400, "invalid_request_error", {}),
        (LimitExceeded("x", retry_after_seconds=3), 429, "rate_limit_error", {"retry-after": "3"}),
        (BudgetExceeded("x"), 429, "billing_error", {"x-should-retry": "false"}),
        (
            BudgetExceeded("x", retry_after_seconds=7_800),
            429,
            "billing_error",
            {"x-should-retry": "false", "retry-after": "7800"},
        ),
    ],
)
def test_a_refusal_has_the_envelope_that_clients_were_measured_with(
    error: GatewayError, status: int, kind: str, headers: dict[str, str]
) -> None:
    answer = render(error, "req_abc")
    always = {"content-type": "application/json", "cache-control": "no-store", "request-id": "req_abc"}
    assert answer.status == status
    assert answer.headers == always | headers
    body = {"type": "error", "error": {"type": kind, "message": "x"}, "request_id": "req_abc"}
    assert json.loads(answer.body) == body


def test_no_refusal_by_limits_is_a_status_whose_text_clients_replace() -> None:
    assert {error.status for error in (NeverFits, LimitExceeded, BudgetExceeded)} == {400, 429}


# Whatever the state: what is said is so


@st.composite
def refusals(draw: st.DrawFn) -> tuple[KeyLimits, Hold, GatewayError]:
    """Limits in any state, a request that they refuse, and what it is told."""
    windows = draw(
        st.lists(st.sampled_from([None, HOUR_MS, FIVE_HOURS, WEEK]), min_size=1, max_size=2, unique=True)
    )
    overdraft = draw(st.just(0) | st.integers(0, 400))
    key = key_with(*((draw(st.integers(1, 1_000)), window_ms) for window_ms in windows), overdraft=overdraft)
    used = draw(st.lists(st.tuples(st.integers(0, 6 * HOUR_MS), st.integers(1, 500)), max_size=4))
    limits = limits_of(key, *used)
    for charge in draw(st.lists(st.integers(1, 400), max_size=2)):
        limits.admit(half(charge), NOW_MS)
    hold = Hold(input=draw(st.integers(1, 1_200)), output=draw(st.integers(1, 1_200)))
    for _ in range(1_000):
        if limits.admit(hold, NOW_MS) is not None:
            break
    return limits, hold, refuse(limits, hold)


def admits(limits: KeyLimits, hold: Hold) -> bool:
    if limits.admit(hold, NOW_MS) is None:
        limits.settle(hold, NOW_MS, 0, NOW_MS)
        return True
    return False


@hypothesis
@given(refusals())
def test_a_text_says_used_up_only_of_what_is_used_up(case: tuple[KeyLimits, Hold, GatewayError]) -> None:
    limits, _, error = case
    if "used up" in error.message:
        assert any(budget.left == 0 for budget in limits.status(NOW_MS).budgets)
    else:
        numbers = re.search(r"; ([\d,]+) of ([\d,]+) are left", error.message)
        assert isinstance(error, NeverFits) or (numbers is not None and numbers[1] != "0")


@hypothesis
@given(refusals())
def test_status_retry_and_wait_belong_together(case: tuple[KeyLimits, Hold, GatewayError]) -> None:
    _, _, error = case
    headers = render(error, "req_1").headers
    match error:
        case NeverFits():
            assert "retry-after" not in headers
        case LimitExceeded():
            assert headers["retry-after"] == "2"
            assert "x-should-retry" not in headers
        case _:
            assert isinstance(error, BudgetExceeded)
            assert headers["x-should-retry"] == "false"
            assert ("retry-after" in headers) == ("(in " in error.message) == ("in all" not in error.message)


@hypothesis
@given(refusals())
def test_no_more_of_what_is_left_is_said_to_be_held_than_is_left(
    case: tuple[KeyLimits, Hold, GatewayError],
) -> None:
    _, _, error = case
    if told := re.search(r"; ([\d,]+) of .* running requests hold ([\d,]+) of them", error.message):
        left, held = (int(number.replace(",", "")) for number in told.groups())
        assert held <= left


@hypothesis
@given(refusals())
def test_a_smaller_max_tokens_works_now_where_a_text_says_so(case: tuple[KeyLimits, Hold, GatewayError]) -> None:
    limits, hold, error = case
    if re.search("smaller max_tokens works now", error.message, re.IGNORECASE):
        assert admits(limits, Hold(input=hold.input, output=1))


@pytest.mark.parametrize("concurrency", [None, 0])
def test_a_smaller_max_tokens_is_not_advised_where_another_limit_refuses_it(concurrency: int | None) -> None:
    """An hour's budget has 10 left, the week's 500; or all requests that may run at once are running."""
    hour = 10_000 if concurrency is None else 1_000_000
    key = replace(key_with((hour, HOUR_MS), (20_000, WEEK)), concurrency=concurrency)
    limits = limits_of(key, (2 * HOUR_MS, 9_510), (SECOND_MS, 9_990))
    hold = Hold(input=50, output=550)
    error = refuse(limits, hold)
    assert "600 tokens; 500 of 20,000 are left in 7d" in error.message
    assert not admits(limits, Hold(input=50, output=1))
    assert "smaller max_tokens works now" not in error.message


@hypothesis
@given(refusals())
def test_a_smaller_max_tokens_helps_where_a_text_says_so(case: tuple[KeyLimits, Hold, GatewayError]) -> None:
    limits, hold, error = case
    if "smaller max_tokens helps" in error.message:
        assert admits(limits_of(limits.key), Hold(input=hold.input, output=1))


# The headers that tell of limits


def headers_of(limits: KeyLimits, *, with_windows: bool) -> dict[str, str]:
    return anthropic_headers(limits.status(NOW_MS), NOW_MS, with_windows=with_windows)


def test_headers_tell_of_the_per_minute_limits_and_never_of_a_debt() -> None:
    limits = limits_of(replace(PLAIN, requests_per_minute=60, tokens_per_minute=600), (0, 900))
    assert headers_of(limits, with_windows=False) == {
        "anthropic-ratelimit-requests-limit": "60",
        "anthropic-ratelimit-requests-remaining": "60",
        "anthropic-ratelimit-requests-reset": "2026-09-22T12:20:00Z",
        "anthropic-ratelimit-tokens-limit": "600",
        "anthropic-ratelimit-tokens-remaining": "0",
        "anthropic-ratelimit-tokens-reset": "2026-09-22T12:21:30Z",
    }


def test_headers_tell_of_the_windows_that_clients_show() -> None:
    limits = limits_of(key_with((1_000, FIVE_HOURS), (10_000, WEEK), (50, HOUR_MS), (90, None)), (SECOND_MS, 1_000))
    assert headers_of(limits, with_windows=False) == {}
    resets = {name: str((NOW_MS + window_ms) // 1_000) for name, window_ms in (("5h", FIVE_HOURS), ("7d", WEEK))}
    assert headers_of(limits, with_windows=True) == {
        "anthropic-ratelimit-unified-5h-status": "rejected",
        "anthropic-ratelimit-unified-5h-utilization": "1.0000",
        "anthropic-ratelimit-unified-5h-reset": resets["5h"],
        "anthropic-ratelimit-unified-5h-surpassed-threshold": "0.95",
        "anthropic-ratelimit-unified-7d-status": "allowed",
        "anthropic-ratelimit-unified-7d-utilization": "0.1000",
        "anthropic-ratelimit-unified-7d-reset": resets["7d"],
        "anthropic-ratelimit-unified-status": "rejected",
        "anthropic-ratelimit-unified-reset": resets["5h"],
        "anthropic-ratelimit-unified-representative-claim": "five_hour",
    }


@pytest.mark.parametrize(
    ("used", "word", "surpassed"),
    [(749, "allowed", None), (750, "allowed_warning", "0.75"), (950, "allowed_warning", "0.95")],
)
def test_headers_let_claude_code_warn_before_a_window_is_full(used: int, word: str, surpassed: str | None) -> None:
    headers = headers_of(limits_of(key_with((1_000, FIVE_HOURS)), (SECOND_MS, used)), with_windows=True)
    assert headers["anthropic-ratelimit-unified-status"] == word
    assert headers.get("anthropic-ratelimit-unified-5h-surpassed-threshold") == surpassed


def test_headers_name_the_fullest_window_as_the_one_that_counts() -> None:
    limits = limits_of(key_with((9_000, FIVE_HOURS), (1_000, WEEK)), (SECOND_MS, 800))
    headers = headers_of(limits, with_windows=True)
    assert headers["anthropic-ratelimit-unified-representative-claim"] == "seven_day"
    assert headers["anthropic-ratelimit-unified-status"] == "allowed_warning"
    assert headers["anthropic-ratelimit-unified-reset"] == headers["anthropic-ratelimit-unified-7d-reset"]
    assert headers["anthropic-ratelimit-unified-7d-surpassed-threshold"] == "0.75"
    assert headers["anthropic-ratelimit-unified-5h-status"] == "allowed"


def test_headers_tell_codex_of_the_same_windows() -> None:
    limits = limits_of(key_with((1_000, FIVE_HOURS), (10_000, WEEK), (50, HOUR_MS)), (SECOND_MS, 760))
    resets = {name: str((NOW_MS + window_ms) // 1_000) for name, window_ms in (("5h", FIVE_HOURS), ("7d", WEEK))}
    assert openai_headers(limits.status(NOW_MS), NOW_MS) == {
        "x-codex-primary-used-percent": "76.0",
        "x-codex-primary-window-minutes": "300",
        "x-codex-primary-reset-at": resets["5h"],
        "x-codex-secondary-used-percent": "7.6",
        "x-codex-secondary-window-minutes": "10080",
        "x-codex-secondary-reset-at": resets["7d"],
    }


def test_beside_a_refusal_by_a_budget_stands_what_makes_clients_show_its_text() -> None:
    limits = limits_of(key_with((1_000, FIVE_HOURS)), (SECOND_MS, 500), (2 * HOUR_MS, 500))
    error = refuse(limits, half(600))
    assert isinstance(error, BudgetExceeded)
    status = limits.status(NOW_MS)
    headers = budget_headers(Protocol.ANTHROPIC, status, NOW_MS, error)
    assert "anthropic-ratelimit-unified-representative-claim" not in headers
    assert headers["anthropic-ratelimit-unified-overage-disabled-reason"] == "org_spend_cap_reached"
    assert headers["anthropic-ratelimit-unified-status"] == "rejected"
    assert headers["anthropic-ratelimit-unified-reset"] == str(error.resets_at_seconds)
    assert budget_headers(Protocol.OPENAI, status, NOW_MS, error)["x-codex-promo-message"] == error.message


@pytest.mark.parametrize("contact", ["Zoë", "ops\r\nx-other: 1"])
def test_a_text_that_is_not_for_headers_does_not_stand_in_one(contact: str) -> None:
    error = BudgetExceeded(f"Ask {contact}.", refusal=Refusal.BUDGET)
    status = limits_of(PLAIN).status(NOW_MS)
    assert budget_headers(Protocol.OPENAI, status, NOW_MS, error) == {}


def test_a_key_without_limits_has_no_headers_that_tell_of_them() -> None:
    assert headers_of(limits_of(PLAIN), with_windows=True) == {}
