"""Amounts, durations and times, as people write them and as they are shown."""

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import amounts
from gateway.core.amounts import DAY_MS, HOUR_MS, MAX_AMOUNT, MAX_DURATION_MS, MINUTE_MS, SECOND_MS, WEEK_MS

NOW_MS = 1_790_000_000_000
"""2026-09-21 14:13:20 UTC."""
hypothesis = settings(deadline=None, max_examples=200)


def at(*moment: int) -> int:
    return round(datetime(*moment, tzinfo=UTC).timestamp()) * SECOND_MS  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0", 0),
        ("1500", 1_500),
        ("1_500", 1_500),
        ("1,500", 1_500),
        ("2,000,000", 2_000_000),
        ("500k", 500_000),
        ("500K", 500_000),
        ("2M", 2_000_000),
        ("2m", 2_000_000),
        ("1.5M", 1_500_000),
        ("0.25k", 250),
        ("1.0", 1),
        ("3G", 3_000_000_000),
        (" 7 ", 7),
        ("1000000000000000", MAX_AMOUNT),
    ],
)
def test_an_amount_is_read_as_people_write_it(text: str, amount: int) -> None:
    assert amounts.parse_amount(text) == amount


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "k",
            "M",
            "-1",
            "+1",
            "1.5",
            "1.0005k",
            "1e6",
            "0x10",
            "2T",
            "2MB",
            "2 M",
            "1.",
            ".5",
            "1..5",
            "1.5.5",
        ),
        *("none", "1/5h", "1000000000000001", "1000001G", "9" * 30, "9" * 5_000, "_", ",", "\u0000", "1\n2"),
    ],
)
def test_what_is_no_amount_is_told_so(text: str) -> None:
    with pytest.raises(ValueError, match="an amount"):
        amounts.parse_amount(text)


@pytest.mark.parametrize("text", ["1,5M", "0,5k"])
def test_a_decimal_comma_is_never_taken_for_thousands(text: str) -> None:
    with pytest.raises(ValueError, match="an amount"):
        amounts.parse_amount(text)


@hypothesis
@given(st.integers(0, MAX_AMOUNT) | st.integers(0, 10**6).map(lambda amount: amount * 1_000))
def test_an_amount_is_shown_as_it_can_be_read(amount: int) -> None:
    assert amounts.parse_amount(amounts.show_amount(amount)) == amount
    assert amounts.parse_amount(f"{amount:,}") == amount


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (1_000, "1k"),
        (1_500, "1500"),
        (500_000, "500k"),
        (2_000_000, "2M"),
        (3 * 10**9, "3G"),
    ],
)
def test_an_amount_is_shown_short(amount: int, shown: str) -> None:
    assert amounts.show_amount(amount) == shown


@pytest.mark.parametrize(
    ("text", "duration_ms"),
    [
        ("90s", 90 * SECOND_MS),
        ("30m", 30 * MINUTE_MS),
        ("5h", 5 * HOUR_MS),
        ("7d", 7 * DAY_MS),
        ("2w", 2 * WEEK_MS),
        (" 1d ", DAY_MS),
        ("36600d", MAX_DURATION_MS),
    ],
)
def test_a_duration_is_read_as_people_write_it(text: str, duration_ms: int) -> None:
    assert amounts.parse_duration(text) == duration_ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "h",
        "5 h",
        "5H",
        "1.5h",
        "-5h",
        "5h30m",
        "5ms",
        "0s",
        "0d",
        "36601d",
        "9" * 30 + "s",
        "9" * 5_000 + "s",
    ],
)
def test_what_is_no_duration_is_told_so(text: str) -> None:
    with pytest.raises(ValueError, match="a duration"):
        amounts.parse_duration(text)


