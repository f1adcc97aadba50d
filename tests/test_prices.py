"""Prices: what may stand in the file, which of them fits a model, and what usage costs."""

from decimal import Decimal

import pytest

from gateway.core.errors import SettingsError
from gateway.core.prices import (
    Estimate,
    Price,
    estimate,
    price_of,
    read_prices,
    show_cost,
    show_dollars,
    show_unpriced,
)
from gateway.core.usage import NO_USAGE, Usage

OPUS: dict[str, object] = {"input": 5, "output": 25, "cache_write": 6.25, "cache_read": 0.5}
FREE: dict[str, object] = dict.fromkeys(OPUS, 0)
USAGE = Usage(input=1_000_000, output=10_000, cache_write=2_000, cache_read=30_000)


def test_each_count_has_its_price_for_a_million_tokens() -> None:
    ((_, price),) = read_prices({"claude-*": OPUS})
    assert price.cost(USAGE) == Decimal("5") + Decimal("0.25") + Decimal("0.0125") + Decimal("0.015")


def test_sums_are_exact_however_many_there_are() -> None:
    prices = read_prices({"*": FREE | {"input": 0.1}})
    cost = estimate(prices, [("m", Usage(input=1, output=0))] * 1_000).dollars
    assert cost == Decimal("0.0001")


def test_the_first_pattern_that_fits_counts() -> None:
    prices = read_prices({"claude-opus-*": OPUS, "claude-*": FREE})
    assert price_of(prices, "claude-opus-4") == Price(
        input=Decimal(5), output=Decimal(25), cache_write=Decimal("6.25"), cache_read=Decimal("0.5")
    )
    assert price_of(prices, "claude-haiku") == price_of(read_prices({"*": FREE}), "x")
    assert price_of(prices, "gpt-5") is None


def test_sums_of_any_size_are_exact_to_a_millionth() -> None:
    prices = read_prices({"*": FREE | {"input": 99_999.999999}})
    cost = estimate(prices, [("m", Usage(input=10**15))] * 3 + [("m", Usage(input=1))])
    assert cost.dollars == Decimal("99999.999999") * 3 * 10**9 + Decimal("0.099999999999")
    assert cost.rounded == Decimal("299999999997000.100000")


def test_models_without_a_price_are_named_and_cost_nothing_here() -> None:
    prices = read_prices({"claude-*": OPUS})
    usages = [("claude-x", USAGE), ("unknown", USAGE), ("gpt-5", USAGE), ("gpt-5", USAGE)]
    assert estimate(prices, usages) == Estimate(dollars=Decimal("5.2775"), unpriced=("gpt-5", "unknown"))


@pytest.mark.parametrize(
    ("dollars", "shown"),
    [
        ("0", "$0.00"),
        ("0.00009", "<$0.0001"),
        ("0.0001", "$0.0001"),
        ("0.00015", "$0.0002"),
        ("0.1234", "$0.1234"),
        ("0.99994", "$0.9999"),
        ("0.99995", "$1.00"),
        ("1", "$1.00"),
        ("1234.495", "$1,234.50"),
    ],
)
def test_dollars_are_shown_with_as_many_places_as_they_need(dollars: str, shown: str) -> None:
    assert show_dollars(Decimal(dollars)) == shown


@pytest.mark.parametrize(
    ("models", "dollars", "shown"),
    [
        ("", "0", "$0.00"),
        ("claude-x", "5.2775", "$5.28"),
        ("claude-x unknown", "5.2775", "$5.28 +"),
        ("unknown gpt-5", None, "–"),
    ],
)
def test_what_has_no_price_shows_in_the_figure(models: str, dollars: str | None, shown: str) -> None:
    cost = estimate(read_prices({"claude-*": OPUS}), [(model, USAGE) for model in models.split()])
    assert cost.dollars == (None if dollars is None else Decimal(dollars))
    assert show_cost(cost) == shown


def test_a_model_that_used_nothing_needs_no_price() -> None:
    prices = read_prices({"claude-*": OPUS})
    assert show_cost(estimate(prices, [("claude-x", USAGE), ("unknown", NO_USAGE)])) == "$5.28"
    assert show_cost(estimate(prices, [("unknown", NO_USAGE)])) == "$0.00"
    assert show_cost(estimate(prices, [("unknown", USAGE), ("gpt-5", NO_USAGE)])) == "–"


def test_of_many_models_without_a_price_the_first_few_are_named() -> None:
    five, seven = (estimate((), [(f"m{number}", USAGE) for number in range(many)]) for many in (5, 7))
    assert show_unpriced(five) == "m0, m1, m2, m3, m4"
    assert show_unpriced(seven) == "m0, m1, m2, m3, m4 and 2 more"


@pytest.mark.parametrize("table", [{"gpt-5": {"6": OPUS}}, {"gpt-5": 5}])
def test_a_model_whose_dots_are_not_in_quotes_is_told_so(table: object) -> None:
    with pytest.raises(SettingsError, match="the model in quotes"):
        read_prices(table)


@pytest.mark.parametrize(
    "table",
    [
        5,
        [],
        {"claude-*": 5},
        {"claude-*": {}},
        {"claude-*": {"input": 5, "output": 25, "cache_write": 6.25}},
        {"claude-*": OPUS | {"thinking": 5}},
        {"a b": OPUS},
        {"": OPUS},
        *({"claude-*": OPUS | {"input": value}} for value in (-1, "5", True, None, float("nan"), 1e9)),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(table: object) -> None:
    with pytest.raises(SettingsError, match=r"^prices: "):
        read_prices(table)
