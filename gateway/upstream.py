"""The only outgoing HTTP: one request to the configured origin, and its answer as it comes.

    async with upstream.send(Endpoint.MESSAGES, headers, query, body) as answer:
        answer.status, answer.headers
        async for chunk in answer.chunks(): ...

Scheme, host and path are constants. No redirects, no proxies out of the environment, no cookies, nothing unpacked,
nothing tried twice once a byte may have been processed. Leaving the block before the answer's end closes the
connection, so that the upstream stops working. Whatever goes wrong with the upstream is a `GatewayError`; what the
block itself raises passes as it is. The exchange itself: exchange.py and answer.py; its connections: pool.py.
"""

import asyncio
import itertools
import re
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from urllib.parse import urlsplit

import msgspec

from gateway.answer import Answer, Patience, report
from gateway.core.errors import BadRequest, UpstreamBroke, UpstreamCredentialRefused
from gateway.core.settings import Settings
from gateway.core.wire import Endpoint
from gateway.exchange import Connection
from gateway.logs import Event
from gateway.pool import Pool

__all__ = ["Answer", "Upstream"]

KEEP_ALIVE_SECONDS = 30
"""Idle connections are closed well before a provider does, so that none turns out dead when it is used."""
MAX_LISTED_MODELS = 1_000
MODELS_TIMEOUT_SECONDS = 20
MAX_MODEL_LIST_BYTES = 16 * 2**20

_OWN_HEADERS = (("anthropic-version", "2023-06-01"), ("accept-encoding", "identity"))
_HEADER_NAMES = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_TARGET = re.compile(r"/[!-~]*", re.ASCII)
_LINE_BREAKERS = re.compile(r"[\r\n\0]")


class _ListedModel(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_ListedModel]


class Upstream:
    """The provider."""

    def __init__(self, settings: Settings, credentials: Sequence[str]) -> None:
        self._host = urlsplit(settings.anthropic_url).netloc
        self._credentials = itertools.cycle(credentials)
        self._secrets = [credential.encode() for credential in credentials]
        self._pool = Pool(
            settings.anthropic_url,
            Patience(
                connect=settings.connect_timeout_seconds,
                first_byte=settings.first_byte_timeout_seconds,
                silence=settings.silence_timeout_seconds,
                idle=KEEP_ALIVE_SECONDS,
            ),
        )

    async def close(self) -> None:
        await self._pool.close()

    def send(
        self,
        endpoint: Endpoint,
        headers: Sequence[tuple[str, str]],
        query: str = "",
        body: bytes | None = None,
        model_id: str = "",
    ) -> "Sending":
        """Send a request with the operator's credential. Raises a `GatewayError` for whatever fails."""
        target = endpoint.path.format(model_id=model_id) + (query and f"?{query}")
        fields = [("host", self._host), *headers, ("x-api-key", next(self._credentials))]
        if body is not None:
            fields.append(("content-length", str(len(body))))
        return Sending(self._pool, _request_head(endpoint.method, target, fields), body or b"", self._check)

    async def list_models(self) -> list[str]:
        """The ids of all models that the upstream offers. Raises `GatewayError`."""
        body = bytearray()
        try:
            async with (
                asyncio.timeout(MODELS_TIMEOUT_SECONDS),
                self.send(Endpoint.MODELS, _OWN_HEADERS, f"limit={MAX_LISTED_MODELS}") as answer,
            ):
                async for chunk in answer.chunks():
                    body += chunk
                    if len(body) > MAX_MODEL_LIST_BYTES:
                        break
            return [model.id for model in msgspec.json.decode(body, type=_ModelList).data]
        except (TimeoutError, msgspec.MsgspecError, UnicodeDecodeError):
            raise UpstreamBroke("The provider's list of models cannot be read.") from None

    async def _check(self, answer: Answer) -> None:
        """Some answers must not reach the client: they speak to the operator, or lead elsewhere."""
        if answer.status == 401:
            refused = UpstreamCredentialRefused(
                "The provider did not accept this server's own credential. Your API key is not the cause;"
                " the administrator needs to look at it."
            )
            raise report(Event.UPSTREAM_CREDENTIAL_REFUSED, refused)
        if not 200 <= answer.status < 300 and not 400 <= answer.status < 600:
            not_passed = UpstreamBroke("The provider gave an answer that is not passed on.")
            raise report(Event.UPSTREAM_REDIRECTED, not_passed)
        if answer.status >= 400:  # an error may repeat what it was asked with; a proxy that is set up wrongly does
            await answer.withhold(self._secrets)


class Sending:
    """One exchange, as an `async with` block that gives its answer."""

    def __init__(self, pool: Pool, head: bytes, body: bytes, check: Callable[[Answer], Awaitable[None]]) -> None:
        """`check` raises a `GatewayError` for an answer that must not be passed on."""
        self._pool = pool
        self._check = check
        self._head = head
        self._body = body
        self._connection: Connection | None = None

    async def __aenter__(self) -> Answer:
        self._connection = await self._pool.take()
        body, self._body = self._body, b""  # a body is not kept beyond its sending
        try:
            answer = await self._connection.ask(self._head, body)
            await self._check(answer)
        except BaseException:
            self._connection.close()
            raise
        return answer

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._pool.give_back(self._connection)


def _request_head(method: str, target: str, headers: Sequence[tuple[str, str]]) -> bytes:
    """The head of a request. Raises `BadRequest` for anything that would change its shape.

    Bytes beyond ASCII leave as they came to the server, which reads header values in the same way.
    """
    names = [name for name, _ in headers]
    values = "".join([value for _, value in headers])
    are_names = all(names) and _HEADER_NAMES.fullmatch("".join(names))
    if not are_names or _LINE_BREAKERS.search(values) or not _TARGET.fullmatch(target):
        raise BadRequest("A header has a form that cannot be passed on.")
    lines = [f"{method} {target} HTTP/1.1", *[f"{name}: {value}" for name, value in headers], "\r\n"]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape")
