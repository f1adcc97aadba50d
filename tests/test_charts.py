"""The charts of the usage page: every token in its bar, every bar in its place, the same figures in the table."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.account import ModelUse
from gateway.core.amounts import DAY_MS, HOUR_MS
from gateway.core.charts import (
    NAMED_MODELS,
    PLOT_BOTTOM,
    PLOT_TOP,
    WIDTH,
    Chart,
    axis_top,
    bar_chart,
    largest_models,
    last_days,
    last_hours,
)

NOW = 1_790_000_000_000  # 2026-09-21 14:13:20 UTC
HOURS = last_hours(NOW)
DAYS = last_days(NOW)
BAR = re.compile(r"M(\d+) (\d+)h(\d+)v-(\d+)h-(\d+)z")


def use(model: str, charge: int, *, hours_ago: int = 0, requests: int = 1) -> ModelUse:
    return ModelUse(began=HOURS.starts[-1] - hours_ago * HOUR_MS, model=model, requests=requests, charge=charge)


def bars(chart: Chart, series: int) -> list[tuple[int, int, int, int]]:
    """(x, foot, width, height) of each bar of a model."""
    path = chart.series[series].path
    found = BAR.findall(path)
    assert "".join(f"M{x} {foot}h{width}v-{height}h-{back}z" for x, foot, width, height, back in found) == path
    assert all(width == back for _, _, width, _, back in found)
    return [(int(x), int(foot), int(width), int(height)) for x, foot, width, height, _ in found]


def test_the_hours_end_with_the_one_that_runs_and_the_days_with_today() -> None:
    assert (len(HOURS.starts), len(DAYS.starts)) == (24, 30)
    assert HOURS.starts[-1] <= NOW < HOURS.starts[-1] + HOUR_MS
    assert DAYS.starts[-1] <= NOW < DAYS.starts[-1] + DAY_MS
    assert {start % HOUR_MS for start in HOURS.starts} == {start % DAY_MS for start in DAYS.starts} == {0}


def test_models_stand_on_each_other_in_the_order_of_their_size() -> None:
    chart = bar_chart(HOURS, [use("a", 40), use("b", 20)], ["a", "b"])
    [(x, foot, width, height)], [(other_x, other_foot, other_width, other_height)] = bars(chart, 0), bars(chart, 1)
    assert (x, width) == (other_x, other_width)
    assert (foot, foot - height, other_foot - other_height) == (PLOT_BOTTOM, other_foot, PLOT_TOP)
    assert height == 2 * other_height


def test_the_newest_hour_is_the_last_bar_and_one_before_the_first_is_none() -> None:
    chart = bar_chart(HOURS, [use("a", 1), use("a", 1, hours_ago=23), use("a", 1, hours_ago=24)], ["a"])
    first, last = (x for x, *_ in bars(chart, 0))
    assert 0 <= first < WIDTH / 24
    assert WIDTH - WIDTH / 24 <= last < WIDTH
    assert chart.series[0].total == "2"


def test_a_bar_of_very_little_can_still_be_seen() -> None:
    chart = bar_chart(HOURS, [use("a", 1_000_000), use("b", 1)], ["a", "b"])
    assert [height for *_, height in bars(chart, 1)] == [1]


def test_models_beyond_the_named_ones_are_added_up_at_the_top() -> None:
    uses = [use(f"model-{number}", 100 - number) for number in range(NAMED_MODELS + 3)]
    models = largest_models(uses)
    chart = bar_chart(HOURS, uses, models)
    assert models == ("model-0", "model-1", "model-2", "model-3")
    assert [series.label for series in chart.series] == [*models, "all other models"]
    assert chart.series[-1].total == str(96 + 95 + 94)
    assert [series.pattern for series in chart.series] == [0, 1, 2, 3, NAMED_MODELS]


def test_a_model_keeps_its_pattern_in_a_chart_where_a_larger_one_is_missing() -> None:
    chart = bar_chart(HOURS, [use("b", 5)], ["a", "b"])
    assert [(series.label, series.pattern) for series in chart.series] == [("b", 1)]


def test_a_model_that_counted_nothing_has_no_place_and_no_bar_but_its_requests_are_in_the_table() -> None:
    uses = [use("unknown", 0, requests=3)]
    assert largest_models(uses) == ()
    chart = bar_chart(HOURS, uses, ())
    assert chart.series == ()
    assert chart.table.rows == (("09-21 14:00", "3", "0"),)


def test_the_table_has_the_figures_of_every_bar_newest_first() -> None:
    chart = bar_chart(HOURS, [use("a", 1_000, hours_ago=1), use("a", 7), use("c", 2)], ["a"])
    assert [column.heading for column in chart.table.columns] == [
        "Hour (UTC)",
        "Requests",
        "Counted",
        "a",
        "all other models",
    ]
    assert chart.table.rows == (("09-21 14:00", "2", "9", "7", "2"), ("09-21 13:00", "1", "1,000", "1,000", "0"))


def test_what_a_pointer_is_told_is_what_the_bar_shows() -> None:
    chart = bar_chart(DAYS, [use("a", 1_000), use("b", 234)], ["a", "b"])
    assert [stretch.text for stretch in chart.stretches] == ["2026-09-21: 1,234"]
    assert chart.stretches[0].x + chart.stretches[0].width == WIDTH


@pytest.mark.parametrize(
    ("most", "top", "labels"),
    [
        (0, 10, ["10", "5"]),
        (11, 12, ["12", "6"]),
        (37_000, 40_000, ["40k", "20k"]),
        (1_143_806, 1_200_000, ["1.2M", "600k"]),
        (81, 100, ["100", "50"]),
        (2_400_001, 3_000_000, ["3M", "1.5M"]),
    ],
)
def test_the_axis_ends_at_a_round_figure_with_a_round_half(most: int, top: int, labels: list[str]) -> None:
    assert axis_top(most) == top
    assert [line.text for line in bar_chart(HOURS, [use("a", most)], ["a"]).lines] == labels


def test_the_words_under_the_bars_stand_within_the_plot() -> None:
    for now in range(NOW, NOW + 14 * DAY_MS, HOUR_MS):
        for scale in (last_hours(now), last_days(now)):
            words = bar_chart(scale, [], ()).words
            assert 4 <= len(words) <= 5
            assert all(
                (word.anchor, word.x) in {("start", 0), ("end", WIDTH)} or word.anchor == "middle" for word in words
            )
            assert all(30 <= word.x <= WIDTH - 30 for word in words if word.anchor == "middle")


@given(
    st.lists(
        st.builds(
            use,
            st.sampled_from("abcdefg"),
            st.integers(0, 2**53),
            hours_ago=st.integers(0, 23),
            requests=st.integers(1, 9),
        ),
        max_size=40,
    )
)
def test_whatever_was_used_every_token_is_told_and_no_bar_leaves_the_plot(uses: list[ModelUse]) -> None:
    chart = bar_chart(HOURS, uses, largest_models(uses))
    total = sum(use.charge for use in uses)
    assert sum(int(series.total.replace(",", "")) for series in chart.series) == total
    assert sum(int(str(row[2]).replace(",", "")) for row in chart.table.rows) == total
    assert sum(int(str(row[1]).replace(",", "")) for row in chart.table.rows) == sum(use.requests for use in uses)
    for number in range(len(chart.series)):
        for x, foot, width, height in bars(chart, number):
            assert 0 <= x < x + width <= WIDTH
            assert PLOT_TOP - 1 <= foot - height < foot <= PLOT_BOTTOM
