"""What the templates are given: frozen values with every number and time already put into words.

A budget is told in four figures: what is used, what is left, what running requests hold for now, and when the
used tokens come back. It turns amber at 80 percent and red at 100, and says so in words as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from gateway.core import usage_tables as tables
from gateway.core.account import (
    Account,
    HistoryCell,
    KeyRecord,
    Latencies,
    LedgerPage,
    ModelUse,
    Position,
    SummaryRow,
    add_up,
)
from gateway.core.amounts import from_ms, show_duration
from gateway.core.charts import Chart, Scale, bar_chart, largest_models, last_days, last_hours
from gateway.core.moments import Moment, Text, moment, moment_ahead
from gateway.core.prices import Prices, estimate, show_cost, show_unpriced
from gateway.core.status import BudgetStatus, LimitsStatus
from gateway.core.usage import CACHE_READS_PER_TOKEN
from gateway.core.usage_tables import HISTORY_DAYS, Table, show_count, show_latency, show_round

NEARLY_USED_UP_PERCENT = 80

CHARGE_RULE = (
    "A budget counts input, output and cache write tokens in full and one token for every"
    f" {CACHE_READS_PER_TOKEN} that are read from a cache, rounded up for each request: the ratio at which"
    " providers bill. Requests that were refused or that failed at the provider count nothing."
)


COST_RULE = "It is worked out from the counts at the administrator's prices; what the provider bills may differ."


class Level(StrEnum):
    """How urgent something is; the stylesheet has a colour for each, the text says it too."""

    CALM = "calm"
    WARN = "warn"
    STOP = "stop"


_LEVEL_WORDS = {Level.CALM: "used", Level.WARN: "nearly used up", Level.STOP: "used up"}


@dataclass(frozen=True, slots=True)
class Notice:
    level: Level
    parts: tuple[Text, ...]
    """One after the other they are the notice."""


@dataclass(frozen=True, slots=True)
class Fact:
    label: str
    value: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetCard:
    """One budget; `percent` stops at 100, `percent_text` does not."""

    name: str
    title: str
    level: Level
    word: str
    percent: int
    percent_text: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestsView:
    """A page of requests: links carry `ticket`, never the key."""

    table: Table
    ticket: str
    older: str
    """Where the next page begins, as `before` in a link; '' = this is the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageView:
    """Everything held on a key, and where it stands now."""

    name: str
    prefixes: str
    as_of: Moment
    state: str
    state_level: Level
    expires: Moment | None
    """When the key will stop working; `None`: never, or it has already."""
    notices: tuple[Notice, ...]
    budgets: tuple[BudgetCard, ...]
    rates: Table
    running_now: str
    running: Table
    charts: tuple[Chart, ...]
    totals: Table
    rule: str
    cost: str
    """Of the last days, in a sentence; '' = there are no prices."""
    histories: tuple[Table, ...]
    latencies: tuple[Fact, ...]
    refusals: Table
    requests: RequestsView
    record: tuple[Table, ...]


def usage_view(
    account: Account, page: LedgerPage, *, ticket: str, now_ms: int, wall_ms: int, prices: Prices = ()
) -> UsageView:
    """`wall_ms` is the calendar's time, by which keys expire. Without `prices` no cost is told."""
    record, limits = account.record, account.limits
    has_expired = record.expires is not None and record.expires <= wall_ms
    notices = _notices(record, limits, now_ms, has_expired=has_expired)
    return UsageView(
        name=record.name,
        prefixes=", ".join(secret.prefix for secret in record.secrets),
        as_of=moment(now_ms),
        state=_state(record, limits, has_expired=has_expired),
        state_level=Level.STOP if notices else Level.CALM,
        expires=None if record.expires is None or has_expired else moment(record.expires),
        notices=notices,
        budgets=tuple(_budget_card(budget, index, now_ms) for index, budget in enumerate(limits.budgets)),
        rates=tables.rate_table(limits, now_ms),
        running_now=_running_now(account),
        running=tables.request_table(
            "running",
            "The newest, each with the tokens that it holds; its model is noted when it ends",
            account.running,
            "",
        ),
        charts=_charts(account, now_ms, prices),
        totals=tables.total_table(record),
        rule=CHARGE_RULE,
        cost=_cost(account.history, prices),
        histories=tables.history_tables(account.history, prices),
        latencies=_latency_facts(account.latencies),
        refusals=tables.refusal_table(record),
        requests=requests_view(page, ticket=ticket),
        record=tables.record_tables(record),
    )


def requests_view(page: LedgerPage, *, ticket: str) -> RequestsView:
    table = tables.request_table(
        "requests",
        "Requests, newest first. “No.” tells apart those of the same millisecond.",
        page.rows,
        "No requests.",
    )
    return RequestsView(table=table, ticket=ticket, older=_show_position(page.older) if page.older else "")


def parse_position(text: str) -> Position | None:
    """The place that a link to older requests names; `None` if it names none."""
    started, _, sequence = text.partition("-")
    if not all(part.isascii() and part.isdigit() and len(part) <= 18 for part in (started, sequence)):
        return None
    return Position(started=int(started), sequence=int(sequence))


