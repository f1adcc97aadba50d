"""The image: what the Dockerfile takes is enough to serve, as nobody in particular, and its look at itself is true.

There is no engine to build it with in the tests: its instructions are followed by hand, with this Python.
"""

import asyncio
import json
import os
import re
import shutil
import sys
from pathlib import Path

import aiohttp

from gateway.core.settings import Settings
from tests.deployed_proxies import free_port
from tests.harness import OPERATOR_CREDENTIAL

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
COMPOSE = (DEPLOY / "compose.yaml").read_text()
PYTHON = "/opt/opusmax/.venv/bin/python"


def instruction(name: str) -> list[str]:
    """The last instruction of that name, in the form that needs no shell."""
    found = re.findall(rf"^{name}\b[^\[\n]*(\[.*\])$", DOCKERFILE, re.MULTILINE)
    words: list[str] = json.loads(found[-1])
    return words


def copied_from_the_repository() -> list[str]:
    lines = re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
    return [name for line in lines for name in line.split()[:-1]]


def test_every_instruction_runs_without_a_shell_and_the_last_user_is_not_root() -> None:
    runs = re.findall(r"^(?:RUN|CMD|ENTRYPOINT) (.)", DOCKERFILE, re.MULTILINE)
    assert runs
    assert set(runs) == {"["}
    assert re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)[-1] == ("10001", "10001")
    assert "--require-hashes" in DOCKERFILE
    assert "VOLUME /var/lib/opusmax" in DOCKERFILE


def test_the_builder_is_sent_what_the_image_takes_and_nothing_else() -> None:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in lines
    assert {line[1:] for line in lines if line.startswith("!")} == set(copied_from_the_repository())


async def test_what_is_copied_serves_and_says_of_itself_whether_it_is_ready(tmp_path: Path) -> None:
    image, data, port = tmp_path / "image", tmp_path / "data", free_port()
    image.mkdir()
    data.mkdir()
    for name in copied_from_the_repository():
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, image / name)
    [environment] = re.findall(r"^ENV ((?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE)
    settings = dict(word.split("=") for word in environment.replace("\\\n", "").split())
    settings |= {"OPUSMAX_DATABASE": str(data / "opusmax.db"), "OPUSMAX_LISTEN": f"127.0.0.1:{port}"}
    secret = tmp_path / "secret"
    secret.write_text(OPERATOR_CREDENTIAL)
    settings |= {"ANTHROPIC_API_KEY_FILE": str(secret), "OPUSMAX_ANTHROPIC_URL": "http://127.0.0.1:9"}
    command = [word.replace(PYTHON, sys.executable) for word in instruction("ENTRYPOINT") + instruction("CMD")]
    healthcheck = [word.replace(PYTHON, sys.executable) for word in instruction("HEALTHCHECK")]
    healthcheck = [word.replace(":8080", f":{port}") for word in healthcheck]
    assert await code_of(healthcheck) != 0
    process = await asyncio.create_subprocess_exec(
        *(word.replace("/opt/opusmax", str(image)) for word in command),
        cwd=data,
        env={"PATH": os.environ["PATH"]} | settings,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(20):
            while b"serving on" not in (line := await process.stderr.readline()):
                assert line, "it did not start"
        assert await code_of(healthcheck) == 0
        async with aiohttp.request("GET", f"http://127.0.0.1:{port}/usage") as answer:
            assert answer.status == 200
    finally:
        process.terminate()
        await process.communicate()


async def code_of(command: list[str]) -> int | None:
    child = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    return await child.wait()


def test_the_composition_gives_it_no_more_than_it_needs() -> None:
    for line in (
        'ports: ["127.0.0.1:8080:8080"]',
        "read_only: true",
        "cap_drop: [ALL]",
        'security_opt: ["no-new-privileges:true"]',
        "core: 0",
    ):
        assert line in COMPOSE
    limits = dict(re.findall(r"^    (mem_limit|memswap_limit|stop_grace_period): (\w+)$", COMPOSE, re.MULTILINE))
    assert limits["mem_limit"] == limits["memswap_limit"]
    assert int(limits["stop_grace_period"].removesuffix("s")) > 2 * Settings().drain_seconds + 5
    assert "_API_KEY:" not in COMPOSE
