"""A replay of the ledger refuses what the limits would have refused, and measures what was really used."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.amounts import DAY_MS, HOUR_MS, MINUTE_MS
from gateway.core.peaks import Peak
from gateway.core.records import Budget, Key, KeyRow, Refusal
from gateway.core.simulation import Outcome, Replay, begins_at

TEN = 10 * HOUR_MS + 400 * DAY_MS
"""10:00 of a day."""
WINDOW_MS = 20_000
Past = list[tuple[int, int, int]]
"""Requests: when they started, how long they took, what they counted for."""

pasts = st.lists(
    st.tuples(st.integers(0, 100_000), st.integers(0, 15_000), st.integers(1, 50)), min_size=1, max_size=40
).map(sorted)
hypothesis = settings(deadline=None, max_examples=200)


def replayed(past: Past, *, since_ms: int = 0, least_hold: int = 0, **limits: Any) -> Outcome:
    key = Key(row=KeyRow(1), name="alice", created=0, **limits)
    replay = Replay(key, since_ms=since_ms, least_hold=least_hold)
    for started_ms, latency_ms, charge in past:
        replay.see(started_ms, started_ms + latency_ms, charge)
    return replay.outcome()


def budget(tokens: int, window_ms: int | None = 5 * HOUR_MS) -> dict[str, Any]:
    return {"budgets": (Budget(tokens=tokens, window_ms=window_ms),)}


def test_the_worked_example_is_so() -> None:
    past = [(TEN, 900, 60_000), (TEN + 2 * HOUR_MS, 900, 60_000), (TEN + 5 * HOUR_MS + HOUR_MS // 2, 900, 60_000)]
    outcome = replayed(past, **budget(100_000))
    [refused] = outcome.refused
    assert (refused.reason, refused.requests, refused.first_ms) == (Refusal.BUDGET, 1, TEN + 2 * HOUR_MS)
    assert refused.budget == Budget(tokens=100_000, window_ms=5 * HOUR_MS)
    assert (outcome.requests, outcome.charge, outcome.refused_charge) == (3, 180_000, 60_000)
    assert outcome.windows == ((5 * HOUR_MS, Peak(amount=120_000, at_ms=TEN + 2 * HOUR_MS)),)


def test_requests_that_run_side_by_side_meet_the_limit_of_concurrency() -> None:
    past = [(TEN, 5_000, 1), (TEN + 1_000, 5_000, 1), (TEN + 2_000, 1_000, 1), (TEN + 5_000, 1, 1)]
    outcome = replayed(past, concurrency=2)
    assert [(each.reason, each.requests, each.first_ms) for each in outcome.refused] == [
        (Refusal.CONCURRENCY, 1, TEN + 2_000)
    ]
    assert outcome.at_once == Peak(amount=3, at_ms=TEN + 2_000)
    assert replayed(past, concurrency=3).refused == ()


def test_requests_that_are_alike_in_everything_are_each_seen() -> None:
    outcome = replayed([(TEN, 5_000, 7)] * 3 + [(TEN + 6_000, 1, 7)], concurrency=2)
    assert (outcome.requests, outcome.refused_requests, outcome.at_once.amount) == (4, 1, 3)


def test_paces_refuse_and_tell_their_worst_hour() -> None:
    quiet = [(TEN + second * 1_000, 10, 100) for second in range(3)]
    busy = [(TEN + 2 * HOUR_MS + second * 1_000, 10, 100) for second in range(9)]
    [refused] = replayed(quiet + busy, requests_per_minute=2).refused
    assert (refused.reason, refused.requests) == (Refusal.REQUESTS, 8)
    assert (refused.first_ms, refused.last_ms) == (TEN + 2_000, TEN + 2 * HOUR_MS + 8_000)
    assert (refused.worst_hour_ms, refused.in_worst_hour) == (TEN + 2 * HOUR_MS, 7)
    [refused] = replayed(quiet + busy, tokens_per_minute=150).refused
    assert refused.reason is Refusal.TOKENS


def test_what_clients_hold_refuses_more_than_what_they_use() -> None:
    past = [(TEN + second * 1_000, 30_000, 2_000) for second in range(5)]
    assert replayed(past, **budget(200_000)).refused == ()
    [refused] = replayed(past, least_hold=91_000, **budget(200_000)).refused
    assert refused.requests == 3
    assert replayed(past, least_hold=91_000, overdraft=300_000, **budget(200_000)).refused == ()
    [refused] = replayed(past, least_hold=300_000, **budget(200_000)).refused
    assert (refused.reason, refused.requests) == (Refusal.SIZE, 5)


def test_what_came_before_fills_the_windows_and_is_not_counted() -> None:
    past = [(TEN, 900, 60_000), (TEN + HOUR_MS, 900, 60_000), (TEN + 2 * HOUR_MS, 900, 60_000)]
    outcome = replayed(past, since_ms=TEN + 90 * MINUTE_MS, **budget(100_000))
    assert (outcome.requests, outcome.refused_requests) == (1, 1)
    assert outcome.windows[0][1] == Peak(amount=180_000, at_ms=TEN + 2 * HOUR_MS)


def test_the_ledger_is_read_from_where_the_longest_window_begins() -> None:
    key = Key(row=KeyRow(1), name="alice", created=0, **budget(1, 7 * DAY_MS))
    assert begins_at(key, 30 * DAY_MS) <= 23 * DAY_MS
    assert begins_at(Key(row=KeyRow(1), name="alice", created=0, **budget(1, None)), 30 * DAY_MS) == 0


@hypothesis
@given(past=pasts)
def test_a_budget_of_what_was_used_at_most_refuses_nothing_and_a_smaller_one_does(past: Past) -> None:
    past = [(started_ms, 0, charge) for started_ms, _, charge in past]
    most = replayed(past, **budget(10**9, WINDOW_MS)).windows[0][1].amount
    assert replayed(past, **budget(most, WINDOW_MS)).refused == ()
    if most > 1:
        assert replayed(past, **budget(most - 1, WINDOW_MS)).refused_requests > 0


@hypothesis
@given(past=pasts, tokens=st.integers(1, 200))
def test_a_budget_refuses_what_adding_up_by_hand_refuses(past: Past, tokens: int) -> None:
    admitted: Past = []
    refused = 0
    for started_ms, latency_ms, charge in past:
        ended = [each for each in admitted if each[0] + each[1] <= started_ms]
        running = [each for each in admitted if each[0] + each[1] > started_ms]
        used = sum(each[2] for each in ended if (each[0] // 1_000 + 1) * 1_000 + WINDOW_MS > started_ms)
        if used < tokens and used + sum(each[2] for each in running) + charge <= tokens:
            admitted.append((started_ms, latency_ms, charge))
        else:
            refused += 1
    assert replayed(past, **budget(tokens, WINDOW_MS)).refused_requests == refused


@hypothesis
@given(past=pasts)
def test_peaks_are_what_looking_at_every_moment_finds(past: Past) -> None:
    outcome = replayed(past, **budget(1, WINDOW_MS))

    def most(window_ms: int, worth: int | None) -> int:
        seconds = {started_ms // 1_000 for started_ms, _, _ in past}
        return max(
            sum(worth or charge for at, _, charge in past if second - window_ms // 1_000 <= at // 1_000 <= second)
            for second in seconds
        )

    at_once = max(sum(at <= now < at + max(took, 1) for at, took, _ in past) for now, _, _ in past)
    assert outcome.windows[0][1].amount == most(WINDOW_MS, None)
    assert outcome.tokens_in_a_minute.amount == most(MINUTE_MS, None)
    assert outcome.requests_in_a_minute.amount == most(MINUTE_MS, 1)
    assert outcome.at_once.amount >= at_once - sum(took == 0 for _, took, _ in past)
