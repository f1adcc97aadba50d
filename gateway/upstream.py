"""The only outgoing HTTP: one request to the configured origin, and its answer as it comes.

    async with upstream.send(Endpoint.MESSAGES, headers, query, body) as answer:
        answer.status, answer.headers
        async for chunk in answer.chunks(): ...

Scheme, host and path are constants. No redirects, no proxies out of the environment, no cookies, nothing unpacked,
nothing tried twice once a byte may have been processed. Leaving the block before the answer's end closes the
connection, so that the upstream stops working. Whatever goes wrong becomes a `GatewayError` here.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiohttp
import msgspec
from yarl import URL

from gateway.core.errors import (
    GatewayError,
    UpstreamBroke,
    UpstreamCredentialRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.core.settings import Settings
from gateway.core.wire import Endpoint, Headers
from gateway.logs import Event

MAX_HEADER_BYTES = 64 * 2**10
READ_BUFFER_BYTES = 64 * 2**10
"""How much of an answer may wait for a slow client before the upstream is made to wait."""
KEEP_ALIVE_SECONDS = 30
"""Idle connections are closed well before a provider does, so that none turns out dead when it is used."""
MAX_LISTED_MODELS = 1_000
MODELS_TIMEOUT_SECONDS = 20

_log = logging.getLogger("opusmax.upstream")


class _ListedModel(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_ListedModel]


class Answer:
    """An upstream's answer, its head known, its body still to come."""

    def __init__(self, response: aiohttp.ClientResponse, silence: asyncio.Timeout, silence_seconds: float) -> None:
        self.status = response.status
        self.headers: Headers = response.headers.items()
        self.content_type = response.headers.get("content-type", "")
        self.content_encoding = response.headers.get("content-encoding", "")
        self.content_length = response.content_length
        self._response = response
        self._silence = silence
        self._silence_seconds = silence_seconds

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body, in pieces as they were received. Ends only where the upstream ended it properly."""
        now = asyncio.get_running_loop().time
        self._silence.reschedule(now() + self._silence_seconds)
        async for chunk in self._response.content.iter_any():
            yield chunk
            self._silence.reschedule(now() + self._silence_seconds)


class Upstream:
    """The provider."""

    def __init__(self, settings: Settings, credentials: Sequence[str]) -> None:
        self._origin = settings.anthropic_url
        self._first_byte_seconds = settings.first_byte_timeout_seconds
        self._silence_seconds = settings.silence_timeout_seconds
        self._credentials = itertools.cycle(credentials)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=settings.connect_timeout_seconds),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=("accept", "accept-encoding", "content-type", "user-agent"),
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )

    async def close(self) -> None:
        await self._session.close()

    @asynccontextmanager
    async def send(
        self,
        endpoint: Endpoint,
        headers: Sequence[tuple[str, str]],
        query: str = "",
        body: bytes | None = None,
        model_id: str = "",
    ) -> AsyncIterator[Answer]:
        """Send a request with the operator's credential. Raises a `GatewayError` for whatever fails."""
        url = URL(self._origin + endpoint.path.format(model_id=model_id) + (query and f"?{query}"), encoded=True)
        try:
            async with (
                asyncio.timeout(self._first_byte_seconds) as silence,
                self._session.request(
                    endpoint.method,
                    url,
                    headers=[*headers, ("x-api-key", next(self._credentials))],
                    data=body,
                    allow_redirects=False,
                ) as response,
            ):
                _check_status(response.status)
                yield Answer(response, silence, self._silence_seconds)
        except GatewayError:
            raise
        except aiohttp.ConnectionTimeoutError:
            raise _report(Event.UPSTREAM_UNREACHABLE, _unreachable()) from None
        except TimeoutError:
            raise _report(Event.UPSTREAM_TIMED_OUT, _timed_out()) from None
        except aiohttp.ClientConnectorError:
            raise _report(Event.UPSTREAM_UNREACHABLE, _unreachable()) from None
        except aiohttp.ClientError:
            raise _report(Event.UPSTREAM_BROKE, _broke()) from None

    async def list_models(self) -> list[str]:
        """The ids of all models that the upstream offers. Raises `GatewayError`."""
        try:
            async with (
                asyncio.timeout(MODELS_TIMEOUT_SECONDS),
                self.send(Endpoint.MODELS, _OWN_HEADERS, f"limit={MAX_LISTED_MODELS}") as answer,
            ):
                body = b"".join([chunk async for chunk in answer.chunks()])
            return [model.id for model in msgspec.json.decode(body, type=_ModelList).data]
        except (TimeoutError, msgspec.MsgspecError, UnicodeDecodeError):
            raise _broke() from None


_OWN_HEADERS = (("anthropic-version", "2023-06-01"), ("accept-encoding", "identity"))


def _check_status(status: int) -> None:
    """Some answers must not reach the client: they speak to the operator, or lead elsewhere."""
    if status == 401:
        raise _report(
            Event.UPSTREAM_CREDENTIAL_REFUSED,
            UpstreamCredentialRefused(
                "The provider did not accept this server's own credential. Your API key is not the cause;"
                " the administrator needs to look at it."
            ),
        )
    if not 200 <= status < 300 and not 400 <= status < 600:
        raise _report(
            Event.UPSTREAM_REDIRECTED, UpstreamBroke("The provider gave an answer that is not passed on.")
        )


def _report(event: Event, error: GatewayError) -> GatewayError:
    _log.warning(event)
    return error


def _unreachable() -> UpstreamUnreachable:
    return UpstreamUnreachable("The provider cannot be reached just now.")


def _broke() -> UpstreamBroke:
    return UpstreamBroke("The connection to the provider broke.")


def _timed_out() -> UpstreamTimeout:
    return UpstreamTimeout("The provider did not answer in time.")
