"""TLS of its own: the certificate that new connections are shown, loaded anew when its files change.

How it works. OpenSSL asks, in each handshake, which certificate to use (`sni_callback`, also where the client names
no host). The answer is the context that was loaded last, always a whole one: a certificate is never paired with the
key of another. Connections that are open keep theirs. What cannot be loaded changes nothing, and is told once.
"""

import asyncio
import logging
import ssl
from pathlib import Path

from aiohttp import web

from gateway.core.errors import SettingsError
from gateway.core.settings import Settings
from gateway.dispatch import Handler
from gateway.logs import Event

HANDSHAKE_SECONDS = 10
LOOK_SECONDS = 1
"""How often the files are looked at. What has changed since the last look may be half written: it is loaded at the
next one."""
HSTS = "max-age=31536000"
"""Browsers come back by TLS only, for a year (RFC 6797)."""

_log = logging.getLogger("opusmax.tls")


class Certificate:
    """The certificate and key of the settings, as their files have them."""

    def __init__(self, settings: Settings) -> None:
        """Raises `SettingsError` if they cannot be used."""
        self._files = (Path(settings.tls_cert), Path(settings.tls_key))
        self._seen = self._loaded = self._stamp()
        self._newest = self._load()
        self.context = self._load()
        """For the listener: it stays the same whatever is loaded later."""
        self.context.sni_callback = self._choose

    async def watch(self) -> None:
        """Load what has changed, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            stamp = await asyncio.to_thread(self._stamp)
            if stamp == self._seen and stamp != self._loaded:
                await self.reload()
            self._seen = stamp

    async def reload(self) -> None:
        """Load the files now; they stay as they were if that fails, which the log tells."""
        self._loaded = await asyncio.to_thread(self._stamp)
        try:
            self._newest = await asyncio.to_thread(self._load)
        except SettingsError as error:
            _log.error(Event.TLS_NOT_RELOADED, exc_info=error)
        else:
            _log.info(Event.TLS_RELOADED)

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._newest

    def _stamp(self) -> tuple[tuple[int, int, int] | None, ...]:
        """What changes whenever a file is written or replaced; `None`: it is not there."""
        return tuple(map(_stamp_of, self._files))

    def _load(self) -> ssl.SSLContext:
        certificate, key = self._files
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # An empty password: a key that needs one is refused, and nobody is asked for it on a terminal.
            context.load_cert_chain(certificate, key, password="")
        except ssl.SSLError as error:
            reason = (error.reason or "bad key").replace("_", " ").lower()
            raise SettingsError(f"tls_cert {certificate} and tls_key {key} cannot be used: {reason}") from None
        except OSError as error:
            raise SettingsError(f"tls_cert {certificate} or tls_key {key}: {error.strerror}") from None
        return context


def with_hsts(handler: Handler) -> Handler:
    """The same handler for connections with TLS: the gateway's own answers tell browsers to keep to it."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        response = await handler(request)
        if not response.prepared:  # else it is a provider's, and not for a browser
            response.headers["strict-transport-security"] = HSTS
        return response

    return handle


def _stamp_of(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
