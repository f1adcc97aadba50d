"""`check` finds what an operator cannot see: packages that are others, a policy that tells less than is kept, and
all that `serve` refuses at its start.
"""

import asyncio
import html
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from importlib import metadata
from pathlib import Path

import aiohttp
import pytest

from gateway import cli
from gateway.core import policy
from gateway.simulator import Script, Simulator
from tests.harness import OPERATOR_CREDENTIAL, Database, ask
from tests.test_server_process import COMMAND_LINE, run, server

ROOT = COMMAND_LINE.parent
AIOSQLITE = metadata.version("aiosqlite")
ROW_OF_THE_PAGE = re.compile(r'<th scope="row"><code>([^<]+)</code></th>\s*<td>(.*?)</td>', re.DOTALL)

CHANGES = {
    "a column was added": ("ALTER TABLE request ADD COLUMN address TEXT", "without_line", "request.address"),
    "a table was added": ("CREATE TABLE diary (entry TEXT) STRICT", "without_line", "diary.entry"),
    "a column was dropped": ("ALTER TABLE key DROP COLUMN refused_size", "without_column", "key.refused_size"),
}


@pytest.fixture
def used(database: Database) -> Database:
    """A database with a key in it."""
    asyncio.run(database.create_key("alice"))
    return database


def check(database: Database, *flags: str, **environment: str) -> tuple[int, str, str]:
    """The command in this process: exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    code = cli.main(["check", *flags, "--database", str(database.path)], environment, out, err)
    return code, out.getvalue(), err.getvalue()


def faults(output: str) -> list[str]:
    return [line.removeprefix("FAULT").strip() for line in output.splitlines() if line.startswith("FAULT")]


def change(database: Database, sql: str) -> None:
    with closing(sqlite3.connect(database.path)) as connection:
        connection.execute(sql)


# The policy and the database


def test_each_column_stands_beside_its_line_of_the_policy(used: Database) -> None:
    code, output, talk = check(used, "--privacy")
    told = [line.split(maxsplit=2) for line in output.splitlines()]
    assert code == 0
    assert told == [["ok", f"{table}.{column}", line] for (table, column), line in policy.LINES.items()]
    assert len({line.index(text) for line, (_, _, text) in zip(output.splitlines(), told, strict=True)}) == 1
    assert f"all {len(policy.LINES)} columns" in talk


@pytest.mark.parametrize(("sql", "kind", "column"), CHANGES.values(), ids=CHANGES.keys())
def test_a_database_that_is_not_as_the_policy_says_is_a_fault_that_names_the_column(
    used: Database, sql: str, kind: str, column: str
) -> None:
    change(used, sql)
    code, output, talk = check(used, "--privacy")
    assert (code, [fault.split()[0] for fault in faults(output)]) == (1, [column])
    assert "differ in 1 of" in talk
    code, output, _ = check(used, "--privacy", "--json")
    gaps = {"without_line": [], "without_column": [], kind: [column]}
    assert code == 1
    assert {name: json.loads(output)[name] for name in gaps} == gaps
    _, output, _ = check(used)
    assert [fault for fault in faults(output) if "privacy policy" in fault and column in fault] != []


@pytest.mark.parametrize("sql", [None, *(sql for sql, _, _ in CHANGES.values())], ids=["as it is", *CHANGES])
async def test_the_privacy_page_and_the_check_tell_the_same(
    http: aiohttp.ClientSession, database: Database, sql: str | None
) -> None:
    if sql:
        change(database, sql)
    async with http.get("/privacy") as answer:
        page = ROW_OF_THE_PAGE.findall(await answer.text())
    _, output, _ = await run("check", "--privacy", "--json", database=database.path)
    checked = [
        (f"{each['table']}.{each['column']}", each["line"] or policy.UNDESCRIBED)
        for each in json.loads(output)["columns"]
    ]
    assert checked == [(column, " ".join(html.unescape(line).split())) for column, line in page]


def test_without_a_database_there_is_nothing_to_compare(database: Database) -> None:
    code, output, talk = check(database, "--privacy")
    assert (code, output) == (1, "")
    assert "there is no database" in talk
    assert not database.path.exists()


# The packages


@pytest.mark.parametrize(
    ("pinned", "fault"),
    [
        ("aiosqlite==0.0.1", f"aiosqlite {AIOSQLITE} instead of 0.0.1"),
        (f"aiosqlite=={AIOSQLITE}\nimaginary-package==2.0", "imaginary-package is missing instead of 2.0"),
        (None, "requirements.txt cannot be read"),
    ],
    ids=["another version", "a missing package", "no lock"],
)
def test_packages_that_are_not_those_of_the_lock_are_a_fault(
    tmp_path: Path, pinned: str | None, fault: str
) -> None:
    shutil.copytree(ROOT / "gateway", tmp_path / "gateway")
    for name in ("opusmax.py", "schema.sql"):
        shutil.copy(ROOT / name, tmp_path)
    if pinned is not None:
        lock = (ROOT / "requirements.txt").read_text(encoding="utf-8")
        (tmp_path / "requirements.txt").write_text(re.sub(r"^aiosqlite==\S+", pinned, lock, flags=re.MULTILINE))
    checked = subprocess.run(
        [sys.executable, "opusmax.py", "check"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    [found] = [line for line in faults(checked.stdout) if "requirements.txt" in line]
    assert checked.returncode == 1
    assert fault in found
    assert "pip install --require-hashes -r requirements.txt" in found or pinned is None


# The upstreams


def upstreams(*tables: tuple[str, str, str]) -> str:
    """The tables of upstreams: name, address, and the variable of their credential, if they need one."""
    return "".join(
        f'[[upstream]]\nname = "{name}"\nprotocol = "openai"\nurl = "{url}"\n'
        + (f'credentials = "{variable}"\n' if variable else "")
        for name, url, variable in tables
    )


async def test_each_upstream_is_looked_at_and_its_faults_are_told_by_its_name(
    provider: Simulator, used: Database, tmp_path: Path, unused_tcp_port: int
) -> None:
    gone = f"http://127.0.0.1:{unused_tcp_port}"
    tables = upstreams(
        ("good", f"{provider.origin}/v1", "GOOD_KEY"),
        ("local", provider.origin, ""),
        ("gone", gone, "GONE_KEY"),
        ("closed", provider.origin, "CLOSED_KEY"),
    )
    file = tmp_path / "elsewhere.toml"
    file.write_text(f'contact = "ops@example.com"\n{tables}')
    environment = {"GOOD_KEY": f"{OPERATOR_CREDENTIAL},another", "GONE_KEY": OPERATOR_CREDENTIAL}
    code, output, errors = await run("check", "--config", str(file), database=used.path, **environment)
    told = faults(output)
    assert code == 1
    assert len([fault for fault in told if f"{gone} cannot be reached (upstream gone)" in fault]) == 1
    assert (
        len([fault for fault in told if "upstream closed: credentials: " in fault and "CLOSED_KEY" in fault]) == 1
    )
    assert [fault for fault in told if "good" in fault or "local" in fault or "contact" in fault] == []
    assert "upstream good has 2 credentials from GOOD_KEY" in output
    assert "upstream local needs no credential" in output
    assert output.count(f"the provider at {provider.origin} can be reached") == 3
    assert OPERATOR_CREDENTIAL not in output + errors


@pytest.mark.parametrize("name", ["anthropic", "openai"])
async def test_without_tables_the_upstreams_that_have_a_credential_are_looked_at(
    provider: Simulator, used: Database, name: str
) -> None:
    given = {f"OPUSMAX_{name.upper()}_URL": provider.origin, f"{name.upper()}_API_KEY": OPERATOR_CREDENTIAL}
    _, output, _ = await run("check", database=used.path, **given)
    assert [line.split(maxsplit=1)[1] for line in output.splitlines() if "upstream " in line] == [
        f"upstream {name} has 1 credential from {name.upper()}_API_KEY",
        f"the provider at {provider.origin} can be reached (upstream {name})",
    ]


def test_without_any_credential_check_says_what_serve_would_say(used: Database) -> None:
    code, output, _ = check(used)
    [fault] = [fault for fault in faults(output) if "no credential for a provider" in fault]
    assert code == 1
    assert "ANTHROPIC_API_KEY" in fault
    assert "OPENAI_API_KEY" in fault


def test_a_configuration_that_is_not_there_is_a_fault_and_the_rest_is_looked_at(used: Database) -> None:
    code, output, _ = check(used, "--config", "nowhere.toml")
    assert code == 1
    assert [fault for fault in faults(output) if "nowhere.toml cannot be read" in fault] != []
    assert "the database is not damaged" in output


# What the server refuses


def old_aiohttp(folder: Path) -> dict[str, str]:
    """The metadata of another aiohttp, found before that of the one that is installed."""
    file = folder / "older" / "aiohttp-3.14.3.dist-info" / "METADATA"
    file.parent.mkdir(parents=True)
    file.write_text("Metadata-Version: 2.1\nName: aiohttp\nVersion: 3.14.3\n")
    return {"PYTHONPATH": str(folder / "older")}


def open_files(folder: Path) -> dict[str, str]:
    (folder / "opusmax.db").chmod(0o640)
    return {}


def tls_secrets(folder: Path) -> dict[str, str]:
    return {"SSLKEYLOGFILE": str(folder / "keys")}


Plant = Callable[[Path], dict[str, str]]
"""Makes a fault in a folder with a database; returns variables for the environment."""

REFUSED: Mapping[str, tuple[Plant, str]] = {
    "the secrets of TLS are written down": (tls_secrets, "SSLKEYLOGFILE is set"),
    "the parser in C is off": (lambda _: {"AIOHTTP_NO_EXTENSIONS": "1"}, "aiohttp's C parser is missing"),
    "aiohttp has known faults": (old_aiohttp, "aiohttp 3.14.3 has known faults: install 3.14.4 or newer"),
    "others may read the database": (open_files, "may be read by others than the owner: run `chmod go= "),
}


@pytest.mark.parametrize(("plant", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_safe_is_refused_at_the_start_in_one_line_that_check_has_too(
    used: Database, tmp_path: Path, plant: Plant, words: str
) -> None:
    environment = {
        "OPUSMAX_DATABASE": str(used.path),
        "OPUSMAX_LISTEN": "127.0.0.1:0",
        "OPUSMAX_ANTHROPIC_URL": "http://127.0.0.1:1",
        "ANTHROPIC_API_KEY": OPERATOR_CREDENTIAL,
        "PATH": os.environ["PATH"],
    } | plant(tmp_path)

    def command(name: str) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, str(COMMAND_LINE), name]
        return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=10, check=False)

    [fault] = [line for line in faults(command("check").stdout) if words in line]
    refused = command("serve")
    assert (refused.returncode, refused.stdout, refused.stderr) == (1, "", f"opusmax: {fault}\n")


async def test_a_crash_shows_no_values_even_in_the_debug_modes_of_python(
    provider: Simulator, database: Database
) -> None:
    """They are not refused: they show where Python was, and never what it held."""
    text, _ = await database.create_key("alice")
    canary = "canary-in-a-crash-93d2"
    provider.script = Script(stall_after_events=2)
    modes = {
        "PYTHONDEVMODE": "1",
        "PYTHONASYNCIODEBUG": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONWARNINGS": "default",
    }
    async with server(provider, database.path, **modes) as running, aiohttp.ClientSession() as session:
        body = ask(stream=True, system=canary)
        async with session.post(f"{running.origin}/v1/messages", json=body, headers={"x-api-key": text}) as answer:
            await answer.content.readany()
            assert await running.stop(signal.SIGSEGV) == -signal.SIGSEGV
    errors = running.errors.decode()
    assert "Segmentation fault" in errors
    assert "server.py" in errors
    assert [secret for secret in (canary, text, OPERATOR_CREDENTIAL, "127.0.0.1") if secret in errors] == []
