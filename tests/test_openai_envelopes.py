"""Refusals and limits in the form that OpenAI's clients read."""

import json

import pytest

from gateway.core import errors
from gateway.core.envelopes import ErrorAnswer, render
from gateway.core.errors import GatewayError
from gateway.core.protocols import Api, Protocol
from gateway.core.ratelimits import openai_headers
from gateway.core.status import BucketStatus, LimitsStatus

NOW_MS = 1_790_079_600_000


def answer_to(error: GatewayError) -> ErrorAnswer:
    return render(error, "req_1", Protocol.OPENAI)


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (errors.BadRequest, 400, "invalid_request_error", None),
        (errors.NeverFits, 400, "invalid_request_error", "invalid_prompt"),
        (errors.InvalidKey, 401, "invalid_request_error", "invalid_api_key"),
        (errors.ModelNotAllowed, 403, "invalid_request_error", "model_not_found"),
        (errors.UnknownPath, 404, "invalid_request_error", None),
        (errors.BodyTooLarge, 413, "invalid_request_error", None),
        (errors.LimitExceeded, 429, "rate_limit_error", "rate_limit_exceeded"),
        (errors.BudgetExceeded, 429, "usage_limit_reached", "insufficient_quota"),
        (errors.UpstreamBroke, 502, "server_error", None),
        (errors.Unavailable, 503, "server_error", None),
        (errors.UpstreamTimeout, 504, "server_error", None),
        (GatewayError, 500, "server_error", None),
    ],
)
def test_an_error_has_openai_s_form(error: type[GatewayError], status: int, kind: str, code: str | None) -> None:
    answer = answer_to(error("Figures first."))
    told = json.loads(answer.body)["error"]
    assert (answer.status, told["message"], told["type"], told["code"]) == (status, "Figures first.", kind, code)
    assert told["param"] is None
    assert ("resets_at" in told) == (error is errors.BudgetExceeded)
    assert answer.headers["x-request-id"] == "req_1"
    assert "request-id" not in answer.headers


def test_a_used_up_budget_is_not_tried_again_and_says_when_it_resets() -> None:
    error = errors.BudgetExceeded("Token budget used up.", retry_after_seconds=7_800)
    answer = answer_to(error)
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    assert render(error, "req_1").headers["retry-after"] == "7800"
    assert json.loads(answer.body)["error"]["resets_at"] is None
    error.resets_at_seconds = NOW_MS // 1_000  # type: ignore[attr-defined, unused-ignore]
    assert json.loads(answer_to(error).body)["error"]["resets_at"] == 1_790_079_600


def test_a_pace_says_how_long_to_wait() -> None:
    answer = answer_to(errors.LimitExceeded("Slow.", retry_after_seconds=3, headers={"x-a": "b"}))
    assert answer.headers["retry-after"] == "3"
    assert answer.headers["x-a"] == "b"
    assert "x-should-retry" not in answer.headers
    assert answer_to(errors.InvalidKey("No.")).headers["x-should-retry"] == "false"


def test_each_call_belongs_to_a_protocol() -> None:
    assert [api.protocol for api in Api] == [Protocol.ANTHROPIC, *[Protocol.OPENAI] * 3]


def status(requests: BucketStatus | None, tokens: BucketStatus | None) -> LimitsStatus:
    return LimitsStatus(budgets=(), requests=requests, tokens=tokens, running=0, concurrency=None)


def bucket(full_in_ms: int, level: int = 5) -> BucketStatus:
    return BucketStatus(per_minute=60, level=level, full_at_ms=NOW_MS + full_in_ms)


def test_a_key_s_own_limits_are_told_in_openai_s_headers() -> None:
    assert openai_headers(status(bucket(1_500), bucket(360_000, level=-7)), NOW_MS) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "5",
        "x-ratelimit-reset-requests": "1.5s",
        "x-ratelimit-limit-tokens": "60",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    assert openai_headers(status(None, None), NOW_MS) == {}


@pytest.mark.parametrize(
    ("wait_ms", "told"),
    [
        (-5_000, "0s"),
        (0, "0s"),
        (1, "1ms"),
        (850, "850ms"),
        (999, "999ms"),
        (1_000, "1s"),
        (59_999, "59.999s"),
        (60_000, "1m0s"),
        (360_000, "6m0s"),
        (3_599_999, "59m59.999s"),
        (3_600_000, "1h0m0s"),
        (3_723_500, "1h2m3.5s"),
        (90_000_000, "25h0m0s"),
    ],
)
def test_a_reset_is_a_duration_as_go_writes_it(wait_ms: int, told: str) -> None:
    assert openai_headers(status(bucket(wait_ms), None), NOW_MS)["x-ratelimit-reset-requests"] == told
