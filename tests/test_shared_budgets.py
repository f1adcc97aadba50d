"""Budgets of the whole instance and of upstreams: one bill has one lid, however many keys there are."""

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.amounts import HOUR_MS
from gateway.core.limits import Hold
from gateway.core.records import Budget, Refusal
from gateway.core.refusals import Signpost, explain
from gateway.core.shared_budgets import INSTANCE, SharedBudgets, SharedDenial, SharedHold, make_lid
from gateway.core.windows import RollingWindow

NOW = 1_800_000_000_000
SIGNPOST = Signpost(usage_url="https://gateway.example/usage", contact="")


def shared(slots: Iterable[tuple[int, int]] = (), **tokens: int) -> SharedBudgets:
    """A lid of so many tokens in an hour for each owner; `instance` has the ledger's `slots`."""
    lids = {}
    for owner, amount in tokens.items():
        name = INSTANCE if owner == "instance" else owner
        window = RollingWindow(HOUR_MS)
        window.fill(slots if name == INSTANCE else (), NOW)
        lids[name] = make_lid(name, [Budget(tokens=amount, window_ms=HOUR_MS)], [window])
    return SharedBudgets(lids)


def hold(charge: int) -> Hold:
    return Hold(input=charge - 1, output=1)


def figures(budgets: SharedBudgets) -> dict[str, tuple[int, int]]:
    """What is used and held under each lid."""
    return {owner: (status.used, status.held) for owner, (status,) in budgets.statuses(NOW).items()}


def admitted(budgets: SharedBudgets, upstream: str, charge: int) -> SharedHold:
    held = budgets.admit(upstream, hold(charge), NOW)
    assert isinstance(held, SharedHold)
    return held


def denied(budgets: SharedBudgets, upstream: str, charge: int) -> SharedDenial:
    found = budgets.admit(upstream, hold(charge), NOW)
    assert isinstance(found, SharedDenial)
    return found


def test_a_request_needs_room_under_every_lid_that_covers_it() -> None:
    budgets = shared(instance=100, groq=60, spare=10)
    admitted(budgets, "groq", 50)
    assert figures(budgets) == {"": (0, 50), "groq": (0, 50), "spare": (0, 0)}
    found = denied(budgets, "groq", 20)
    assert (found.lid.name, found.denial.refusal, found.denial.by_running) == ("groq", Refusal.BUDGET, True)
    assert denied(budgets, "other", 60).lid.name == INSTANCE
    admitted(budgets, "other", 50)
    assert figures(budgets) == {"": (0, 100), "groq": (0, 50), "spare": (0, 0)}


def test_what_was_used_counts_under_its_lids_and_the_rest_comes_back() -> None:
    budgets = shared(instance=100, groq=60)
    admitted(budgets, "groq", 50).settle(NOW, 7, NOW)
    admitted(budgets, "other", 50).settle(NOW, 20, NOW)
    admitted(budgets, "groq", 50).release(NOW)
    assert figures(budgets) == {"": (27, 0), "groq": (7, 0)}


