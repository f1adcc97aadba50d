"""`key`: the commands that make and change API keys."""

import sys

import aiosqlite
import click

from gateway import admin, admin_texts
from gateway.cli_limits import Setting, fields_given, limit_options
from gateway.cli_options import FAILED, Call, ExamplesFirstGroup, common_options, pass_call
from gateway.cli_simulate import simulate
from gateway.core.amounts import parse_duration
from gateway.core.keys import ApiKey
from gateway.core.records import Key

key_argument = click.argument("text", metavar="KEY")


@click.group(
    cls=ExamplesFirstGroup,
    short_help="Make and change API keys.",
    examples="""
    opusmax.py key create alice --budget 2M/5h --budget 20M/7d --overdraft 500k
    opusmax.py key list
    opusmax.py key edit alice --budget none --expires 90d
    """,
)
@common_options
def key() -> None:
    """Make and change API keys. A running server follows within a second.

    KEY is a name, a key id, or the beginning of a key as `key list` shows it.
    """


key.add_command(simulate)


@key.command(
    examples="""
    opusmax.py key create alice --budget 2M/5h --budget 20M/7d --overdraft 500k
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
    return call.say(call.run(lambda c: admin.list_keys(c, call.now_ms, call.terminal.width)))


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
@click.option(
    "--grace",
    metavar="DURATION",
    type=Setting("duration", lambda text, _: parse_duration(text)),
    help="How long the old one still works: 24h. [default: not at all]",
)
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
