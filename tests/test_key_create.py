"""`key create`: what it makes, prints and advises."""

import sqlite3
import tomllib
from contextlib import closing
from pathlib import Path

import pytest

from gateway.core import keys
from gateway.core.amounts import DAY_MS
from gateway.hashing import verify_secret
from tests import commands
from tests.commands import DATABASE, Run

run = commands.run


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
    assert "export CLAUDE_CODE_USE_GATEWAY=1 " in made.err
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
        assert "about 155,000 tokens" in warned.err
        assert "--overdraft" in warned.err
    for enough in (("--budget", "2M/5h"), ("--budget", "200k/5h", "--overdraft", "500k")):
        assert "155,000" not in run("key", "edit", "alice", *enough).err


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


def test_create_says_how_codex_is_pointed_here(run: Run) -> None:
    told = run("key", "create", "alice", OPUSMAX_PUBLIC_URL="https://ai.example.com").err
    table = "\n".join(line[2:] for line in told.splitlines() if line.startswith("  ") and "export" not in line)
    codex = tomllib.loads(table[table.index("model_provider") :])
    provider = codex["model_providers"][codex["model_provider"]]
    assert (provider["base_url"], provider["wire_api"]) == ("https://ai.example.com/v1", "responses")
    assert f"export {provider['env_key']}=sk-ant-om1-" in told
