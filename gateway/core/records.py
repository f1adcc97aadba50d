"""The values that cross files: what an administrator set up, and what the ledger holds.

All times are integer milliseconds UTC and all durations are milliseconds, as in schema.sql.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

import msgspec

from gateway.core.usage import Usage

KeyRow = NewType("KeyRow", int)
"""The random id of a key's row (`key.id`), not the public key id inside the API key."""

UNKNOWN_MODEL = "unknown"
"""Stands in the ledger for every model name that is not known from the configuration or the upstream."""


class Refusal(StrEnum):
    """Why the gateway refused a request of a known key; each is a counter `key.refused_*`."""

    INACTIVE = "inactive"
    MODEL = "model"
    SIZE = "size"
    BUDGET = "budget"
    CONCURRENCY = "concurrency"
    REQUESTS = "requests"
    TOKENS = "tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Tokens that may be used in a rolling window."""

    tokens: int
    window_ms: int | None
    """`None`: in the key's whole life."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """An API key as the administrator set it up. `None` means no limit."""

    row: KeyRow
    name: str
    created: int
    expires: int | None = None
    disabled: bool = False
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    overdraft: int = 0
    models: tuple[str, ...] = ()
    """Globs of the allowed models; empty: all."""
    budgets: tuple[Budget, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """What proves a key. The secret itself is nowhere; only its argon2id hash is."""

    key: KeyRow
    key_id: str
    prefix: str
    hash: str
    created: int
    expires: int | None = None


class LedgerRow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One admitted request."""

    key: KeyRow
    started: int
    sequence: int
    model: str
    status: int | None
    """`None`: in flight."""
    latency_ms: int | None
    usage: Usage
    estimated: bool
    upstream: str | None = None
    """Who took it, by the operator's name; `None` for upstreams without a budget."""
