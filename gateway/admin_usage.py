"""`usage`: what settled requests used, added up, as a table with bars, as CSV or as values for JSON."""

import csv
import io
from dataclasses import dataclass
from datetime import date, timedelta

import aiosqlite

from gateway.admin import Answer
from gateway.core import tables
from gateway.core.account import Grouping, SummaryRow
from gateway.core.records import KeyRow
from gateway.core.usage import NO_USAGE
from gateway.exports import inert
from gateway.reports import summarise
from gateway.terminal import Terminal

NARROWEST_BAR, WIDEST_BAR = 8, 40
"""In places. Where there is less room, a table has no bars."""
LEFT_OUT = {"cache_write": 4, "cache_read": 3, "input": 2, "output": 1}
"""Columns that a narrow terminal does without, the largest figure first."""
COUNTS = ("requests", "input", "output", "cache_write", "cache_read", "charge")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Which requests to add up, and by what."""

    key: KeyRow | None
    """`None`: all keys."""
    since: int
    by: Grouping


async def as_table(connection: aiosqlite.Connection, question: Question, terminal: Terminal) -> Answer:
    """For people, and for programs with `--json`."""
    rows = await _read(connection, question)
    by = question.by
    return Answer(
        value=[{by.value: row.label, **dict(zip(COUNTS, _counts(row), strict=True))} for row in rows],
        text=_table(rows, by, terminal) if rows else "",
        talk=() if rows else ("No requests in that time.",),
    )


async def as_csv(connection: aiosqlite.Connection, question: Question) -> Answer:
    """For spreadsheets."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([question.by.value, *COUNTS])
    writer.writerows([inert(row.label), *_counts(row)] for row in await _read(connection, question))
    return Answer(value=None, text=text.getvalue().rstrip("\r\n"))


async def _read(connection: aiosqlite.Connection, question: Question) -> list[SummaryRow]:
    return await summarise(connection, key=question.key, since=question.since, by=question.by)


def _table(rows: list[SummaryRow], by: Grouping, terminal: Terminal) -> str:
    """Bars compare the charges; days on which nothing was used have their line too."""
    shown = _with_empty_days(rows) if by is Grouping.DAY else rows
    columns = [tables.Column(by.value, is_whole=by is Grouping.DAY), *map(_column, COUNTS)]
    cells = [[row.label, *map(_shown, _counts(row))] for row in shown]
    if len(rows) > 1:
        cells.append(["total", *map(_shown, map(sum, zip(*map(_counts, rows), strict=True)))])
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
    return [by_day.get(day) or SummaryRow(label=day, requests=0, usage=NO_USAGE, charge=0) for day in days]


def _column(count: str) -> tables.Column:
    return tables.Column(count.replace("_", " "), is_number=True, leave_out=LEFT_OUT.get(count, 0))


def _shown(count: int) -> str:
    return f"{count:,}"


def _counts(row: SummaryRow) -> tuple[int, ...]:
    """By COUNTS."""
    usage = row.usage
    return (row.requests, usage.input, usage.output, usage.cache_write, usage.cache_read, row.charge)
