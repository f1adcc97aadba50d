"""The administrator's commands: what they print where, and how they end."""

import re
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import click
import pytest

from gateway import cli
from gateway.core import keys
from tests import commands
from tests.commands import DATABASE, Run, start

run = commands.run


def test_the_database_may_be_named_anywhere(run: Run, tmp_path: Path) -> None:
    run("key", "create", "alice", "--database", "other.db")
    assert not Path(DATABASE).exists()
    for argv in (
        ("--database", "other.db", "key", "show", "alice"),
        ("key", "--database", "other.db", "show", "alice"),
        ("key", "show", "--database", "other.db", "alice"),
        ("--database", "wrong.db", "key", "show", "alice", "--database", "other.db"),
    ):
        assert run(*argv).code == 0
    assert run("key", "list", OPUSMAX_DATABASE=str(tmp_path / "other.db")).code == 0
    assert run("--json", "key", "list", "--database", "other.db").json[0]["name"] == "alice"


def test_the_configuration_may_be_named_on_every_command(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.toml"
    file.write_text('database = "other.db"\npublic_url = "https://ai.example.com"\n')
    named = ("--config", str(file))
    assert "https://ai.example.com" in run("key", "create", "alice", *named).err
    assert not Path(DATABASE).exists()
    for argv in (
        ("key", "list", *named),
        (*named, "key", "show", "alice"),
        ("key", *named, "edit", "alice", "--concurrency", "2"),
        ("key", "rotate", "alice", *named),
        ("key", "simulate", "alice", *named),
        ("usage", *named),
        ("backup", "copy.db", *named),
        ("check", "--privacy", *named),
    ):
        assert run(*argv).code == 0, argv
    assert run("key", "list", "--json", OPUSMAX_CONFIG=str(file)).json[0]["name"] == "alice"
    assert run("key", "list", *named, "--database", "third.db").code == 1


def test_a_fault_elsewhere_in_the_configuration_does_not_keep_a_key_from_being_disabled(run: Run) -> None:
    run("key", "create", "alice")
    Path("opusmax.toml").write_text('listen = "nowhere"\n')
    assert run("key", "disable", "alice").code == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"database = [", "is not TOML"), (b'service_name = "\xe9"', "is not UTF-8"), (None, "No such file")],
)
def test_a_configuration_that_cannot_be_read_is_told_in_one_line(
    run: Run, content: bytes | None, words: str
) -> None:
    if content is not None:
        Path("bad.toml").write_bytes(content)
    failed = run("key", "list", "--config", "bad.toml")
    assert (failed.code, failed.out) == (1, "")
    assert re.fullmatch(f"error: .*{words}.*\n", failed.err)


@pytest.mark.parametrize(
    "argv", [("key", "list"), ("key", "show", "a"), ("key", "delete", "a", "--yes"), ("usage",), ("backup", "x")]
)
def test_reading_makes_no_database(run: Run, tmp_path: Path, argv: tuple[str, ...]) -> None:
    failed = run(*argv)
    assert (failed.code, failed.out) == (1, "")
    assert "there is no database at opusmax.db" in failed.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "argv",
    [
        ("key", "create"),
        ("key", "create", "a", "--budget", "2M/5x"),
        ("key", "create", "a", "--budget", "/5h"),
        ("key", "create", "a", "--budget", "0"),
        ("key", "create", "a", "--budget", "2M/5h", "--budget", "3M/5h"),
        ("key", "create", "a", "--budget", "2M/5h", "--budget", "none"),
        ("key", "create", "a", "--concurrency", "many"),
        ("key", "create", "a", "--concurrency", "-1"),
        ("key", "create", "a", "--overdraft", "1e9"),
        ("key", "create", "a", "--expires", "2020-01-31"),
        ("key", "create", "a", "--model", "two words"),
        ("key", "create", "a", "--model", ""),
        ("key", "rotate", "a", "--grace", "soon"),
        ("key", "create", "a", "--budgets", "2M"),
        ("key", "remove", "a"),
        ("usage", "--since", "yesterday"),
        ("key", "simulate", "a", "--since", "yesterday"),
        ("key", "simulate", "a", "--budget", "2M/5x"),
        ("key", "simulate", "a", "--hold", "0"),
        ("usage", "--by", "colour"),
        ("usage", "--csv", "--json"),
        ("backup",),
    ],
)
def test_a_wrong_call_ends_with_2_and_one_line(run: Run, argv: tuple[str, ...]) -> None:
    failed = run(*argv)
    assert (failed.code, failed.out) == (2, "")
    assert re.fullmatch(r"error: .+ \(see opusmax\.py.* --help\)\n", failed.err)


