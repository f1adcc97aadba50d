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
from gateway.simulator.answers import fixed_answer, lookup_answer, message_answer
from gateway.simulator.catalog import MODELS, OPENAI_MODELS, Catalog
from gateway.simulator.content import add_up
from gateway.simulator.openai_requests import read_chat, read_embeddings, read_response
from gateway.simulator.pieces import Answer
from gateway.simulator.protocols import (
    ANTHROPIC,
    CHAT,
    EMBEDDINGS,
    MESSAGES,
    MODELS_PATH,
    OPENAI,
    RESPONSES,
    Protocol,
    protocol_of,
)
from gateway.simulator.requests import Refusal, count_tokens, read_ask, unknown_path, wrong_openai_key
from gateway.simulator.scripts import Ask, Script
from gateway.simulator.sending import Received, send

HOST = "127.0.0.1"
GATEWAY_KEY_MESSAGE = "The request carries a key of the gateway."
"""What a test looks for when a client's key must never reach a provider."""

_READERS: dict[str, Callable[[bytes], Ask]] = {
    MESSAGES: read_ask,
    CHAT: read_chat,
    RESPONSES: read_response,
    EMBEDDINGS: read_embeddings,
}
_HEADER_BYTES = 65_536
"""Real providers take more than aiohttp's 8 kB."""
_BACKLOG = 1_024
"""Tests and benchmarks connect some hundred times at once."""
_STOP_SECONDS = 0.01
"""What still runs when the simulator stops is broken off."""
_POLL_SECONDS = 0.001


class Simulator:
    """A provider that listens from `start` to `stop`, or inside `async with`.

    `credentials` are those that it accepts, as `x-api-key` (not for OpenAI's endpoints) or bearer; `None`: any, or
    none at all. `protocol`: the only one that it speaks; `None`: both, each request's own.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        credentials: Collection[str] | None = None,
        protocol: Protocol | None = None,
        models: Sequence[str] = MODELS,
        openai_models: Sequence[str] = OPENAI_MODELS,
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
        self._protocol = protocol
        self._catalogs = {
            served.name: Catalog(served, names, accept_any=accept_any_model)
            for served, names in ((ANTHROPIC, models), (OPENAI, openai_models))
        }
        self._rules: dict[tuple[str | None, str | None], Script] = {}
        """By credential and model; `None`: any."""
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

    def when(self, script: Script | None, *, credential: str | None = None, model: str | None = None) -> None:
        """Answers with this script to requests with that credential, or for that model, or both; `None`: no longer.

        Goes before `next` and `script`. A rule for both goes before one for the credential, and that before one for
        the model. One that names no model is for lookups too.
        """
        if script is None:
            self._rules.pop((credential, model), None)
        else:
            self._rules[credential, model] = script

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
        protocol = self._protocol or protocol_of(received.endpoint, request.headers)
        try:
            self._authenticate(received, protocol)
            return self._route(request, received, request_id, protocol)
        except Refusal as refusal:
            return fixed_answer(refusal.script, request_id, protocol)
        finally:
            if not self._remember_bodies:
                received.body = b""

    def _authenticate(self, received: Received, protocol: Protocol) -> None:
        if any(PREFIX in value for _, value in received.headers):
            raise Refusal(400, GATEWAY_KEY_MESSAGE)
        if self._credentials is None:
            return
        bearer = (received.header("authorization") or "").removeprefix("Bearer ")
        if protocol is OPENAI and bearer not in self._credentials:
            raise wrong_openai_key(bearer)
        if self._credentials.isdisjoint({received.header("x-api-key"), bearer}):
            raise Refusal(401, "invalid x-api-key")

    def _route(self, request: web.BaseRequest, received: Received, request_id: str, protocol: Protocol) -> Answer:
        endpoint, catalog = received.endpoint, self._catalogs[protocol.name]
        if received.method == "POST" and endpoint in protocol.metered:
            return self._metered(received, request_id, protocol)
        match received.method, endpoint:
            case "POST", "/v1/messages/count_tokens" if protocol is ANTHROPIC:
                value = count_tokens(received.body)
            case "GET", path if path == MODELS_PATH:
                value = catalog.all(request.query)
            case "GET", path if path.startswith(f"{MODELS_PATH}/"):
                value = catalog.one(path.removeprefix(f"{MODELS_PATH}/"))
            case _:
                raise unknown_path(protocol, received.method, endpoint)
        script = self._chosen(received) or Script()
        return (
            fixed_answer(script, request_id, protocol)
            if script.is_fixed
            else lookup_answer(script, value, protocol)
        )

    def _metered(self, received: Received, request_id: str, protocol: Protocol) -> Answer:
        ask = _READERS[received.endpoint](received.body)
        received.model = ask.model
        self._catalogs[protocol.name].check(ask.model)
        script = self._chosen(received) or (self._next.popleft() if self._next else self.script)
        return fixed_answer(script, request_id, protocol) if script.is_fixed else message_answer(script, ask)

    def _chosen(self, received: Received) -> Script | None:
        """By the test's function, else by the most exact rule."""
        script = self.choose(received) if self.choose else None
        if script or not self._rules:
            return script
        credential, model = received.credential, received.model
        rules = ((credential, model), (credential, None), (None, model), (None, None))
        return next((self._rules[rule] for rule in rules if rule in self._rules), None)
