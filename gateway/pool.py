"""The connections to the one upstream: opened when none is idle, kept for the next request when all went well.

Idle ones are taken newest first, so that the rest grow old and close. One that the upstream closes leaves the pool
as soon as that is seen, and each is looked at once more when it is taken: before a request is written, another
connection may carry it; after that, it may have been processed.
"""

import asyncio
import ipaddress
import ssl
from urllib.parse import urlsplit

from gateway.answer import Patience
from gateway.core.errors import UpstreamUnreachable
from gateway.exchange import Connection

HAPPY_EYEBALLS_SECONDS = 0.25
"""RFC 8305: so long is an address of a name tried before the next one is tried beside it."""
LOOK_SECONDS = 1.0
"""How often at least the deadlines of all connections are looked at."""
_PORTS = {"http": 80, "https": 443}


class Pool:
    """Connections to one origin. A server's certificate is verified; `http://` is for `Settings` to allow."""

    def __init__(self, upstream: str, origin: str, patience: Patience) -> None:
        """`upstream`: its name."""
        self._upstream = upstream
        parts = urlsplit(origin)
        self._host = parts.hostname or ""
        self._port = parts.port or _PORTS[parts.scheme]
        self._delay_seconds = None if _is_address(self._host) else HAPPY_EYEBALLS_SECONDS
        self._tls = _verifying() if parts.scheme == "https" else None
        self._patience = patience
        self._idle: dict[Connection, None] = {}
        """As a stack out of whose middle lost ones can be taken."""
        self._open: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._look_seconds = min(LOOK_SECONDS, patience.first_byte / 2, patience.silence / 2, patience.idle / 2)
        self._connecting: set[asyncio.Task[Connection]] = set()
        self._is_closed = False

    def take(self) -> Connection | None:
        """An idle connection for one exchange, if there is one."""
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.is_quiet():
                return connection
            connection.close()
        return None

    async def connect(self) -> Connection:
        """A new connection for one exchange. Raises `UpstreamUnreachable`; nothing has been sent then."""
        connecting = asyncio.create_task(self._connect())
        self._connecting.add(connecting)
        connecting.add_done_callback(self._connecting.discard)
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(self._keep)
            raise
        except (OSError, UnicodeError) as error:  # its class is for the log
            raise UpstreamUnreachable("The provider cannot be reached just now.") from error

    def give_back(self, connection: Connection) -> None:
        """The exchange is over, well or not."""
        if connection.finish():
            if self._is_closed:
                connection.close()
            else:
                self._idle[connection] = None

    async def close(self) -> None:
        """Close what is idle, and whatever is given back later."""
        self._is_closed = True
        for connecting in self._connecting:
            connecting.cancel()
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        await asyncio.sleep(0)  # a transport lets go of its socket one turn of the loop later

    async def _connect(self) -> Connection:
        """A new connection. Not to be cancelled when its client leaves: asyncio would lose a socket that has just
        been connected, and the next request can use it."""
        async with asyncio.timeout(self._patience.connect):
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self._upstream, self._patience, self._forget),
                self._host,
                self._port,
                ssl=self._tls,
                happy_eyeballs_delay=self._delay_seconds,
            )
        if connection.is_open:
            self._open.add(connection)
            if self._timer is None:
                self._look()
        return connection

    def _look(self) -> None:
        """Close those whose time is over, now and as long as there are any connections."""
        loop = asyncio.get_running_loop()
        for connection in tuple(self._open):
            connection.look(loop.time())
        self._timer = loop.call_later(self._look_seconds, self._look) if self._open else None

    def _keep(self, connecting: asyncio.Task[Connection]) -> None:
        """Its client has left meanwhile."""
        if not connecting.cancelled() and connecting.exception() is None:
            self.give_back(connecting.result())

    def _forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._idle.pop(connection, None)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _verifying() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context
