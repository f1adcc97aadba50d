"""Instants as the pages show them: words for people, and the same instant for machines.

moment(1_790_000_000_000).text == "2026-09-21 14:13 UTC"
moment(1_790_000_000_000).stamp == "2026-09-21T14:13:20Z"
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.core.amounts import show_clock, show_stamp, show_time, show_wait, to_ms

_EARLIEST_MS = to_ms(datetime(1, 1, 1, tzinfo=UTC))
_LATEST_MS = to_ms(datetime(9999, 12, 31, 23, 59, tzinfo=UTC))
"""What a calendar has names for. A database may hold times beyond it."""


@dataclass(frozen=True, slots=True)
class Moment:
    """An instant of the calendar."""

    text: str
    stamp: str
    """RFC 3339, for `<time datetime>`; '' = no calendar has a name for it."""
    wait: str = ""
    """How long it is until then; '' = it is not told."""


Text = str | Moment
"""A piece of text; an instant in it is told apart."""


def moment(time_ms: int) -> Moment:
    """An instant in full, to the minute."""
    if time_ms < _EARLIEST_MS:
        return Moment("before the year 1", "")
    if time_ms > _LATEST_MS:
        return Moment("after the year 9999", "")
    return Moment(show_time(time_ms), show_stamp(time_ms))


def moment_ahead(time_ms: int, now_ms: int) -> Moment:
    """An instant to come: the clock, and how long that is from now."""
    return Moment(show_clock(time_ms, now_ms), show_stamp(time_ms), show_wait(time_ms - now_ms))
