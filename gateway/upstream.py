"""The only outgoing HTTP: one request to a provider, and its answer as it comes.

    async with upstream.send(Endpoint.MESSAGES, headers, query, body) as answer:
        answer.status, answer.headers
        async for chunk in answer.chunks(): ...

Scheme, host and path are constants. No redirects, no proxies out of the environment, no cookies, nothing unpacked,
and nothing but a GET tried twice. Leaving the block before the answer's end closes the connection, so that the
upstream stops working. Whatever goes wrong with the upstream is a `GatewayError`; what the block itself raises
passes as it is.
The exchange itself: exchange.py and answer.py; its connections: pool.py. Which upstream is asked: upstreams.py.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from urllib.parse import urlsplit

from gateway.answer import Answer, Patience, report
from gateway.core.errors import BadRequest, UpstreamBroke, UpstreamCredentialRefused
from gateway.core.listing import ListedModel, read_list
from gateway.core.protocols import Protocol
from gateway.core.upstreams import Access
from gateway.core.wire import MODEL_PLACE, Endpoint
from gateway.exchange import Connection
from gateway.logs import Event
from gateway.pool import Pool

__all__ = ["Answer", "Upstream"]

KEEP_ALIVE_SECONDS = 30
"""Idle connections are closed well before a provider does, so that none turns out dead when it is used."""
MAX_LISTED_MODELS = 1_000
MODELS_TIMEOUT_SECONDS = 20
MAX_MODEL_LIST_BYTES = 16 * 2**20

_OWN_HEADERS = {
    Protocol.ANTHROPIC: (("anthropic-version", "2023-06-01"), ("accept-encoding", "identity")),
    Protocol.OPENAI: (("accept-encoding", "identity"),),
}
_LIST_QUERY = {Protocol.ANTHROPIC: f"limit={MAX_LISTED_MODELS}", Protocol.OPENAI: ""}
_TARGET = re.compile(r"/[!-~]*", re.ASCII)
_FIELDS = re.compile(r"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: [^\r\n\0]*\r\n)+", re.ASCII)
"""Lines of a head: names of the characters of RFC 9110, 5.1, and values that do not end the line."""

Headers = Sequence[tuple[str, str]]


class Upstream:
    """A provider."""

    def __init__(self, access: Access) -> None:
        self.settings = access.upstream
        timeouts = self.settings.timeouts
        self._host = urlsplit(self.settings.url).netloc
        self._own_headers = dict(self.settings.headers)
        self._credentials = access.credentials
        self.credentials = len(access.credentials)
        self._secrets = [credential.encode() for credential in access.credentials if credential]
        self._pool = Pool(
            self.settings.name,
            self.settings.origin,
            Patience(
                connect=timeouts.connect_seconds,
                first_byte=timeouts.first_byte_seconds,
                silence=timeouts.silence_seconds,
                idle=KEEP_ALIVE_SECONDS,
            ),
        )

    async def close(self) -> None:
        await self._pool.close()

    def send(
        self,
        endpoint: Endpoint,
        headers: Headers,
        query: str = "",
        body: bytes | None = None,
        model_id: str = "",
        credential: int = 0,
    ) -> "Sending":
        """Send a request with one of the operator's credentials, by its place. Raises a `GatewayError` for whatever
        fails."""
        path = self.settings.base_path + endpoint.path.removeprefix("/v1").replace(MODEL_PLACE, model_id)
        fields = [("host", self._host), *self._headers(headers), *self._credential_header(credential)]
        if body is not None:
            fields.append(("content-length", str(len(body))))
        head = _request_head(endpoint.method, path + (query and f"?{query}"), fields)
        return Sending(self._pool, head, body or b"", self._check, may_repeat=endpoint.method == "GET")

    async def list_models(self, credential: int = 0) -> tuple[ListedModel, ...]:
        """All models that it offers. Raises `GatewayError`."""
        protocol = self.settings.protocol
        body = bytearray()
        try:
            async with (
                asyncio.timeout(MODELS_TIMEOUT_SECONDS),
                self.send(
                    Endpoint.MODELS, _OWN_HEADERS[protocol], _LIST_QUERY[protocol], credential=credential
                ) as answer,
            ):
                async for chunk in answer.chunks():
                    body += chunk
                    if len(body) > MAX_MODEL_LIST_BYTES:
                        break
            return read_list(bytes(body), protocol)
        except (TimeoutError, ValueError):
            raise UpstreamBroke("The provider's list of models cannot be read.") from None

    def _headers(self, headers: Headers) -> Headers:
        """The client's, but for those that the operator sets."""
        if not self._own_headers:
            return headers
        kept = [(name, value) for name, value in headers if name not in self._own_headers]
        return [*kept, *self._own_headers.items()]

    def _credential_header(self, place: int) -> Headers:
        credential, name = self._credentials[place], self.settings.credential_header
        if not credential:
            return ()
        return ((name, f"Bearer {credential}" if name == "authorization" else credential),)

    async def _check(self, answer: Answer) -> None:
        """Some of what is no success must not reach the client: it speaks to the operator, or leads elsewhere."""
        if answer.status == 401:
            raise UpstreamCredentialRefused(
                "The provider did not accept this server's own credential. Your API key is not the cause;"
                " the administrator needs to look at it."
            )
        if not 400 <= answer.status < 600:
            raise report(
                Event.UPSTREAM_REDIRECTED,
                self.settings.name,
                UpstreamBroke("The provider gave an answer that is not passed on."),
            )
        # An error may repeat what it was asked with; a proxy that is set up wrongly does.
        await answer.withhold(self._secrets)


class Sending:
    """One exchange, as an `async with` block that gives its answer."""

    __slots__ = ("_body", "_check", "_connection", "_head", "_may_repeat", "_pool")

    def __init__(
        self,
        pool: Pool,
        head: bytes,
        body: bytes,
        check: Callable[[Answer], Awaitable[None]],
        *,
        may_repeat: bool,
    ) -> None:
        """`check` looks at what is no success, and raises a `GatewayError` if it must not be passed on.
        `may_repeat`: it costs nothing and changes nothing, so it may be sent once more where no answer came."""
        self._pool = pool
        self._check = check
        self._may_repeat = may_repeat
        self._head = head
        self._body = body
        self._connection: Connection | None = None

    async def __aenter__(self) -> Answer:
        try:
            answer = await self._exchange()
        except UpstreamBroke:
            if not self._may_repeat:
                raise
            answer = await self._exchange()
        try:
            if not 200 <= answer.status < 300:
                await self._check(answer)
        except BaseException:
            self._close()
            raise
        del self._head, self._check
        return answer

    async def _exchange(self) -> Answer:
        self._connection = self._pool.take() or await self._pool.connect()
        body, self._body = self._body, b""  # a body is not kept beyond its sending
        try:
            return await self._connection.ask(self._head, body)
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._pool.give_back(self._connection)


def _request_head(method: str, target: str, headers: Headers) -> bytes:
    """The head of a request. Raises `BadRequest` for anything that would change its shape.

    Bytes beyond ASCII leave as they came to the server, which reads header values in the same way.
    """
    fields = "".join([f"{name}: {value}\r\n" for name, value in headers])
    are_fields = _FIELDS.fullmatch(fields) and fields.count("\n") == len(headers)
    if not are_fields or not _TARGET.fullmatch(target):
        raise BadRequest("A header has a form that cannot be passed on.")
    return f"{method} {target} HTTP/1.1\r\n{fields}\r\n".encode("utf-8", "surrogateescape")