@hypothesis
@given(st.integers(1, MAX_DURATION_MS // SECOND_MS) | st.integers(1, 36_600).map(lambda days: days * 86_400))
def test_a_duration_is_shown_as_it_can_be_read(seconds: int) -> None:
    assert amounts.parse_duration(amounts.show_duration(seconds * SECOND_MS)) == seconds * SECOND_MS


def test_a_budget_is_shown_as_the_command_line_takes_it() -> None:
    shown = [amounts.show_budget(*budget) for budget in ((2_000_000, 5 * HOUR_MS), (20_000, WEEK_MS), (200, None))]
    assert shown == ["2M/5h", "20k/7d", "200"]


@pytest.mark.parametrize(
    ("text", "expires"),
    [
        ("90d", NOW_MS + 90 * DAY_MS),
        ("1s", NOW_MS + SECOND_MS),
        ("2027-01-31", at(2027, 2, 1)),
        ("2026-09-21", at(2026, 9, 22)),
        (" 2028-02-29 ", at(2028, 3, 1)),
        ("2099-12-31", at(2100, 1, 1)),
    ],
)
def test_an_expiry_is_a_time_from_now_or_the_end_of_a_day(text: str, expires: int) -> None:
    assert amounts.parse_expiry(text, NOW_MS) == expires


@pytest.mark.parametrize(
    "text", ["", "tomorrow", "2027-02-30", "31.01.2027", "2026-09-20", "1970-01-01", "0d", "-1d", "90"]
)
def test_what_is_no_expiry_is_told_so(text: str) -> None:
    with pytest.raises(ValueError, match=r"an expiry|that day is over|a duration"):
        amounts.parse_expiry(text, NOW_MS)


def test_every_expiry_that_is_taken_can_be_shown() -> None:
    try:
        expires = amounts.parse_expiry("9999-12-31", NOW_MS)
    except ValueError:
        return
    assert amounts.show_time(expires)


@pytest.mark.parametrize(
    ("wait_ms", "shown"),
    [
        (-5, "1s"),
        (0, "1s"),
        (1, "1s"),
        (45_000, "45s"),
        (45_001, "46s"),
        (59_000, "59s"),
        (59_001, "1m"),
        (61_000, "2m"),
        (59 * MINUTE_MS + 1, "1h"),
        (HOUR_MS, "1h"),
        (7_800_000, "2h 10m"),
        (23 * HOUR_MS + 59 * MINUTE_MS + 1, "1d"),
        (DAY_MS, "1d"),
        (3 * DAY_MS + 3 * HOUR_MS + 1, "3d 4h"),
        (6 * DAY_MS + 23 * HOUR_MS + 1, "7d"),
    ],
)
def test_a_wait_is_shown_in_its_two_largest_units(wait_ms: int, shown: str) -> None:
    assert amounts.show_wait(wait_ms) == shown


@hypothesis
@given(st.integers(0, 400 * DAY_MS))
def test_a_wait_is_never_shown_shorter_than_it_is_nor_much_longer(wait_ms: int) -> None:
    units = {"s": SECOND_MS, "m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}
    parts = amounts.show_wait(wait_ms).split()
    shown_ms = sum(int(part[:-1]) * units[part[-1]] for part in parts)
    step_ms = SECOND_MS if wait_ms <= 59_000 else MINUTE_MS if wait_ms <= DAY_MS - MINUTE_MS else HOUR_MS
    assert len(parts) <= 2
    assert wait_ms <= shown_ms < wait_ms + step_ms or shown_ms == SECOND_MS > wait_ms


@pytest.mark.parametrize(
    ("time_ms", "shown"),
    [
        (at(2026, 9, 21, 14, 30), "14:30 UTC"),
        (at(2026, 9, 21, 14, 29) + 1, "14:30 UTC"),
        (at(2026, 9, 21, 23, 59) + 1, "00:00 UTC"),
        (NOW_MS + DAY_MS - 1, "14:14 UTC"),
        (NOW_MS + DAY_MS, "2026-09-22 14:14 UTC"),
        (at(2026, 12, 31, 23, 59, 59), "2027-01-01 00:00 UTC"),
        (NOW_MS - HOUR_MS, "2026-09-21 13:14 UTC"),
    ],
)
def test_a_time_to_come_is_shown_short_and_never_too_early(time_ms: int, shown: str) -> None:
    assert amounts.show_clock(time_ms, NOW_MS) == shown


def test_a_time_is_shown_in_full_and_as_protocols_want_it() -> None:
    assert amounts.show_time(NOW_MS) == "2026-09-21 14:13 UTC"
    assert amounts.show_stamp(NOW_MS) == "2026-09-21T14:13:20Z"
    assert amounts.show_stamp(NOW_MS + 999) == "2026-09-21T14:13:20Z"


@pytest.mark.parametrize(
    ("time_ms", "stamp"), [(-(2**63), "0001-01-01T00:00:00Z"), (2**63 - 1, "9999-12-31T23:59:59Z")]
)
def test_a_time_that_no_calendar_has_is_shown_as_the_nearest_that_one_has(time_ms: int, stamp: str) -> None:
    assert amounts.show_stamp(time_ms) == stamp
    assert amounts.show_time(time_ms) == f"{stamp[:10]} {stamp[11:16]} UTC"
    assert {amounts.show_clock(time_ms, now_ms) for now_ms in (NOW_MS, time_ms)} == {
        f"{stamp[:10]} {stamp[11:16]} UTC",
        f"{stamp[11:16]} UTC",
    }


@hypothesis
@given(
    st.integers(at(2020, 1, 1) // SECOND_MS, at(2200, 1, 1) // SECOND_MS).map(lambda seconds: seconds * SECOND_MS)
)
def test_a_time_in_seconds_survives_being_a_date(time_ms: int) -> None:
    assert amounts.to_ms(amounts.from_ms(time_ms)) == time_ms
