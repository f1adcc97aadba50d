"""The command line: which commands there are, and what an error becomes.

    opusmax.py serve | demo | key … | usage | check | backup        see cli_keys.py for `key`

Each command is thin: options in, a function of admin.py or its neighbours called, its answer out.
"""

import errno
import sqlite3
import time
import tomllib
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO

import aiosqlite
import click

from gateway import admin, admin_usage, checkup, checkup_privacy
from gateway.backup import back_up
from gateway.checkup_installation import Installation
from gateway.cli_keys import key
from gateway.cli_options import (
    DONE,
    FAILED,
    NO_SUCH_KEY,
    WRONG_CALL,
    Call,
    ExamplesFirstGroup,
    NoDatabase,
    NotOurs,
    common_options,
    pass_call,
    time_since,
)
from gateway.core.account import Grouping
from gateway.core.errors import SettingsError
from gateway.core.prices import Prices, read_prices
from gateway.database import DatabaseError
from gateway.erasure import ErasureError
from gateway.keystore import KeyGone, NameTaken

PROGRAM = "opusmax.py"

EXPECTED_ERRORS: Mapping[type[Exception], int] = {
    admin.NoSuchKey: NO_SUCH_KEY,
    admin.AmbiguousKey: WRONG_CALL,
    admin.BadName: FAILED,
    NameTaken: FAILED,
    KeyGone: FAILED,
    NoDatabase: FAILED,
    NotOurs: FAILED,
    DatabaseError: FAILED,
    ErasureError: FAILED,
    SettingsError: FAILED,
}
"""Errors whose message is meant for the administrator, and their exit codes."""