def _show_position(position: Position) -> str:
    return f"{position.started}-{position.sequence}"


def _state(record: KeyRecord, limits: LimitsStatus, *, has_expired: bool) -> str:
    if record.disabled:
        return "disabled"
    if has_expired:
        return "expired"
    return "used up" if any(budget.left == 0 for budget in limits.budgets) else "active"


def _notices(record: KeyRecord, limits: LimitsStatus, now_ms: int, *, has_expired: bool) -> tuple[Notice, ...]:
    """What keeps the key from working: the reasons one after the other, with what helps."""
    notices = []
    if record.disabled:
        parts: tuple[Text, ...] = ("This key is disabled. The administrator can enable it again.",)
        notices.append(Notice(Level.STOP, parts))
    if has_expired and record.expires is not None:
        parts = ("This key expired: ", moment(record.expires), ". Ask the administrator for a new time.")
        notices.append(Notice(Level.STOP, parts))
    notices += [_used_up(budget, now_ms) for budget in limits.budgets if budget.left == 0]
    return tuple(notices)


def _used_up(budget: BudgetStatus, now_ms: int) -> Notice:
    text = f"The budget of {_budget_title(budget)} is used up."
    if budget.next_at_ms is None:
        return Notice(Level.STOP, (f"{text} Its tokens do not come back: ask the administrator for more.",))
    back = moment_ahead(budget.next_at_ms, now_ms)
    return Notice(Level.STOP, (f"{text} The first tokens come back at ", back, "."))


def _running_now(account: Account) -> str:
    count = account.limits.running
    if not count:
        return "No request is running."
    running = "1 request is running" if count == 1 else f"{show_count(count)} requests are running"
    return f"{running}. What each may use at most is held until it ends; then the rest comes back."


def _cost(history: Sequence[HistoryCell], prices: Prices) -> str:
    if not prices or not history:
        return ""
    cost = estimate(prices, ((cell.model, cell.usage) for cell in history))
    dollars = "not known" if cost.dollars is None else show_cost(cost)
    told = f"Estimated cost of the last {HISTORY_DAYS} days: {dollars}. {COST_RULE}"
    return f"{told} “+” and “–” stand where a model has no price: {show_unpriced(cost)}." if cost.unpriced else told


def _charts(account: Account, now_ms: int, prices: Prices) -> tuple[Chart, Chart]:
    """The last hours and the last days; a model looks the same in both."""
    days = [
        ModelUse(began=cell.day, model=cell.model, requests=cell.requests, charge=cell.charge)
        for cell in account.history
    ]
    models = largest_models(days)
    scale = last_days(now_ms)
    by_day = bar_chart(scale, days, models)
    costs = tables.with_costs(by_day.table, _day_rows(scale, account.history), prices)
    return bar_chart(last_hours(now_ms), account.hours, models), replace(by_day, table=costs)


def _day_rows(scale: Scale, history: Sequence[HistoryCell]) -> list[SummaryRow]:
    """Each day added up, called as in the chart."""
    days: dict[int, list[HistoryCell]] = {}
    for cell in history:
        days.setdefault(cell.day, []).append(cell)
    return [add_up(from_ms(day).strftime(scale.row_label), cells) for day, cells in days.items()]


def _budget_card(budget: BudgetStatus, index: int, now_ms: int) -> BudgetCard:
    level = _level(budget)
    over = (Fact("Over by", show_count(budget.over)),) if budget.over else ()
    held = (Fact("Held in flight", show_count(budget.held)),) if budget.held else ()
    return BudgetCard(
        name=f"budget-{index}",
        title=_budget_title(budget),
        level=level,
        word=_LEVEL_WORDS[level],
        percent=min(100, budget.percent),
        percent_text=f"{budget.percent}%",
        facts=(
            Fact("Used", f"{show_count(budget.used)} of {show_count(budget.tokens)}"),
            *over,
            Fact("Left", show_count(budget.left)),
            *held,
            Fact("Next back at", _comes_back(budget, budget.next_at_ms, now_ms)),
            Fact("All back by", _comes_back(budget, budget.all_by_ms, now_ms)),
        ),
    )


def _level(budget: BudgetStatus) -> Level:
    if budget.left == 0:
        return Level.STOP
    return Level.WARN if budget.percent >= NEARLY_USED_UP_PERCENT else Level.CALM


def _budget_title(budget: BudgetStatus) -> str:
    window = "all" if budget.window_ms is None else show_duration(budget.window_ms)
    return f"{show_round(budget.tokens)} tokens in {window}"


def _comes_back(budget: BudgetStatus, at_ms: int | None, now_ms: int) -> Text:
    if budget.window_ms is None:
        return "never"
    return "nothing is used" if at_ms is None else moment_ahead(at_ms, now_ms)


def _latency_facts(latencies: Latencies) -> tuple[Fact, ...]:
    if not latencies.requests:
        return ()
    return (
        Fact("Half of the answers ended within (p50)", show_latency(latencies.p50_ms)),
        Fact("95 of 100 ended within (p95)", show_latency(latencies.p95_ms)),
        Fact("Measured over the newest", f"{show_count(latencies.requests)} requests"),
    )
