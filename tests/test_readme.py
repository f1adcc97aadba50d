"""What the README says is so: its commands run, its tables are complete, its files exist."""

import asyncio
import os
import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path

from gateway.core.settings import Settings
from gateway.simulator import Simulator
from tests.harness import OPERATOR_CREDENTIAL, Database
from tests.test_server_process import server

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = ".venv/bin/python"


def shell_lines() -> list[str]:
    """All lines of all shell blocks, continued ones joined."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    return [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines() if line]


async def shell(line: str, folder: Path, **environment: str) -> str:
    """Run one line as a reader would, from a folder of its own; fails if it fails."""
    line = line.replace(f"{PYTHON} opusmax.py", shlex.join([sys.executable, str(ROOT / "opusmax.py")]))
    child = await asyncio.create_subprocess_shell(
        line,
        cwd=folder,
        env={"PATH": os.environ["PATH"]} | environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await child.communicate()
    assert child.returncode == 0, f"{line}\n{errors.decode()}"
    return output.decode()


async def test_every_command_of_the_administrator_works_in_the_order_of_the_readme(tmp_path: Path) -> None:
    commands = [line for line in shell_lines() if line.startswith(f"{PYTHON} opusmax.py")]
    assert len(commands) == 14
    for line in commands:
        if line.endswith(" check"):
            continue  # it finds what is not configured here: see test_admin_commands.py
        await shell(line, tmp_path)
    assert (tmp_path / "opusmax-backup.db").stat().st_mode & 0o777 == 0o600


async def test_serve_and_the_first_request_of_the_readme_work(database: Database) -> None:
    text, _ = await database.create_key("alice")
    [serve] = [line for line in shell_lines() if line.endswith(f"{PYTHON} opusmax.py serve")]
    assert serve.startswith("ANTHROPIC_API_KEY=")
    [start] = [number for number, line in enumerate(shell_lines()) if line.startswith("curl ")]
    request = "\n".join(shell_lines()[start : start + 2])
    async with (
        Simulator(models=["claude-haiku-4-5"], credentials={OPERATOR_CREDENTIAL}) as provider,
        server(provider, database.path) as running,
    ):
        child = await asyncio.create_subprocess_shell(
            request.replace("http://127.0.0.1:8080", running.origin),
            env={"PATH": os.environ["PATH"], "OPUSMAX_KEY": text},
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await child.communicate()
    assert b"event: message_stop" in output


def test_what_is_left_of_the_shell_lines_is_run_by_ci() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8") + (ROOT / "Makefile").read_text(encoding="utf-8")
    run_here = (f"{PYTHON} opusmax.py", "ANTHROPIC_API_KEY=", "curl ", "-d ", '"messages"')
    for line in shell_lines():
        if not line.strip().startswith(run_here):
            named = ("demo", "test", "venv", "--require-hashes")
            words = [word for word in shlex.split(line) if word.startswith(named)]
            assert words, line
            assert all(word in ci for word in words), line


def test_the_table_of_settings_is_complete_and_true() -> None:
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \| ?(.*?) ?\|", README, re.MULTILINE)
    told = {name: default.strip("` ") for names, default in rows for name in re.findall(r"`([a-z_]+)`", names)}
    defaults = {field.name: field.default for field in fields(Settings)}
    assert told.keys() == defaults.keys()
    for name, default in defaults.items():
        if name == "listen":
            continue
        shown = {"False": "false", "()": "", "None": ""}.get(str(default), str(default))
        assert told[name] == shown, name


def test_every_file_that_the_readme_names_exists() -> None:
    named = re.findall(r"`((?:tests|prove|gateway|templates)/[\w/.]*|[\w.]+\.(?:py|sql|txt|in))`", README)
    assert len(named) > 10
    for name in named:
        assert (ROOT / name).exists(), name
