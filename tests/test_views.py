"""What the pages say about a key: figures, times and states in words."""

import pytest
from msgspec.structs import replace

from gateway.core import views
from gateway.core.account import (
    Account,
    HistoryCell,
    KeyRecord,
    Latencies,
    LedgerPage,
    Position,
    SecretRecord,
)
from gateway.core.amounts import DAY_MS, HOUR_MS, MINUTE_MS
from gateway.core.moments import Moment, Text, moment
from gateway.core.prices import Prices, read_prices
from gateway.core.records import Budget, KeyRow, LedgerRow, Refusal
from gateway.core.site import UNKNOWN_ORIGIN, own_origin, site_view
from gateway.core.status import BucketStatus, BudgetStatus, LimitsStatus
from gateway.core.usage import Usage
from gateway.core.usage_tables import MOST_ROWS, REFUSALS, Table, show_latency, show_round
from gateway.core.views import Level, Notice, UsageView, usage_view

KEY = KeyRow(2**46 + 1)
NOW = 1_790_000_000_000  # 2026-09-21 14:13:20 UTC


def budget(used: int, *, tokens: int = 1_000, window_ms: int | None = 5 * HOUR_MS, held: int = 0) -> BudgetStatus:
    comes_back = used > 0 and window_ms is not None
    return BudgetStatus(
        tokens=tokens,
        window_ms=window_ms,
        used=used,
        held=held,
        next_at_ms=NOW + 10 * MINUTE_MS if comes_back else None,
        all_by_ms=NOW + 2 * HOUR_MS if comes_back else None,
    )


def limits(*budgets: BudgetStatus, tokens: BucketStatus | None = None) -> LimitsStatus:
    return LimitsStatus(budgets=budgets, requests=None, tokens=tokens, running=0, concurrency=None)


def record(*, expires: int | None = None, disabled: bool = False) -> KeyRecord:
    return KeyRecord(
        id=KEY,
        name="research",
        created=NOW - DAY_MS,
        expires=expires,
        disabled=disabled,
        requests_per_minute=None,
        tokens_per_minute=None,
        concurrency=None,
        overdraft=0,
        models="",
        last_used=None,
        total_requests=3,
        total_input=1_234_567,
        total_output=2,
        total_cache_write=3,
        total_cache_read=4,
        total_charge=1_234_573,
        refused_inactive=0,
        refused_model=0,
        refused_size=0,
        refused_budget=11,
        refused_concurrency=0,
        refused_requests=0,
        refused_tokens=0,
        secrets=(SecretRecord(key=KEY, key_id="k7f3", prefix="sk-ant-om1-k7f3…", created=NOW, expires=None),),
        budgets=(Budget(tokens=1_000, window_ms=5 * HOUR_MS),),
    )


def ledger_row(*, status: int | None = 200, latency_ms: int | None = 840, estimated: bool = False) -> LedgerRow:
    return LedgerRow(
        key=KEY,
        started=NOW + 7,
        sequence=2,
        model="claude-x",
        status=status,
        latency_ms=latency_ms,
        usage=Usage(input=1_000, output=2_000, cache_write=30, cache_read=41),
        estimated=estimated,
    )


def view_of(
    status: LimitsStatus,
    key: KeyRecord | None = None,
    *,
    history: tuple[HistoryCell, ...] = (),
    page: LedgerPage | None = None,
    wall_ms: int = NOW,
    prices: Prices = (),
) -> UsageView:
    account = Account(
        record=key or record(),
        limits=status,
        running=(),
        hours=(),
        history=history,
        latencies=Latencies(requests=0, p50_ms=None, p95_ms=None),
    )
    return usage_view(
        account,
        page or LedgerPage(rows=(), older=None),
        ticket="TICKET",
        now_ms=NOW,
        wall_ms=wall_ms,
        prices=prices,
    )


def read(text: Text) -> str:
    """As a reader sees it."""
    if isinstance(text, str):
        return text
    return f"{text.text} (in {text.wait})" if text.wait else text.text


def told(notices: tuple[Notice, ...]) -> list[str]:
    return ["".join(map(read, notice.parts)) for notice in notices]


def cells(table: Table, heading: str) -> tuple[Text, ...]:
    return next(row for row in table.rows if row[0] == heading)