def test_a_mistyped_command_or_option_gets_a_suggestion(run: Run) -> None:
    assert "'key'" in run("kye").err
    assert "'create'" in run("key", "craete", "alice").err
    assert "--budget" in run("key", "create", "alice", "--budgte", "2M").err
    assert "'key list'" in run("list").err


def test_no_command_shows_the_help(run: Run) -> None:
    helped = run()
    assert (helped.code, helped.out) == (2, "")
    assert "Commands:" in helped.err


@pytest.mark.parametrize("name", ["not a database", "a folder", "a newer schema"])
def test_a_database_that_cannot_be_used_is_told_in_one_line(run: Run, name: str) -> None:
    path = Path(DATABASE)
    if name == "a folder":
        path.mkdir()
    elif name == "not a database":
        path.write_bytes(b"no database at all" * 1_000)
    else:
        run("key", "create", "alice")
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA user_version = 99")
    failed = run("key", "list")
    assert (failed.code, failed.out) == (1, "")
    assert re.fullmatch("error: .+\n", failed.err)


def test_an_unexpected_error_is_told_without_its_text() -> None:
    try:
        raise RuntimeError("sk-ant-om1-secret")
    except RuntimeError as error:
        text, code = cli.explain(error)
    assert re.fullmatch(r"error: internal error: RuntimeError at test_admin_commands\.py:\d+", text)
    assert code == 1


def all_commands(group: click.Group) -> list[click.Command]:
    return [
        found
        for command in group.commands.values()
        for found in (all_commands(command) if isinstance(command, click.Group) else [command])
    ]


def test_every_help_begins_with_examples_that_are_calls_of_the_command(run: Run) -> None:
    commands = all_commands(cli.program)
    assert len(commands) == 15
    for command in commands:
        group = "key " if command in all_commands(cli.program.commands["key"]) else ""  # type: ignore[arg-type]
        helped = run(*group.split(), str(command.name), "--help")
        first, example, *_ = helped.out.splitlines()
        assert (helped.code, first) == (0, "Examples:")
        assert f"opusmax.py {group}{command.name}" in example


def test_the_program_makes_private_files_only(tmp_path: Path) -> None:
    with start("key", "create", "alice", cwd=tmp_path) as process:
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert keys.parse(out.strip())
    with start("key", "delete", "alice", "--yes", cwd=tmp_path) as process:
        process.communicate(timeout=20)
    assert len(list(tmp_path.iterdir())) == 2
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


WRITE_LIKE_A_SERVER = """
import sqlite3, time
connection = sqlite3.connect("opusmax.db", isolation_level=None, timeout=5)
print("ready", flush=True)
for number in range(10_000):
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE key SET total_requests = total_requests + 1")
    time.sleep(0.002)
    connection.execute("COMMIT")
    time.sleep(0.001)
"""


def test_the_commands_work_while_a_server_writes(tmp_path: Path) -> None:
    with start("key", "create", "alice", cwd=tmp_path) as made:
        made.communicate(timeout=20)
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_LIKE_A_SERVER], cwd=tmp_path, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        outcomes = []
        for argv in (("edit", "alice", "--concurrency", "3"), ("disable", "alice"), ("list",), ("create", "bob")):
            with start("key", *argv, cwd=tmp_path) as command:
                _, err = command.communicate(timeout=20)
            outcomes.append((command.returncode, "error" in err))
        was_writing = writer.poll() is None
        writer.kill()
    assert outcomes == [(0, False)] * 4
    assert was_writing
