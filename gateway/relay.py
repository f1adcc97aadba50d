"""The straight path of a request: authenticate, parse, reserve, forward, stream and meter, settle, last bytes.

Bytes pass as they come, in both directions. What completes an answer for the client - the chunk with the protocol's
terminal event, the last byte of its Content-Length, or its end - waits until the usage is on disk. An answer that
breaks upstream breaks for the client: it is never ended as if it were whole.
"""

import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from aiohttp import web

from gateway.admission import Admission
from gateway.auth import Authenticator
from gateway.clients import ClientConnection
from gateway.core import wire
from gateway.core.errors import ClientLeft, UnknownPath
from gateway.core.estimate import Estimator
from gateway.core.metering import Meter, meter_for
from gateway.core.parsing import parse_count_tokens, parse_messages
from gateway.core.settings import Settings
from gateway.core.wire import Endpoint
from gateway.intake import parse, read_body
from gateway.reservation import Reservation
from gateway.upstream import Answer, Upstream

_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class Relay:
    """The handlers of everything that goes to the provider."""

    def __init__(
        self, settings: Settings, authenticator: Authenticator, admission: Admission, upstream: Upstream
    ) -> None:
        self._max_body_bytes = settings.max_body_bytes
        self._authenticator = authenticator
        self._admission = admission
        self._upstream = upstream
        self._parse_messages = partial(parse_messages, estimator=Estimator(settings))

    async def messages(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/messages`: the metered one."""
        query = wire.upstream_query(Endpoint.MESSAGES, request.rel_url.raw_query_string)
        key = await self._authenticator.authenticate(request.headers.items())
        self._admission.check_open()
        body = await read_body(request, self._max_body_bytes)
        parsed = await parse(self._parse_messages, body)
        await self._admission.ready(key.row)
        key = self._authenticator.recheck(key.row)  # the body may have taken its time
        headers = wire.request_headers(request.headers.items())
        response = web.StreamResponse()
        with _whole_or_broken(request, response):
            async with (
                self._admission.reserve(key, parsed) as reservation,
                self._upstream.send(Endpoint.MESSAGES, headers, query, body) as answer,
            ):
                del body  # it has been sent: an answer may take minutes, and needs it no more
                ClientConnection.of(request).release_upload()
                meter = meter_for(parsed.hold, answer.status, answer.content_type, answer.content_encoding)
                limits = await reservation.begin(answer.status, meter)
                _copy_head(answer, limits, response)
                await response.prepare(request)
                await _stream(response, answer, meter, reservation)
        return response

    async def count_tokens(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/messages/count_tokens`: free upstream, so paced and not recorded."""
        query = wire.upstream_query(Endpoint.COUNT_TOKENS, request.rel_url.raw_query_string)
        key = await self._authenticator.authenticate(request.headers.items())
        self._admission.pace_lookup(key)
        body = await read_body(request, self._max_body_bytes)
        self._admission.check_model(key, (await parse(parse_count_tokens, body)).model)
        headers = wire.request_headers(request.headers.items())
        async with self._upstream.send(Endpoint.COUNT_TOKENS, headers, query, body) as answer:
            return await _pass_on(request, answer)

    async def models(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/models` and `/v1/models/{id}`: free, so paced and not recorded."""
        model_id = request.match_info.get("model_id", "")
        endpoint = Endpoint.MODEL if model_id else Endpoint.MODELS
        query = wire.upstream_query(endpoint, request.rel_url.raw_query_string)
        key = await self._authenticator.authenticate(request.headers.items())
        self._admission.pace_lookup(key)
        if model_id:
            if not wire.MODEL_ID.fullmatch(model_id):
                raise UnknownPath("model: there is none with such a name.")
            self._admission.check_model(key, model_id)
        headers = wire.request_headers(request.headers.items())
        async with self._upstream.send(endpoint, headers, query, model_id=model_id) as answer:
            return await _pass_on(request, answer)


def _copy_head(answer: Answer, limits: Mapping[str, str], response: web.StreamResponse) -> None:
    """The head of the answer to the client. Without a Content-Length its body will go out chunked."""
    response.set_status(answer.status)
    for name, value in wire.answer_headers(answer.headers):
        response.headers.add(name, value)
    response.headers.update(limits)
    if answer.content_type.startswith("text/event-stream"):
        response.headers["x-accel-buffering"] = "no"  # a proxy in front must not gather events
        response.headers.setdefault("cache-control", "no-cache, no-transform")


async def _stream(response: web.StreamResponse, answer: Answer, meter: Meter, reservation: Reservation) -> None:
    """Pass the body on, show it to the meter, and hold back what completes it until its usage is safe."""
    missing = answer.content_length
    async for chunk in answer.chunks():
        meter.feed(chunk)
        if missing is not None:
            missing -= len(chunk)
        if meter.is_complete or missing == 0:
            await reservation.settle()
        await _write(response, chunk)
    await reservation.settle()
    await response.write_eof()


async def _pass_on(request: web.Request, answer: Answer) -> web.StreamResponse:
    """Pass on an answer that costs nothing."""
    response = web.StreamResponse()
    with _whole_or_broken(request, response):
        _copy_head(answer, {}, response)
        await response.prepare(request)
        async for chunk in answer.chunks():
            await _write(response, chunk)
        await response.write_eof()
    return response


async def _write(response: web.StreamResponse, chunk: bytes) -> None:
    try:
        await response.write(chunk)
    except ConnectionError:
        raise ClientLeft("The client closed the connection.") from None


@contextmanager
def _whole_or_broken(request: web.Request, response: web.StreamResponse) -> Iterator[None]:
    """Once the head of an answer is out, a failure can only be shown by breaking the connection."""
    try:
        yield
    except BaseException:
        if response.prepared:
            _break_connection(request)
        raise


def _break_connection(request: web.Request) -> None:
    """Let the client see that the answer is not whole.

    With chunks or a length, a close that comes too early shows. An HTTP/1.0 client takes any close for the end, so
    it gets a reset.
    """
    transport = request.transport
    if transport is None:
        return
    if request.version < (1, 1):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
        transport.abort()
    else:
        transport.close()
