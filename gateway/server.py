"""`serve`: open the socket, serve until told to stop, let running answers finish.

SIGTERM and SIGINT stop it. SIGHUP reads what may change without a restart: the credentials of upstreams, where they
stand in files, and the TLS certificate. All else is read at the start only.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from aiohttp import web

from gateway import app, logs, process
from gateway.clients import UNREAD_SECONDS, ClientConnection, Clients
from gateway.core.errors import SettingsError
from gateway.core.settings import Settings
from gateway.core.upstreams import Access
from gateway.credentials import open_upstreams, reopen_upstreams
from gateway.database import DatabaseError
from gateway.handover import Handover
from gateway.logs import Event
from gateway.notify import ServiceManager
from gateway.tasks import background
from gateway.tls import HANDSHAKE_SECONDS, Certificate, with_hsts

BACKLOG = 1_024
"""How many new connections may wait in the system's queue."""
SEND_BUFFER_BYTES = 128 * 2**10
"""Of an answer, in the system, for a client that reads slowly; by itself the system would take some megabytes."""
ACCEPTED_AT_ONCE = 4
"""In one turn of the loop. asyncio takes one figure for this and the queue, but a flood must not be taken in as a
whole before anything is read from the connections that are there."""

_log = logging.getLogger("opusmax.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that answers."""

    origin: str
    metrics_url: str
    """Where its figures are; '': nowhere."""
    handover: Handover
    certificate: Certificate | None

    async def reload(self, environment: Mapping[str, str]) -> None:
        """Read credentials and certificate again. What cannot be read stays as it was, and the log tells."""
        if self.certificate is not None:
            await self.certificate.reload()
        accesses = await asyncio.to_thread(reopen_upstreams, self.handover.accesses, environment)
        if accesses != self.handover.accesses:
            await self.handover.replace(accesses)
        _log.info(Event.SERVER_RELOADED)


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code; a failure is told in one line on stderr."""
    process.raise_file_limit()
    logs.install()
    try:
        process.harden()
        process.refuse_leaking_environment(os.environ)
        process.require_safe_aiohttp()
        process.require_private_files(Path(settings.database))
        return asyncio.run(_serve(settings, open_upstreams(settings, os.environ), os.environ))
    except (SettingsError, DatabaseError) as error:
        sys.stderr.write(f"opusmax: {error}\n")
    except OSError as error:
        sys.stderr.write(f"opusmax: cannot listen on {_addresses(settings)}: {error.strerror}\n")
    return 1


async def _serve(settings: Settings, accesses: Sequence[Access], environment: Mapping[str, str]) -> int:
    loop = asyncio.get_running_loop()
    logs.install_on_loop(loop)
    stop, reload = asyncio.Event(), asyncio.Event()
    for number, event in ((signal.SIGTERM, stop), (signal.SIGINT, stop), (signal.SIGHUP, reload)):
        loop.add_signal_handler(number, event.set)
    manager = ServiceManager(environment)
    async with background(manager.watch()), running(settings, accesses) as server:
        sys.stderr.write(f"opusmax: serving on {server.origin}\n")
        if server.metrics_url:
            sys.stderr.write(f"opusmax: figures at {server.metrics_url}\n")
        process.settle_memory()
        _log.info(Event.SERVER_STARTED)
        manager.ready()
        async with background(_reload(server, reload, manager, environment)):
            await stop.wait()
        manager.stopping()
        _log.info(Event.SERVER_DRAINING)
    _log.info(Event.SERVER_STOPPED)
    return 0


async def _reload(
    server: Server, asked: asyncio.Event, manager: ServiceManager, environment: Mapping[str, str]
) -> None:
    """Reload whenever it is `asked`, until cancelled."""
    while True:
        await asked.wait()
        asked.clear()
        manager.reloading()
        await server.reload(environment)
        manager.ready()


@asynccontextmanager
async def listening(settings: Settings, accesses: Sequence[Access]) -> AsyncIterator[str]:
    """A server that answers; gives its origin."""
    async with running(settings, accesses) as server:
        yield server.origin


@asynccontextmanager
async def running(settings: Settings, accesses: Sequence[Access]) -> AsyncIterator[Server]:
    """A server that answers. At the end it refuses what is new, and lets what runs finish."""
    certificate = Certificate(settings) if settings.has_tls else None
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(app.running(settings, accesses))
        handler = gateway.handler if certificate is None else with_hsts(gateway.handler)
        # A client that leaves must stop the upstream at once.
        runner = web.ServerRunner(web.Server(handler, handler_cancellation=True), shutdown_timeout=0)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        if certificate is not None:
            await stack.enter_async_context(background(certificate.watch()))
        metrics_url = await stack.enter_async_context(_telling(settings, gateway, runner))
        listener = await stack.enter_async_context(_accepting(settings, runner, certificate))
        stack.push_async_callback(gateway.admission.drain, settings.drain_seconds)
        yield Server(
            origin=_origin(settings, listener),
            metrics_url=metrics_url,
            handover=gateway.handover,
            certificate=certificate,
        )


@asynccontextmanager
async def _telling(settings: Settings, gateway: app.Gateway, runner: web.ServerRunner) -> AsyncIterator[str]:
    """The figures are told, until the last request has ended; gives their address, or '' without one."""
    if settings.metrics_listen is None:
        yield ""
        return
    from gateway import metrics  # its library is loaded only where somebody wants figures

    sources = metrics.Sources(
        answers=gateway.answers,
        ledger=gateway.ledger,
        handover=gateway.handover,
        is_draining=lambda: gateway.admission.is_draining,
        connections=lambda: len(cast(web.Server, runner.server).connections),
    )
    async with metrics.telling(settings.metrics_listen, sources) as url:
        yield url


@asynccontextmanager
async def _accepting(
    settings: Settings, runner: web.ServerRunner, certificate: Certificate | None
) -> AsyncIterator[asyncio.Server]:
    """Connections are accepted, and looked after."""
    loop = asyncio.get_running_loop()
    clients = Clients(min(settings.max_connections, process.max_streams()), settings.upload_memory_bytes)
    listener = await loop.create_server(
        lambda: ClientConnection(clients, cast(web.Server, runner.server), loop),
        settings.listen.host,
        settings.listen.port,
        ssl=certificate.context if certificate else None,
        ssl_handshake_timeout=HANDSHAKE_SECONDS if certificate else None,
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


def _addresses(settings: Settings) -> str:
    """Where it was to listen."""
    wanted = [settings.listen, *([settings.metrics_listen] if settings.metrics_listen else [])]
    return " or ".join(f"{address.host}:{address.port}" for address in wanted)
