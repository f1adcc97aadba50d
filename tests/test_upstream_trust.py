"""The provider is reached straight and over a connection that proves its name, or it is not sent a byte."""

import asyncio
import ssl
import subprocess
from pathlib import Path
from random import Random

import pytest

from gateway.core.errors import UpstreamBroke, UpstreamUnreachable
from gateway.core.wire import Endpoint
from tests.raw_provider import CHUNKED, RawProvider, answering, between, collect, echo, upstream_at, wait_forever

LONG = Random(1).randbytes(5 * 2**20)


async def test_a_provider_that_is_not_there_is_told_apart() -> None:
    async with RawProvider(echo) as provider:
        gone = provider.origin
    for origin in (gone, "https://no-such-host.invalid"):
        upstream = upstream_at(origin)
        with pytest.raises(UpstreamUnreachable):
            await collect(upstream)
        await upstream.close()


async def test_the_handshake_counts_as_connecting() -> None:
    async with RawProvider(wait_forever) as provider:
        upstream = upstream_at(provider.origin.replace("http:", "https:"), connect_timeout_seconds=0.1)
        with pytest.raises(UpstreamUnreachable):
            await asyncio.wait_for(collect(upstream), 5)
        await upstream.close()


async def test_proxies_of_the_environment_see_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with RawProvider(wait_forever) as proxy, between(echo) as (_, upstream):
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.origin)
        assert await collect(upstream, b"direct") == b"direct"
    assert proxy.connections == 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that nobody vouches for, and its key, for `localhost`."""
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(file), "-out", f"{file}.crt"]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    file.write_text(file.read_text() + Path(f"{file}.crt").read_text())
    return file


def server_side(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


async def test_a_provider_that_cannot_prove_its_name_gets_no_byte(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with RawProvider(echo, server_side(certificate)) as provider:
        untrusted = upstream_at(provider.origin)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        misnamed = upstream_at(provider.origin.replace("localhost", "127.0.0.1"))
        for upstream in (untrusted, misnamed):
            with pytest.raises(UpstreamUnreachable):
                await collect(upstream, b"a prompt")
            await upstream.close()
    assert provider.connections == 0


async def test_over_tls_all_is_the_same(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with between(echo, server_side(certificate)) as (provider, upstream):
        for body in (b"short", LONG, b"short"):
            assert await collect(upstream, body) == body
        assert provider.connections == 1
        async with upstream.send(Endpoint.MESSAGES, [], "", LONG) as answer:
            await anext(answer.chunks())
        await asyncio.wait_for(provider.closed_by_client.wait(), 5)


@pytest.mark.parametrize("then", ["close", "reset"])
async def test_over_tls_a_broken_answer_is_broken(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    arrived = bytearray()
    handle = answering(CHUNKED + b"5\r\nhello\r\n", then=then)
    async with between(handle, server_side(certificate)) as (_, upstream):
        with pytest.raises(UpstreamBroke):
            await collect(upstream, into=arrived)
    assert arrived == b"hello"
