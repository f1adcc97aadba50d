"""The administrator's commands: what they do, what they print where, and how they end."""

import io
import json
import os
import pty
import re
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from gateway import cli
from gateway.core import keys, tables
from gateway.core.amounts import DAY_MS
from gateway.hashing import verify_secret

PROJECT = Path(__file__).parent.parent
DATABASE = "opusmax.db"
INSERT_REQUEST = "INSERT INTO request VALUES (?, ?, ?, 'claude-sonnet-4-5', NULL, 900, ?, 0, 0, 0, 0)"
SETTLE_REQUESTS = "UPDATE request SET status = 200 WHERE status IS NULL"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a command in a folder of its own, with a provider that can be reached."""
    monkeypatch.chdir(tmp_path)

    with socket.create_server(("127.0.0.1", 0)) as provider:
        origin = f"http://127.0.0.1:{provider.getsockname()[1]}"

        def run_command(*argv: str, **environment: str) -> Outcome:
            out, err = io.StringIO(), io.StringIO()
            code = cli.main(
                argv, {"OPUSMAX_ANTHROPIC_URL": origin, "ANTHROPIC_API_KEY": "a-credential"} | environment, out, err
            )
            return Outcome(code, out.getvalue(), err.getvalue())

        yield run_command


def start(*argv: str, cwd: Path, stdin: int | None = None) -> subprocess.Popen[str]:
    """The real program."""
    command = [sys.executable, str(PROJECT / "opusmax.py"), *argv]
    return subprocess.Popen(
        command, cwd=cwd, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, umask=0o022
    )


def fill_ledger(tokens: int, started: int, requests: int = 1) -> None:
    """Settled requests of every key."""
    with closing(sqlite3.connect(DATABASE)) as connection, connection:
        for (row,) in connection.execute("SELECT id FROM key").fetchall():
            for sequence in range(requests):
                connection.execute(INSERT_REQUEST, (row, started, sequence, tokens))
            connection.execute(SETTLE_REQUESTS)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


# Making keys


def test_a_new_key_stands_alone_on_stdout_and_proves_itself(run: Run) -> None:
    made = run("key", "create", "alice", "--budget", "2M/5h")
    assert made.code == 0
    api_key = keys.parse(made.out.removesuffix("\n"))
    assert api_key is not None
    with closing(sqlite3.connect(DATABASE)) as connection:
        ((key_id, prefix, hashed),) = connection.execute("SELECT key_id, prefix, hash FROM secret").fetchall()
    assert (key_id, prefix) == (api_key.key_id, api_key.prefix)
    assert verify_secret(hashed, api_key.secret)


def test_a_new_key_is_in_no_file_and_not_on_stderr(run: Run, tmp_path: Path) -> None:
    api_key = keys.parse(run("key", "create", "alice").out.strip())
    assert api_key is not None
    again = run("key", "show", "alice")
    assert api_key.secret not in again.out + again.err
    assert all(api_key.secret.encode() not in file.read_bytes() for file in tmp_path.iterdir())


def test_create_prints_the_lines_to_paste_on_stderr(run: Run) -> None:
    made = run("key", "create", "alice", OPUSMAX_PUBLIC_URL="https://ai.example.com")
    assert "export ANTHROPIC_BASE_URL=https://ai.example.com\n" in made.err
    assert "export ANTHROPIC_AUTH_TOKEN=sk-ant-om1-" in made.err
    assert 'anthropic.Anthropic(base_url="https://ai.example.com"' in made.err
    assert made.out.strip() not in made.err


def test_the_public_url_comes_from_the_configuration_file_too(run: Run) -> None:
    Path("opusmax.toml").write_text('public_url = "https://ai.example.org"\n')
    assert "ANTHROPIC_BASE_URL=https://ai.example.org\n" in run("key", "create", "alice").err
    Path("opusmax.toml").write_text('pubic_url = "https://ai.example.org"\n')
    failed = run("key", "create", "bob")
    assert (failed.code, failed.out) == (1, "")
    assert "unknown setting: pubic_url" in failed.err


def test_create_as_json_names_the_key_and_its_id(run: Run) -> None:
    made = run("key", "create", "alice", "--json").json
    assert set(made) == {"key", "id", "name", "prefix"}
    assert made["name"] == "alice"
    assert made["key"].startswith(made["prefix"].removesuffix("…"))
    assert run("key", "show", str(made["id"]), "--json").json["name"] == "alice"


def test_create_sets_every_limit(run: Run) -> None:
    made = run(
        *("key", "create", "alice", "--requests-per-minute", "60", "--tokens-per-minute", "100k"),
        *("--budget", "2M/5h", "--budget", "200M", "--concurrency", "4", "--overdraft", "300k"),
        *("--model", "claude-*", "--model", "gpt-5", "--expires", "90d"),
    )
    assert made.code == 0
    shown = run("key", "show", "alice", "--json").json
    assert shown["requests_per_minute"] == 60
    assert shown["tokens_per_minute"] == 100_000
    assert [(budget["tokens"], budget["window"]) for budget in shown["budgets"]] == [
        (2_000_000, 18_000_000),
        (200_000_000, None),
    ]
    assert (shown["concurrency"], shown["overdraft"]) == (4, 300_000)
    assert shown["models"] == ["claude-*", "gpt-5"]
    assert shown["expires"] == shown["created"] + 90 * DAY_MS


def test_create_says_when_a_key_has_no_limits(run: Run) -> None:
    assert "alice has no limits" in run("key", "create", "alice").err
    assert "no limits" not in run("key", "create", "bob", "--concurrency", "1").err


def test_create_and_edit_say_when_a_budget_is_small_for_claude_code(run: Run) -> None:
    for warned in (
        run("key", "create", "alice", "--budget", "200k/5h"),
        run("key", "edit", "alice", "--budget", "150k"),
    ):
        assert "about 91,000 tokens" in warned.err
        assert "--overdraft" in warned.err
    for enough in (("--budget", "2M/5h"), ("--budget", "200k/5h", "--overdraft", "300k")):
        assert "91,000" not in run("key", "edit", "alice", *enough).err


@pytest.mark.parametrize("name", ["", " ", "a" * 65, "two\nlines", "tab\t", " alice", "bell\a", "\u202ealice"])
def test_a_name_that_is_hard_to_read_is_refused(run: Run, name: str) -> None:
    failed = run("key", "create", name)
    assert (failed.code, failed.out) == (1, "")
    assert "1 to 64 printable characters" in failed.err


def test_a_name_is_given_once(run: Run) -> None:
    run("key", "create", "alice")
    run("key", "create", "bob")
    for failed in (run("key", "create", "alice"), run("key", "rename", "bob", "alice")):
        assert (failed.code, failed.out) == (1, "")
        assert failed.err == "error: there is already a key with the name alice\n"


# Changing keys


def test_edit_prints_old_and_new_of_what_changed(run: Run) -> None:
    run("key", "create", "alice", "--budget", "2M/5h", "--concurrency", "4")
    edited = run("key", "edit", "alice", "--budget", "5M/5h", "--budget", "50M/7d", "--concurrency", "4")
    assert edited.code == 0
    assert edited.out == "budgets: 2M/5h -> 5M/5h, 50M/7d\n"


def test_edit_clears_a_limit_with_none(run: Run) -> None:
    options = (
        "--requests-per-minute",
        "--tokens-per-minute",
        "--concurrency",
        "--overdraft",
        "--budget",
        "--expires",
    )
    values = ("60", "100k", "4", "10k", "2M/5h", "90d")
    given = [text for pair in zip(options, values, strict=True) for text in pair]
    run("key", "create", "alice", *given, "--model", "claude-*")
    cleared = run("key", "edit", "alice", *(text for option in (*options, "--model") for text in (option, "none")))
    assert cleared.code == 0
    shown = run("key", "show", "alice", "--json").json
    assert [shown[name] for name in ("requests_per_minute", "tokens_per_minute", "concurrency", "expires")] == [
        None
    ] * 4
    assert (shown["overdraft"], shown["budgets"], shown["models"]) == (0, [], [])


def test_edit_keeps_what_it_is_not_told(run: Run) -> None:
    run("key", "create", "alice", "--budget", "2M/5h", "--model", "claude-*")
    run("key", "edit", "alice", "--concurrency", "2")
    shown = run("key", "show", "alice", "--json").json
    assert (shown["budgets"][0]["tokens"], shown["models"]) == (2_000_000, ["claude-*"])


def test_edit_without_a_change_says_so(run: Run) -> None:
    run("key", "create", "alice", "--concurrency", "2")
    same = run("key", "edit", "alice", "--concurrency", "2")
    assert (same.code, same.out, same.err) == (0, "", "alice is like that already.\n")
    assert run("key", "edit", "alice").code == 2


def test_disabling_and_enabling_are_shown(run: Run) -> None:
    run("key", "create", "alice")
    assert run("key", "disable", "alice").code == 0
    assert run("key", "show", "alice", "--json").json["state"] == "disabled"
    assert run("key", "enable", "alice", "--json").json["state"] == "active"


def test_renaming_keeps_the_key(run: Run) -> None:
    made = run("key", "create", "alice", "--json").json
    assert run("key", "rename", "alice", "alice-laptop").code == 0
    assert run("key", "show", "alice-laptop", "--json").json["id"] == made["id"]
    assert run("key", "show", "alice").code == 3


def test_rotating_makes_a_new_key_and_ends_the_old_one(run: Run) -> None:
    run("key", "create", "alice")
    rotated = run("key", "rotate", "alice")
    api_key = keys.parse(rotated.out.strip())
    assert api_key is not None
    (secret,) = run("key", "show", "alice", "--json").json["secrets"]
    assert secret["key_id"] == api_key.key_id


def test_rotating_with_grace_keeps_the_old_key_for_so_long(run: Run) -> None:
    run("key", "create", "alice")
    rotated = run("key", "rotate", "alice", "--grace", "24h", "--json").json
    new, old = run("key", "show", "alice", "--json").json["secrets"]
    assert (new["prefix"], new["expires"]) == (rotated["prefix"], None)
    assert old["expires"] == new["created"] + DAY_MS


# Finding keys


@pytest.mark.parametrize("command", ["show", "disable", "enable", "rotate", "delete"])
def test_an_unknown_key_ends_with_3(run: Run, command: str) -> None:
    run("key", "create", "alice")
    failed = run("key", command, "nobody")
    assert (failed.code, failed.out, failed.err) == (3, "", "error: no such key: nobody\n")


def test_a_key_that_fits_several_ends_with_2_and_names_them(run: Run) -> None:
    run("key", "create", "alice")
    run("key", "create", "bob")
    with closing(sqlite3.connect(DATABASE)) as connection, connection:
        connection.execute("UPDATE secret SET key_id = 'k7f3' || substr(key_id, 5)")
    failed = run("key", "disable", "k7f3")
    assert (failed.code, failed.out, failed.err) == (2, "", "error: k7f3 fits several keys: alice, bob\n")


def test_a_whole_key_is_not_taken_and_not_repeated(run: Run) -> None:
    api_key = run("key", "create", "alice").out.strip()
    failed = run("key", "show", api_key)
    assert failed.code == 2
    assert keys.parse(api_key) is not None
    assert api_key not in failed.err
    assert api_key[-30:] not in failed.err


# Reading


def test_list_shows_the_percentage_of_each_window(run: Run) -> None:
    run("key", "create", "alice", "--budget", "2M/5h", "--budget", "20M/7d")
    fill_ledger(tokens=820_000, started=now_ms() - 60_000)
    listed = run("key", "list")
    assert listed.out.splitlines()[0].split("  ")[0] == "NAME"
    assert "2M/5h 41%, 20M/7d 4%" in listed.out
    (shown,) = run("key", "list", "--json").json
    assert [(budget["used"], budget["percent"]) for budget in shown["budgets"]] == [(820_000, 41), (820_000, 4)]


def test_list_of_no_keys_says_how_to_make_one(run: Run) -> None:
    run("key", "create", "alice")
    run("key", "delete", "alice", "--yes")
    assert run("key", "list", "--json").json == []
    assert "key create" in run("key", "list").err


def test_show_tells_when_tokens_come_back(run: Run) -> None:
    run("key", "create", "alice", "--budget", "2M/5h")
    fill_ledger(tokens=500_000, started=now_ms() - 60_000)
    shown = run("key", "show", "alice").out
    assert re.search(r"2M/5h +500,000 +0 +1,500,000 +0 +25% +from .+ UTC, all by .+ UTC", shown)


def test_an_expired_key_is_called_so(run: Run) -> None:
    run("key", "create", "alice", "--expires", "90d")
    with closing(sqlite3.connect(DATABASE)) as connection, connection:
        connection.execute("UPDATE key SET expires = 1")
    assert run("key", "show", "alice", "--json").json["state"] == "expired"


def test_usage_adds_up_by_day_model_and_key(run: Run) -> None:
    run("key", "create", "alice")
    run("key", "create", "bob")
    fill_ledger(tokens=1_000, started=now_ms() - 60_000, requests=3)
    by_key = run("usage", "--by", "key", "--json").json
    assert [(row["key"], row["requests"], row["input"], row["charge"]) for row in by_key] == [
        ("alice", 3, 3_000, 3_000),
        ("bob", 3, 3_000, 3_000),
    ]
    (model,) = run("usage", "alice", "--by", "model", "--json").json
    assert (model["model"], model["requests"]) == ("claude-sonnet-4-5", 3)
    table = run("usage", "--by", "key").out.splitlines()
    assert table[-1].split()[:3] == ["total", "6", "6,000"]


def test_usage_looks_back_only_so_far(run: Run) -> None:
    run("key", "create", "alice")
    fill_ledger(tokens=1_000, started=now_ms() - 2 * DAY_MS)
    assert run("usage", "--since", "1d", "--json").json == []
    assert len(run("usage", "--since", "3d", "--json").json) == 1


def test_usage_as_csv_cannot_run_a_formula(run: Run) -> None:
    run("key", "create", "=1+1")
    fill_ledger(tokens=1_000, started=now_ms() - 60_000)
    lines = run("usage", "--by", "key", "--csv").out.splitlines()
    assert lines == ["key,requests,input,output,cache_write,cache_read,charge", "'=1+1,1,1000,0,0,0,1000"]


# Deleting


def test_delete_erases_and_says_what_was_verified(run: Run) -> None:
    run("key", "create", "alice-the-first")
    fill_ledger(tokens=1_000, started=now_ms(), requests=12)
    deleted = run("key", "delete", "alice-the-first", "--yes")
    assert deleted.code == 0
    assert "Erased alice-the-first and its 12 requests." in deleted.err
    assert re.search(
        r"searched opusmax.db \([\d,]+ bytes\), .+ for its ids, hashes and name: 0 hits\.", deleted.err
    )
    assert run("key", "show", "alice-the-first").code == 3


def test_delete_as_json_tells_the_same(run: Run) -> None:
    run("key", "create", "alice")
    deleted = run("key", "delete", "alice", "--yes", "--json").json
    assert (deleted["name"], deleted["requests"], deleted["hits"]) == ("alice", 0, 0)
    assert deleted["searched_bytes"] > 0


def test_delete_without_a_terminal_needs_to_be_told_yes(run: Run) -> None:
    run("key", "create", "alice")
    failed = run("key", "delete", "alice")
    assert failed.code == 2
    assert "--yes" in failed.err
    assert run("key", "show", "alice").code == 0


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1)])
def test_delete_asks_on_a_terminal(run: Run, tmp_path: Path, typed: str, code: int) -> None:
    run("key", "create", "alice")
    ours, theirs = pty.openpty()
    with start("key", "delete", "alice", cwd=tmp_path, stdin=theirs) as process:
        os.write(ours, typed.encode())
        out, err = process.communicate(timeout=20)
    os.close(ours)
    os.close(theirs)
    assert (process.returncode, out) == (code, "")
    assert "Erase alice with all its usage, for good?" in err
    assert run("key", "show", "alice").code == (3 if code == 0 else 0)


def test_delete_finishes_an_erasure_that_was_interrupted(run: Run) -> None:
    run("key", "create", "alice")
    with closing(sqlite3.connect(DATABASE)) as connection, connection:
        connection.execute("INSERT INTO erasure VALUES (1)")
    assert "an erasure is running or was interrupted" in run("check").out
    assert "interrupted is finished now" in run("key", "delete", "nobody").err
    assert "no erasure is waiting" in run("check").out


# Checking and copying


def test_check_passes_on_a_sound_installation(run: Run, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    run("key", "create", "alice")
    fill_ledger(tokens=1, started=now_ms())
    checked = run("check", OPUSMAX_PUBLIC_URL="https://ai.example.com", OPUSMAX_CONTACT="ops@example.com")
    assert (checked.code, "FAULT" in checked.out) == (0, False)


def test_check_has_a_line_for_each_fault(run: Run, tmp_path: Path) -> None:
    run("key", "create", "alice")
    fill_ledger(tokens=1, started=now_ms() + 3_600_000)
    Path(DATABASE).chmod(0o644)
    tmp_path.chmod(0o777)
    checked = run("check")
    faults = [line for line in checked.out.splitlines() if line.startswith("FAULT")]
    assert checked.code == 1
    for word in ("public_url", "contact", "read by others", "changed by others", "set the clock"):
        assert sum(word in fault for fault in faults) == 1
    assert len(faults) == 5
    assert [finding["ok"] for finding in run("check", "--json").json].count(False) == 5


def test_check_says_that_the_provider_cannot_be_reached(run: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        origin = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert (
            f"FAULT  the provider at {origin} cannot be reached" in run("check", OPUSMAX_ANTHROPIC_URL=origin).out
        )


def test_check_finds_a_damaged_database(run: Run) -> None:
    run("key", "create", "alice")
    fill_ledger(tokens=1, started=now_ms(), requests=2_000)
    with Path(DATABASE).open("r+b") as file:
        file.seek(8 * 4_096)
        file.write(b"\xff" * 3 * 4_096)
    checked = run("check")
    assert checked.code == 1
    assert re.search("FAULT.*(damaged|malformed|cannot be used)", checked.out)


def test_check_without_a_database_or_with_a_bad_setting_still_ends_well(run: Run) -> None:
    checked = run("check", OPUSMAX_LISTEN="nowhere")
    assert checked.code == 1
    assert "there is no database" in checked.out
    assert "listen:" in checked.out


def test_a_backup_is_complete_private_and_never_overwrites(run: Run) -> None:
    run("key", "create", "alice")
    fill_ledger(tokens=1, started=now_ms(), requests=10)
    assert run("backup", "copy.db").code == 0
    assert stat.S_IMODE(Path("copy.db").stat().st_mode) == 0o600
    with closing(sqlite3.connect("copy.db")) as connection:
        assert connection.execute("SELECT count(*) FROM request").fetchone() == (10,)
    before = Path("copy.db").read_bytes()
    failed = run("backup", "copy.db")
    assert (failed.code, failed.err) == (1, "error: copy.db: File exists\n")
    assert Path("copy.db").read_bytes() == before


# Calling


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
    assert len(commands) == 14
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


# Tables


def test_a_table_is_aligned_and_cut_to_the_width() -> None:
    columns = (tables.Column("name"), tables.Column("requests", is_number=True))
    rows = [["alice", "1,204"], ["bob-with-a-long-name", "0"]]
    assert tables.render(columns, rows).splitlines() == [
        "NAME                  REQUESTS",
        "alice                    1,204",
        "bob-with-a-long-name         0",
    ]
    assert tables.render(columns, rows, width=20).splitlines() == [
        "NAME        REQUESTS",
        "alice          1,204",
        "bob-with-…         0",
    ]


def test_a_wide_character_takes_two_places() -> None:
    columns = (tables.Column("name"), tables.Column("n", is_number=True))
    assert tables.render(columns, [["日本", "1"], ["abcd", "2"]]).splitlines() == ["NAME  N", "日本  1", "abcd  2"]


def test_a_table_without_rows_has_its_headings() -> None:
    assert tables.render((tables.Column("name"),), [], width=3) == "NAME"