def main(argv: Sequence[str], environment: Mapping[str, str], stdout: TextIO, stderr: TextIO) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 wrong call, 3 no such key."""
    call = Call(environment=environment, now_ms=time.time_ns() // 1_000_000)
    with redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            code = program.main(args=list(argv), prog_name=PROGRAM, standalone_mode=False, obj=call)
        except SystemExit:  # how click ends when who read our output has gone
            code = FAILED
        except Exception as error:
            text, code = explain(error)
            click.echo(text, err=True)
    return int(code or DONE)


def explain(error: Exception) -> tuple[str, int]:
    """What to tell of an error, and the exit code. Never a traceback, and of the unexpected no message either."""
    match error:
        case click.exceptions.NoArgsIsHelpError():
            return error.message, WRONG_CALL
        case click.ClickException():
            return f"error: {error.format_message()}{_where_to_read(error)}", WRONG_CALL
        case click.Abort():
            return "error: interrupted", FAILED
        case sqlite3.Error():
            return f"error: the database cannot be used: {error}", FAILED
        case OSError():
            return _explain_system_error(error), FAILED
    if type(error) in EXPECTED_ERRORS:
        return f"error: {error}", EXPECTED_ERRORS[type(error)]
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"error: internal error: {type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}", FAILED


REMEDIES: Mapping[int, str] = {
    errno.ENOENT: "look at the path; a folder is made with `mkdir -m 700`",
    errno.EEXIST: "it is left as it is; name another file",
    errno.EACCES: "run this as the user that it belongs to",
    errno.EPERM: "run this as the user that it belongs to",
    errno.EROFS: "name a place that can be written",
    errno.ENOSPC: "the disk is full; make room, or name a place on another one",
    errno.EISDIR: "it is a folder; name a file",
    errno.ENOTDIR: "a part of the path is no folder",
}
"""What to do about an error of the system."""


def _explain_system_error(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    remedy = REMEDIES.get(error.errno or 0)
    return f"error: {place}{error.strerror or error}{f': {remedy}' if remedy else ''}"


def _where_to_read(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f" (see {context.command_path} --help)" if context else ""


@click.group(
    cls=ExamplesFirstGroup,
    examples="""
    opusmax.py demo
    opusmax.py key create alice --budget 2M/5h
    opusmax.py serve
    """,
)
@common_options
def program() -> None:
    """OpusMax: a gateway in front of AI model providers, with keys, limits and a ledger, and no content kept."""


program.add_command(key)


@program.command(
    short_help="Run the gateway.",
    examples="""
    ANTHROPIC_API_KEY=... opusmax.py serve
    opusmax.py serve --listen 0.0.0.0:443 --tls-cert cert.pem --tls-key key.pem
    """,
)
@click.option("--listen", metavar="HOST:PORT", help="Where to listen. [default: 127.0.0.1:8080]")
@click.option(
    "--anthropic-url",
    metavar="URL",
    help="Where Anthropic's protocol is spoken. [default: https://api.anthropic.com]",
)
@click.option(
    "--openai-url", metavar="URL", help="Where OpenAI's protocol is spoken. [default: https://api.openai.com]"
)
@click.option("--tls-cert", metavar="FILE", help="Serve TLS with this certificate and its chain (PEM).")
@click.option("--tls-key", metavar="FILE", help="The certificate's private key (PEM).")
@click.option("--behind-proxy", is_flag=True, default=None, help="A proxy that speaks TLS stands in front.")
@click.option(
    "--metrics-listen",
    metavar="HOST:PORT",
    help="Tell figures for Prometheus at /metrics there, on this machine only. [default: nowhere]",
)
@click.option(
    "--drain", "drain_seconds", metavar="DURATION", help="How long answers may finish at the end. [default: 30s]"
)
@common_options
@pass_call
def serve(call: Call, /, **flags: object) -> int:
    """Run the gateway. Every setting can also stand in the configuration file or in OPUSMAX_<NAME>.

    The providers' credentials come from ANTHROPIC_API_KEY and OPENAI_API_KEY, or from the files that
    ANTHROPIC_API_KEY_FILE and OPENAI_API_KEY_FILE name; [[upstream]] tables of the file name their own.
    """
    from gateway.server import serve as run_server

    return run_server(call.settings(flags))


@program.command(short_help="See it work, without a provider.", examples="opusmax.py demo")
def demo() -> int:
    """See it work: the gateway, a simulated provider and a key; an answer is streamed, and pages are served."""
    from gateway.demo import demo as run_demo

    return run_demo()


@program.command(
    short_help="Show what requests used.",
    examples="""
    opusmax.py usage
    opusmax.py usage alice --since 30d --by model
    opusmax.py usage --by key --csv
    """,
)
@click.argument("text", metavar="[KEY]", required=False)
@click.option("--since", default="7d", metavar="DURATION", help="How far to look back. [default: 7d]")
@click.option(
    "--by", type=click.Choice(["day", "model", "key"]), default="day", help="What to add up by. [default: day]"
)
@click.option("--csv", "as_csv", is_flag=True, help="Answer with CSV.")
@common_options
@pass_call
def usage(call: Call, text: str | None, since: str, by: str, as_csv: bool) -> int:
    """What requests used: of one key, or of all. Days are UTC.

    KEY is a name, a key id, or the beginning of a key as `key list` shows it. Bars compare the charge: the tokens
    that count against budgets. Where the configuration has [prices], the cost is estimated at them.
    """
    if as_csv and call.as_json:
        raise click.UsageError("--csv and --json exclude each other")
    start_ms, prices = time_since(call, since), _read_prices(call.configuration)

    async def summary(connection: aiosqlite.Connection) -> admin.Answer:
        row = (await admin.find_key(connection, text)).row if text else None
        question = admin_usage.Question(key=row, since=start_ms, by=Grouping(by), prices=prices)
        if as_csv:
            return await admin_usage.as_csv(connection, question)
        return await admin_usage.as_table(connection, question, call.terminal)

    return call.say(call.run(summary))


def _read_prices(file: Path | None) -> Prices:
    """Only this is read of the file, so that a fault elsewhere in it keeps nobody from the figures."""
    try:
        return read_prices(tomllib.loads(file.read_text(encoding="utf-8")).get("prices", {})) if file else ()
    except ValueError:
        raise SettingsError(f"the configuration file {file} is not TOML in UTF-8") from None


@program.command(
    short_help="Look for faults, and say how to mend them.",
    examples="""
    opusmax.py check
    opusmax.py check --config /etc/opusmax.toml
    opusmax.py check --privacy
    """,
)
@click.option(
    "--privacy", is_flag=True, help="Only, and in full: each column beside its line of the privacy policy."
)
@common_options
@pass_call
def check(call: Call, privacy: bool) -> int:
    """Look for faults in configuration, packages, permissions, database and clock. Exit code 1 if there is one.

    It sees what `serve` would see in the same environment: the credentials too. Those that systemd gives to a
    service are seen by that service only; `check` says so, and marks the line with `?`.
    """
    if privacy:
        return call.say(call.run(checkup_privacy.check_privacy))
    installation = Installation(
        database=call.database_or_default(),
        configuration=call.configuration,
        load_settings=lambda: call.settings({}),
        environment=call.environment,
        now_ms=call.now_ms,
    )
    return call.say(checkup.check(installation))


@program.command(
    short_help="Copy the database, while a server may be running.",
    examples="opusmax.py backup /var/backups/opusmax-monday.db",
)
@click.argument("file", type=click.Path(path_type=Path))
@common_options
@pass_call
def backup(call: Call, file: Path) -> int:
    """Copy the database, consistently, while a server may be running. Never overwrites a file.

    To restore: stop the server, put the copy in the database's place, remove the files with -wal and -shm at their
    end beside it, start the server. What that brings back is told with each copy.
    """
    return call.say(call.run(lambda c: back_up(c, file, call.now_ms)))
