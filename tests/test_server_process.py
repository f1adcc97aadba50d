"""The server as its operator runs it: a process of its own, beside the command line."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Protocol

import aiohttp
import pytest

from gateway.core.records import Key
from gateway.simulator import OPENAI_MODELS, Script, Simulator
from tests.harness import OPERATOR_CREDENTIAL, Database, ask, until

COMMAND_LINE = Path(__file__).parent.parent / "opusmax.py"
WITHIN_SECONDS = 10.0
"""Far more than the promised second: this machine may be busy. `make prove` measures the promise itself."""


async def run(*arguments: str, database: Path, **environment: str) -> tuple[int, str, str]:
    """One command: exit code, stdout, stderr."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        COMMAND_LINE,
        *arguments,
        env={"OPUSMAX_DATABASE": str(database), "PATH": os.environ["PATH"]} | environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await child.communicate()
    return child.returncode or 0, stdout.decode(), stderr.decode()


class Provider(Protocol):
    """Whatever stands behind the server."""

    @property
    def origin(self) -> str: ...


class Server:
    """A running `serve`."""

    def __init__(self, process: asyncio.subprocess.Process, origin: str) -> None:
        self.process = process
        self.origin = origin
        self.errors = b""

    async def hear(self, pattern: bytes) -> str:
        """Read the log until a line has `pattern`; gives its group, or all of it."""
        assert self.process.stderr is not None
        async with asyncio.timeout(30):
            while line := await self.process.stderr.readline():
                self.errors += line
                if found := re.search(pattern, line):
                    return found[found.re.groups].decode()
        raise AssertionError(f"the server ended without {pattern!r}:\n{self.errors.decode()}")

    async def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        assert self.process.stderr is not None
        self.errors += await self.process.stderr.read()
        return await self.process.wait()


@asynccontextmanager
async def server(provider: Provider, database: Path, *flags: str, **environment: str) -> AsyncIterator[Server]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        COMMAND_LINE,
        *("serve", "--listen", "127.0.0.1:0", "--anthropic-url", provider.origin, *flags),
        env={
            "OPUSMAX_DATABASE": str(database),
            "ANTHROPIC_API_KEY": OPERATOR_CREDENTIAL,
            "PATH": os.environ["PATH"],
        }
        | environment,
        stderr=asyncio.subprocess.PIPE,
    )
    running = Server(process, "")
    try:
        running.origin = await running.hear(rb"serving on (https?://[\d.:]+)")
        running.errors = b""
        yield running
    finally:
        await running.stop(signal.SIGKILL)


async def status_of(origin: str, key: str) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{origin}/v1/messages", json=ask(), headers={"x-api-key": key}) as answer,
    ):
        await answer.read()
        return answer.status


async def followed(origin: str, key: str, wanted: int) -> bool:
    """Whether the server answers `wanted` within the promised time."""
    deadline = asyncio.get_running_loop().time() + WITHIN_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        with suppress(aiohttp.ClientError):  # an answer that runs while its key is deleted breaks off
            if await status_of(origin, key) == wanted:
                return True
        await asyncio.sleep(0.02)
    return False


async def test_a_running_server_follows_every_change_of_the_command_line(
    provider: Simulator, database: Database
) -> None:
    path = database.path
    async with server(provider, path) as running:
        _, output, _ = await run("key", "create", "carol", "--json", database=path)
        key = json.loads(output)["key"]
        assert await followed(running.origin, key, 200)
        for command, wanted in [
            (["key", "disable", "carol"], 401),
            (["key", "enable", "carol"], 200),
            (["key", "edit", "carol", "--budget", "50/1h"], 400),
            (["key", "edit", "carol", "--budget", "none", "--model", "other-*"], 403),
            (["key", "edit", "carol", "--model", "none"], 200),
            (["key", "rename", "carol", "dora"], 200),
        ]:
            code, _, errors = await run(*command, database=path)
            assert code == 0, errors
            assert await followed(running.origin, key, wanted), command
        _, output, _ = await run("key", "rotate", "dora", "--json", database=path)
        assert await followed(running.origin, key, 401)
        key = json.loads(output)["key"]
        assert await followed(running.origin, key, 200)
        code, _, errors = await run("key", "delete", "dora", "--yes", database=path)
        assert code == 0, errors
        assert await followed(running.origin, key, 401)
    assert database.query("SELECT count(*) FROM request") == [(0,)]


