"""A token bucket: a pace per minute that forgives a burst, as arithmetic over a given time.

Theory: the bucket holds at most one minute's worth and refills evenly. Taking lowers its level; the level may go
below zero, which is a debt that later takers wait for. All is counted in whole units of which 60,000 make one, so
that the refill of each millisecond is a whole number (`per_minute` units) and nothing is ever rounded away:

    60 per minute, full, at t = 0        level 60
    take 90 at t = 0                     level -30
    30 s later                           level 0
    1 ms after that                      60 units: more than nothing, so the next one may go
"""

from collections.abc import Iterable
from typing import Self

from gateway.core.amounts import DAY_MS
from gateway.core.status import BucketStatus

_UNITS = 60_000
"""Units in one: the milliseconds of a minute."""

REPLAYED_MS = DAY_MS
"""How far back a bucket's past is read at a start. A bucket forgets everything within a minute of idling, so a
day is exact for all but a key that was at its very limit without a pause for a whole day."""


class TokenBucket:
    """Level, capacity and refill of one per-minute limit."""

    __slots__ = ("_at_ms", "_units", "per_minute")

    def __init__(self, per_minute: int, now_ms: int) -> None:
        """A full bucket."""
        self.per_minute = per_minute
        self._units = per_minute * _UNITS
        self._at_ms = now_ms

    @classmethod
    def replayed(cls, per_minute: int, takings: Iterable[tuple[int, int]], now_ms: int) -> Self:
        """The bucket after `takings` (time, amount; in order of time), as if it had never been away."""
        bucket = cls(per_minute, now_ms - REPLAYED_MS)
        for at_ms, amount in takings:
            bucket.take(amount, at_ms)
        bucket._refill(now_ms)
        return bucket

    def level(self, now_ms: int) -> int:
        """What may be taken without a debt, rounded down; negative while in debt."""
        self._refill(now_ms)
        return self._units // _UNITS

    def take(self, amount: int, now_ms: int) -> None:
        self._refill(now_ms)
        self._units -= amount * _UNITS

    def wait_for(self, amount: int, now_ms: int) -> int:
        """Milliseconds until the level reaches `amount`; 0 for the least that is more than nothing."""
        self._refill(now_ms)
        missing = (amount * _UNITS or 1) - self._units
        return -(-missing // self.per_minute) if missing > 0 else 0

    def status(self, now_ms: int) -> BucketStatus:
        self._refill(now_ms)
        missing = self.per_minute * _UNITS - self._units
        return BucketStatus(
            per_minute=self.per_minute,
            level=self._units // _UNITS,
            full_at_ms=now_ms + -(-missing // self.per_minute),
        )

    def _refill(self, now_ms: int) -> None:
        if now_ms > self._at_ms:
            full = self.per_minute * _UNITS
            self._units = min(full, self._units + (now_ms - self._at_ms) * self.per_minute)
            self._at_ms = now_ms
