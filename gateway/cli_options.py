"""What the commands of the command line share: their options, the database, how they answer."""

import asyncio
import json
import os
import sys
import tomllib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite
import click

from gateway.admin import Answer
from gateway.core.amounts import parse_duration
from gateway.core.errors import SettingsError
from gateway.core.settings import Settings
from gateway.database import connect
from gateway.terminal import Terminal

DEFAULT_DATABASE = "opusmax.db"
DEFAULT_CONFIGURATION = Path("opusmax.toml")

DONE = 0
FAILED = 1
WRONG_CALL = 2
NO_SUCH_KEY = 3

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])
_Result = TypeVar("_Result")


class NoDatabase(Exception):
    """A command that makes no database found none."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"there is no database at {path}: `key create` or `serve` makes one, and --database FILE names another"
        )


class NotOurs(Exception):
    """The database is there, and this user may not use it."""

    def __init__(self, path: Path) -> None:
        owner = _owner(path)
        super().__init__(
            f"{path} cannot be used by this user: it belongs to {owner}, so run this as {owner} (sudo -u {owner} …)"
        )


@dataclass(slots=True)
class Call:
    """One call of the program: its surroundings, and the options that may stand anywhere."""

    environment: Mapping[str, str]
    now_ms: int
    database_flag: str = ""
    configuration_flag: str = ""
    as_json: bool = False

    @property
    def terminal(self) -> Terminal:
        return Terminal.of(sys.stdout, self.environment)

    @property
    def configuration(self) -> Path | None:
        """The configuration file: named, or the one that is here; `None`: there is none."""
        named = self.configuration_flag or self.environment.get("OPUSMAX_CONFIG")
        if named:
            return Path(named)
        return DEFAULT_CONFIGURATION if DEFAULT_CONFIGURATION.exists() else None

    @property
    def database(self) -> Path:
        """By flag, environment, configuration file or default. Raises as `settings` does."""
        named = self.database_flag or self.environment.get("OPUSMAX_DATABASE")
        return Path(named or self._configured_database() or DEFAULT_DATABASE)

    def database_or_default(self) -> Path:
        """The same where the configuration has a fault, which is told elsewhere."""
        try:
            return self.database
        except (SettingsError, OSError):
            return Path(DEFAULT_DATABASE)

    def settings(self, flags: Mapping[str, object]) -> Settings:
        """The settings by flags, environment and file. Raises `SettingsError`, or `OSError` for the file."""
        return Settings.load({"database": str(self.database), **flags}, self.environment, self._written())

    def run(
        self, command: Callable[[aiosqlite.Connection], Awaitable[_Result]], *, creates: bool = False
    ) -> _Result:
        """Run a command on the database; with `creates`, on a new one if there is none."""
        database = self.database
        if not creates and not database.is_file():
            raise NoDatabase(database)
        if database.is_file() and not os.access(database, os.R_OK | os.W_OK):
            raise NotOurs(database)

        async def connected() -> _Result:
            async with connect(database) as connection:
                return await command(connection)

        return asyncio.run(connected())

    def say(self, answer: Answer) -> int:
        """Data to stdout, talk to stderr; returns the exit code."""
        terminal = self.terminal
        if self.as_json:
            click.echo(json.dumps(answer.value, indent=2, ensure_ascii=not terminal.is_unicode))
        elif answer.text:
            click.echo(terminal.painted(answer.text), color=terminal.has_colours)
        for line in answer.talk:
            click.echo(line, err=True)
        return FAILED if answer.is_failure else DONE

    def _configured_database(self) -> str:
        """Only this is read of the file, so that a fault elsewhere in it does not keep keys from being disabled."""
        try:
            return str(tomllib.loads(self._written() or "").get("database", ""))
        except tomllib.TOMLDecodeError as error:
            raise SettingsError(f"the configuration file is not TOML: {error}") from None

    def _written(self) -> str | None:
        file = self.configuration
        try:
            return None if file is None else file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise SettingsError(f"the configuration file {file} is not UTF-8: save it as such") from None


pass_call = click.make_pass_decorator(Call)


def time_since(call: Call, text: str) -> int:
    """The time so long ago. Raises `click.BadParameter`."""
    try:
        return call.now_ms - parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--since") from None


def common_options(command: _Decorated) -> _Decorated:
    """`--database`, `--config` and `--json`, on the program, its groups and its commands: typed anywhere."""
    for option in (_JSON, _CONFIGURATION, _DATABASE):
        command = option(command)
    return command


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:
        return f"user {path.stat().st_uid}"


def _set_database(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.ensure_object(Call).database_flag = value


def _set_configuration(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.ensure_object(Call).configuration_flag = value


def _set_json(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Call).as_json = True


_DATABASE = click.option(
    "--database",
    metavar="FILE",
    expose_value=False,
    callback=_set_database,
    help=f"The database. [default: OPUSMAX_DATABASE, else the configuration's, else {DEFAULT_DATABASE}]",
)
_CONFIGURATION = click.option(
    "--config",
    metavar="FILE",
    expose_value=False,
    callback=_set_configuration,
    help=f"The configuration. [default: OPUSMAX_CONFIG, else {DEFAULT_CONFIGURATION}, if there is one]",
)
_JSON = click.option(
    "--json", is_flag=True, expose_value=False, callback=_set_json, help="Answer with JSON instead of text."
)


class ExamplesFirst(click.Command):
    """A command whose help begins with examples."""

    def __init__(self, *args: Any, examples: str = "", **settings: Any) -> None:  # noqa: ANN401 - handed on to click
        super().__init__(*args, **settings)
        self.examples = examples

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples.strip().splitlines():
                    formatter.write(f"{'':{formatter.current_indent}}{line.strip()}\n")
            formatter.write_paragraph()
        super().format_help(ctx, formatter)


class ExamplesFirstGroup(ExamplesFirst, click.Group):
    """The same for a group, and for the commands in it."""

    command_class = ExamplesFirst

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """A command that is to be found one level deeper is suggested: `list` means `key list`."""
        typed = args[0]
        if typed not in self.commands:
            for name, command in self.commands.items():
                if isinstance(command, click.Group) and typed in command.commands:
                    ctx.fail(f"No such command {typed!r}. Did you mean '{name} {typed}'?")
        return super().resolve_command(ctx, args)
