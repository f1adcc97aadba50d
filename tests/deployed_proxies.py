"""The proxies of deploy/ as the tests run them: the real programs, with the configurations as they are delivered.

A copy of the configuration gets other ports, another certificate and the name `localhost`; all else is as it is
delivered. Around nginx's part stands what Debian's nginx.conf says: it logs everything, unless told otherwise.
"""

import asyncio
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from gateway.core.records import Key
from gateway.simulator import Simulator
from tests.harness import ALL_CREDENTIALS, Database, serving

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
NAME = "gateway.example.org"
GATEWAY = "127.0.0.1:8080"
PROXIES = ("caddy", "nginx")
OLDEST_CADDY = (2, 8)
NEWER_CADDY = ROOT / ".venv" / "caddy" / "bin"

DEBIAN_NGINX = """\
daemon off;
{user}
worker_processes 1;
pid nginx.pid;
error_log stderr;
events {{ worker_connections 768; }}
http {{
    access_log access.log;
    error_log error.log info;
    client_body_temp_path temporary/body;
    proxy_temp_path temporary/proxy;
    fastcgi_temp_path temporary/fastcgi;
    uwsgi_temp_path temporary/uwsgi;
    scgi_temp_path temporary/scgi;
    include conf.d/*.conf;
}}
"""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A running proxy, and all that it has: its folder is its home and its place for temporary files."""

    origin: str
    plain_origin: str
    folder: Path
    certificate: Path
    process: asyncio.subprocess.Process

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificate))

    def client(self, address: str = "127.0.0.1") -> aiohttp.ClientSession:
        """A client that trusts it and comes from `address`."""
        connector = aiohttp.TCPConnector(ssl=self.tls, local_addr=(address, 0))
        return aiohttp.ClientSession(self.origin, connector=connector)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def adapted(file: str, changes: Mapping[str, str]) -> str:
    """A configuration with each of the changes made; one that finds nothing to change is a fault."""
    text = (DEPLOY / file).read_text()
    for old, new in changes.items():
        assert old in text, f"{file} has no {old!r}"
        text = text.replace(old, new)
    return text


def write_caddyfile(folder: Path, certificate: Path, port: int, plain_port: int, gateway: str) -> Sequence[str]:
    changes = {
        "admin off": "admin off\n\tdefault_bind 127.0.0.1",
        f"https://{NAME} {{": f"https://{NAME} {{\n\ttls {certificate} {certificate}.key",
        f"https://{NAME}": f"https://localhost:{port}",
        f"http://{NAME}": f"http://localhost:{plain_port}",
        GATEWAY: gateway,
    }
    (folder / "Caddyfile").write_text(adapted("Caddyfile", changes))
    return ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


def write_nginx_conf(folder: Path, certificate: Path, port: int, plain_port: int, gateway: str) -> Sequence[str]:
    live = f"/etc/letsencrypt/live/{NAME}"
    changes = {
        "    listen [::]:80 default_server;\n": "",
        "    listen [::]:443 ssl default_server;\n": "",
        "listen 80 ": f"listen 127.0.0.1:{plain_port} ",
        "listen 443 ": f"listen 127.0.0.1:{port} ",
        f"{live}/fullchain.pem": str(certificate),
        f"{live}/privkey.pem": f"{certificate}.key",
        f"https://{NAME}$": f"https://localhost:{port}$",
        NAME: "localhost",
        GATEWAY: gateway,
    }
    (folder / "conf.d").mkdir()
    (folder / "temporary").mkdir()
    (folder / "conf.d" / "opusmax.conf").write_text(adapted("nginx.conf", changes))
    (folder / "nginx.conf").write_text(DEBIAN_NGINX.format(user="user root;" if os.getuid() == 0 else ""))
    return ["nginx", "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"]


def installed(program: str) -> str:
    """Where it is; skips the test if it is nowhere. A newer Caddy than Debian's may be beside our Python."""
    path = shutil.which(program, path=f"{NEWER_CADDY}:{os.environ['PATH']}:/usr/sbin")
    if path is None:
        pytest.skip(f"{program} is not installed")
    if program == "caddy":
        said = subprocess.run([path, "version"], capture_output=True, text=True, check=True).stdout
        version = tuple(map(int, re.findall(r"\d+", said)[:2]))
        if version < OLDEST_CADDY:
            pytest.skip(f"Caddy {said.strip()} ends broken answers as if they were whole: install {OLDEST_CADDY}")
    return path


@asynccontextmanager
async def proxy_before(
    gateway: str, program: str, folder: Path, certificate: Path, under: Sequence[str] = ()
) -> AsyncIterator[Proxy]:
    """The proxy in front of a server at the origin `gateway`, started by way of the command `under`."""
    path = installed(program)
    await asyncio.to_thread(folder.mkdir)
    port, plain_port = free_port(), free_port()
    write = {"caddy": write_caddyfile, "nginx": write_nginx_conf}[program]
    _, *arguments = write(folder, certificate, port, plain_port, gateway.partition("://")[2])
    with (folder / "output").open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(*under, path, *arguments),
            cwd=folder,
            env={"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder)},
            stdout=output,
            stderr=output,
        )
    try:
        await listening(process, port, folder / "output")
        yield Proxy(f"https://localhost:{port}", f"http://localhost:{plain_port}", folder, certificate, process)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def listening(process: asyncio.subprocess.Process, port: int, output: Path) -> None:
    async with asyncio.timeout(20):
        while True:
            assert process.returncode is None, f"it did not start: {output}"
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for `localhost` that nobody vouches for; its key beside it, as `.key`."""
    file = tmp_path_factory.mktemp("tls") / "localhost.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", f"{file}.key", "-out", str(file)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    return file


@pytest.fixture(params=PROXIES)
def program(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def proxy(
    program: str,
    provider: Simulator,
    database: Database,
    alice: tuple[str, Key],
    certificate: Path,
    tmp_path: Path,
) -> AsyncIterator[Proxy]:
    """A proxy in front of a gateway that knows alice."""
    del alice
    async with (
        serving(provider, database.path, ALL_CREDENTIALS, behind_proxy=True) as origin,
        proxy_before(origin, program, tmp_path / "proxy", certificate) as running,
    ):
        yield running
