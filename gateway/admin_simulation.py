"""`key simulate`: what other limits would have refused, told as a text and as values for JSON."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import aiosqlite

from gateway import admin_texts
from gateway.admin import Answer, find_key
from gateway.core import tables
from gateway.core.amounts import HOUR_MS, show_amount, show_budget, show_duration, show_time
from gateway.core.peaks import Peak
from gateway.core.records import Key
from gateway.core.simulation import Outcome, Refused, Replay, begins_at

BATCH = 10_000
"""Requests read at a time; each batch is a read of its own, so that no old state of the database is kept open."""

# The charge is that of `Usage.charge`. What is in flight has not used anything yet.
SELECT_PAST = """
SELECT started,
       sequence,
       ifnull(latency, 0),
       input + output + cache_write + (cache_read + 9) / 10
  FROM request
 WHERE key = ?
   AND (started, sequence) > (?, ?)
   AND status IS NOT NULL
 ORDER BY started, sequence
 LIMIT ?
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What to try."""

    limits: Mapping[str, Any]
    """Fields of `Key` to replace; the others stay as the key has them."""
    since_ms: int
    least_hold: int
    """Tokens that each request holds at least, while it runs."""


async def simulate_key(connection: aiosqlite.Connection, text: str, trial: Trial) -> Answer:
    """Replay the ledger of a key through its limits, some of them replaced."""
    key = replace(await find_key(connection, text), **trial.limits)
    replay = Replay(key, since_ms=trial.since_ms, least_hold=trial.least_hold)
    async for batch in _read_past(connection, key, begins_at(key, trial.since_ms)):
        for started_ms, latency_ms, charge in batch:
            replay.see(started_ms, started_ms + latency_ms, charge)
    outcome = replay.outcome()
    if outcome.requests == 0:
        return Answer(value=_as_json(key, trial, outcome), talk=(f"{key.name} has no requests in that time.",))
    return Answer(
        value=_as_json(key, trial, outcome),
        text="\n\n".join(_paragraphs(key, trial, outcome)),
        talk=("", *_assumptions(trial)),
    )


async def _read_past(
    connection: aiosqlite.Connection, key: Key, begin_ms: int
) -> AsyncIterator[list[tuple[int, int, int]]]:
    """(started, latency, charge) of the settled requests since a time, in the order of their start."""
    after = (begin_ms, -1)
    while rows := list(await connection.execute_fetchall(SELECT_PAST, (key.row, *after, BATCH))):
        yield [(started, latency, charge) for started, _, latency, charge in rows]
        after = (rows[-1][0], rows[-1][1])


def _paragraphs(key: Key, trial: Trial, outcome: Outcome) -> list[str]:
    share = _share(outcome.refused_requests, outcome.requests)
    facts = {
        "key": key.name,
        "since": show_time(trial.since_ms),
        "tried": _tried(key),
        "refused": f"{outcome.refused_requests:,} of {outcome.requests:,} requests ({share}), with"
        f" {outcome.refused_charge:,} of {outcome.charge:,} tokens",
    }
    width = max(map(len, facts))
    parts = ["\n".join(f"{label:{width}}  {text}" for label, text in facts.items())]
    if outcome.refused:
        parts.append(_refused_table(outcome))
    return [*parts, _peaks_table(key, outcome)]


def _tried(key: Key) -> str:
    settings = admin_texts.settings(key)
    tried = ("budgets", "overdraft", "requests/min", "tokens/min", "concurrency")
    return ", ".join(f"{label} {settings[label]}" for label in tried)


def _refused_table(outcome: Outcome) -> str:
    columns = [
        tables.Column("refused by"),
        tables.Column("requests", is_number=True),
        tables.Column("share", is_number=True),
        *map(tables.Column, ("first", "last", "worst hour")),
        tables.Column("in it", is_number=True),
    ]
    rows = [
        [
            _limit_name(each),
            f"{each.requests:,}",
            _share(each.requests, outcome.requests),
            *map(show_time, (each.first_ms, each.last_ms, each.worst_hour_ms)),
            f"{each.in_worst_hour:,}",
        ]
        for each in outcome.refused
    ]
    return tables.render(columns, rows)


def _limit_name(refused: Refused) -> str:
    if refused.budget is None:
        return refused.reason.value
    return f"{refused.reason} {show_budget(refused.budget.tokens, refused.budget.window_ms)}"


def _peaks_table(key: Key, outcome: Outcome) -> str:
    limits = {budget.window_ms: budget.tokens for budget in key.budgets}
    lines: list[tuple[str, Peak, int | None]] = [
        ("tokens in all" if window is None else f"tokens in {show_duration(window)}", peak, limits.get(window))
        for window, peak in outcome.windows
    ]
    lines += [
        ("requests in a minute", outcome.requests_in_a_minute, key.requests_per_minute),
        ("tokens in a minute", outcome.tokens_in_a_minute, key.tokens_per_minute),
        ("requests at once", outcome.at_once, key.concurrency),
    ]
    columns = [
        tables.Column("what it really used"),
        tables.Column("at most", is_number=True),
        tables.Column("limit tried", is_number=True),
        tables.Column("when"),
    ]
    return tables.render(
        columns,
        [
            [what, f"{peak.amount:,}", "none" if limit is None else show_amount(limit), _moment(peak)]
            for what, peak, limit in lines
        ],
    )


def _assumptions(trial: Trial) -> tuple[str, ...]:
    held = (
        f"Each request holds {show_amount(trial.least_hold)} tokens while it runs, or what it used if that is more."
        if trial.least_hold
        else "Each request holds what it used: the ledger does not keep the hold, which was larger. So this is the"
        " least that would have been refused; --hold 91k tries it as Claude Code holds."
    )
    return (
        "Assumed: a refused request does not come again, and requests end when they really ended.",
        held,
        "What was refused in reality left no row, and is not in this.",
    )


def _share(part: int, whole: int) -> str:
    return f"{part * 100 / whole:.1f}%" if whole else "0.0%"


def _moment(peak: Peak) -> str:
    return "never" if peak.at_ms is None else show_time(peak.at_ms)


def _as_json(key: Key, trial: Trial, outcome: Outcome) -> dict[str, object]:
    """Units are those of schema.sql: milliseconds, and tokens."""
    return {
        "id": key.row,
        "name": key.name,
        "since": trial.since_ms,
        "limits": {
            "requests_per_minute": key.requests_per_minute,
            "tokens_per_minute": key.tokens_per_minute,
            "concurrency": key.concurrency,
            "overdraft": key.overdraft,
            "budgets": [{"tokens": budget.tokens, "window": budget.window_ms} for budget in key.budgets],
            "hold": trial.least_hold,
        },
        "requests": outcome.requests,
        "charge": outcome.charge,
        "refused": outcome.refused_requests,
        "refused_charge": outcome.refused_charge,
        "by_reason": [_refused_json(each) for each in outcome.refused],
        "most_used": {
            "windows": [{"window": window, **_peak_json(peak)} for window, peak in outcome.windows],
            "requests_in_a_minute": _peak_json(outcome.requests_in_a_minute),
            "tokens_in_a_minute": _peak_json(outcome.tokens_in_a_minute),
            "at_once": _peak_json(outcome.at_once),
        },
    }


def _refused_json(refused: Refused) -> dict[str, object]:
    budget = refused.budget
    return {
        "reason": refused.reason.value,
        "budget": None if budget is None else {"tokens": budget.tokens, "window": budget.window_ms},
        "requests": refused.requests,
        "first": refused.first_ms,
        "last": refused.last_ms,
        "worst_hour": {
            "from": refused.worst_hour_ms,
            "to": refused.worst_hour_ms + HOUR_MS,
            "requests": refused.in_worst_hour,
        },
    }


def _peak_json(peak: Peak) -> dict[str, int | None]:
    return {"amount": peak.amount, "at": peak.at_ms}
