"""The simulated provider itself: what it listens to, whom it lets in, what it remembers."""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence
from hashlib import sha256
from types import TracebackType
from typing import Self

from aiohttp import web

from gateway.core.keys import PREFIX
from gateway.core.usage import Usage
from gateway.simulator.answers import Answer, fixed_answer, lookup_answer, message_answer
from gateway.simulator.requests import Catalog, Refusal, count_tokens, read_ask
from gateway.simulator.scripts import Script, add_up
from gateway.simulator.sending import Received, send

HOST = "127.0.0.1"
MODELS = ("claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-4-5-20251001")
GATEWAY_KEY_MESSAGE = "The request carries a key of the gateway."
"""What a test looks for when a client's key must never reach a provider."""

_MODELS = "/v1/models"
_HEADER_BYTES = 65_536
"""Real providers take more than aiohttp's 8 kB."""
_BACKLOG = 1_024
"""Tests and benchmarks connect some hundred times at once."""
_STOP_SECONDS = 0.01
"""What still runs when the simulator stops is broken off."""
_POLL_SECONDS = 0.001


class Simulator:
    """A provider that listens from `start` to `stop`, or inside `async with`.

    `credentials` are those that it accepts, as `x-api-key` or bearer; `None`: any, or none at all.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        credentials: Collection[str] | None = None,
        models: Sequence[str] = MODELS,
        accept_any_model: bool = False,
        remember_bodies: bool = True,
        remember_requests: bool = True,
    ) -> None:
        self.script = Script()
        """For every message for which nothing else is said."""
        self.choose: Callable[[Received], Script | None] | None = None
        """Asked first, and for lookups too; `None` leaves the choice to `next` and `script`."""
        self.received: list[Received] = []
        self.port = port
        self._next: deque[Script] = deque()
        self._credentials = None if credentials is None else frozenset(credentials)
        self._catalog = Catalog(models, accept_any=accept_any_model)
        self._remember_bodies = remember_bodies
        self._remember_requests = remember_requests
        self._answered = 0
        self._runner: web.ServerRunner | None = None

    @property
    def origin(self) -> str:
        return f"http://{HOST}:{self.port}"

    def next(self, *scripts: Script) -> None:
        """Queues scripts, one for each message to come that the provider does not refuse by itself."""
        self._next.extend(scripts)

    def messages(self) -> list[Received]:
        """The metered calls."""
        return [received for received in self.received if received.is_message]

    def reported_total(self) -> Usage:
        """What the answers to metered calls reported, without failed ones."""
        return add_up(entry.reported for entry in self.messages() if entry.status and entry.status < 300)

    async def arrived(self, count: int) -> None:
        """Returns as soon as so many metered calls have arrived in all."""
        while len(self.messages()) < count:  # noqa: ASYNC110 - an event for each request would cost benchmarks
            await asyncio.sleep(_POLL_SECONDS)

    async def start(self) -> None:
        """Listens; from now on `origin` is true."""
        server = web.Server(
            self._handle,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            max_line_size=_HEADER_BYTES,
            max_field_size=_HEADER_BYTES,
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=_STOP_SECONDS)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, self.port, backlog=_BACKLOG).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Breaks off what still runs. Safe to call twice."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        received = await self._receive(request)
        self._answered += 1
        request_id = f"req_simulated{self._answered:08}"
        try:
            return await send(request, self._answer(request, received, request_id), received, request_id)
        except asyncio.CancelledError:
            received.disconnected = self._runner is not None
            raise
        finally:
            received.ended.set()

    async def _receive(self, request: web.BaseRequest) -> Received:
        body = await request.content.read()
        received = Received(
            method=request.method,
            path=request.raw_path,
            headers=tuple(request.headers.items()),
            body=body,
            body_length=len(body),
            body_sha256=sha256(body).hexdigest(),
        )
        if self._remember_requests:
            self.received.append(received)
        return received

    def _answer(self, request: web.BaseRequest, received: Received, request_id: str) -> Answer:
        try:
            self._authenticate(received)
            return self._route(request, received, request_id)
        except Refusal as refusal:
            return fixed_answer(refusal.script, request_id)
        finally:
            if not self._remember_bodies:
                received.body = b""

    def _authenticate(self, received: Received) -> None:
        if any(PREFIX in value for _, value in received.headers):
            raise Refusal(400, GATEWAY_KEY_MESSAGE)
        if self._credentials is None:
            return
        bearer = (received.header("authorization") or "").removeprefix("Bearer ")
        if self._credentials.isdisjoint({received.header("x-api-key"), bearer}):
            raise Refusal(401, "invalid x-api-key")

    def _route(self, request: web.BaseRequest, received: Received, request_id: str) -> Answer:
        match received.method, received.endpoint:
            case "POST", "/v1/messages":
                return self._message(received, request_id)
            case "POST", "/v1/messages/count_tokens":
                value = count_tokens(received.body)
            case "GET", "/v1/models":
                value = self._catalog.page(request.query)
            case "GET", path if path.startswith(f"{_MODELS}/"):
                value = self._catalog.one(path.removeprefix(f"{_MODELS}/"))
            case _:
                raise Refusal(404, "Not found")
        script = self._chosen(received) or Script()
        return fixed_answer(script, request_id) if script.is_fixed else lookup_answer(script, value)

    def _message(self, received: Received, request_id: str) -> Answer:
        ask = read_ask(received.body)
        self._catalog.check(ask.model)
        script = self._chosen(received) or (self._next.popleft() if self._next else self.script)
        return fixed_answer(script, request_id) if script.is_fixed else message_answer(script, ask)

    def _chosen(self, received: Received) -> Script | None:
        return self.choose(received) if self.choose else None