@pytest.mark.parametrize(
    ("used", "level", "word", "percent", "percent_text"),
    [
        (0, Level.CALM, "used", 0, "0%"),
        (799, Level.CALM, "used", 79, "79%"),
        (800, Level.WARN, "nearly used up", 80, "80%"),
        (999, Level.WARN, "nearly used up", 99, "99%"),
        (1_000, Level.STOP, "used up", 100, "100%"),
        (2_500, Level.STOP, "used up", 100, "250%"),
    ],
)
def test_a_budget_turns_amber_at_80_and_red_at_100_percent_and_says_so(
    used: int, level: Level, word: str, percent: int, percent_text: str
) -> None:
    card = view_of(limits(budget(used))).budgets[0]
    assert (card.level, card.word, card.percent, card.percent_text) == (level, word, percent, percent_text)


def test_a_budget_tells_what_is_used_left_held_and_when_tokens_come_back() -> None:
    card = view_of(limits(budget(1_200_000, tokens=2_000_000, held=91_000))).budgets[0]
    assert card.title == "2M tokens in 5h"
    assert {fact.label: read(fact.value) for fact in card.facts} == {
        "Used": "1,200,000 of 2,000,000",
        "Left": "800,000",
        "Held in flight": "91,000",
        "Next back at": "14:24 UTC (in 10m)",
        "All back by": "16:14 UTC (in 2h)",
    }
    assert card.facts[-2].value == Moment("14:24 UTC", "2026-09-21T14:23:20Z", "10m")


def test_an_overdrawn_budget_tells_by_how_much() -> None:
    facts = {fact.label: fact.value for fact in view_of(limits(budget(1_250))).budgets[0].facts}
    assert facts["Over by"] == "250"
    assert facts["Left"] == "0"


def test_tokens_of_a_lifetime_budget_never_come_back() -> None:
    card = view_of(limits(budget(10, window_ms=None))).budgets[0]
    assert card.title == "1k tokens in all"
    assert [fact.value for fact in card.facts[-2:]] == ["never", "never"]


def test_an_unused_budget_has_nothing_to_come_back() -> None:
    card = view_of(limits(budget(0))).budgets[0]
    assert [fact.value for fact in card.facts[-2:]] == ["nothing is used", "nothing is used"]


def test_a_key_in_order_is_active_and_has_no_notice() -> None:
    view = view_of(limits(budget(10)), record(expires=NOW + 1))
    assert (view.state, view.state_level, view.notices) == ("active", Level.CALM, ())


def test_a_key_that_is_disabled_expired_and_used_up_is_told_all_three() -> None:
    view = view_of(limits(budget(1_000)), record(expires=NOW, disabled=True))
    assert view.state == "disabled"
    assert told(view.notices) == [
        "This key is disabled. The administrator can enable it again.",
        "This key expired: 2026-09-21 14:13 UTC. Ask the administrator for a new time.",
        "The budget of 1k tokens in 5h is used up. The first tokens come back at 14:24 UTC (in 10m).",
    ]


def test_an_expired_key_says_so() -> None:
    assert view_of(limits(), record(expires=NOW)).state == "expired"


def test_a_key_expires_by_the_calendar_whatever_the_clock_of_the_limits_says() -> None:
    ahead, behind = (view_of(limits(), record(expires=NOW + 5), wall_ms=NOW + step) for step in (5, 4))
    assert (ahead.state, ahead.expires) == ("expired", None)
    assert (behind.state, behind.expires) == ("active", moment(NOW + 5))


@pytest.mark.parametrize("time_ms", [-(2**63), 2**63 - 1])
def test_a_time_beyond_the_calendar_is_told_as_such(time_ms: int) -> None:
    view = view_of(limits(), record(expires=time_ms))
    words = {-(2**63): "before the year 1", 2**63 - 1: "after the year 9999"}[time_ms]
    assert cells(view.record[0], "key.expires")[1] == Moment(words, "")


def test_requests_in_flight_are_counted_in_words() -> None:
    def running(count: int) -> str:
        return view_of(
            LimitsStatus(budgets=(), requests=None, tokens=None, running=count, concurrency=None)
        ).running_now

    assert running(0) == "No request is running."
    assert running(1).startswith("1 request is running.")
    assert running(1_200).startswith("1,200 requests are running.")


def test_a_lifetime_budget_that_is_used_up_names_whom_to_ask() -> None:
    view = view_of(limits(budget(1_000, window_ms=None)))
    assert view.state == "used up"
    assert "ask the administrator" in told(view.notices)[0]


def test_a_token_rate_in_debt_is_told_as_such() -> None:
    status = limits(tokens=BucketStatus(per_minute=200_000, level=-1_500, full_at_ms=NOW + 61_000))
    assert cells(view_of(status).rates, "Tokens per minute")[1:] == (
        "200,000",
        "1,500 owed: requests wait",
        "in 2m",
    )


def test_limits_that_a_key_does_not_have_are_told_as_none() -> None:
    assert {row[1] for row in view_of(limits()).rates.rows} == {"no limit"}


