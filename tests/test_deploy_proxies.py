"""TLS in front, by real programs with the configurations of deploy/: nothing is delayed, mended or written down."""

import asyncio
import io
import json
import shutil
import ssl
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from gateway.core.records import Key
from gateway.simulator import Script, Simulator
from tests.canaries import Canaries, Search, full_body, full_headers
from tests.deployed_proxies import Proxy, certificate, program, proxy, proxy_before
from tests.harness import Database, ask, serving, until
from tests.raw_provider import HELLO, RawProvider, answering

__all__ = ["certificate", "program", "proxy"]

LARGEST_BODY = 32 * 2**20


async def test_an_event_is_there_before_the_next_one_is_sent_and_a_client_that_leaves_is_noticed(
    proxy: Proxy, provider: Simulator, database: Database, alice: tuple[str, Key]
) -> None:
    """The provider stops after each number of events, so that whatever were held back would never come."""
    text, key = alice
    async with proxy.client() as http:
        for stops_after in (1, 2, 3, 5):
            provider.script = Script(events=6, stall_after_events=stops_after)
            body = ask(stream=True)
            async with http.post("/v1/messages", json=body, headers={"x-api-key": text}) as answer:
                seen = b""
                async with asyncio.timeout(10):
                    while seen.count(b"\n\n") < stops_after:
                        seen += await answer.content.readany()
                assert seen == b"".join(provider.received[-1].answer_pieces)
                assert answer.connection is not None
                assert answer.connection.transport is not None
                answer.connection.transport.abort()
            await until(lambda: provider.received[-1].disconnected)
            await until(lambda: database.rows(key)[-1].status is not None)
    assert [row.status for row in database.rows(key)] == [499] * 4


