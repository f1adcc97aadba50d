"""What the templates are given: frozen values with every number and time already put into words.

A budget is told in four figures: what is used, what is left, what running requests hold for now, and when the
used tokens come back. It turns amber at 80 percent and red at 100, and says so in words as well.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from gateway.core import usage_tables as tables
from gateway.core.account import Account, KeyRecord, Latencies, LedgerPage, Position
from gateway.core.amounts import show_budget, show_clock, show_time, show_wait
from gateway.core.settings import LOOPBACK_HOSTS
from gateway.core.status import BudgetStatus, LimitsStatus
from gateway.core.usage import CACHE_READS_PER_TOKEN
from gateway.core.usage_tables import Table, show_count, show_latency

NEARLY_USED_UP_PERCENT = 80

CHARGE_RULE = (
    "A budget counts input, output and cache write tokens in full and one token for every"
    f" {CACHE_READS_PER_TOKEN} that are read from a cache, rounded up for each request: the ratio at which"
    " providers bill. Requests that were refused or that failed at the provider count nothing."
)

UNKNOWN_ORIGIN = "https://ADDRESS-OF-THIS-SERVICE"
_HOST = re.compile(r"(?:[0-9A-Za-z][0-9A-Za-z._-]{0,252}|\[[0-9a-fA-F:.]{2,45}\])(?::\d{1,5})?", re.ASCII)
_MAIL_ADDRESS = re.compile(r"[^@\s?&]+@[^@\s?&]+\.[^@\s?&]+")


class Level(StrEnum):
    """How urgent something is; the stylesheet has a colour for each, the text says it too."""

    CALM = "calm"
    WARN = "warn"
    STOP = "stop"


_LEVEL_WORDS = {Level.CALM: "used", Level.WARN: "nearly used up", Level.STOP: "used up"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteView:
    """What every page shows."""

    name: str
    contact: str
    contact_link: str
    """Where the contact leads; '' = it is a text only."""
    style: str


@dataclass(frozen=True, slots=True)
class Notice:
    level: Level
    text: str


@dataclass(frozen=True, slots=True)
class Fact:
    label: str
    value: str


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
    as_of: str
    state: str
    state_level: Level
    notices: tuple[Notice, ...]
    budgets: tuple[BudgetCard, ...]
    rates: Table
    running: Table
    totals: Table
    rule: str
    histories: tuple[Table, ...]
    latencies: tuple[Fact, ...]
    refusals: Table
    requests: RequestsView
    record: tuple[Table, ...]


def usage_view(account: Account, page: LedgerPage, *, ticket: str, now_ms: int) -> UsageView:
    record, limits = account.record, account.limits
    notices = _notices(record, limits, now_ms)
    return UsageView(
        name=record.name,
        prefixes=", ".join(secret.prefix for secret in record.secrets),
        as_of=show_time(now_ms),
        state=_state(record, limits, now_ms),
        state_level=Level.STOP if notices else Level.CALM,
        notices=notices,
        budgets=tuple(_budget_card(budget, index, now_ms) for index, budget in enumerate(limits.budgets)),
        rates=tables.rate_table(limits, now_ms),
        running=tables.request_table(
            "running",
            "Running now, each with the tokens that it holds until it ends",
            account.running,
            "No request is running.",
        ),
        totals=tables.total_table(record),
        rule=CHARGE_RULE,
        histories=tables.history_tables(account.history),
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


def site_view(service_name: str, contact: str, style_version: str) -> SiteView:
    return SiteView(
        name=service_name,
        contact=contact or "the administrator of this service",
        contact_link=_contact_link(contact),
        style=f"/static/style.css?{style_version}",
    )


def _contact_link(contact: str) -> str:
    if contact.startswith("https://"):
        return contact
    return f"mailto:{contact}" if _MAIL_ADDRESS.fullmatch(contact) else ""


def parse_position(text: str) -> Position | None:
    """The place that a link to older requests names; `None` if it names none."""
    started, _, sequence = text.partition("-")
    if not all(part.isascii() and part.isdigit() and len(part) <= 18 for part in (started, sequence)):
        return None
    return Position(started=int(started), sequence=int(sequence))


def own_origin(public_url: str, host: str, *, is_secure: bool) -> str:
    """The address to give to clients: the configured one, else the one that this page was asked for at.

    Without TLS of our own, a host beyond loopback is only reached through a proxy that speaks TLS (`serve`
    refuses to listen there otherwise). A `Host` header that is no host is not repeated.
    """
    if public_url:
        return public_url
    if not _HOST.fullmatch(host):
        return UNKNOWN_ORIGIN
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    is_loopback = name.strip("[]") in LOOPBACK_HOSTS
    return f"http://{host}" if is_loopback and not is_secure else f"https://{host}"


def _show_position(position: Position) -> str:
    return f"{position.started}-{position.sequence}"


def _state(record: KeyRecord, limits: LimitsStatus, now_ms: int) -> str:
    if record.disabled:
        return "disabled"
    if record.expires is not None and record.expires <= now_ms:
        return "expired"
    return "used up" if any(budget.left == 0 for budget in limits.budgets) else "active"


def _notices(record: KeyRecord, limits: LimitsStatus, now_ms: int) -> tuple[Notice, ...]:
    """What keeps the key from working, or soon will: the reasons one after the other, with what helps."""
    notices = []
    if record.disabled:
        notices.append(Notice(Level.STOP, "This key is disabled. The administrator can enable it again."))
    if record.expires is not None and record.expires <= now_ms:
        text = f"This key expired on {show_time(record.expires)}. Ask the administrator for a new time."
        notices.append(Notice(Level.STOP, text))
    notices += [_used_up(budget, now_ms) for budget in limits.budgets if budget.left == 0]
    return tuple(notices)


def _used_up(budget: BudgetStatus, now_ms: int) -> Notice:
    text = f"The budget {show_budget(budget.tokens, budget.window_ms)} is used up."
    if budget.next_at_ms is None:
        return Notice(Level.STOP, f"{text} Its tokens do not come back: ask the administrator for more.")
    return Notice(Level.STOP, f"{text} The first tokens come back at {_show_moment(budget.next_at_ms, now_ms)}.")


def _budget_card(budget: BudgetStatus, index: int, now_ms: int) -> BudgetCard:
    level = _level(budget)
    over = (Fact("Over by", show_count(budget.over)),) if budget.over else ()
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
            Fact("Held by running requests", show_count(budget.held)),
            Fact("Next tokens back", _comes_back(budget, budget.next_at_ms, now_ms)),
            Fact("All back by", _comes_back(budget, budget.all_by_ms, now_ms)),
        ),
    )


def _level(budget: BudgetStatus) -> Level:
    if budget.left == 0:
        return Level.STOP
    return Level.WARN if budget.percent >= NEARLY_USED_UP_PERCENT else Level.CALM


def _budget_title(budget: BudgetStatus) -> str:
    amount, _, window = show_budget(budget.tokens, budget.window_ms).partition("/")
    return f"{amount} tokens in {window}" if window else f"{amount} tokens in all"


def _comes_back(budget: BudgetStatus, at_ms: int | None, now_ms: int) -> str:
    if budget.window_ms is None:
        return "never"
    return "nothing is used" if at_ms is None else _show_moment(at_ms, now_ms)


def _show_moment(at_ms: int, now_ms: int) -> str:
    return f"{show_clock(at_ms, now_ms)} (in {show_wait(at_ms - now_ms)})"


def _latency_facts(latencies: Latencies) -> tuple[Fact, ...]:
    if not latencies.requests:
        return ()
    return (
        Fact("Half of the answers ended within (p50)", show_latency(latencies.p50_ms)),
        Fact("95 of 100 ended within (p95)", show_latency(latencies.p95_ms)),
        Fact("Measured over the newest", f"{show_count(latencies.requests)} requests"),
    )
