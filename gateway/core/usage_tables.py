"""Tables of the Check Usage page: records in, rows of finished text out. The templates only loop over them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from gateway.core.account import HistoryCell, KeyRecord, Row, SummaryRow, add_up, budget_columns, secret_columns
from gateway.core.amounts import SECOND_MS, from_ms, show_budget, show_duration, show_wait
from gateway.core.moments import Moment, Text, moment
from gateway.core.policy import LINES
from gateway.core.prices import Prices, estimate, show_cost
from gateway.core.records import LedgerRow, Refusal
from gateway.core.status import BucketStatus, LimitsStatus
from gateway.core.usage import CACHE_READS_PER_TOKEN

HISTORY_DAYS = 30
MOST_ROWS = 20
"""Of a summary; what is smaller shares the last row, so that a page stays a page. The exports hold everything."""

REFUSALS = {
    Refusal.INACTIVE: "The key was disabled or had expired",
    Refusal.MODEL: "The key may not use the model",
    Refusal.SIZE: "The request alone was larger than a budget",
    Refusal.BUDGET: "A budget was used up or too full",
    Refusal.CONCURRENCY: "Too many requests were running",
    Refusal.REQUESTS: "Too many requests in a minute",
    Refusal.TOKENS: "Too many tokens in a minute",
}

STATUSES = {
    499: "client left early",
    500: "failed, or cut off by a restart of the gateway",
    502: "provider's answer broke off",
    503: "not available, or the gateway stopped",
    504: "provider stopped sending",
}
"""What the statuses mean that the gateway itself may give; the rest is told by class."""

STATUS_CLASSES = {2: "answered", 3: "redirected", 4: "refused by the provider", 5: "failed at the provider"}

TIME_COLUMNS = frozenset({"created", "expires", "last_used"})


@dataclass(frozen=True, slots=True)
class Column:
    heading: str
    is_number: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Each row's first cell is its heading."""

    name: str
    """Its id in the page."""
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Text, ...], ...]
    empty: str = ""
    """Stands in place of a table without rows."""

    @property
    def has_mostly_numbers(self) -> bool:
        """Besides the headings of its rows; then the page marks the cells that are none, and is shorter."""
        cells = self.columns[1:]
        return sum(column.is_number for column in cells) * 2 > len(cells)


_COUNTED = Column("Counted", True)

_SUMMARY_COLUMNS = (
    Column("Requests", True),
    Column("Input", True),
    Column("Output", True),
    Column("Cache write", True),
    Column("Cache read", True),
    _COUNTED,
)

_REQUEST_COLUMNS = (
    Column("Began (UTC)"),
    Column("No.", True),
    Column("Model"),
    Column("Status"),
    Column("Took", True),
    Column("Input", True),
    Column("Output", True),
    Column("Cache write", True),
    Column("Cache read", True),
    _COUNTED,
    Column("Source"),
)
"""The columns of the ledger besides `key`, which is the page's subject, and the charge made from them."""


def history_tables(cells: Iterable[HistoryCell], prices: Prices) -> tuple[Table, ...]:
    """What was used by model and by status, the largest first; what it would cost, if there are prices."""
    history = tuple(cells)
    models = _grouped(history, lambda cell: cell.model)
    statuses = _grouped(history, lambda cell: _status_text(cell.status))
    return (
        with_costs(_summary_table("by-model", "By model", "Model", models), models, prices),
        with_costs(_summary_table("by-status", "By status", "Status", statuses), statuses, prices),
    )


def with_costs(table: Table, rows: Iterable[SummaryRow], prices: Prices) -> Table:
    """The table with what each row would cost beside what it counted; `rows` are called as there.

    Without prices it stays as it is.
    """
    if not prices:
        return table
    costs: dict[Text, str] = {row.label: show_cost(estimate(prices, row.by_model)) for row in rows}
    place = table.columns.index(_COUNTED) + 1
    return replace(
        table,
        columns=(*table.columns[:place], Column("Estimated cost", True), *table.columns[place:]),
        rows=tuple((*cells[:place], costs[cells[0]], *cells[place:]) for cells in table.rows),
    )


def request_table(name: str, caption: str, rows: Iterable[LedgerRow], empty: str) -> Table:
    return Table(
        name=name,
        caption=caption,
        columns=_REQUEST_COLUMNS,
        rows=tuple(_request_cells(row) for row in rows),
        empty=empty,
    )


def rate_table(limits: LimitsStatus, now_ms: int) -> Table:
    at_once = "no limit" if limits.concurrency is None else show_count(limits.concurrency)
    return Table(
        name="rates",
        caption="Limits per minute, and on requests that run at once",
        columns=(Column("Limit"), Column("At most", True), Column("Now"), Column("Full again")),
        rows=(
            ("Requests per minute", *_rate_cells(limits.requests, now_ms)),
            ("Tokens per minute", *_rate_cells(limits.tokens, now_ms)),
            ("Requests at once", at_once, f"{show_count(limits.running)} running", "–"),
        ),
    )


def total_table(record: KeyRecord) -> Table:
    return Table(
        name="totals",
        caption=f"All {show_count(record.total_requests)} requests that have ended",
        columns=(Column("Tokens"), Column("Number", True), Column("Counts")),
        rows=(
            ("Input", show_count(record.total_input), "in full"),
            ("Output", show_count(record.total_output), "in full"),
            ("Cache write", show_count(record.total_cache_write), "in full"),
            ("Cache read", show_count(record.total_cache_read), f"1 for every {CACHE_READS_PER_TOKEN}"),
            ("Counted in all", show_count(record.total_charge), ""),
        ),
    )


