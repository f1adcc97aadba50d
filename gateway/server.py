"""`serve`: open the socket, serve until told to stop, let running answers finish."""

import asyncio
import logging
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiohttp import http_parser, web

from gateway import app, credentials, logs, process
from gateway.core.errors import SettingsError
from gateway.core.settings import Settings
from gateway.database import DatabaseError
from gateway.logs import Event

CREDENTIAL_VARIABLE = "ANTHROPIC_API_KEY"
KEEP_ALIVE_SECONDS = 75
MAX_HEADER_BYTES = 32 * 2**10
"""Of one header line: lists of beta features grow long."""
BACKLOG = 1_024

_log = logging.getLogger("opusmax.server")


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code; a failure is told in one line on stderr."""
    process.harden()
    process.raise_file_limit()
    logs.install()
    try:
        return asyncio.run(_serve(settings, _credentials()))
    except (SettingsError, DatabaseError) as error:
        sys.stderr.write(f"opusmax: {error}\n")
    except OSError as error:
        address = f"{settings.listen.host}:{settings.listen.port}"
        sys.stderr.write(f"opusmax: cannot listen on {address}: {error.strerror}\n")
    return 1


def _credentials() -> Sequence[str]:
    found = credentials.read(CREDENTIAL_VARIABLE, os.environ)
    if not found:
        raise SettingsError(
            f"no credential for the provider: set {CREDENTIAL_VARIABLE}, or {CREDENTIAL_VARIABLE}_FILE to a file"
            " that holds it (to look around without one: opusmax.py demo)"
        )
    return found


async def _serve(settings: Settings, upstream_credentials: Sequence[str]) -> int:
    if http_parser.HttpRequestParser.__module__ != "aiohttp._http_parser":
        raise SettingsError("aiohttp's C parser is missing: install a binary wheel of aiohttp")
    logs.install_on_loop(asyncio.get_running_loop())
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with listening(settings, upstream_credentials) as origin:
        sys.stderr.write(f"opusmax: serving on {origin}\n")
        _log.info(Event.SERVER_STARTED)
        await stop.wait()
        _log.info(Event.SERVER_DRAINING)
    _log.info(Event.SERVER_STOPPED)
    return 0


@asynccontextmanager
async def listening(settings: Settings, upstream_credentials: Sequence[str]) -> AsyncIterator[str]:
    """A server that answers; gives its origin. At the end it refuses what is new, and lets what runs finish."""
    async with app.running(settings, upstream_credentials) as gateway:
        runner = web.AppRunner(
            gateway.application,
            handler_cancellation=True,  # a client that leaves must stop the upstream at once
            access_log=None,
            auto_decompress=False,  # packed bodies are refused, and never unpacked
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            shutdown_timeout=0,
        )
        await runner.setup()
        try:
            site = web.TCPSite(
                runner,
                settings.listen.host,
                settings.listen.port,
                ssl_context=_tls(settings),
                backlog=BACKLOG,
            )
            await site.start()
            yield _origin(settings, runner)
            await gateway.admission.drain(settings.drain_seconds)
        finally:
            await runner.cleanup()


def _origin(settings: Settings, runner: web.AppRunner) -> str:
    """The address that was really taken: port 0 asks for any."""
    port = runner.addresses[0][1]
    host = f"[{settings.listen.host}]" if ":" in settings.listen.host else settings.listen.host
    return f"{'https' if settings.has_tls else 'http'}://{host}:{port}"


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if not settings.has_tls:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.tls_cert, settings.tls_key)
    return context
