"""Everything held on one key, as plain values: what the usage page and the exports are made from.

The field names are the column names of schema.sql, so that a test can hold the one against the other.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from enum import StrEnum

from gateway.core.records import Budget, KeyRow, LedgerRow, Refusal
from gateway.core.status import LimitsStatus
from gateway.core.usage import Usage

Row = dict[str, int | str | None]
"""A row of a table by column, on its way to a reader outside."""

HASH_HELD = "held as an argon2id hash, shown to nobody"


class Grouping(StrEnum):
    """By what a summary of the ledger adds up. Days and hours are UTC."""

    DAY = "day"
    HOUR = "hour"
    MODEL = "model"
    KEY = "key"
    STATUS = "status"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTotal:
    """What some settled requests to one model used together."""

    model: str
    requests: int
    usage: Usage
    charge: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryRow:
    """What the settled requests under one label used together."""

    label: str
    """`2026-11-22`, `2026-11-22 14:00`, a model, a key's name or an HTTP status."""
    requests: int
    usage: Usage
    charge: int
    """Rounded for each request before it is added up, so it can be more than `usage.charge`."""
    parts: tuple[ModelTotal, ...]
    """What was added up; a model may have several."""

    @property
    def by_model(self) -> Iterator[tuple[str, Usage]]:
        """The same usage, apart by model."""
        return ((part.model, part.usage) for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryCell(ModelTotal):
    """Those of one day and status."""

    day: int
    """The time at which the day began, UTC."""
    status: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUse:
    """What the settled requests to one model, of one hour or one day, used together."""

    began: int
    """The time at which the hour or day began, UTC."""
    model: str
    requests: int
    charge: int


def add_up(label: str, totals: Iterable[ModelTotal]) -> SummaryRow:
    parts = tuple(totals)
    return SummaryRow(
        label=label,
        requests=sum(part.requests for part in parts),
        usage=Usage(
            input=sum(part.usage.input for part in parts),
            output=sum(part.usage.output for part in parts),
            cache_write=sum(part.usage.cache_write for part in parts),
            cache_read=sum(part.usage.cache_read for part in parts),
        ),
        charge=sum(part.charge for part in parts),
        parts=parts,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRecord:
    """A row of `secret` without its hash, which proves a key and is shown to nobody."""

    key: KeyRow
    key_id: str
    prefix: str
    created: int
    expires: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """A whole row of `key`, and the secrets and budgets that hang on it."""

    id: KeyRow
    name: str
    created: int
    expires: int | None
    disabled: bool
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrency: int | None
    overdraft: int
    models: str
    last_used: int | None
    total_requests: int
    total_input: int
    total_output: int
    total_cache_write: int
    total_cache_read: int
    total_charge: int
    refused_inactive: int
    refused_model: int
    refused_size: int
    refused_budget: int
    refused_concurrency: int
    refused_requests: int
    refused_tokens: int
    secrets: tuple[SecretRecord, ...]
    budgets: tuple[Budget, ...]

    def columns(self) -> Row:
        """The row of `key` itself, by column, in the schema's order."""
        return {name: getattr(self, name) for name in KEY_COLUMNS}

    def holds(self, key_id: str, now_ms: int) -> bool:
        """Whether the secret with this id still proves the key."""
        return any(
            secret.key_id == key_id and (secret.expires is None or secret.expires > now_ms)
            for secret in self.secrets
        )

    def refused(self, reason: Refusal) -> int:
        count: int = getattr(self, f"refused_{reason}")
        return count


KEY_COLUMNS = tuple(field.name for field in fields(KeyRecord) if field.name not in ("secrets", "budgets"))


def secret_columns(secret: SecretRecord) -> Row:
    """A row of `secret`, by column; in place of the hash stands that one is held."""
    return {
        "key_id": secret.key_id,
        "key": secret.key,
        "prefix": secret.prefix,
        "hash": HASH_HELD,
        "created": secret.created,
        "expires": secret.expires,
    }


def budget_columns(key: KeyRow, budget: Budget) -> Row:
    """A row of `budget`, by column."""
    return {"key": key, "window": budget.window_ms, "tokens": budget.tokens}


REQUEST_COLUMNS = (
    "key",
    "started",
    "sequence",
    "model",
    "status",
    "latency",
    "input",
    "output",
    "cache_write",
    "cache_read",
    "estimated",
    "upstream",
)


HOUR_COLUMNS = (
    "key",
    "hour",
    "model",
    "status",
    "requests",
    "input",
    "output",
    "cache_write",
    "cache_read",
    "charge",
)


def request_columns(row: LedgerRow) -> Row:
    """A row of `request`, by column."""
    usage = row.usage
    tokens = (usage.input, usage.output, usage.cache_write, usage.cache_read)
    about = (row.key, row.started, row.sequence, row.model, row.status, row.latency_ms)
    return dict(zip(REQUEST_COLUMNS, (*about, *tokens, row.estimated, row.upstream), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """How long the newest requests took, to the end of their answers."""

    requests: int
    """So many were looked at."""
    p50_ms: int | None
    """Half of them were done in this time; `None`: there are none."""
    p95_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What the first page of Check Usage tells about a key at one moment."""

    record: KeyRecord
    limits: LimitsStatus
    running: tuple[LedgerRow, ...]
    """Those in flight, newest first; at most as many as a page shows."""
    hours: tuple[ModelUse, ...]
    """The last hours, each with every model that was asked in it."""
    history: tuple[HistoryCell, ...]
    latencies: Latencies


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a page of the ledger begins: with the rows older than this one."""

    started: int
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerPage:
    """Some of a key's requests, newest first."""

    rows: tuple[LedgerRow, ...]
    older: Position | None
    """Where the next page begins; `None`: this is the last."""
