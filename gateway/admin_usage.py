"""`usage`: what settled requests used, added up, as a table with bars, as CSV or as values for JSON.

Where the operator named prices, what it would cost stands beside the counts: rounded for people, to a millionth of
a dollar for programs.
"""

import csv
import io
from dataclasses import dataclass
from datetime import date, timedelta

import aiosqlite

from gateway.admin import Answer
from gateway.core import tables
from gateway.core.account import Grouping, SummaryRow, add_up
from gateway.core.prices import Prices, estimate, show_cost, show_unpriced
from gateway.core.records import KeyRow
from gateway.exports import inert
from gateway.reports import summarise
from gateway.terminal import Terminal

NARROWEST_BAR, WIDEST_BAR = 8, 40
"""In places. Where there is less room, a table has no bars."""
LEFT_OUT = {"cache_write": 4, "cache_read": 3, "input": 2, "output": 1}
"""Columns that a narrow terminal does without, the largest figure first."""
COUNTS = ("requests", "input", "output", "cache_write", "cache_read", "charge")
COST = ("cost", "unpriced")
"""US dollars, and the models that have no price."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Which requests to add up, and by what."""

    key: KeyRow | None
    """`None`: all keys."""
    since: int
    by: Grouping
    prices: Prices = ()
    """Empty: no cost is told."""


async def as_table(connection: aiosqlite.Connection, question: Question, terminal: Terminal) -> Answer:
    """For people, and for programs with `--json`."""
    rows = await _read(connection, question)
    return Answer(
        value=[_value(row, question) for row in rows],
        text=_table(rows, question, terminal) if rows else "",
        talk=_cost_talk(rows, question.prices) if rows else ("No requests in that time.",),
    )


async def as_csv(connection: aiosqlite.Connection, question: Question) -> Answer:
    """For spreadsheets."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([question.by.value, *COUNTS, *(COST if question.prices else ())])
    for row in await _read(connection, question):
        writer.writerow([inert(row.label), *_counts(row), *_cost_cells(row, question.prices)])
    return Answer(value=None, text=text.getvalue().rstrip("\r\n"))


async def _read(connection: aiosqlite.Connection, question: Question) -> list[SummaryRow]:
    return await summarise(connection, key=question.key, since=question.since, by=question.by)


def _value(row: SummaryRow, question: Question) -> dict[str, object]:
    value: dict[str, object] = {question.by.value: row.label, **dict(zip(COUNTS, _counts(row), strict=True))}
    if question.prices:
        cost = estimate(question.prices, row.by_model)
        value["cost"] = None if cost.rounded is None else float(cost.rounded)
        value["unpriced"] = list(cost.unpriced)
    return value


def _cost_cells(row: SummaryRow, prices: Prices) -> tuple[str, ...]:
    """By COST. An empty cost: nothing has a price."""
    if not prices:
        return ()
    cost = estimate(prices, row.by_model)
    return "" if cost.rounded is None else f"{cost.rounded:f}", inert(" ".join(cost.unpriced))


def _cost_talk(rows: list[SummaryRow], prices: Prices) -> tuple[str, ...]:
    if not prices:
        return ()
    told = "The cost is an estimate at your prices; what the provider bills may differ."
    cost = estimate(prices, _total(rows).by_model)
    return (told, f"Not in it, for want of a price: {show_unpriced(cost)}.") if cost.unpriced else (told,)


def _table(rows: list[SummaryRow], question: Question, terminal: Terminal) -> str:
    """Bars compare the charges; days on which nothing was used have their line too."""
    is_by_day, prices = question.by is Grouping.DAY, question.prices
    shown = _with_empty_days(rows) if is_by_day else rows
    figures = (*COUNTS, "cost") if prices else COUNTS
    columns = [tables.Column(question.by.value, is_whole=is_by_day), *map(_column, figures)]
    cells = [_cells(row, prices) for row in shown]
    if len(rows) > 1:
        cells.append(_cells(_total(rows), prices))
    room = terminal.bar_table_width - NARROWEST_BAR - len(tables.GAP)
    beside = tables.width_of(tables.render(columns, cells, width=room))
    if beside > room:
        return tables.render(columns, cells, width=terminal.width)
    places = min(terminal.bar_table_width - beside - len(tables.GAP), WIDEST_BAR)
    most = max(row.charge for row in shown)
    bars = [tables.bar(row.charge, most, places, has_blocks=terminal.has_blocks) for row in shown]
    bars += [""] * (len(cells) - len(shown))
    bar_column = tables.Column(" " * places, is_whole=True)
    return tables.render(
        [*columns, bar_column],
        [[*line, bar] for line, bar in zip(cells, bars, strict=True)],
        width=terminal.bar_table_width,
    )


def _with_empty_days(rows: list[SummaryRow]) -> list[SummaryRow]:
    """A row for each day from the first to the last."""
    by_day = {row.label: row for row in rows}
    first, last = date.fromisoformat(rows[0].label), date.fromisoformat(rows[-1].label)
    days = [str(first + timedelta(days=number)) for number in range((last - first).days + 1)]
    return [by_day.get(day) or add_up(day, ()) for day in days]


def _total(rows: list[SummaryRow]) -> SummaryRow:
    return add_up("total", (part for row in rows for part in row.parts))


def _cells(row: SummaryRow, prices: Prices) -> list[str]:
    cost = [show_cost(estimate(prices, row.by_model))] if prices else []
    return [row.label, *map(_shown, _counts(row)), *cost]


def _column(count: str) -> tables.Column:
    return tables.Column(count.replace("_", " "), is_number=True, leave_out=LEFT_OUT.get(count, 0))


def _shown(count: int) -> str:
    return f"{count:,}"


def _counts(row: SummaryRow) -> tuple[int, ...]:
    """By COUNTS."""
    usage = row.usage
    return (row.requests, usage.input, usage.output, usage.cache_write, usage.cache_read, row.charge)
