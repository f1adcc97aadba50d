"""Time inside a process never steps, whatever somebody does to the wall clock."""

import time

import pytest

from gateway.clock import Clock
from gateway.core.amounts import DAY_MS, HOUR_MS
from gateway.core.limits import Hold, KeyLimits
from gateway.core.records import Budget, Key, KeyRow
from gateway.core.windows import RollingWindow

SLACK_MS = 1_000
"""More than these tests take."""


def set_wall_clock(monkeypatch: pytest.MonkeyPatch, by_ms: int) -> None:
    """What the system would answer after somebody set it."""
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + by_ms * 1_000_000)


@pytest.mark.parametrize("step_ms", [-HOUR_MS, HOUR_MS, DAY_MS, -365 * DAY_MS])
def test_a_step_of_the_wall_clock_is_seen_and_not_followed(monkeypatch: pytest.MonkeyPatch, step_ms: int) -> None:
    clock = Clock()
    before = clock.now_ms()
    set_wall_clock(monkeypatch, step_ms)
    assert 0 <= clock.now_ms() - before < SLACK_MS
    assert abs(clock.stepped_ms() - step_ms) < SLACK_MS


@pytest.mark.parametrize("step_ms", [-HOUR_MS, HOUR_MS, DAY_MS])
def test_a_step_grants_no_tokens(monkeypatch: pytest.MonkeyPatch, step_ms: int) -> None:
    clock = Clock()
    key = Key(row=KeyRow(1), name="alice", created=0, budgets=(Budget(tokens=100, window_ms=HOUR_MS),))
    limits = KeyLimits(key, [RollingWindow(HOUR_MS)], None, None)
    hold = Hold(input=50, output=50)
    assert limits.admit(hold, clock.now_ms()) is None
    limits.settle(hold, clock.now_ms(), 100, clock.now_ms())
    set_wall_clock(monkeypatch, step_ms)
    assert limits.admit(hold, clock.now_ms()) is not None


def test_after_a_restart_with_the_clock_set_back_time_goes_on_after_the_newest_request() -> None:
    newest = Clock.wall_ms() + DAY_MS
    assert Clock(newest).now_ms() > newest
    assert Clock(newest).stepped_ms() < 0


def test_without_requests_in_the_future_the_clock_is_the_calendars() -> None:
    assert abs(Clock(Clock.wall_ms() - DAY_MS).stepped_ms()) < SLACK_MS
