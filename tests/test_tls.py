"""TLS of its own: what clients are shown, that it follows its files, and that a broken file changes nothing."""

import asyncio
import signal
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway import tls
from gateway.core.errors import SettingsError
from gateway.core.records import Key
from gateway.core.settings import Settings
from gateway.simulator import Script, Simulator
from tests.harness import Database, ask, serving
from tests.test_server_process import server

CERTIFICATE = "tls_cert.pem"
KEY = "tls_key.pem"


def make_certificate(folder: Path, name: str, key_type: str = "ec -pkeyopt ec_paramgen_curve:P-256") -> None:
    """A certificate for `localhost` that `name` issued, as a tool that renews it would put it in place."""
    command = f"openssl req -x509 -newkey {key_type} -nodes -days 2 -subj /CN={name}"
    names = ("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    files = ("-keyout", f"{folder}/new-key", "-out", f"{folder}/new-cert")
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    (folder / "new-key").replace(folder / KEY)
    (folder / "new-cert").replace(folder / CERTIFICATE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tls"
    folder.mkdir()
    make_certificate(folder, "first")
    return folder


def files_of(folder: Path) -> dict[str, Any]:
    return {"tls_cert": str(folder / CERTIFICATE), "tls_key": str(folder / KEY)}


def flags_of(folder: Path) -> tuple[str, ...]:
    return ("--tls-cert", str(folder / CERTIFICATE), "--tls-key", str(folder / KEY))


def trusting(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=folder / CERTIFICATE)


def shown_to(origin: str, server_name: str | None = "localhost", **versions: ssl.TLSVersion) -> str:
    """The name on the certificate that a new client sees."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for name, version in versions.items():
        setattr(context, name, version)
    address = ("127.0.0.1", int(origin.rpartition(":")[2]))
    with (
        socket.create_connection(address, timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=server_name) as connection,
    ):
        certificate = connection.getpeercert(binary_form=True)
    assert certificate is not None
    command = ["openssl", "x509", "-inform", "DER", "-noout", "-subject", "-nameopt", "multiline"]
    subject = subprocess.run(command, input=certificate, check=True, capture_output=True).stdout.decode()
    return subject.strip().rpartition("= ")[2]


async def see(origin: str, server_name: str | None = "localhost", **versions: ssl.TLSVersion) -> str:
    return await asyncio.to_thread(shown_to, origin, server_name, **versions)


@asynccontextmanager
async def client(origin: str, folder: Path, key: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A client that trusts the certificate as it is now, and the name on it."""
    connector = aiohttp.TCPConnector(ssl=trusting(folder))
    async with aiohttp.ClientSession(origin, connector=connector, headers={"x-api-key": key}) as http:
        yield http


async def test_answers_and_streams_pass_over_tls(
    provider: Simulator, database: Database, alice: tuple[str, Key], folder: Path
) -> None:
    async with (
        serving(provider, database.path, **files_of(folder)) as origin,
        client(origin, folder, alice[0]) as http,
    ):
        assert origin.startswith("https://127.0.0.1:")
        for is_stream in (False, True):
            async with http.post("/v1/messages", json=ask(stream=is_stream)) as answer:
                assert answer.status == 200
                assert b"message" in await answer.read()


async def test_browsers_are_told_to_keep_to_tls(
    provider: Simulator, database: Database, alice: tuple[str, Key], folder: Path
) -> None:
    header = "strict-transport-security"
    async with (
        serving(provider, database.path, **files_of(folder)) as origin,
        client(origin, folder, alice[0]) as http,
    ):
        for path in ("/", "/usage", "/privacy", "/healthz", "/nothing"):
            async with http.get(path) as answer:
                assert answer.headers[header] == tls.HSTS
    async with (
        serving(provider, database.path) as origin,
        aiohttp.ClientSession(origin) as plain,
        plain.get("/") as answer,
    ):
        assert header not in answer.headers


async def test_tls_before_1_2_and_plain_requests_get_nothing(
    provider: Simulator, database: Database, alice: tuple[str, Key], folder: Path
) -> None:
    newest = ssl.TLSVersion.TLSv1_2
    async with serving(provider, database.path, **files_of(folder)) as origin:
        assert await see(origin, maximum_version=newest) == "first"
        assert await see(origin, minimum_version=ssl.TLSVersion.TLSv1_3) == "first"
        versions = {"minimum_version": ssl.TLSVersion.TLSv1, "maximum_version": ssl.TLSVersion.TLSv1_1}
        with pytest.warns(DeprecationWarning, match="TLSv1"), pytest.raises(ssl.SSLError):
            shown_to(origin, None, **versions)
        async with aiohttp.ClientSession(headers={"x-api-key": alice[0]}) as plain:
            with pytest.raises(aiohttp.ClientError):
                await plain.post(origin.replace("https:", "http:") + "/v1/messages", json=ask())
    assert provider.messages() == []


@pytest.mark.parametrize("server_name", ["localhost", "elsewhere.example", None])
async def test_a_new_certificate_is_shown_without_a_signal_and_open_connections_stay(
    provider: Simulator, database: Database, alice: tuple[str, Key], folder: Path, server_name: str | None
) -> None:
    """Another kind of key, too: nothing of the old certificate may be left."""
    provider.script = Script(output_tokens=40, events=40, pause_seconds=0.02)
    async with (
        serving(provider, database.path, **files_of(folder)) as origin,
        client(origin, folder, alice[0]) as http,
        http.post("/v1/messages", json=ask(stream=True)) as stream,
    ):
        assert await see(origin, server_name) == "first"
        make_certificate(folder, "second", "rsa:2048")
        async with asyncio.timeout(20):
            while await see(origin, server_name) != "second":
                await asyncio.sleep(0.1)
        assert await see(origin, server_name, maximum_version=ssl.TLSVersion.TLSv1_2) == "second"
        assert b"message_stop" in await stream.read()
        provider.script = Script()
        async with http.post("/v1/messages", json=ask()) as answer:  # on the connection that was open before
            assert answer.status == 200
        async with client(origin, folder, alice[0]) as later, later.get("/healthz") as answer:
            assert answer.status == 200


def make_key(folder: Path) -> None:
    """A key that belongs to no certificate."""
    command = f"openssl genrsa -out {folder / 'new-key'} 2048"
    subprocess.run(command.split(), check=True, capture_output=True)
    (folder / "new-key").replace(folder / KEY)


def lock_key(folder: Path) -> None:
    """The right key, which now needs a password."""
    command = f"openssl pkey -in {folder / KEY} -aes128 -passout pass:secret -out {folder / 'new-key'}"
    subprocess.run(command.split(), check=True, capture_output=True)
    (folder / "new-key").replace(folder / KEY)


BROKEN: dict[str, Callable[[Path], object]] = {
    "no certificate": lambda folder: (folder / CERTIFICATE).write_text("nonsense"),
    "an empty file": lambda folder: (folder / CERTIFICATE).write_text(""),
    "no file": lambda folder: (folder / CERTIFICATE).unlink(),
    "no key": lambda folder: (folder / KEY).unlink(),
    "the key of another": make_key,
    "a key with a password": lock_key,
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_cannot_be_used_is_refused_at_the_start(folder: Path, fault: str) -> None:
    BROKEN[fault](folder)
    with pytest.raises(SettingsError, match=r"^tls_cert .*tls_key .*: ?"):
        tls.Certificate(Settings.load(files_of(folder), {}))


@pytest.mark.parametrize("fault", BROKEN)
async def test_a_reload_of_a_broken_file_keeps_the_old_certificate(
    provider: Simulator, database: Database, folder: Path, fault: str
) -> None:
    async with server(provider, database.path, *flags_of(folder)) as running:
        BROKEN[fault](folder)
        running.process.send_signal(signal.SIGHUP)
        await running.hear(b"server.reloaded")
        assert running.errors.count(b"tls.not_reloaded SettingsError") == 1
        assert await see(running.origin) == "first"
        make_certificate(folder, "second")
        running.process.send_signal(signal.SIGHUP)
        await running.hear(b"tls.reloaded")
        assert await see(running.origin) == "second"


async def test_a_broken_file_that_nobody_mends_is_told_once(
    provider: Simulator, database: Database, folder: Path
) -> None:
    async with server(provider, database.path, *flags_of(folder)) as running:
        BROKEN["the key of another"](folder)
        await running.hear(b"tls.not_reloaded")
        await asyncio.sleep(3 * tls.LOOK_SECONDS)
        assert await see(running.origin) == "first"
        make_certificate(folder, "second")
        await running.hear(b"tls.reloaded")
        assert await running.stop() == 0
    assert running.errors.count(b"tls.not_reloaded") == 1
    assert running.errors.count(b"tls.reloaded") == 1
