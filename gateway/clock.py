"""The clock that everything is measured by, made once and handed down.

Within a process it is the wall clock at its start plus the time since boot, so that a step of the wall clock
grants nobody anything. Over a restart only a step backward matters: rows dated ahead would count as the future,
so the clock starts after the newest of them. Expiry is a promise about the calendar and asks the wall clock.
"""

import time

_NANOSECONDS_PER_MS = 1_000_000


class Clock:
    """Milliseconds UTC that never step."""

    def __init__(self, newest_row_ms: int = 0) -> None:
        """`newest_row_ms`: the latest start in the ledger; 0 for none."""
        start_ms = max(self.wall_ms(), newest_row_ms + 1)
        self._offset = start_ms * _NANOSECONDS_PER_MS - time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def now_ms(self) -> int:
        return (self._offset + time.clock_gettime_ns(time.CLOCK_BOOTTIME)) // _NANOSECONDS_PER_MS

    @staticmethod
    def wall_ms() -> int:
        """The calendar's time, steps and all."""
        return time.time_ns() // _NANOSECONDS_PER_MS

    def stepped_ms(self) -> int:
        """By how much the wall clock is ahead of this one; far from 0 after a step."""
        return self.wall_ms() - self.now_ms()
