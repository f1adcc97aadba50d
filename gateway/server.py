"""`serve`: open the socket, serve until told to stop, let running answers finish."""

import asyncio
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from aiohttp import web

from gateway import app, logs, process
from gateway.clients import UNREAD_SECONDS, ClientConnection, Clients
from gateway.core.errors import SettingsError
from gateway.core.settings import Settings
from gateway.core.upstreams import Access
from gateway.credentials import open_upstreams
from gateway.database import DatabaseError
from gateway.logs import Event
from gateway.tasks import background

HANDSHAKE_SECONDS = 10
BACKLOG = 1_024
"""How many new connections may wait in the system's queue."""
SEND_BUFFER_BYTES = 128 * 2**10
"""Of an answer, in the system, for a client that reads slowly; by itself the system would take some megabytes."""
ACCEPTED_AT_ONCE = 4
"""In one turn of the loop. asyncio takes one figure for this and the queue, but a flood must not be taken in as a
whole before anything is read from the connections that are there."""

_log = logging.getLogger("opusmax.server")


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code; a failure is told in one line on stderr."""
    process.raise_file_limit()
    logs.install()
    try:
        process.harden()
        process.refuse_leaking_environment(os.environ)
        process.require_safe_aiohttp()
        process.require_private_files(Path(settings.database))
        return asyncio.run(_serve(settings, open_upstreams(settings, os.environ)))
    except (SettingsError, DatabaseError) as error:
        sys.stderr.write(f"opusmax: {error}\n")
    except OSError as error:
        address = f"{settings.listen.host}:{settings.listen.port}"
        sys.stderr.write(f"opusmax: cannot listen on {address}: {error.strerror}\n")
    return 1


async def _serve(settings: Settings, accesses: Sequence[Access]) -> int:
    logs.install_on_loop(asyncio.get_running_loop())
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with listening(settings, accesses) as origin:
        sys.stderr.write(f"opusmax: serving on {origin}\n")
        _log.info(Event.SERVER_STARTED)
        await stop.wait()
        _log.info(Event.SERVER_DRAINING)
    _log.info(Event.SERVER_STOPPED)
    return 0


@asynccontextmanager
async def listening(settings: Settings, accesses: Sequence[Access]) -> AsyncIterator[str]:
    """A server that answers; gives its origin. At the end it refuses what is new, and lets what runs finish."""
    async with app.running(settings, accesses) as gateway:
        # A client that leaves must stop the upstream at once.
        runner = web.ServerRunner(web.Server(gateway.handler, handler_cancellation=True), shutdown_timeout=0)
        await runner.setup()
        try:
            async with _accepting(settings, runner) as listener:
                try:
                    yield _origin(settings, listener)
                finally:
                    await gateway.admission.drain(settings.drain_seconds)
        finally:
            await runner.cleanup()


@asynccontextmanager
async def _accepting(settings: Settings, runner: web.ServerRunner) -> AsyncIterator[asyncio.Server]:
    """Connections are accepted, and looked after."""
    loop = asyncio.get_running_loop()
    clients = Clients(min(settings.max_connections, process.max_streams()), settings.upload_memory_bytes)
    listener = await loop.create_server(
        lambda: ClientConnection(clients, cast(web.Server, runner.server), loop),
        settings.listen.host,
        settings.listen.port,
        ssl=_tls(settings),
        ssl_handshake_timeout=HANDSHAKE_SECONDS if settings.has_tls else None,
        backlog=ACCEPTED_AT_ONCE,
    )
    for open_socket in listener.sockets:  # what is set on it holds for the connections that it accepts
        open_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_SECONDS * 1_000)
        open_socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        with socket.socket(fileno=os.dup(open_socket.fileno())) as same:
            same.listen(BACKLOG)
    async with background(clients.watch()):
        try:
            yield listener
        finally:
            listener.close()


def _origin(settings: Settings, listener: asyncio.Server) -> str:
    """The address that was really taken: port 0 asks for any."""
    port = listener.sockets[0].getsockname()[1]
    host = f"[{settings.listen.host}]" if ":" in settings.listen.host else settings.listen.host
    return f"{'https' if settings.has_tls else 'http'}://{host}:{port}"


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if not settings.has_tls:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.tls_cert, settings.tls_key)
    return context