def test_what_the_ledger_holds_counts_after_a_restart() -> None:
    budgets = shared([((NOW - HOUR_MS) // 1_000 - 2, 90), (NOW // 1_000 - 10, 70)], instance=100)
    assert figures(budgets) == {"": (70, 0)}
    assert denied(budgets, "any", 40).denial.at_ms == NOW - 9_000 + HOUR_MS
    admitted(budgets, "any", 30)


def test_the_denial_that_lasts_longest_is_told() -> None:
    budgets = shared(instance=100, groq=60)
    admitted(budgets, "groq", 60).settle(NOW, 60, NOW)
    admitted(budgets, "other", 40)
    found = denied(budgets, "groq", 20)
    assert (found.lid.name, found.denial.by_running) == ("groq", False)
    found = denied(budgets, "groq", 61)
    assert (found.lid.name, found.denial.refusal) == ("groq", Refusal.SIZE)


@pytest.mark.parametrize(
    ("owner", "used", "charge", "text"),
    [
        (INSTANCE, 100, 20, "Token budget for all keys together used up: 100 of 100 in 1h. Room again at "),
        ("groq", 100, 20, "Token budget for all keys at groq used up: 100 of 100 in 1h. Room again at "),
        (INSTANCE, 90, 20, "This request may need 20 tokens; 10 of 100 are left for all keys together in 1h."),
        ("groq", 0, 101, "This request may need 101 tokens and can never fit: all keys at groq may use 100 in 1h"),
    ],
)
def test_a_refusal_is_told_like_that_of_a_key_and_says_whose_budget_it_is(
    owner: str, used: int, charge: int, text: str
) -> None:
    tokens: dict[str, Any] = {owner or "instance": 100}
    budgets = shared(**tokens)
    admitted(budgets, "groq", 1).settle(NOW, used, NOW)
    found = denied(budgets, "groq", charge)
    error = explain(found.denial, hold(charge), found.lid, NOW, SIGNPOST, whose=found.whose)
    assert error.message.startswith(text)
    assert "Ask the administrator for " in error.message
    if charge == 20:
        assert (error.status, error.kind, error.should_retry) == (429, "billing_error", False)


def test_a_hold_moves_along_to_another_upstream_if_it_fits_there() -> None:
    budgets = shared(instance=100, groq=60, spare=30)
    held = admitted(budgets, "groq", 40)
    assert not held.move("spare", NOW)
    assert figures(budgets) == {"": (0, 40), "groq": (0, 40), "spare": (0, 0)}
    assert held.move("groq", NOW)
    assert held.move("other", NOW)
    assert (held.upstream, figures(budgets)) == (None, {"": (0, 40), "groq": (0, 0), "spare": (0, 0)})
    assert held.move("groq", NOW)
    assert (held.upstream, figures(budgets)) == ("groq", {"": (0, 40), "groq": (0, 40), "spare": (0, 0)})


@pytest.mark.parametrize("upstream", ["groq", "other"])
def test_without_lids_everything_fits_and_nobody_is_remembered(upstream: str) -> None:
    budgets = SharedBudgets({})
    held = admitted(budgets, upstream, 10**12)
    assert (held.upstream, budgets.statuses(NOW)) == (None, {})
    held.release(NOW)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["admit", "settle", "release", "move"]),
        st.sampled_from(["a", "b", "c"]),
        st.integers(1, 60),
        st.integers(0, 5),
    ),
    max_size=40,
)


@given(STEPS)
def test_no_lid_is_overshot_and_a_denial_takes_nothing(steps: list[tuple[str, str, int, int]]) -> None:
    budgets = shared(instance=150, a=80, b=50)
    room = {"": 150, "a": 80, "b": 50}
    running: list[tuple[SharedHold, str, int]] = []
    used = {"": 0, "a": 0, "b": 0, "c": 0}
    for step, upstream, amount, number in steps:
        before = figures(budgets)
        if step == "admit":
            held = budgets.admit(upstream, hold(amount), NOW)
            fits = all(sum(before[owner]) + amount <= room[owner] for owner in {"", upstream} & room.keys())
            assert isinstance(held, SharedHold) is fits
            if isinstance(held, SharedHold):
                running.append((held, upstream, amount))
            else:
                assert figures(budgets) == before
        elif number < len(running):
            held, owner, charge = running.pop(number)
            if step == "move":
                running.append((held, upstream if held.move(upstream, NOW) else owner, charge))
            elif step == "release":
                held.release(NOW)
            else:
                held.settle(NOW, min(charge, amount), NOW)
                used[""] += min(charge, amount)
                used[owner] += min(charge, amount)
        for owner, (used_now, held_now) in figures(budgets).items():
            assert used_now == used[owner]
            assert held_now == sum(charge for _, at, charge in running if owner in ("", at))
            assert used_now + held_now <= room[owner]
