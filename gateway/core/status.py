"""How a key stands against its limits at one moment: what the usage page, the CLI and headers show."""

import msgspec


class BudgetStatus(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One budget. `used + left == tokens` unless it is over."""

    tokens: int
    window_ms: int | None
    """`None`: the key's whole life; then nothing ever comes back."""
    used: int
    """Charged in the window by settled requests."""
    held: int
    """Reserved by running requests, of which some will come back."""
    next_at_ms: int | None
    """When the first tokens come back; `None`: none will, or none are used."""
    all_by_ms: int | None
    """When all of `used` has come back."""

    @property
    def left(self) -> int:
        return max(0, self.tokens - self.used)

    @property
    def over(self) -> int:
        """By how much the budget is overdrawn."""
        return max(0, self.used - self.tokens)

    @property
    def percent(self) -> int:
        """Of the budget used, rounded down, so that 100 means used up; more than 100 when over."""
        return self.used * 100 // self.tokens


class BucketStatus(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A per-minute limit."""

    per_minute: int
    level: int
    """What may be taken now; below 0: a debt that later requests wait for."""
    full_at_ms: int
    """When it will be full again."""


class LimitsStatus(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """All limits of a key; `None` where it has none."""

    budgets: tuple[BudgetStatus, ...]
    requests: BucketStatus | None
    tokens: BucketStatus | None
    running: int
    """Requests in flight now."""
    concurrency: int | None
