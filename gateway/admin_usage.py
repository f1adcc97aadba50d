"""`usage`: what settled requests used, added up, as a table, as CSV or as values for JSON."""

import csv
import io
from dataclasses import dataclass

import aiosqlite

from gateway.admin import Answer
from gateway.core import tables
from gateway.core.account import Grouping, SummaryRow
from gateway.core.records import KeyRow
from gateway.exports import inert
from gateway.reports import summarise

COUNTS = ("requests", "input", "output", "cache_write", "cache_read", "charge")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Which requests to add up, and by what."""

    key: KeyRow | None
    """`None`: all keys."""
    since: int
    by: Grouping


async def as_table(connection: aiosqlite.Connection, question: Question, width: int | None) -> Answer:
    """For people, and for programs with `--json`."""
    rows = await _read(connection, question)
    by = question.by
    return Answer(
        value=[{by.value: row.label, **dict(zip(COUNTS, _counts(row), strict=True))} for row in rows],
        text=_table(rows, by, width) if rows else "",
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


def _table(rows: list[SummaryRow], by: Grouping, width: int | None) -> str:
    headings = [count.replace("_", " ") for count in COUNTS]
    columns = [tables.Column(by.value), *(tables.Column(heading, is_number=True) for heading in headings)]
    lines = [(row.label, _counts(row)) for row in rows]
    if len(rows) > 1:
        lines.append(("total", tuple(map(sum, zip(*map(_counts, rows), strict=True)))))
    return tables.render(
        columns, [[label, *(f"{count:,}" for count in counts)] for label, counts in lines], width=width
    )


def _counts(row: SummaryRow) -> tuple[int, ...]:
    """By COUNTS."""
    usage = row.usage
    return (row.requests, usage.input, usage.output, usage.cache_write, usage.cache_read, row.charge)