def test_every_reason_of_refusal_has_its_words() -> None:
    assert set(REFUSALS) == set(Refusal)
    assert cells(view_of(limits()).refusals, REFUSALS[Refusal.BUDGET])[1] == "11"


def test_history_is_added_up_by_model_and_by_status_the_largest_first() -> None:
    def cell(days_ago: int, model: str, status: int, tokens: int) -> HistoryCell:
        day = NOW - NOW % DAY_MS - days_ago * DAY_MS
        return HistoryCell(
            day=day, model=model, status=status, requests=1, usage=Usage(input=tokens), charge=tokens
        )

    history = (cell(1, "a", 200, 5), cell(1, "b", 200, 20), cell(0, "a", 499, 1_000))
    view = view_of(limits(), history=history)
    by_model, by_status = view.histories
    assert [row[:3] for row in by_model.rows] == [("a", "2", "1,005"), ("b", "1", "20")]
    assert [row[:2] for row in by_status.rows] == [("499 client left early", "1"), ("200 answered", "2")]
    by_day = view.charts[1].table
    assert by_day.rows == (("2026-09-21", "1", "1,000", "1,000", "0"), ("2026-09-20", "2", "25", "5", "20"))


def test_many_models_share_the_last_row_and_nothing_is_lost() -> None:
    history = tuple(
        HistoryCell(
            day=NOW - NOW % DAY_MS,
            model=f"m{number}",
            status=200,
            requests=1,
            usage=Usage(input=1 + number),
            charge=1 + number,
        )
        for number in range(100)
    )
    rows = view_of(limits(), history=history).histories[0].rows
    assert len(rows) == MOST_ROWS
    assert rows[0][:3] == ("m99", "1", "100")
    assert rows[-1][:3] == ("81 others together", "81", f"{sum(range(1, 82)):,}")


def used(model: str, *, status: int = 200, days_ago: int = 0, millions: int = 1) -> HistoryCell:
    return HistoryCell(
        day=NOW - NOW % DAY_MS - days_ago * DAY_MS,
        model=model,
        status=status,
        requests=1,
        usage=Usage(output=millions * 10**6),
        charge=millions * 10**6,
    )


def costs(table: Table) -> dict[Text, Text]:
    """By the heading of each row; they stand beside what was counted."""
    headings = [column.heading for column in table.columns]
    place = headings.index("Estimated cost")
    assert headings[place - 1] == "Counted"
    assert {len(row) for row in table.rows} == {len(headings)}
    return {row[0]: row[place] for row in table.rows}


PRICES = read_prices(
    {
        model: {"input": 0, "output": dollars, "cache_write": 0, "cache_read": 0}
        for model, dollars in (("large", 25), ("small", 0.3))
    }
)
MIXED = (
    used("large"),
    used("small", days_ago=1),
    used("unknown", status=499, days_ago=1),
    used("gpt-5", status=502, days_ago=2, millions=0),
    used("unknown", status=499, days_ago=3),
)


def test_costs_of_days_and_statuses_are_those_of_their_models() -> None:
    view = view_of(limits(), history=MIXED, prices=PRICES)
    by_model, by_status = view.histories
    assert costs(by_model) == {"unknown": "–", "large": "$25.00", "small": "$0.3000", "gpt-5": "$0.00"}
    assert costs(by_status) == {
        "499 client left early": "–",
        "200 answered": "$25.30",
        "502 provider's answer broke off": "$0.00",
    }
    assert costs(view.charts[1].table) == {
        "2026-09-21": "$25.00",
        "2026-09-20": "$0.3000 +",
        "2026-09-19": "$0.00",
        "2026-09-18": "–",
    }


def test_the_cost_of_all_is_called_an_estimate_and_names_what_is_not_in_it() -> None:
    cost = view_of(limits(), history=MIXED, prices=PRICES).cost
    assert cost.startswith("Estimated cost of the last 30 days: $25.30 +. ")
    assert "the administrator's prices; what the provider bills may differ" in cost
    assert cost.endswith(" “+” and “–” stand where a model has no price: unknown.")
    assert "no price" not in view_of(limits(), history=MIXED[:2], prices=PRICES).cost
    assert ": not known. " in view_of(limits(), history=MIXED[-1:], prices=PRICES).cost


def test_models_that_share_the_last_row_share_its_cost() -> None:
    history = tuple(used("large" if number else "unknown", millions=1 + number) for number in range(2))
    many = tuple(used(f"model-{number}", millions=9) for number in range(MOST_ROWS - 1))
    assert list(costs(view_of(limits(), history=history + many, prices=PRICES).histories[0]).values())[-1] == (
        "$50.00 +"
    )