def refusal_table(record: KeyRecord) -> Table:
    return Table(
        name="refused",
        caption="Requests that the gateway refused since the key was made",
        columns=(Column("Why"), Column("Requests", True)),
        rows=tuple((text, show_count(record.refused(reason))) for reason, text in REFUSALS.items()),
    )


def record_tables(record: KeyRecord) -> tuple[Table, ...]:
    """Every column of the key's own rows, outside the ledger, with its line of the policy."""
    return (
        _record_table("key", "The key", record.columns()),
        *(
            _record_table("secret", f"Secret {secret.prefix}", secret_columns(secret), number)
            for number, secret in enumerate(record.secrets, start=1)
        ),
        *(
            _record_table(
                "budget",
                f"Budget {show_budget(budget.tokens, budget.window_ms)}",
                budget_columns(record.id, budget),
                number,
            )
            for number, budget in enumerate(record.budgets, start=1)
        ),
    )


def show_count(count: int) -> str:
    return f"{count:,}"


def show_round(tokens: int) -> str:
    """Exactly, and as short as one decimal allows: `500k`, `1.5M`, `1,234`."""
    for suffix, unit in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if tokens >= unit and tokens % (unit // 10) == 0:
            return f"{tokens / unit:,.1f}".removesuffix(".0") + suffix
    return show_count(tokens)


def show_latency(latency_ms: int | None) -> str:
    """`840 ms`, `12.3 s`."""
    if latency_ms is None:
        return "not known"
    return f"{latency_ms:,} ms" if latency_ms < 10 * SECOND_MS else f"{latency_ms / SECOND_MS:,.1f} s"


def _grouped(cells: Iterable[HistoryCell], label_of: Callable[[HistoryCell], str]) -> list[SummaryRow]:
    """The largest first; at most `MOST_ROWS`, of which the last may hold what all the smaller ones used."""
    groups: dict[str, list[HistoryCell]] = {}
    for cell in cells:
        groups.setdefault(label_of(cell), []).append(cell)
    rows = [add_up(label, group) for label, group in groups.items()]
    rows.sort(key=lambda row: (-row.charge, -row.requests, row.label))
    if len(rows) <= MOST_ROWS:
        return rows
    smaller = rows[MOST_ROWS - 1 :]
    together = [cell for row in smaller for cell in groups[row.label]]
    return [*rows[: MOST_ROWS - 1], add_up(f"{len(smaller)} others together", together)]


def _summary_table(name: str, caption: str, heading: str, rows: Iterable[SummaryRow]) -> Table:
    return Table(
        name=name,
        caption=f"{caption}, the last {HISTORY_DAYS} days",
        columns=(Column(heading), *_SUMMARY_COLUMNS),
        rows=tuple((row.label, *_summary_cells(row)) for row in rows),
        empty="No requests in this time.",
    )


def _summary_cells(row: SummaryRow) -> tuple[str, ...]:
    usage = row.usage
    counts = (row.requests, usage.input, usage.output, usage.cache_write, usage.cache_read, row.charge)
    return tuple(show_count(count) for count in counts)


def _request_cells(row: LedgerRow) -> tuple[Text, ...]:
    usage = row.usage
    counts = (usage.input, usage.output, usage.cache_write, usage.cache_read, usage.charge)
    return (
        _began(row.started),
        str(row.sequence),
        row.model,
        "running" if row.status is None else _status_text(row.status),
        show_latency(row.latency_ms),
        *(show_count(count) for count in counts),
        _source(row),
    )


def _began(time_ms: int) -> Moment:
    """To the millisecond, which orders the rows."""
    began = moment(time_ms)
    if not began.stamp:
        return began
    return replace(began, text=from_ms(time_ms).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3])


def _source(row: LedgerRow) -> str:
    """Who made the counts, and which of the operator's upstreams took the request, where that is held."""
    counted_by = "estimate" if row.estimated else "provider"
    return f"{counted_by} ({row.upstream})" if row.upstream else counted_by


def _status_text(status: int) -> str:
    return f"{status} {STATUSES.get(status) or STATUS_CLASSES.get(status // 100, 'unusual')}"


def _rate_cells(bucket: BucketStatus | None, now_ms: int) -> tuple[str, str, str]:
    if bucket is None:
        return "no limit", "–", "–"
    owed = f"{show_count(-bucket.level)} owed: requests wait" if bucket.level < 0 else ""
    full = "now" if bucket.full_at_ms <= now_ms else f"in {show_wait(bucket.full_at_ms - now_ms)}"
    return show_count(bucket.per_minute), owed or f"{show_count(bucket.level)} free", full


def _record_table(table: str, caption: str, columns: Row, number: int = 0) -> Table:
    return Table(
        name=f"record-{table}-{number}",
        caption=caption,
        columns=(Column("Column"), Column("Value"), Column("What it is")),
        rows=tuple(
            (f"{table}.{column}", _show_value(column, value), LINES[table, column])
            for column, value in columns.items()
        ),
    )


def _show_value(column: str, value: int | str | None) -> Text:
    if value is None or value == "":
        return "none"
    if isinstance(value, str) or column in ("id", "key"):
        return str(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if column == "window":
        return show_duration(value)
    return moment(value) if column in TIME_COLUMNS else show_count(value)
