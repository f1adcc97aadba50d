"""What the commands of the command line share: their options, the database, how they answer."""

import asyncio
import json
import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite
import click

from gateway.admin import Answer
from gateway.core.settings import Settings
from gateway.database import connect

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
        super().__init__(f"there is no database at {path}: `key create` or `serve` makes one")


@dataclass(slots=True)
class Call:
    """One call of the program: its surroundings, and the options that may stand anywhere."""

    environment: Mapping[str, str]
    now_ms: int
    database: Path
    as_json: bool = False

    def settings(self, flags: Mapping[str, object], configuration: Path | None = None) -> Settings:
        """The settings by flags, environment and file. Raises `SettingsError`, or `OSError` for the file."""
        file = configuration or DEFAULT_CONFIGURATION
        text = file.read_text() if configuration or file.exists() else None
        return Settings.load({"database": str(self.database), **flags}, self.environment, text)

    def run(
        self, command: Callable[[aiosqlite.Connection], Awaitable[_Result]], *, creates: bool = False
    ) -> _Result:
        """Run a command on the database; with `creates`, on a new one if there is none."""
        if not creates and not self.database.is_file():
            raise NoDatabase(self.database)

        async def connected() -> _Result:
            async with connect(self.database) as connection:
                return await command(connection)

        return asyncio.run(connected())

    def say(self, answer: Answer) -> int:
        """Data to stdout, talk to stderr; returns the exit code."""
        if self.as_json:
            click.echo(json.dumps(answer.value, indent=2, ensure_ascii=False))
        elif answer.text:
            click.echo(answer.text)
        for line in answer.talk:
            click.echo(line, err=True)
        return FAILED if answer.is_failure else DONE


pass_call = click.make_pass_decorator(Call)


def terminal_width() -> int | None:
    """Of the terminal that stdout is; `None`: it is none, so nothing needs to be cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def common_options(command: _Decorated) -> _Decorated:
    """`--database` and `--json`, on the program, its groups and its commands alike: people type them anywhere."""
    for option in (_JSON, _DATABASE):
        command = option(command)
    return command


def _set_database(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.ensure_object(Call).database = Path(value)


def _set_json(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Call).as_json = True


_DATABASE = click.option(
    "--database",
    metavar="FILE",
    expose_value=False,
    callback=_set_database,
    help=f"The database. [default: OPUSMAX_DATABASE, else {DEFAULT_DATABASE}]",
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