def test_without_prices_or_use_no_cost_is_told() -> None:
    unpriced = view_of(limits(), history=MIXED)
    assert unpriced.cost == view_of(limits(), prices=PRICES).cost == ""
    tables = (*unpriced.histories, *(chart.table for chart in unpriced.charts))
    assert all(column.heading != "Estimated cost" for table in tables for column in table.columns)


def test_a_request_is_told_with_all_its_columns_and_its_charge() -> None:
    page = LedgerPage(rows=(ledger_row(), ledger_row(status=None, latency_ms=None, estimated=True)), older=None)
    done, running = view_of(limits(), page=page).requests.table.rows
    counts = ("1,000", "2,000", "30", "41", "3,035")
    began = Moment("2026-09-21 14:13:20.007", "2026-09-21T14:13:20Z")
    assert done == (began, "2", "claude-x", "200 answered", "840 ms", *counts, "provider")
    assert running[3:5] == ("running", "not known")
    assert running[-1] == "estimate"


def test_a_link_to_older_requests_names_the_place_where_they_begin() -> None:
    older = Position(started=NOW, sequence=3)
    view = view_of(limits(), page=LedgerPage(rows=(), older=older)).requests
    assert views.parse_position(view.older) == older
    assert view_of(limits()).requests.older == ""


@pytest.mark.parametrize("text", ["", "-", "1", "1-", "-1", "1-2-3", "a-b", "1-²", "9" * 19 + "-0", "1 -2"])
def test_a_place_that_no_link_of_ours_names_is_none(text: str) -> None:
    assert views.parse_position(text) is None


@pytest.mark.parametrize(
    ("tokens", "text"), [(0, "0"), (999, "999"), (1_000, "1k"), (1_500_000, "1.5M"), (1_234_567, "1,234,567")]
)
def test_a_round_amount_is_told_in_short_and_any_other_in_full(tokens: int, text: str) -> None:
    assert show_round(tokens) == text


def test_a_request_names_its_upstream_where_that_is_held() -> None:
    page = LedgerPage(rows=(replace(ledger_row(), upstream="groq"),), older=None)
    row = view_of(limits(), page=page).requests.table.rows[0]
    assert (row[2], row[-1]) == ("claude-x", "provider (groq)")


def test_a_request_of_a_time_that_no_calendar_has_is_told_all_the_same() -> None:
    page = LedgerPage(rows=(replace(ledger_row(), started=-(2**63)),), older=None)
    assert view_of(limits(), page=page).requests.table.rows[0][0] == Moment("before the year 1", "")


def test_a_latency_is_told_in_milliseconds_or_seconds() -> None:
    assert [show_latency(ms) for ms in (None, 7, 9_999, 12_345)] == ["not known", "7 ms", "9,999 ms", "12.3 s"]


@pytest.mark.parametrize(
    ("public_url", "host", "is_secure", "origin"),
    [
        ("https://llm.example.org", "evil.example", False, "https://llm.example.org"),
        ("", "127.0.0.1:8080", False, "http://127.0.0.1:8080"),
        ("", "[::1]:8080", False, "http://[::1]:8080"),
        ("", "localhost:8080", True, "https://localhost:8080"),
        ("", "127.0.0.1:8081", False, UNKNOWN_ORIGIN),
        ("", "127.0.0.1", False, UNKNOWN_ORIGIN),
        ("", "llm.example.org", False, UNKNOWN_ORIGIN),
        ("", "evil.example:8080", True, UNKNOWN_ORIGIN),
        ("", 'a"><script>', False, UNKNOWN_ORIGIN),
        ("", "user@localhost:8080", False, UNKNOWN_ORIGIN),
        ("", "", False, UNKNOWN_ORIGIN),
    ],
)
def test_the_address_for_clients_is_configured_or_this_machines_own_and_never_what_a_client_sent(
    public_url: str, host: str, is_secure: bool, origin: str
) -> None:
    assert own_origin(public_url, host, 8080, is_secure=is_secure) == origin


@pytest.mark.parametrize(
    ("contact", "text", "link"),
    [
        ("", "the administrator of this service", ""),
        ("Ada, room 7", "Ada, room 7", ""),
        ("ops@example.org", "ops@example.org", "mailto:ops@example.org"),
        ("https://help.example.org/llm", "https://help.example.org/llm", "https://help.example.org/llm"),
        ("javascript:alert(1)", "javascript:alert(1)", ""),
    ],
)
def test_the_contact_is_a_link_where_it_can_be_one(contact: str, text: str, link: str) -> None:
    site = site_view("OpusMax", contact, "v1")
    assert (site.contact, site.contact_link) == (text, link)
