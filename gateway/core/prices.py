"""What usage would cost at the prices that the operator names: an estimate, worked out when somebody looks.

    [prices]
    "claude-opus-*" = { input = 5, output = 25, cache_write = 6.25, cache_read = 0.5 }

Prices are US dollars per million tokens. The first pattern that fits a model counts. Nothing of it is stored, and
what the provider bills may differ: long contexts, priority tiers, caches of an hour, tools.
"""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import ROUND_HALF_UP, Decimal

from gateway.core import notation
from gateway.core.errors import SettingsError
from gateway.core.usage import NO_USAGE, Usage

MILLION = 1_000_000
MOST_DOLLARS = 100_000
"""For a million tokens; more is a typing error."""
MOST_NAMED = 5
"""Models without a price; how many more there are is told as a number."""
NOTHING_PRICED = "–"
_CENT, _SMALL, _MICRO = Decimal("0.01"), Decimal("0.0001"), Decimal("0.000001")


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """US dollars for a million tokens of each count."""

    input: Decimal
    output: Decimal
    cache_write: Decimal
    cache_read: Decimal

    def cost(self, usage: Usage) -> Decimal:
        """US dollars, exactly."""
        return (
            self.input * usage.input
            + self.output * usage.output
            + self.cache_write * usage.cache_write
            + self.cache_read * usage.cache_read
        ) / MILLION


Prices = tuple[tuple[str, Price], ...]
"""Each with the glob of its models, in the order of the file; empty: no cost is shown anywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What the usage of several models would cost."""

    dollars: Decimal | None
    """Exactly; `None`: no price fits any of it."""
    unpriced: tuple[str, ...] = ()
    """The models that no price fits, which are not in it."""

    @property
    def rounded(self) -> Decimal | None:
        """To a millionth of a dollar, for programs."""
        return None if self.dollars is None else self.dollars.quantize(_MICRO, ROUND_HALF_UP)


def read_prices(table: object) -> Prices:
    """The `[prices]` of the file. Raises `SettingsError`."""
    if not isinstance(table, dict):
        raise SettingsError('prices: they look like "claude-*" = { input = 3, output = 15, … }')
    try:
        return tuple((_read_glob(glob), _read_price(written)) for glob, written in table.items())
    except ValueError as error:
        raise SettingsError(f"prices: {error}") from None


def price_of(prices: Prices, model: str) -> Price | None:
    return next((price for glob, price in prices if fnmatch.fnmatchcase(model, glob)), None)


def estimate(prices: Prices, usages: Iterable[tuple[str, Usage]]) -> Estimate:
    """What `usages`, each of one model, would cost together. What used nothing needs no price."""
    costs, unpriced = [], set()
    for model, usage in usages:
        price = price_of(prices, model)
        if price is not None:
            costs.append(price.cost(usage))
        elif usage != NO_USAGE:
            unpriced.add(model)
    is_told = bool(costs) or not unpriced
    return Estimate(dollars=sum(costs, Decimal(0)) if is_told else None, unpriced=tuple(sorted(unpriced)))


def show_cost(cost: Estimate) -> str:
    """`$1.20`; `$1.20 +` where a part has no price, `–` where nothing has one."""
    if cost.dollars is None:
        return NOTHING_PRICED
    return f"{show_dollars(cost.dollars)} +" if cost.unpriced else show_dollars(cost.dollars)


def show_unpriced(cost: Estimate) -> str:
    """`gpt-5, unknown`; of many models the first few and the number of the others."""
    named, others = cost.unpriced[:MOST_NAMED], len(cost.unpriced) - MOST_NAMED
    return ", ".join(named) + (f" and {others:,} more" if others > 0 else "")


def show_dollars(dollars: Decimal) -> str:
    """`$1,234.50`; below a dollar with four places, because a request may cost less than a cent."""
    if 0 < dollars < _SMALL:
        return f"<${_SMALL}"
    small = dollars.quantize(_SMALL, ROUND_HALF_UP)
    return f"${small if 0 < small < 1 else dollars.quantize(_CENT, ROUND_HALF_UP):,}"


def _read_glob(written: str) -> str:
    (glob,) = notation.globs([written])
    return glob


def _read_price(written: object) -> Price:
    names = [field.name for field in fields(Price)]
    if not isinstance(written, dict) or not written.keys() & set(names):
        looks = ", ".join(f"{name} = 1" for name in names)
        raise ValueError(f'a price looks like "gpt-5.6*" = {{ {looks} }}, the model in quotes')
    notation.known_fields(written, names)
    _require(names, written)
    return Price(**{name: _dollars(written[name]) for name in names})


def _require(names: Sequence[str], written: Mapping[str, object]) -> None:
    for name in names:
        if name not in written:
            raise ValueError(f"{name} is missing: each of {', '.join(names)} has a price, be it 0")


def _dollars(value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MOST_DOLLARS:
        raise ValueError("a price is a number of US dollars for a million tokens")
    return Decimal(str(value))
