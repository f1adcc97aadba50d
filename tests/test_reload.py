"""SIGHUP: the credentials of upstreams change without a restart, and no request notices."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest

from gateway.core.records import Key
from gateway.simulator import Script, Simulator
from tests.harness import Database, ask
from tests.test_server_process import Server, server, status_of

OLD, NEW = "the-old-credential", "the-new-credential"


@pytest.fixture
async def provider() -> AsyncIterator[Simulator]:
    """It takes the old credential and the new one, as providers do while one is replaced."""
    async with Simulator(credentials={OLD, NEW}) as simulator:
        yield simulator


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the credential stands."""
    file = tmp_path / "credentials" / "ANTHROPIC_API_KEY"
    file.parent.mkdir()
    file.write_text(OLD)
    return file


def used(provider: Simulator) -> list[str]:
    """The credential of each request, in their order."""
    return [dict(received.headers)["x-api-key"] for received in provider.messages()]


def put(file: Path, text: str | bytes | None) -> None:
    """Change the file; `None`: it is gone."""
    if text is None:
        file.unlink()
    else:
        file.write_bytes(text.encode() if isinstance(text, str) else text)


async def reload(running: Server) -> None:
    running.process.send_signal(signal.SIGHUP)
    await running.hear(b"server.reloaded")


def by_variable(file: Path, _origin: str) -> tuple[tuple[str, ...], dict[str, str]]:
    return (), {"ANTHROPIC_API_KEY": "", "ANTHROPIC_API_KEY_FILE": str(file)}


def by_systemd(file: Path, _origin: str) -> tuple[tuple[str, ...], dict[str, str]]:
    return (), {"ANTHROPIC_API_KEY": "", "CREDENTIALS_DIRECTORY": str(file.parent)}


def by_table(file: Path, origin: str) -> tuple[tuple[str, ...], dict[str, str]]:
    config = file.parent / "opusmax.toml"
    config.write_text(
        f'[[upstream]]\nname = "claude"\nprotocol = "anthropic"\nurl = "{origin}"\ncredentials = "{file}"\n'
    )
    return ("--config", str(config)), {"ANTHROPIC_API_KEY": ""}


Place = Callable[[Path, str], tuple[tuple[str, ...], dict[str, str]]]


@pytest.mark.parametrize("place", [by_variable, by_systemd, by_table])
async def test_a_new_credential_serves_what_comes_next_and_what_runs_ends_with_its_own(
    provider: Simulator, database: Database, alice: tuple[str, Key], file: Path, place: Place
) -> None:
    provider.next(Script(output_tokens=40, events=40, pause_seconds=0.02))
    flags, environment = place(file, provider.origin)
    async with (
        server(provider, database.path, *flags, **environment) as running,
        aiohttp.ClientSession(running.origin, headers={"x-api-key": alice[0]}) as http,
        http.post("/v1/messages", json=ask(stream=True)) as stream,
    ):
        await stream.content.readany()
        put(file, NEW)
        await reload(running)
        assert await status_of(running.origin, alice[0]) == 200
        assert b"message_stop" in await stream.read()
        assert await running.stop() == 0
    assert used(provider) == [OLD, NEW]
    assert [row.status for row in database.rows(alice[1])] == [200, 200]
    assert OLD.encode() not in running.errors
    assert NEW.encode() not in running.errors


@pytest.mark.parametrize("text", [None, b"", b" , ", b"\xff\xfe", b"two\nlines"])
async def test_a_credential_that_cannot_be_read_leaves_the_old_one_and_is_told(
    provider: Simulator, database: Database, alice: tuple[str, Key], file: Path, text: bytes | None
) -> None:
    flags, environment = by_table(file, provider.origin)
    async with server(provider, database.path, *flags, **environment) as running:
        put(file, text)
        await reload(running)
        [line] = [line for line in running.errors.splitlines() if b"credential_not_read" in line]
        assert b" ERROR opusmax.upstream upstream.credential_not_read upstream=claude SettingsError" in line
        assert await status_of(running.origin, alice[0]) == 200
        put(file, NEW)
        await reload(running)
        assert await status_of(running.origin, alice[0]) == 200
    assert used(provider) == [OLD, NEW]


async def test_no_request_fails_while_credentials_change(
    provider: Simulator, database: Database, alice: tuple[str, Key], file: Path
) -> None:
    provider.script = Script(events=4, pause_seconds=0.005)
    flags, environment = by_variable(file, provider.origin)
    async with server(provider, database.path, *flags, **environment) as running:
        asking = asyncio.gather(*(whole_answers(running.origin, alice[0], 25) for _ in range(4)))
        reloads = 0
        while not asking.done():
            put(file, (NEW, OLD)[reloads % 2])
            running.process.send_signal(signal.SIGHUP)
            await asyncio.sleep(0.03)
            reloads += 1
        assert reloads > 2
        assert sum(await asking) == 100
        assert await running.stop() == 0
    assert set(used(provider)) == {OLD, NEW}
    assert [row.status for row in database.rows(alice[1])] == [200] * 100


async def whole_answers(origin: str, key: str, requests: int) -> int:
    """How many of so many streams, one after the other, are whole."""
    whole = 0
    async with aiohttp.ClientSession(origin, headers={"x-api-key": key}) as http:
        for _ in range(requests):
            async with http.post("/v1/messages", json=ask(stream=True)) as stream:
                whole += stream.status == 200 and b"message_stop" in await stream.read()
    return whole


async def test_a_client_that_leaves_after_a_reload_stops_its_provider_and_others_go_on(
    provider: Simulator, database: Database, alice: tuple[str, Key], file: Path
) -> None:
    provider.next(Script(stall_after_events=1))
    flags, environment = by_variable(file, provider.origin)
    async with server(provider, database.path, *flags, **environment) as running:
        async with (
            aiohttp.ClientSession(running.origin, headers={"x-api-key": alice[0]}) as http,
            http.post("/v1/messages", json=ask(stream=True)) as stream,
        ):
            await stream.content.readany()
            put(file, NEW)
            await reload(running)
        assert await status_of(running.origin, alice[0]) == 200
        assert await running.stop() == 0
    assert sorted(row.status or 0 for row in database.rows(alice[1])) == [200, 499]


async def test_all_else_is_read_at_the_start_only(
    provider: Simulator, database: Database, alice: tuple[str, Key], file: Path
) -> None:
    flags, environment = by_table(file, provider.origin)
    async with server(provider, database.path, *flags, **environment) as running:
        put(Path(flags[1]), "nonsense")
        for _ in range(2):
            await reload(running)
            assert await status_of(running.origin, alice[0]) == 200
        assert await running.stop() == 0
    assert used(provider) == [OLD, OLD]
    assert b"ERROR" not in running.errors
