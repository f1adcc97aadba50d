"""`key`: the commands that make and change API keys."""

import sys
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, TypeVar

import aiosqlite
import click

from gateway import admin, admin_texts
from gateway.cli_options import FAILED, Call, ExamplesFirstGroup, common_options, pass_call, terminal_width
from gateway.core.amounts import parse_amount, parse_duration, parse_expiry
from gateway.core.keys import ApiKey
from gateway.core.records import Budget, Key

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

_LIMIT_OPTIONS = (
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
    for option in reversed(_LIMIT_OPTIONS):
        command = option(command)
    return command


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


def _require_sense(given: Mapping[str, Any]) -> None:
    if any(Cleared.NONE in given.get(name, ()) for name in ("budgets", "models")):
        raise click.UsageError("`none` stands alone: it takes all of them away")
    windows = [budget.window_ms for budget in given.get("budgets", ())]
    if len(windows) != len(set(windows)):
        raise click.UsageError("there are two budgets for the same window")


key_argument = click.argument("text", metavar="KEY")


@click.group(
    cls=ExamplesFirstGroup,
    short_help="Make and change API keys.",
    examples="""
    opusmax.py key create alice --budget 2M/5h --budget 20M/7d --overdraft 300k
    opusmax.py key list
    opusmax.py key edit alice --budget none --expires 90d
    """,
)
@common_options
def key() -> None:
    """Make and change API keys. A running server follows within a second.

    KEY is a name, a key id, or the beginning of a key as `key list` shows it.
    """


@key.command(
    examples="""
    opusmax.py key create alice --budget 2M/5h --budget 20M/7d --overdraft 300k
    opusmax.py key create ci --requests-per-minute 60 --concurrency 4 --model 'claude-haiku-*' --expires 90d
    OPUSMAX_KEY=$(opusmax.py key create bob)
    """
)
@click.argument("name")
@limit_options
@common_options
@pass_call
def create(call: Call, /, name: str, **options: object) -> int:
    """Make a key and print it, alone, to stdout. It is shown only this once."""
    limits = fields_given(options)
    origin = call.settings({}).origin
    api_key, answer = call.run(lambda c: admin.create_key(c, name, limits, call.now_ms), creates=True)
    return _hand_over(call, api_key, answer, origin)


@key.command("list", examples="opusmax.py key list\nopusmax.py key list --json")
@common_options
@pass_call
def list_keys(call: Call) -> int:
    """All keys, with what each has used of its budgets."""
    return call.say(call.run(lambda c: admin.list_keys(c, call.now_ms, terminal_width())))


@key.command(examples="opusmax.py key show alice")
@key_argument
@common_options
@pass_call
def show(call: Call, text: str) -> int:
    """All about one key but its secret, which nobody knows."""
    return call.say(call.run(lambda c: admin.show_key(c, text, call.now_ms)))


@key.command(
    examples="""
    opusmax.py key edit alice --budget 5M/5h --budget 50M/7d
    opusmax.py key edit alice --tokens-per-minute none --expires 2027-01-31
    """
)
@key_argument
@limit_options
@common_options
@pass_call
def edit(call: Call, /, text: str, **options: object) -> int:
    """Change limits; `none` takes one away. What is not named stays; all budgets are replaced together."""
    changes = fields_given(options)
    if not changes:
        raise click.UsageError("nothing to change: name at least one limit")
    return call.say(call.run(lambda c: admin.edit_key(c, text, changes, call.now_ms)))


@key.command(examples="opusmax.py key disable alice")
@key_argument
@common_options
@pass_call
def disable(call: Call, text: str) -> int:
    """Refuse a key until it is enabled again."""
    return call.say(call.run(lambda c: admin.set_disabled(c, text, True, call.now_ms)))


@key.command(examples="opusmax.py key enable alice")
@key_argument
@common_options
@pass_call
def enable(call: Call, text: str) -> int:
    """Accept a disabled key again."""
    return call.say(call.run(lambda c: admin.set_disabled(c, text, False, call.now_ms)))


@key.command(examples="opusmax.py key rename alice alice-laptop")
@key_argument
@click.argument("name")
@common_options
@pass_call
def rename(call: Call, text: str, name: str) -> int:
    """Give a key another name. Its clients notice nothing."""
    return call.say(call.run(lambda c: admin.rename_key(c, text, name, call.now_ms)))


@key.command(examples="opusmax.py key rotate alice\nopusmax.py key rotate alice --grace 24h")
@key_argument
@click.option("--grace", metavar="DURATION", type=Setting("duration", lambda text, _: parse_duration(text)))
@common_options
@pass_call
def rotate(call: Call, text: str, grace: object) -> int:
    """Give a key a new secret. The old one stops at once, or after the grace time.

    Name, limits and usage stay.
    """
    origin = call.settings({}).origin
    grace_ms = grace if isinstance(grace, int) else 0
    api_key, answer = call.run(lambda c: admin.rotate_key(c, text, grace_ms, call.now_ms))
    return _hand_over(call, api_key, answer, origin)


@key.command(examples="opusmax.py key delete alice\nopusmax.py key delete alice --yes")
@key_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@common_options
@pass_call
def delete(call: Call, text: str, yes: bool) -> int:
    """Erase a key and all its rows, for good, from the database and its files.

    `key disable` stops a key and keeps its usage.
    """

    async def find(connection: aiosqlite.Connection) -> Key:
        for line in await admin.finish_erasure(connection, call.database):
            click.echo(line, err=True)
        return await admin.find_key(connection, text)

    found = call.run(find)
    if not yes and not _confirms(found.name):
        click.echo("Nothing is deleted.", err=True)
        return FAILED
    return call.say(call.run(lambda c: admin.delete_key(c, call.database, found, call.now_ms)))


def _confirms(name: str) -> bool:
    if not sys.stdin.isatty():
        raise click.UsageError("deleting asks first, and there is no terminal to ask on: add --yes")
    return click.confirm(f"Erase {name} with all its usage, for good?", err=True)


def _hand_over(call: Call, api_key: ApiKey, answer: admin.Answer, origin: str) -> int:
    """The whole key goes to stdout. It goes to stderr only where a person reads that: it may as well be a log."""
    code = call.say(answer)
    shown = api_key.text if sys.stderr.isatty() else api_key.prefix
    click.echo("\n".join(["", *admin_texts.paste_lines(origin, shown)]), err=True)
    return code
