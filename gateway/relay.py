"""The straight path of a request: authenticate, parse, reserve, forward, stream and meter, settle, last bytes.

Bytes pass as they come, in both directions. What completes an answer for the client - the chunk with the protocol's
terminal event, the last byte of its Content-Length, or its end - waits until the usage is on disk. An answer that
breaks upstream breaks for the client: it is never ended as if it were whole.
"""

from collections.abc import Mapping
from functools import partial
from http import HTTPStatus

from aiohttp import web

from gateway.admission import Admission
from gateway.auth import Authenticator
from gateway.clients import ClientConnection
from gateway.core import wire
from gateway.core.errors import ClientLeft
from gateway.core.estimate import Estimator
from gateway.core.metering import Meter, meter_for
from gateway.core.parsing import parse_count_tokens, parse_messages
from gateway.core.settings import Settings
from gateway.core.wire import Endpoint
from gateway.intake import parse, read_body
from gateway.reservation import Reservation
from gateway.responses import SERVER, whole_or_broken
from gateway.upstream import Answer, Upstream


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

    async def messages(self, request: web.BaseRequest) -> web.StreamResponse:
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
        with whole_or_broken(request, response):
            async with (
                self._admission.reserve(key, parsed) as reservation,
                self._upstream.send(Endpoint.MESSAGES, headers, query, body) as answer,
            ):
                del body  # it has been sent: an answer may take minutes, and needs it no more
                ClientConnection.of(request).release_upload()
                meter = meter_for(parsed.hold, answer.status, answer.content_type, answer.content_encoding)
                limits = await reservation.begin(answer.status, meter)
                _copy_head(answer, limits, response)
                if answer.content_length == 0 or answer.status == HTTPStatus.NO_CONTENT:
                    await reservation.settle()  # its head is all there is
                await response.prepare(request)
                await _stream(response, answer, meter, reservation)
        return response

    async def count_tokens(self, request: web.BaseRequest) -> web.StreamResponse:
        """`POST /v1/messages/count_tokens`: free upstream, so paced and not recorded."""
        query = wire.upstream_query(Endpoint.COUNT_TOKENS, request.rel_url.raw_query_string)
        key = await self._authenticator.authenticate(request.headers.items())
        self._admission.pace_lookup(key)
        body = await read_body(request, self._max_body_bytes)
        self._admission.check_model(key, (await parse(parse_count_tokens, body)).model)
        headers = wire.request_headers(request.headers.items())
        async with self._upstream.send(Endpoint.COUNT_TOKENS, headers, query, body) as answer:
            return await _pass_on(request, answer)

    async def models(self, request: web.BaseRequest) -> web.StreamResponse:
        """`GET /v1/models`: free, so paced and not recorded."""
        query = wire.upstream_query(Endpoint.MODELS, request.rel_url.raw_query_string)
        key = await self._authenticator.authenticate(request.headers.items())
        self._admission.pace_lookup(key)
        headers = wire.request_headers(request.headers.items())
        async with self._upstream.send(Endpoint.MODELS, headers, query) as answer:
            return await _pass_on(request, answer)

    async def model(self, request: web.BaseRequest) -> web.StreamResponse:
        """`GET /v1/models/{id}`, likewise."""
        query = wire.upstream_query(Endpoint.MODEL, request.rel_url.raw_query_string)
        key = await self._authenticator.authenticate(request.headers.items())
        self._admission.pace_lookup(key)
        model_id = wire.model_in_path(request.path)
        self._admission.check_model(key, model_id)
        headers = wire.request_headers(request.headers.items())
        async with self._upstream.send(Endpoint.MODEL, headers, query, model_id=model_id) as answer:
            return await _pass_on(request, answer)


def _copy_head(answer: Answer, limits: Mapping[str, str], response: web.StreamResponse) -> None:
    """The head of the answer to the client. Without a Content-Length its body will go out chunked."""
    response.set_status(answer.status)
    for name, value in wire.answer_headers(answer.headers):
        response.headers.add(name, value)
    response.headers.update(limits)
    response.headers["server"] = SERVER
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


async def _pass_on(request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
    """Pass on an answer that costs nothing."""
    response = web.StreamResponse()
    with whole_or_broken(request, response):
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
