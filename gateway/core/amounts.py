"""Amounts, durations and times as people write and read them.

parse_amount("500k") == 500_000        show_amount(2_000_000) == "2M"
parse_duration("5h") == 18_000_000     show_duration(18_000_000) == "5h"
show_time(1_790_000_000_000) == "2026-09-21 14:13 UTC"
show_wait(7_800_000) == "2h 10m"
"""

import re
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from functools import lru_cache

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
WEEK_MS = 7 * DAY_MS

_AMOUNT = re.compile(r"(\d{1,18}|\d{1,3}(?:[_,]\d{3}){1,5})(?:\.(\d{1,9}))?([kKmMgG]?)", re.ASCII)
_AMOUNT_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_DURATION = re.compile(r"(\d{1,15})([smhdw])", re.ASCII)
_DURATION_UNITS = {"s": SECOND_MS, "m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS, "w": WEEK_MS}
MAX_AMOUNT = 10**15
MAX_DURATION_MS = 100 * 366 * DAY_MS
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ONE_MS = timedelta(milliseconds=1)


def parse_amount(text: str) -> int:
    """A count: `1500`, `1_500`, `500k`, `2M`, `1.5M`. Raises `ValueError` with a text for people."""
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise ValueError("an amount looks like 1500, 500k or 2M")
    whole, fraction = re.sub(r"\D", "", match[1]), match[2] or ""
    unit = _AMOUNT_UNITS[match[3].lower()]
    scaled, rest = divmod(int(whole + fraction) * unit, int(10 ** len(fraction)))
    if rest or scaled > MAX_AMOUNT:
        raise ValueError(f"an amount is a whole number of at most {MAX_AMOUNT:,}")
    return scaled


def parse_duration(text: str) -> int:
    """Milliseconds of `90s`, `30m`, `5h`, `7d` or `2w`. Raises `ValueError` with a text for people."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError("a duration looks like 90s, 30m, 5h, 7d or 2w")
    duration_ms = int(match[1]) * _DURATION_UNITS[match[2]]
    if not 0 < duration_ms <= MAX_DURATION_MS:
        raise ValueError("a duration is more than nothing and at most 100 years")
    return duration_ms


def parse_expiry(text: str, now_ms: int) -> int:
    """The time that `90d` (from now) or `2027-01-31` (its end, UTC) means. Raises `ValueError`."""
    if _DURATION.fullmatch(text.strip()):
        return now_ms + parse_duration(text)
    try:
        day = date.fromisoformat(text.strip())
    except ValueError:
        raise ValueError("an expiry looks like 90d or 2027-01-31") from None
    expires = to_ms(datetime.combine(day, time_of_day.max, UTC)) + 1
    if expires <= now_ms:
        raise ValueError("that day is over already")
    if expires > now_ms + MAX_DURATION_MS:
        raise ValueError("a key expires within 100 years, or never")
    return expires


def show_amount(amount: int) -> str:
    """The shortest exact form that `parse_amount` reads: 500k, 2M, 1500."""
    for suffix, unit in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if amount >= unit and amount % unit == 0:
            return f"{amount // unit}{suffix}"
    return str(amount)


def show_duration(duration_ms: int) -> str:
    """The shortest exact form that `parse_duration` reads: 5h, 7d, 90s (rounded up to a second)."""
    seconds = -(-duration_ms // SECOND_MS)
    for suffix, unit in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds and seconds % unit == 0:
            return f"{seconds // unit}{suffix}"
    return f"{seconds}s"


def show_budget(tokens: int, window_ms: int | None) -> str:
    """As `--budget` takes it: `2M/5h`, or `200M` for the whole life."""
    return show_amount(tokens) if window_ms is None else f"{show_amount(tokens)}/{show_duration(window_ms)}"


def show_wait(wait_ms: int) -> str:
    """A wait in its two largest units, rounded up: `2h 10m`, `45s`, `3d 4h`."""
    seconds = max(1, -(-wait_ms // SECOND_MS))
    if seconds < 60:
        return f"{seconds}s"
    minutes = -(-seconds // 60)
    if minutes < 60:
        return f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h {minutes}m" if minutes else f"{hours}h"
    days, hours = divmod(hours + (minutes > 0), 24)
    return f"{days}d {hours}h" if hours else f"{days}d"


def show_clock(time_ms: int, now_ms: int) -> str:
    """A time to come, as short as it stays clear: `14:30 UTC` within a day, else with its date."""
    if 0 <= time_ms - now_ms < DAY_MS:
        return _in_calendar(-(-time_ms // MINUTE_MS) * MINUTE_MS).strftime("%H:%M UTC")
    return show_time(-(-time_ms // MINUTE_MS) * MINUTE_MS)


def show_time(time_ms: int) -> str:
    """A time in full, to the minute."""
    return f"{_in_calendar(time_ms).isoformat(' ', 'minutes')} UTC"


def show_stamp(time_ms: int) -> str:
    """RFC 3339 with seconds, as protocols want it: `2026-09-21T14:13:20Z`."""
    return _stamp(time_ms // SECOND_MS)


@lru_cache(maxsize=256)
def _stamp(time_seconds: int) -> str:
    """Answers name the same seconds again and again."""
    return f"{_in_calendar(time_seconds * SECOND_MS).isoformat('T', 'seconds')}Z"


def from_ms(time_ms: int) -> datetime:
    """Raises `OverflowError` for a time before the year 1 or after 9999."""
    return _EPOCH + time_ms * _ONE_MS


def to_ms(moment: datetime) -> int:
    return (moment - _EPOCH) // _ONE_MS


_EARLIEST_MS = to_ms(datetime(1, 1, 1, tzinfo=UTC))
_LATEST_MS = to_ms(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))


def _in_calendar(time_ms: int) -> datetime:
    """The time in UTC, or the nearest one that a calendar has a name for: a database may hold any integer."""
    return from_ms(min(max(time_ms, _EARLIEST_MS), _LATEST_MS)).replace(tzinfo=None)
