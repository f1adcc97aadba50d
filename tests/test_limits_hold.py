"""The limits hold: whatever comes in whatever order, no bucket, window or budget gives more than it has."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from fractions import Fraction
from random import Random
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.core.amounts import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS
from gateway.core.buckets import REPLAYED_MS, TokenBucket
from gateway.core.limits import BudgetDenial, Denial, Hold, KeyLimits, PaceDenial
from gateway.core.records import Budget, Key, KeyRow, Refusal
from gateway.core.windows import SLOT_MS, RollingWindow

NOW_MS = 1_790_000_000_250
PLAIN = Key(row=KeyRow(1), name="alice", created=0)
hypothesis = settings(deadline=None, max_examples=150)


def hold(tokens: int) -> Hold:
    return Hold(input=tokens // 2, output=tokens - tokens // 2)


def fresh(key: Key, now_ms: int = NOW_MS) -> KeyLimits:
    """The limits of a key that was never used."""
    rpm, tpm = key.requests_per_minute, key.tokens_per_minute
    return KeyLimits(
        key,
        [RollingWindow(budget.window_ms) for budget in key.budgets],
        None if rpm is None else TokenBucket(rpm, now_ms),
        None if tpm is None else TokenBucket(tpm, now_ms),
    )


def with_budgets(*budgets: tuple[int, int | None], overdraft: int = 0) -> KeyLimits:
    """Limits out of (tokens, window)."""
    made = tuple(Budget(tokens=tokens, window_ms=window_ms) for tokens, window_ms in budgets)
    return fresh(replace(PLAIN, budgets=made, overdraft=overdraft))


class Traffic:
    """Plays requests against limits, and keeps the rows that a ledger would hold of them."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self.limits = fresh(key)
        self.now_ms = NOW_MS
        self.running: list[tuple[Hold, int]] = []
        self.starts: list[int] = []
        self.settled: list[tuple[int, int, int]] = []
        """(started, settled, charge), in order of settling."""

    def admit(self, wanted: Hold) -> Denial | None:
        denial = self.limits.admit(wanted, self.now_ms)
        if denial is None:
            self.running.append((wanted, self.now_ms))
            self.starts.append(self.now_ms)
        return denial

    def admit_until_denied(self, wanted: Hold) -> Denial | None:
        """Admit and settle at once and in full, until a limit says no."""
        for _ in range(1_000):
            if (denial := self.admit(wanted)) is not None:
                return denial
            self.settle_all()
        return None

    def settle(self, place: int, charge: Callable[[Hold], int]) -> int:
        """Settle one of the running requests; returns what it was charged."""
        taken, started_ms = self.running.pop(place % len(self.running))
        charged = charge(taken)
        self.limits.settle(taken, started_ms, charged, self.now_ms)
        self.settled.append((started_ms, self.now_ms, charged))
        return charged

    def settle_all(self) -> None:
        while self.running:
            self.settle(0, lambda taken: taken.charge)

    def play(self, step: "Step") -> Denial | None:
        """Do one step of random traffic: wait, settle one request truthfully, or ask for one."""
        kind, amount, part = step
        if kind == "wait":
            self.now_ms += amount
        elif kind == "settle" and self.running:
            self.settle(amount, lambda taken: taken.charge * part // 10)
        elif kind == "admit":
            return self.admit(hold(amount % 1_000 + 1))
        return None

    def rebuilt(self) -> KeyLimits:
        """The limits derived anew from the rows, as gateway/history.py does, with what runs still running."""
        charges = sorted((settled, charge) for _, settled, charge in self.settled)
        rpm, tpm, now = self.key.requests_per_minute, self.key.tokens_per_minute, self.now_ms
        limits = KeyLimits(
            self.key,
            [self._window(budget) for budget in self.key.budgets],
            None if rpm is None else TokenBucket.replayed(rpm, [(start, 1) for start in self.starts], now),
            None if tpm is None else TokenBucket.replayed(tpm, charges, now),
        )
        limits.running, limits.held = self.limits.running, self.limits.held
        return limits

    def _window(self, budget: Budget) -> RollingWindow:
        window = RollingWindow(budget.window_ms)
        if budget.window_ms is None:
            window.add(self.now_ms, sum(charge for *_, charge in self.settled), self.now_ms)
            return window
        since = self.now_ms - budget.window_ms - SLOT_MS
        slots: dict[int, int] = {}
        for started, _, charge in sorted(self.settled):
            if started >= since - since % SLOT_MS:
                slots[started // SLOT_MS] = slots.get(started // SLOT_MS, 0) + charge
        window.fill(slots.items(), self.now_ms)
        return window


Step = tuple[str, int, int]
WINDOWS = st.none() | st.integers(1, 20).map(lambda seconds: seconds * SECOND_MS)
BUDGETS = st.lists(
    st.builds(Budget, tokens=st.integers(1, 3_000), window_ms=WINDOWS),
    max_size=3,
    unique_by=lambda budget: budget.window_ms,
).map(tuple)
KEYS = st.builds(
    Key,
    row=st.just(KeyRow(1)),
    name=st.just("alice"),
    created=st.just(0),
    budgets=BUDGETS,
    overdraft=st.just(0) | st.integers(0, 1_500),
    requests_per_minute=st.none() | st.integers(1, 120),
    tokens_per_minute=st.none() | st.integers(1, 20_000),
    concurrency=st.none() | st.integers(1, 5),
)
STEPS = st.lists(
    st.tuples(st.just("admit"), st.integers(0, 999), st.just(0))
    | st.tuples(st.just("settle"), st.integers(0, 9), st.integers(0, 10))
    | st.tuples(st.just("wait"), st.integers(0, 3_000) | st.sampled_from([999, 1_000, 60_000]), st.just(0)),
    max_size=40,
)


# Buckets


@hypothesis
@given(st.integers(1, 5_000), st.lists(st.tuples(st.integers(0, 90_000), st.integers(0, 20_000)), max_size=30))
def test_a_bucket_refills_exactly_and_never_above_its_capacity(
    per_minute: int, takings: list[tuple[int, int]]
) -> None:
    bucket, level, now_ms = TokenBucket(per_minute, NOW_MS), Fraction(per_minute), NOW_MS
    for wait_ms, amount in takings:
        now_ms += wait_ms
        level = min(Fraction(per_minute), level + Fraction(per_minute * wait_ms, MINUTE_MS))
        assert bucket.level(now_ms) == level // 1 <= per_minute
        bucket.take(amount, now_ms)
        level -= amount
        assert bucket.level(now_ms) == level // 1


@hypothesis
@given(st.integers(1, 5_000), st.integers(0, 50_000), st.integers(0, 5_000))
def test_a_bucket_tells_its_wait_to_the_millisecond(per_minute: int, taken: int, wanted: int) -> None:
    bucket = TokenBucket(per_minute, NOW_MS)
    bucket.take(taken, NOW_MS)
    wanted = min(wanted, per_minute)
    wait_ms = bucket.wait_for(wanted, NOW_MS)
    early = deepcopy(bucket)
    assert bucket.wait_for(wanted, NOW_MS + wait_ms) == 0
    assert bucket.level(NOW_MS + wait_ms) >= wanted
    if wait_ms:
        assert early.wait_for(wanted, NOW_MS + wait_ms - 1) == 1


@hypothesis
@given(st.integers(1, 500), st.lists(st.tuples(st.integers(0, 90_000), st.integers(0, 2_000)), max_size=30))
def test_a_bucket_replayed_from_the_past_day_equals_the_living_one(
    per_minute: int, takings: list[tuple[int, int]]
) -> None:
    living, now_ms, rows = TokenBucket(per_minute, NOW_MS), NOW_MS, []
    for wait_ms, amount in takings:
        now_ms += wait_ms
        living.take(amount, now_ms)
        rows.append((now_ms, amount))
    replayed = TokenBucket.replayed(per_minute, rows, now_ms)
    assert now_ms - NOW_MS < REPLAYED_MS
    for later in (0, 1, 999, 60_000):
        assert replayed.status(now_ms + later) == living.status(now_ms + later)


def test_the_example_of_a_bucket_comes_out_as_written() -> None:
    bucket = TokenBucket(60, NOW_MS)
    bucket.take(90, NOW_MS)
    assert bucket.level(NOW_MS) == -30
    assert bucket.level(NOW_MS + 30_000) == 0
    assert bucket.wait_for(0, NOW_MS + 30_000) == 1
    assert bucket.wait_for(0, NOW_MS + 30_001) == 0


def test_a_clock_that_steps_back_gives_a_bucket_nothing() -> None:
    bucket = TokenBucket(60, NOW_MS)
    bucket.take(60, NOW_MS)
    bucket.level(NOW_MS - HOUR_MS)
    assert bucket.level(NOW_MS) == 0
    assert bucket.level(NOW_MS + 1_000) == 1


# Windows


@hypothesis
@given(
    WINDOWS,
    st.lists(st.tuples(st.integers(0, 30_000), st.integers(0, 50)), max_size=20),
    st.lists(st.integers(0, 20_000), min_size=1, max_size=8),
)
def test_a_window_holds_each_charge_for_its_length_whatever_order_they_come_in(
    window_ms: int | None, charges: list[tuple[int, int]], waits: list[int]
) -> None:
    window, now_ms = RollingWindow(window_ms), NOW_MS + 30_000
    for ago_ms, charge in charges:
        window.add(now_ms - ago_ms, charge, now_ms)
    for wait_ms in waits:
        now_ms += wait_ms
        window.advance(now_ms)
        standing = [
            charge
            for ago_ms, charge in charges
            if window_ms is None or ((NOW_MS + 30_000 - ago_ms) // SLOT_MS + 1) * SLOT_MS + window_ms > now_ms
        ]
        assert window.used == sum(standing)


@hypothesis
@given(
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(0, 19_000), st.integers(1, 50)), min_size=1, max_size=20),
    st.data(),
)
def test_a_window_tells_to_the_millisecond_when_it_falls(
    seconds: int, charges: list[tuple[int, int]], data: st.DataObject
) -> None:
    window = RollingWindow(seconds * SECOND_MS)
    for ago_ms, charge in charges:
        window.add(NOW_MS - ago_ms, charge, NOW_MS)
    window.advance(NOW_MS)
    assume(window.used > 0)
    ceiling = data.draw(st.integers(0, window.used - 1))
    at_ms = window.below_at(ceiling)
    assert at_ms is not None
    window.advance(at_ms - 1)
    assert window.used > ceiling
    window.advance(at_ms)
    assert window.used <= ceiling


def test_a_window_never_falls_below_nothing() -> None:
    window = RollingWindow(SECOND_MS)
    window.add(NOW_MS, 5, NOW_MS)
    assert window.below_at(-1) is None
    window.advance(NOW_MS + DAY_MS)
    assert window.used == 0


def test_the_example_of_a_window_comes_out_as_written() -> None:
    ten = 1_790_244_000_000
    window = RollingWindow(5 * HOUR_MS)
    window.add(ten + 250, 1_000, ten + 250)
    assert window.below_at(0) == ten + 5 * HOUR_MS + 1_000
    window.advance(ten + 5 * HOUR_MS + 999)
    assert window.used == 1_000
    window.advance(ten + 5 * HOUR_MS + 1_000)
    assert window.used == 0


def test_a_charge_that_is_older_than_its_window_does_not_count_in_it() -> None:
    limits = with_budgets((100, 5_000), (100, None))
    assert limits.admit(hold(60), NOW_MS) is None
    limits.settle(hold(60), NOW_MS, 60, NOW_MS + 6_750)
    rolling, lifetime = limits.status(NOW_MS + 6_750).budgets
    assert (rolling.used, lifetime.used) == (0, 60)


# Keys


@hypothesis
@given(KEYS, STEPS)
def test_no_traffic_of_truthful_requests_passes_a_limit(key: Key, steps: list[Step]) -> None:
    traffic = Traffic(key)
    for step in steps:
        traffic.play(step)
        status = traffic.limits.status(traffic.now_ms)
        held = sum(running.charge for running, _ in traffic.running)
        assert status.running == len(traffic.running) <= (key.concurrency or len(steps))
        for budget in status.budgets:
            assert budget.held == held
            assert budget.used >= 0
            assert budget.used + budget.held <= budget.tokens + key.overdraft
        for bucket in (status.requests, status.tokens):
            assert bucket is None or bucket.level <= bucket.per_minute
        assert status.requests is None or status.requests.level >= 0


@hypothesis
@given(KEYS, STEPS)
def test_a_debt_of_tokens_per_minute_is_never_larger_than_what_was_admitted_before_it(
    key: Key, steps: list[Step]
) -> None:
    traffic = Traffic(replace(key, budgets=(), tokens_per_minute=key.tokens_per_minute or 1_000))
    charged = 0
    for step in steps:
        settled_before, starts_before = len(traffic.settled), len(traffic.starts)
        traffic.play(step)
        if len(traffic.starts) > starts_before:
            charged = 0
        charged += sum(charge for *_, charge in traffic.settled[settled_before:])
        bucket = traffic.limits.status(traffic.now_ms).tokens
        assert bucket is not None
        assert -bucket.level <= charged


@hypothesis
@given(KEYS, STEPS, STEPS)
def test_limits_rebuilt_from_the_ledger_in_the_middle_decide_like_the_living_ones(
    key: Key, before: list[Step], after: list[Step]
) -> None:
    living = Traffic(key)
    for step in before:
        living.play(step)
    restarted = deepcopy(living)
    restarted.limits = living.rebuilt()
    assert restarted.limits.status(living.now_ms) == living.limits.status(living.now_ms)
    for step in after:
        assert restarted.play(step) == living.play(step)
        assert restarted.limits.status(living.now_ms) == living.limits.status(living.now_ms)


@hypothesis
@given(KEYS, STEPS, st.integers(1, 2_000))
def test_status_tells_what_a_decision_will_be(key: Key, steps: list[Step], wanted: int) -> None:
    traffic = Traffic(replace(key, requests_per_minute=None, tokens_per_minute=None))
    for step in steps:
        traffic.play(step)
    status = traffic.limits.status(traffic.now_ms)
    fits = all(
        budget.left > 0 and budget.used + budget.held + wanted <= budget.tokens + key.overdraft
        for budget in status.budgets
    )
    may_run = key.concurrency is None or status.running < key.concurrency
    denial = traffic.admit(hold(wanted))
    assert (denial is None) == (fits and may_run)
    assert isinstance(denial, BudgetDenial) == (not fits)
    too_large = any(wanted > budget.tokens + key.overdraft for budget in status.budgets)
    assert (denial is not None and denial.refusal is Refusal.SIZE) == too_large


@hypothesis
@given(KEYS, STEPS, st.integers(1, 2_000))
def test_all_limits_together_deny_a_request_as_one_of_them_alone_does(
    key: Key, steps: list[Step], wanted: int
) -> None:
    traffic = Traffic(key)
    for step in steps:
        traffic.play(step)
    unlimited: dict[str, Any] = {"budgets": (), "concurrency": None}
    unlimited |= {"requests_per_minute": None, "tokens_per_minute": None}
    found = []
    for name in unlimited:
        alone = deepcopy(traffic.limits)
        alone.adopt(fresh(replace(key, **unlimited | {name: getattr(key, name)})))
        if (denial := alone.admit(hold(wanted), traffic.now_ms)) is not None:
            found.append((denial.refusal, denial.at_ms))
    together = traffic.admit(hold(wanted))
    assert (together is None) == (not found)
    assert together is None or (together.refusal, together.at_ms) in found


@hypothesis
@given(KEYS, STEPS)
def test_status_tells_to_the_millisecond_when_tokens_come_back(key: Key, steps: list[Step]) -> None:
    traffic = Traffic(key)
    for step in steps:
        traffic.play(step)
    for place, budget in enumerate(traffic.limits.status(traffic.now_ms).budgets):
        assert budget.left == max(0, budget.tokens - budget.used)
        if budget.window_ms is None or budget.used == 0:
            assert (budget.next_at_ms, budget.all_by_ms) == (None, None)
            continue
        assert budget.next_at_ms is not None
        assert budget.all_by_ms is not None
        times = (budget.next_at_ms - 1, budget.next_at_ms, budget.all_by_ms - 1, budget.all_by_ms)
        later = deepcopy(traffic.limits)
        used = {at_ms: later.status(at_ms).budgets[place].used for at_ms in sorted(times)}
        assert used[budget.next_at_ms - 1] == budget.used > used[budget.next_at_ms]
        assert used[budget.all_by_ms - 1] > used[budget.all_by_ms] == 0


@hypothesis
@given(BUDGETS.filter(bool), st.just(0) | st.integers(0, 1_500), STEPS, st.integers(1, 10))
def test_a_budget_that_told_a_time_admits_then_and_not_two_seconds_sooner(
    budgets: tuple[Budget, ...], overdraft: int, steps: list[Step], tenths: int
) -> None:
    traffic = Traffic(replace(PLAIN, budgets=budgets, overdraft=overdraft))
    for step in steps:
        traffic.play(step)
    traffic.settle_all()
    room = min(budget.tokens for budget in budgets) + overdraft
    wanted = hold(-(-room * tenths // 10))
    denial = traffic.admit_until_denied(wanted)
    assert isinstance(denial, BudgetDenial)
    assert denial.refusal is Refusal.BUDGET
    assert not denial.by_running
    if denial.at_ms is None:
        assert traffic.limits.admit(wanted, traffic.now_ms + 100 * 366 * DAY_MS) is not None
    else:
        assert_admitted_at(denial.at_ms, traffic.limits, wanted, traffic.now_ms)


@hypothesis
@given(st.sampled_from(["requests_per_minute", "tokens_per_minute"]), st.integers(1, 300), STEPS)
def test_a_pace_that_told_a_time_admits_then_and_not_two_seconds_sooner(
    limit: str, per_minute: int, steps: list[Step]
) -> None:
    key = replace(PLAIN, requests_per_minute=per_minute) if limit == "requests_per_minute" else PLAIN
    traffic = Traffic(replace(key, tokens_per_minute=per_minute) if limit == "tokens_per_minute" else key)
    for step in steps:
        traffic.play(step)
    traffic.settle_all()
    denial = traffic.admit_until_denied(hold(per_minute * 2))
    assert isinstance(denial, PaceDenial)
    assert_admitted_at(denial.at_ms, traffic.limits, hold(1), traffic.now_ms)


def assert_admitted_at(at_ms: int, limits: KeyLimits, wanted: Hold, now_ms: int) -> None:
    """What a client is told, in seconds rounded up, is enough and not two seconds too much."""
    wait_seconds = -(-(at_ms - now_ms) // SECOND_MS)
    assert wait_seconds >= 1
    assert deepcopy(limits).admit(wanted, now_ms + wait_seconds * SECOND_MS) is None
    if wait_seconds >= 2:
        assert deepcopy(limits).admit(wanted, now_ms + (wait_seconds - 2) * SECOND_MS) is not None


@pytest.mark.parametrize("with_budget", [False, True])
def test_where_several_limits_deny_the_longest_wait_is_told(with_budget: bool) -> None:
    key = replace(PLAIN, requests_per_minute=60, tokens_per_minute=60)
    if with_budget:
        key = replace(key, requests_per_minute=None, budgets=(Budget(tokens=500, window_ms=SECOND_MS),))
    traffic = Traffic(key)
    for _ in range(100):
        traffic.admit(hold(6))
    traffic.settle_all()  # hundreds of tokens: a debt of minutes, while the other limit gives back in a second
    denial = traffic.admit(hold(6))
    assert denial is not None
    assert denial.at_ms is not None
    assert_admitted_at(denial.at_ms, traffic.limits, hold(6), traffic.now_ms)


@hypothesis
@given(st.integers(1, 100_000), st.integers(1, 5_000), st.randoms(use_true_random=False))
def test_two_hundred_at_once_are_admitted_up_to_the_budget_and_no_further(
    tokens: int,
    size: int,
    random: Random,
) -> None:
    traffic = Traffic(replace(PLAIN, budgets=(Budget(tokens=tokens, window_ms=5 * HOUR_MS),)))
    admitted = sum(traffic.admit(hold(size)) is None for _ in range(200))
    assert admitted == min(200, tokens // size)
    charged = 0
    while traffic.running:
        charged += traffic.settle(random.randrange(200), lambda taken: random.randint(0, taken.charge))
    assert charged <= tokens
    assert traffic.limits.status(traffic.now_ms).budgets[0].used == charged


@hypothesis
@given(st.integers(1, 10_000), st.lists(st.tuples(st.integers(1, 900), st.integers(0, 5_000)), max_size=200))
def test_a_provider_that_reports_more_than_the_hold_passes_the_budget_by_that_and_no_more(
    tokens: int, requests: list[tuple[int, int]]
) -> None:
    limits = with_budgets((tokens, None))
    admitted = [(hold(size), excess) for size, excess in requests if limits.admit(hold(size), NOW_MS) is None]
    for taken, excess in admitted:
        limits.settle(taken, NOW_MS, taken.charge + excess, NOW_MS)
    budget = limits.status(NOW_MS).budgets[0]
    excesses = sum(excess for _, excess in admitted)
    assert budget.used == sum(taken.charge for taken, _ in admitted) + excesses
    assert budget.over == max(0, budget.used - tokens) <= excesses


def test_what_is_over_a_budget_blocks_until_it_leaves_the_window() -> None:
    limits = with_budgets((100, 10_000))
    for start_ms in (NOW_MS, NOW_MS + 5_000):
        assert limits.admit(hold(5), start_ms) is None
        limits.settle(hold(5), start_ms, 95 if start_ms == NOW_MS else 70, start_ms)
    status = limits.status(NOW_MS + 5_000).budgets[0]
    assert (status.used, status.left, status.over, status.percent) == (165, 0, 65, 165)
    assert limits.admit(hold(1), NOW_MS + 10_749) is not None
    assert limits.admit(hold(30), NOW_MS + 10_750) is None


def test_the_example_of_limits_comes_out_as_written() -> None:
    limits = with_budgets((200_000, 5 * HOUR_MS))
    assert limits.admit(hold(120_000), NOW_MS) is None
    limits.settle(hold(120_000), NOW_MS, 120_000, NOW_MS)
    assert limits.admit(hold(40_000), NOW_MS) is None
    beside = deepcopy(limits).admit(hold(41_000), NOW_MS)
    assert isinstance(beside, BudgetDenial)
    assert beside.by_running
    assert beside.at_ms == NOW_MS + 2_000
    later = deepcopy(limits).admit(hold(81_000), NOW_MS)
    assert isinstance(later, BudgetDenial)
    assert not later.by_running
    assert later.at_ms == NOW_MS - 250 + 1_000 + 5 * HOUR_MS
    assert limits.admit(hold(40_000), NOW_MS) is None


def test_an_overdraft_lets_requests_start_until_the_budget_itself_is_used() -> None:
    limits = with_budgets((100, None), overdraft=50)
    assert limits.admit(hold(150), NOW_MS) is None
    assert limits.admit(hold(1), NOW_MS) is not None
    limits.settle(hold(150), NOW_MS, 99, NOW_MS)
    assert limits.admit(hold(51), NOW_MS) is None
    limits.settle(hold(51), NOW_MS, 1, NOW_MS)
    denial = limits.admit(hold(1), NOW_MS)
    assert denial is not None
    assert denial.refusal is Refusal.BUDGET


def test_an_overdraft_holds_for_each_budget_by_itself() -> None:
    limits = with_budgets((100, HOUR_MS), (1_000, None), overdraft=50)
    assert limits.admit(hold(151), NOW_MS) is not None
    assert limits.admit(hold(150), NOW_MS) is None


def test_a_lifetime_budget_never_gives_back() -> None:
    limits = with_budgets((100, None))
    assert limits.admit(hold(60), NOW_MS) is None
    limits.settle(hold(60), NOW_MS, 60, NOW_MS)
    for later_ms in (0, DAY_MS, 100 * 366 * DAY_MS):
        denial = limits.admit(hold(41), NOW_MS + later_ms)
        assert isinstance(denial, BudgetDenial)
        assert denial.at_ms is None
        assert not denial.by_running
        assert limits.status(NOW_MS + later_ms).budgets[0].used == 60
    assert limits.admit(hold(40), NOW_MS + DAY_MS) is None


def test_a_hold_counts_until_it_is_settled_however_old_it_is() -> None:
    limits = with_budgets((100, 1_000))
    assert limits.admit(hold(60), NOW_MS) is None
    denial = limits.admit(hold(60), NOW_MS + DAY_MS)
    assert isinstance(denial, BudgetDenial)
    assert denial.by_running
    limits.settle(hold(60), NOW_MS, 60, NOW_MS + DAY_MS)
    assert limits.admit(hold(60), NOW_MS + DAY_MS) is None


def test_a_refused_request_takes_nothing() -> None:
    key = replace(PLAIN, requests_per_minute=2, concurrency=1, budgets=(Budget(tokens=10, window_ms=None),))
    limits = fresh(key)
    assert limits.admit(hold(5), NOW_MS) is None
    before = limits.status(NOW_MS)
    for wanted in (11, 6, 1):
        assert limits.admit(hold(wanted), NOW_MS) is not None
        assert limits.status(NOW_MS) == before


def test_the_budget_whose_denial_lasts_longest_is_told() -> None:
    limits = with_budgets((100, 60_000), (100, 10_000), (100, 90_000))
    assert limits.admit(hold(80), NOW_MS) is None
    limits.settle(hold(80), NOW_MS, 80, NOW_MS)
    denial = limits.admit(hold(50), NOW_MS)
    assert isinstance(denial, BudgetDenial)
    assert denial.budget.window_ms == 90_000


def test_tokens_per_minute_admits_while_its_level_is_above_nothing_and_never_says_never() -> None:
    limits = fresh(replace(PLAIN, tokens_per_minute=60))
    assert limits.admit(hold(10**9), NOW_MS) is None
    assert limits.admit(hold(10**9), NOW_MS) is None
    limits.settle(hold(10**9), NOW_MS, 90, NOW_MS)
    denial = limits.admit(hold(1), NOW_MS)
    assert denial == PaceDenial(refusal=Refusal.TOKENS, at_ms=NOW_MS + 30_001)


def test_an_edit_keeps_what_runs_and_the_limits_that_did_not_change() -> None:
    budgets = (Budget(tokens=100, window_ms=HOUR_MS),)
    before = replace(PLAIN, budgets=budgets, requests_per_minute=3, tokens_per_minute=50)
    limits = fresh(before)
    assert limits.admit(hold(60), NOW_MS) is None
    limits.settle(hold(60), NOW_MS, 60, NOW_MS)
    assert fresh(before).admit(hold(60), NOW_MS) is None
    limits.adopt(fresh(replace(before, tokens_per_minute=1_000)))
    assert limits.admit(hold(30), NOW_MS) is None
    limits.adopt(fresh(replace(before, budgets=(Budget(tokens=200, window_ms=HOUR_MS),), tokens_per_minute=1_000)))
    status = limits.status(NOW_MS)
    assert (status.running, status.budgets[0].held, status.budgets[0].used) == (1, 30, 0)
    assert status.requests is not None
    assert status.requests.level == 1
    assert status.tokens is not None
    assert status.tokens.level == 1_000
