"""The options that say what a key may: for `key create`, `key edit` and `key simulate` alike."""

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, TypeVar

import click

from gateway.cli_options import Call
from gateway.core.amounts import parse_amount, parse_duration, parse_expiry
from gateway.core.records import Budget

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


class Cleared(Enum):
    """What the word `none` says: no limit."""

    NONE = "none"


class Setting(click.ParamType[object]):
    """A value read by a function of its text and of the time, or `none`."""

    def __init__(self, name: str, read: Callable[[str, int], object]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> object:  # noqa: ANN401 - click's own signature
        if value == Cleared.NONE.value:
            return Cleared.NONE
        now_ms = ctx.ensure_object(Call).now_ms if ctx else 0
        try:
            return self._read(str(value), now_ms)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _read_limit(text: str, _: int) -> int:
    amount = parse_amount(text)
    if amount == 0:
        raise ValueError("a limit is at least 1; `none` takes it away, and `key disable` stops the key")
    return amount


def _read_overdraft(text: str, _: int) -> int:
    return parse_amount(text)


def _read_budget(text: str, now_ms: int) -> Budget:
    tokens, slash, window = text.partition("/")
    return Budget(tokens=_read_limit(tokens, now_ms), window_ms=parse_duration(window) if slash else None)


def _read_model(text: str, _: int) -> str:
    if not text.isprintable() or not text or " " in text:
        raise ValueError("a model looks like claude-sonnet-4-5 or claude-*")
    return text


LIMIT = Setting("number", _read_limit)
CLEARED_FIELDS: Mapping[str, object] = {
    "requests_per_minute": None,
    "tokens_per_minute": None,
    "concurrency": None,
    "overdraft": 0,
    "expires": None,
    "budgets": (),
    "models": (),
}
"""The fields of `Key` that options set, and what `none` makes of each."""

_USE_OPTIONS = (
    click.option("--requests-per-minute", type=LIMIT, metavar="N", help="Requests that may start in a minute."),
    click.option("--tokens-per-minute", type=LIMIT, metavar="N", help="Tokens in a minute, as a pace: 100k, 2M."),
    click.option(
        "--budget",
        "budgets",
        multiple=True,
        type=Setting("budget", _read_budget),
        metavar="TOKENS[/WINDOW]",
        help="Tokens in a rolling window, or in all: 2M/5h, 20M/7d, 200M. May be given several times.",
    ),
    click.option("--concurrency", type=LIMIT, metavar="N", help="Requests that may run at once."),
    click.option(
        "--overdraft",
        type=Setting("number", _read_overdraft),
        metavar="N",
        help="Tokens by which running requests may reach beyond a budget that is not used up.",
    ),
)
_OTHER_OPTIONS = (
    click.option(
        "--model",
        "models",
        multiple=True,
        type=Setting("glob", _read_model),
        metavar="GLOB",
        help="A model that is allowed, such as 'claude-sonnet-*'. May be given several times. [default: all]",
    ),
    click.option(
        "--expires",
        type=Setting("expiry", parse_expiry),
        metavar="90d|2027-01-31",
        help="When the key stops working: after so long, or at the end of a day (UTC).",
    ),
)


def limit_options(command: _Decorated) -> _Decorated:
    """The options that set limits, the same for `create` and `edit`."""
    return _decorated(command, (*_USE_OPTIONS, *_OTHER_OPTIONS))


def use_options(command: _Decorated) -> _Decorated:
    """Those of them that limit how much is used."""
    return _decorated(command, _USE_OPTIONS)


def fields_given(options: Mapping[str, object]) -> dict[str, Any]:
    """The fields of `Key` that the options set; those not given are left out. Raises `click.UsageError`."""
    given: dict[str, Any] = {}
    for name, value in options.items():
        if value is Cleared.NONE or value == (Cleared.NONE,):
            given[name] = CLEARED_FIELDS[name]
        elif value is not None and value != ():
            given[name] = value
    _require_sense(given)
    return given


def _decorated(command: _Decorated, options: Iterable[Callable[[_Decorated], _Decorated]]) -> _Decorated:
    for option in reversed(tuple(options)):
        command = option(command)
    return command


def _require_sense(given: Mapping[str, Any]) -> None:
    if any(Cleared.NONE in given.get(name, ()) for name in ("budgets", "models")):
        raise click.UsageError("`none` stands alone: it takes all of them away")
    windows = [budget.window_ms for budget in given.get("budgets", ())]
    if len(windows) != len(set(windows)):
        raise click.UsageError("there are two budgets for the same window")