@pytest.mark.parametrize("protocol", ["--http1.1", "--http2"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_broken_answer_is_broken_for_the_client(
    proxy: Proxy, provider: Simulator, alice: tuple[str, Key], protocol: str, stream: bool
) -> None:
    text, _ = alice
    provider.script = Script(cut_after_events=3, cut="close") if stream else Script(cut_after_bytes=40)
    request = f'{{"model":"{ask()["model"]}","max_tokens":50,"stream":{str(stream).lower()},"messages":[]}}'
    command = ["curl", "-sN", protocol, "--cacert", str(proxy.certificate), "-H", f"x-api-key: {text}"]
    command += ["-H", "content-type: application/json", "-d", request, f"{proxy.origin}/v1/messages"]
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await child.communicate()
    assert child.returncode != 0, f"curl takes {output!r} for a whole answer"


def remove_folders(folder: Path) -> None:
    for inner in folder.iterdir():
        if inner.is_dir():
            shutil.rmtree(inner)


async def test_the_largest_body_passes_without_a_temporary_file(
    proxy: Proxy, provider: Simulator, alice: tuple[str, Key]
) -> None:
    """The folders for temporary files are gone: whoever needs one fails."""
    text, _ = alice
    remove_folders(proxy.folder)
    body = json.dumps(ask(system="")).encode()
    body = body.replace(b'"system": "', b'"system": "' + b"x" * (LARGEST_BODY - len(body)))
    headers = {"x-api-key": text, "content-type": "application/json"}
    async with proxy.client() as http:
        async with http.post("/v1/messages", data=io.BytesIO(body), headers=headers) as answer:
            assert answer.status == 200, await answer.text()
        async with http.post("/v1/messages", data=io.BytesIO(body + bytes(2 * 2**20)), headers=headers) as answer:
            assert (answer.status, (await answer.json())["type"]) == (413, "error")
    assert [received.body_length for received in provider.messages()] == [LARGEST_BODY]


async def test_a_client_that_reads_slowly_makes_nobody_write_a_temporary_file(
    proxy: Proxy, provider: Simulator, alice: tuple[str, Key]
) -> None:
    text, _ = alice
    remove_folders(proxy.folder)
    provider.script = Script(body=bytes(48 * 2**20), content_type="application/json", split_bytes=2**16)
    async with proxy.client() as http, http.post("/v1/messages", json=ask(), headers={"x-api-key": text}) as answer:
        await asyncio.sleep(1)
        assert not provider.received[-1].completed
        assert len(await answer.read()) == 48 * 2**20


async def test_the_gateway_is_not_told_who_asks_and_connections_to_it_are_kept(
    program: str, certificate: Path, tmp_path: Path
) -> None:
    """The simulated provider stands in the gateway's place, and sees what that would see."""
    canaries = Canaries()
    async with (
        Simulator(accept_any_model=True) as gateway,
        proxy_before(gateway.origin, program, tmp_path / "proxy", certificate) as proxy,
        proxy.client(canaries.address) as http,
    ):
        forged = {name: canaries(name) for name in ("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto")}
        async with http.post("/v1/messages", json=ask(), headers=forged) as answer:
            assert answer.status == 200
            assert "max-age=" in answer.headers["strict-transport-security"]
        seen = str(gateway.received[-1].headers).lower()
    assert canaries.address not in seen
    assert "forwarded" not in seen
    assert "real-ip" not in seen
    assert "('connection', 'close')" not in seen
    async with (
        RawProvider(answering(HELLO, HELLO, HELLO)) as raw,
        proxy_before(raw.origin, program, tmp_path / "other", certificate) as proxy,
        proxy.client() as http,
    ):
        for _ in range(3):
            async with http.get("/v1/models") as answer:
                assert await answer.read() == b"hello"
        assert raw.connections == 1


async def test_whoever_speaks_in_the_clear_is_sent_to_tls_and_not_heard(
    proxy: Proxy, program: str, provider: Simulator, alice: tuple[str, Key]
) -> None:
    """By 301, which turns a POST into a GET: a client whose key passed in the clear notices."""
    text, _ = alice
    async with aiohttp.ClientSession() as http:
        headers = {"x-api-key": text} | ({"host": "elsewhere.example"} if program == "nginx" else {})
        url = f"{proxy.plain_origin}/v1/messages?beta=true"
        async with http.post(url, json=ask(), headers=headers, allow_redirects=False) as answer:
            assert answer.status == 301
            assert answer.headers["location"] == f"{proxy.origin}/v1/messages?beta=true"
    assert provider.messages() == []


async def speak(proxy: Proxy, canaries: Canaries, key: str) -> None:
    """Good requests, bad ones, and such as are none; all of them with words in every place."""
    address, query = canaries.address, f"?beta={canaries('query')}"
    headers = full_headers(canaries) | {"x-api-key": key}
    async with proxy.client(address) as http:
        for path in ("/v1/messages", f"/{canaries('path')}", "/usage", f"/{canaries('path')}/../%2e%2e/%zz"):
            for stream in (True, False):
                body = full_body(canaries, stream=stream)
                async with http.post(path + query, json=body, headers=headers) as answer:
                    await answer.read()
        too_much = io.BytesIO(bytes(LARGEST_BODY + 1))
        async with http.post(f"/v1/messages{query}", data=too_much, headers=headers) as answer:
            assert answer.status >= 400
    word = canaries("raw").encode()
    requests = [
        b"GET /%b HTTP/1.1\r\nhost: localhost\r\nx: %b\r\n\r\n" % (word, word * 4_000),
        b"GET /%b%b HTTP/1.1\r\nhost: localhost\r\n\r\n" % (word, b"y" * 70_000),
        b"%b /%b HTTP/9.9\r\n\r\n" % (word, word),
        b"GET /%b HTTP/1.1\r\nhost: %b\r\n\r\n" % (word, word),
        b"POST /%b HTTP/1.1\r\nhost: localhost\r\ncontent-length: %b\r\n\r\n" % (word, word),
        b"POST /v1/messages?%b HTTP/1.1\r\nhost: localhost\r\ncontent-length: 900\r\n\r\n%b" % (word, word),
    ]
    for request in requests:
        await send_raw(proxy.plain_origin, request, address)
        await send_raw(proxy.origin, request, address)
        await send_raw(proxy.origin, request, address, proxy.tls)
    for hello in HELLOS:
        await send_raw(proxy.origin, hello, address)


HELLOS = (
    b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
    b"\x16\x03\x00\x00\x31\x01\x00\x00\x2d\x03\x00" + bytes(32) + b"\x00\x00\x06\x00\x05\x00\x04\x00\xff\x01\x00",
    b"\x16\x03\x01\x40\x01" + b"\xff" * 200,
    b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10",
)
"""Handshakes that fail: cut short, of a protocol that nobody speaks any more, too long, of SSL 2."""


async def send_raw(origin: str, request: bytes, address: str, tls: ssl.SSLContext | None = None) -> None:
    """Whatever the other side makes of it."""
    port = int(origin.rpartition(":")[2])
    name = "localhost" if tls else None
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=tls, server_hostname=name, local_addr=(address, 0)
    )
    writer.write(request)
    with suppress(TimeoutError, ConnectionError, ssl.SSLError):
        async with asyncio.timeout(0.3):
            await reader.read(2**20)
    writer.transport.abort()


async def test_a_proxy_writes_down_nothing_that_was_said_nor_who_said_it(
    program: str, provider: Simulator, database: Database, alice: tuple[str, Key], certificate: Path, tmp_path: Path
) -> None:
    """Also of answers that break, and while no gateway is there."""
    text, _ = alice
    canaries = Canaries()
    headers = full_headers(canaries) | {"x-api-key": text}
    body = full_body(canaries, stream=True, model=ask()["model"])
    async with (
        serving(provider, database.path, behind_proxy=True) as origin,
        proxy_before(origin, program, tmp_path / "proxy", certificate) as proxy,
        proxy.client(canaries.address) as http,
    ):
        await speak(proxy, canaries, text)
        provider.script = Script(cut_after_events=3)
        async with http.post("/v1/messages", json=body, headers=headers) as answer:
            with pytest.raises(aiohttp.ClientError):
                await answer.read()
    async with proxy_before(origin, program, tmp_path / "alone", certificate) as proxy:
        await speak(proxy, canaries, text)
    search = Search(canaries.mark, canaries.address, text)
    for folder in ("proxy", "alone"):
        search.files(tmp_path / folder)
    assert len(search.searched) > 4
    assert search.hits == []
