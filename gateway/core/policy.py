"""What the privacy page says about each column of the database: what it holds and what it is for.

The page lists the columns of the live schema. A column without a line here, or a line without its column,
fails the tests and `check`: nothing new is kept before it is told.
"""

from collections.abc import Iterable
from dataclasses import dataclass

LAST_UPDATED = "2026-11-23"
"""The day of the last change to the policy: to these lines or to templates/privacy.html."""

UNDESCRIBED = "This policy does not describe this column yet. Please tell the administrator."
"""Stands where a line is missing, so that even then the page hides nothing."""

Column = tuple[str, str]
"""A table and its column."""

TABLES = {
    "key": "One row for each API key: the administrator's settings, and running totals.",
    "secret": "What proves a key: one row, or two for a while after a key was exchanged for a new one.",
    "budget": "How many tokens a key may use, one row for each budget.",
    "request": "One row for each request that was let through to a provider.",
    "usage_by_hour": "The figures of the requests added up by hour, for the history on the usage page.",
    "erasure": "A mark that the erasure of a key has begun. It holds nothing about any key or person.",
}

LINES: dict[Column, str] = {
    ("key", "id"): "A random number that ties the rows of a key together. It is never given to another key.",
    ("key", "name"): "The label that the administrator chose for the key.",
    ("key", "created"): "When the administrator made the key.",
    ("key", "expires"): "When the key stops working, if the administrator set such a time.",
    ("key", "disabled"): "Whether the administrator has switched the key off.",
    ("key", "requests_per_minute"): "Rate limit: requests in a minute, if there is one.",
    ("key", "tokens_per_minute"): "Rate limit: tokens in a minute, if there is one.",
    ("key", "concurrency"): "How many requests may run at the same time, if that is limited.",
    ("key", "overdraft"): "By how many tokens running requests together may reach beyond a budget.",
    ("key", "models"): "Which models the key may use; empty means all.",
    ("key", "last_used"): "When the key's newest request began.",
    ("key", "total_requests"): "How many requests have ended since the key was made.",
    ("key", "total_input"): "Input tokens of all those requests.",
    ("key", "total_output"): "Output tokens of all those requests.",
    ("key", "total_cache_write"): "Tokens of all those requests that the provider wrote to its cache.",
    ("key", "total_cache_read"): "Tokens of all those requests that the provider read from its cache.",
    ("key", "total_charge"): "Tokens of all those requests that counted against budgets.",
    ("key", "refused_inactive"): "How often the key was refused because it was disabled or had expired."
    " This and the counters below are numbers only, without times.",
    ("key", "refused_model"): "How often it was refused because it may not use a model.",
    ("key", "refused_size"): "How often it was refused because a single request was larger than a budget.",
    ("key", "refused_budget"): "How often it was refused because a budget was used up or too full.",
    ("key", "refused_concurrency"): "How often it was refused because too many requests were running.",
    ("key", "refused_requests"): "How often it was refused for too many requests in a minute.",
    ("key", "refused_tokens"): "How often it was refused for too many tokens in a minute.",
    ("secret", "key_id"): "The public part of the API key, by which its row is found.",
    ("secret", "key"): "The key that this secret belongs to.",
    ("secret", "prefix"): "The first characters of the API key, so that people can tell keys apart.",
    ("secret", "hash"): "An argon2id hash of the API key, to check it. The API key itself is not kept, and"
    " cannot be worked out from the hash.",
    ("secret", "created"): "When this secret was made.",
    ("secret", "expires"): "When this secret stops working, if it was exchanged for a new one.",
    ("budget", "key"): "The key that this budget belongs to.",
    ("budget", "window"): "The length of the budget's rolling window; empty means the key's whole life.",
    ("budget", "tokens"): "How many tokens may be used in that window.",
    ("request", "key"): "The key that made the request. No person is named.",
    ("request", "started"): "When the request began: for rolling windows and the history.",
    ("request", "sequence"): "Tells apart requests of a key that began in the same millisecond.",
    ("request", "model"): "The model's name, if it is one that the provider or the administrator lists;"
    " otherwise the word “unknown”. Never a text that a client made up.",
    ("request", "status"): "The HTTP status with which the request ended; empty while it runs.",
    ("request", "latency"): "How many milliseconds it took until the provider's answer had ended.",
    ("request", "input"): "Input tokens: a count, never the input.",
    ("request", "output"): "Output tokens: a count, never the output.",
    ("request", "cache_write"): "Tokens that the provider wrote to its cache.",
    ("request", "cache_read"): "Tokens that the provider read from its cache.",
    ("request", "estimated"): "Whether these counts are the provider's own or the gateway's estimate.",
    ("request", "upstream"): "Which of the operator's providers took the request; empty unless that provider has"
    " a budget of its own.",
    ("usage_by_hour", "key"): "The key whose requests are added up.",
    ("usage_by_hour", "hour"): "The hour in which they began.",
    ("usage_by_hour", "model"): "The name of their model.",
    ("usage_by_hour", "status"): "The HTTP status of their answers.",
    ("usage_by_hour", "requests"): "How many there were.",
    ("usage_by_hour", "input"): "Their input tokens.",
    ("usage_by_hour", "output"): "Their output tokens.",
    ("usage_by_hour", "cache_write"): "Their tokens that the provider wrote to its cache.",
    ("usage_by_hour", "cache_read"): "Their tokens that the provider read from its cache.",
    ("usage_by_hour", "charge"): "Their tokens that counted against budgets.",
    ("erasure", "started"): "When an erasure began that is not finished yet; the table is empty otherwise.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaps:
    """Where the policy and a database differ; both empty: nowhere."""

    missing: tuple[Column, ...]
    """Columns without a line."""
    stale: tuple[Column, ...]
    """Lines whose column is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePolicy:
    """A table as the privacy page tells of it."""

    name: str
    about: str
    lines: tuple[tuple[str, str], ...]
    """Each column with its line."""


def check(columns: Iterable[Column]) -> Gaps:
    """Compares the policy with the columns of a live database."""
    live = tuple(columns)
    return Gaps(
        missing=tuple(column for column in live if column not in LINES),
        stale=tuple(column for column in LINES if column not in live),
    )


def describe(columns: Iterable[Column]) -> tuple[TablePolicy, ...]:
    """The tables of a live database, each column with its line."""
    tables: dict[str, list[tuple[str, str]]] = {}
    for table, column in columns:
        tables.setdefault(table, []).append((column, LINES.get((table, column), UNDESCRIBED)))
    return tuple(
        TablePolicy(name=name, about=TABLES.get(name, UNDESCRIBED), lines=tuple(lines))
        for name, lines in tables.items()
    )