async def test_without_a_credential_the_server_says_which_variable_and_stops(tmp_path: Path) -> None:
    code, output, errors = await run("serve", "--listen", "127.0.0.1:0", database=tmp_path / "opusmax.db")
    assert (code, output) == (1, "")
    assert "ANTHROPIC_API_KEY" in errors
    assert "OPENAI_API_KEY" in errors
    assert "demo" in errors
    assert errors.count("\n") == 1


async def chat(origin: str, key: str) -> int:
    """The status of a chat completion."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{origin}/v1/chat/completions",
            json=ask(model=OPENAI_MODELS[0]),
            headers={"authorization": f"Bearer {key}"},
        ) as answer,
    ):
        await answer.read()
        return answer.status


async def test_both_protocols_are_served_at_the_addresses_of_the_flags(
    provider: Simulator, database: Database
) -> None:
    text, key = await database.create_key()
    async with (
        Simulator(credentials={"another-credential"}) as other,
        server(
            provider, database.path, "--openai-url", f"{other.origin}/v1", OPENAI_API_KEY="another-credential"
        ) as running,
    ):
        assert await status_of(running.origin, text) == 200
        assert await chat(running.origin, text) == 200
        assert (len(provider.messages()), len(other.messages())) == (1, 1)
    assert [row.status for row in database.rows(key)] == [200, 200]


async def test_upstreams_of_the_configuration_stand_in_place_of_those_of_the_flags(
    provider: Simulator, database: Database, tmp_path: Path
) -> None:
    """A refused credential is told to the operator by the event alone."""
    text, _ = await database.create_key()
    file = tmp_path / "upstreams.toml"
    file.write_text(
        '[[upstream]]\nname = "team"\nprotocol = "openai"\n'
        f'url = "{provider.origin}"\ncredentials = ["OLD_KEY", "NEW_KEY"]\n'
    )
    keys = {"OLD_KEY": "a-revoked-credential", "NEW_KEY": OPERATOR_CREDENTIAL}
    async with server(provider, database.path, "--config", str(file), **keys) as running:
        assert [await chat(running.origin, text) for _ in range(4)] == [200] * 4
        assert await status_of(running.origin, text) == 404
        assert await running.stop() == 0
    assert running.errors.count(b"upstream.credential_refused") == 1
    assert b"a-revoked-credential" not in running.errors
    code, _, errors = await run("serve", "--config", str(file), database=database.path, NEW_KEY=" ")
    assert (code, errors.count("\n")) == (1, 1)
    assert "upstream team: credentials: there is none in OLD_KEY or NEW_KEY" in errors


async def test_a_listen_address_without_tls_beyond_this_machine_is_refused(tmp_path: Path) -> None:
    code, _, errors = await run("serve", "--listen", "0.0.0.0:0", database=tmp_path / "opusmax.db")
    assert code in (1, 2)
    assert "--behind-proxy" in errors


async def test_the_log_names_the_request_that_its_client_was_told_of(
    provider: Simulator, database: Database, alice: tuple[str, Key]
) -> None:
    async with server(provider, database.path) as running, aiohttp.ClientSession(running.origin) as http:
        await provider.stop()
        async with http.post("/v1/messages", json=ask(), headers={"x-api-key": alice[0]}) as answer:
            told = answer.headers["request-id"]
            assert (answer.status, (await answer.json())["request_id"]) == (502, told)
        logged = rb" upstream\.unreachable upstream=anthropic(?: \S+)? request=(req_[0-9a-f]{24}) ConnectionRefused"
        assert await running.hear(logged) == told
        async with http.get("/v1/messages") as answer:
            assert answer.headers["request-id"] != told  # on the same connection


async def test_sigterm_ends_the_server_with_exit_code_0(provider: Simulator, database: Database) -> None:
    async with server(provider, database.path) as running:
        assert await running.stop(signal.SIGTERM) == 0
    assert b"server.stopped" in running.errors


async def test_whatever_a_client_saw_whole_survives_kill_9(provider: Simulator, database: Database) -> None:
    """The small version: a few kills at random moments under load."""
    random = Random(7)
    text, key = await database.create_key()
    provider.script = Script(events=3)
    seen_whole = 0

    async def load(origin: str, stream: bool) -> int:
        whole = 0
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    body = ask(stream=stream)
                    async with session.post(
                        f"{origin}/v1/messages", json=body, headers={"x-api-key": text}
                    ) as answer:
                        await answer.read()
                        whole += answer.status == 200
                except (aiohttp.ClientError, ConnectionError):
                    return whole

    for _ in range(4):
        async with server(provider, database.path) as running:
            clients = [asyncio.create_task(load(running.origin, bool(n % 2))) for n in range(8)]
            await asyncio.sleep(0.3 + random.random() * 0.3)
            await running.stop(signal.SIGKILL)
            seen_whole += sum(await asyncio.gather(*clients))
    async with server(provider, database.path):
        pass
    rows = database.rows(key)
    assert seen_whole > 50
    assert sum(row.status == 200 for row in rows) >= seen_whole
    left = [row for row in rows if row.status != 200]
    assert all((row.status, row.estimated) == (500, True) for row in left)
    assert database.query("SELECT total_requests FROM key") == [(len(rows),)]


CANARY = "canary-of-the-client-7c1f"


async def test_nothing_that_a_client_sent_is_on_disk_or_in_the_log(provider: Simulator, database: Database) -> None:
    """The small version: one canary in every field, over good, bad and broken requests."""
    text, _ = await database.create_key("erin")
    body = ask(
        model=CANARY,
        system=CANARY,
        metadata={"user_id": CANARY},
        messages=[{"role": "user", "content": [{"type": "text", "text": CANARY}]}],
    )
    headers = {"x-api-key": text, "x-forwarded-for": CANARY, "user-agent": CANARY, "cookie": f"a={CANARY}"}
    async with server(provider, database.path, PYTHONASYNCIODEBUG="1") as running:
        async with aiohttp.ClientSession(running.origin) as session:
            for data in (json.dumps(body), json.dumps(body)[:-5], f'{{"max_tokens":"{CANARY}"}}', CANARY):
                for path in ("/v1/messages", f"/v1/messages?x={CANARY}", f"/{CANARY}"):
                    sent = headers | {"content-type": "application/json"}
                    async with session.post(path, data=data, headers=sent) as answer:
                        await answer.read()
        await send_raw(running.origin, f"POST /v1/messages HTTP/1.1\r\n{CANARY}\x00: {CANARY}\r\n\r\n".encode())
        await send_raw(running.origin, f"{CANARY} {CANARY}\r\n\r\n".encode())
        provider.script = Script(status=400, error_message=CANARY)
        assert await status_of(running.origin, text) == 400
        provider.script = Script(cut_after_events=2)
        await status_of_broken(running.origin, text)
        await until(lambda: len(database.query("SELECT 1 FROM request WHERE status IS NOT NULL")) >= 3)
        assert await running.stop() == 0
    files = [file for file in database.path.parent.iterdir() if file.is_file()]
    assert any(file.name.startswith("opusmax.db") for file in files)
    for file in files:
        assert CANARY.encode() not in file.read_bytes(), file.name
        assert text.encode() not in file.read_bytes(), file.name
    for secret in (CANARY, text, OPERATOR_CREDENTIAL, "127.0.0.1:"):
        lines = running.errors.decode().splitlines()
        assert not [line for line in lines if secret in line and "serving on" not in line]


async def send_raw(origin: str, request: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(origin.rpartition(":")[2]))
    writer.write(request)
    await reader.read()
    writer.close()


async def status_of_broken(origin: str, key: str) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientPayloadError):
            async with session.post(
                f"{origin}/v1/messages", json=ask(stream=True), headers={"x-api-key": key}
            ) as answer:
                await answer.read()


async def test_the_process_cannot_be_dumped_and_writes_for_its_owner_only(
    provider: Simulator, database: Database
) -> None:
    code = (
        "import ctypes, resource; from gateway import process; process.harden();"
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE))"
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, cwd=COMMAND_LINE.parent, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await child.communicate()
    assert output.decode().strip() == "0 (0, 0)"
    async with server(provider, database.path):
        modes = {file.name: file.stat().st_mode & 0o077 for file in database.path.parent.iterdir()}
    assert {mode for name, mode in modes.items() if name.startswith("opusmax")} == {0}
