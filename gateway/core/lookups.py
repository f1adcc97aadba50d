"""The pace of free lookups (`count_tokens`, `models`): they cost nothing and leave no row, but must not be a way to
hammer the provider with the operator's credential."""

from gateway.core.buckets import TokenBucket
from gateway.core.records import Key, KeyRow

LEAST_PER_MINUTE = 60
"""A key with a smaller limit of its own still gets so many: Claude Code counts in bursts of fifteen."""


class LookupPace:
    """One bucket for each key that looked something up, in memory only."""

    __slots__ = ("_buckets",)

    def __init__(self) -> None:
        self._buckets: dict[KeyRow, TokenBucket] = {}

    def take(self, key: Key, now_ms: int) -> int:
        """Take one and return 0, or take nothing and return the milliseconds to wait."""
        per_minute = max(LEAST_PER_MINUTE, key.requests_per_minute or 0)
        bucket = self._buckets.get(key.row)
        if bucket is None or bucket.per_minute != per_minute:
            bucket = self._buckets[key.row] = TokenBucket(per_minute, now_ms)
        wait_ms = bucket.wait_for(1, now_ms)
        if wait_ms == 0:
            bucket.take(1, now_ms)
        return wait_ms
