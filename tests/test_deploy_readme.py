"""What deploy/README.md says is so: the administrator's commands run in its order, and its files exist."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from gateway.core.settings import Settings
from tests.test_server_process import run

DEPLOY = Path(__file__).parent.parent / "deploy"
README = (DEPLOY / "README.md").read_text()


def shell_lines() -> list[str]:
    return [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]


async def test_the_commands_work_in_their_order(tmp_path: Path) -> None:
    """But for `check`, which needs a provider; and of the restore, the key that it revived is there."""
    database = tmp_path / "opusmax.db"
    (tmp_path / "backups").mkdir()
    await run("key", "create", "mallory", database=database)
    commands = [line.removeprefix("opusmax ") for line in shell_lines() if line.startswith("opusmax ")]
    assert len(commands) == 9
    for command in commands:
        command = command.replace("/var/lib/opusmax", str(tmp_path)).replace("$(date +%F)", "2026-01-31")
        if command != "check":
            code, _, errors = await run(*shlex.split(command), database=database)
            assert code == 0, f"{command}: {errors}"


@pytest.mark.parametrize("source", re.findall(r"/opt/opusmax/(deploy/[\w.]+)", README))
def test_every_file_that_is_installed_is_there(source: str) -> None:
    assert (DEPLOY.parent / source).is_file()


def test_the_configuration_is_one() -> None:
    text = (DEPLOY / "opusmax.toml").read_text()
    settings = Settings.load({}, {}, text)
    assert settings.behind_proxy
    assert set(tomllib.loads(text)) <= set(Settings.__dataclass_fields__)
