"""The straight path of a request: authenticate, parse, reserve, forward, stream and meter, settle, last bytes.

Bytes pass as they come, in both directions. What completes an answer for the client - the chunk with the protocol's
terminal event, the last byte of its Content-Length, or its end - waits until the usage is on disk. An answer that
breaks upstream breaks for the client: it is never ended as if it were whole.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from gateway.core.openai_parsing import parse_chat, parse_embeddings, parse_responses
from gateway.core.parsing import ParsedRequest, parse_messages
from gateway.core.protocols import Api
from gateway.core.settings import Settings
from gateway.core.splice import UsageChunkRemover
from gateway.core.wire import Endpoint
from gateway.dispatch import Handler
from gateway.intake import parse, read_body
from gateway.reservation import Reservation
from gateway.responses import SERVER, whole_or_broken
from gateway.upstream import Answer
from gateway.upstreams import Request, Upstreams

Parser = Callable[[bytes], ParsedRequest]


@dataclass(frozen=True, slots=True)
class _Call:
    """What is particular to a metered endpoint."""

    endpoint: Endpoint
    api: Api
    parser: Parser


class Relay:
    """The handlers of everything that costs tokens."""

    def __init__(
        self, settings: Settings, authenticator: Authenticator, admission: Admission, upstreams: Upstreams
    ) -> None:
        self._max_body_bytes = settings.max_body_bytes
        self._authenticator = authenticator
        self._admission = admission
        self._upstreams = upstreams
        self._estimator = Estimator(settings, settings.default_output_tokens)

    def handlers(self) -> Mapping[Endpoint, Handler]:
        """A handler for each metered endpoint."""
        parsers = {
            (Endpoint.MESSAGES, Api.MESSAGES): parse_messages,
            (Endpoint.CHAT, Api.CHAT): parse_chat,
            (Endpoint.RESPONSES, Api.RESPONSES): parse_responses,
            (Endpoint.EMBEDDINGS, Api.EMBEDDINGS): parse_embeddings,
        }
        return {
            endpoint: partial(self._relay, _Call(endpoint, api, partial(parser, estimator=self._estimator)))
            for (endpoint, api), parser in parsers.items()
        }

    async def _relay(self, call: _Call, request: web.BaseRequest) -> web.StreamResponse:
        query = wire.upstream_query(call.endpoint, request.rel_url.raw_query_string)
        key = await self._authenticator.authenticate(request.headers.items())
        self._admission.check_open()
        body = await read_body(request, self._max_body_bytes)
        parsed = await parse(call.parser, body)
        await self._admission.ready(key.row)
        key = self._authenticator.recheck(key.row)  # the body may have taken its time
        headers = wire.request_headers(request.headers.items())
        self._admission.check_model(key, parsed.model)
        attempts = self._upstreams.attempts(call.api.protocol, parsed.model)
        upstream = self._upstreams.name_of(attempts)
        sent = Request(
            endpoint=call.endpoint, headers=headers, query=query, body=body, usage_splice=parsed.usage_splice
        )
        response = web.StreamResponse()
        with whole_or_broken(request, response):
            async with (
                self._admission.reserve(key, parsed, call.api.protocol, upstream) as reservation,
                self._upstreams.send(attempts, sent, reservation.move) as answer,
            ):
                del body, sent  # it has been sent: an answer may take minutes, and needs it no more
                ClientConnection.of(request).release_upload()
                meter = meter_for(
                    parsed.hold, answer.status, answer.content_type, answer.content_encoding, call.api
                )
                limits = reservation.begin(answer.status, meter)
                remover = _usage_remover(answer)
                copy_head(answer, response, limits, keeps_length=remover is None)
                if answer.content_length == 0 or answer.status == HTTPStatus.NO_CONTENT:
                    await reservation.settle()  # its head is all there is
                await response.prepare(request)
                await _stream(response, answer, meter, reservation, remover)
        return response


def copy_head(
    answer: Answer, response: web.StreamResponse, limits: Mapping[str, str], *, keeps_length: bool = True
) -> None:
    """The head of the answer to the client. Without a Content-Length its body will go out chunked."""
    response.set_status(answer.status)
    for name, value in wire.answer_headers(answer.headers):
        if keeps_length or name != "content-length":
            response.headers.add(name, value)
    response.headers.update(limits)
    response.headers["server"] = SERVER
    if answer.content_type.startswith("text/event-stream"):
        response.headers["x-accel-buffering"] = "no"  # a proxy in front must not gather events
        response.headers.setdefault("cache-control", "no-cache, no-transform")


async def write(response: web.StreamResponse, chunk: bytes) -> None:
    """Raises `ClientLeft`."""
    try:
        await response.write(chunk)
    except ConnectionError:
        raise ClientLeft("The client closed the connection.") from None


async def _stream(
    response: web.StreamResponse,
    answer: Answer,
    meter: Meter,
    reservation: Reservation,
    remover: UsageChunkRemover | None,
) -> None:
    """Pass the body on, show it to the meter, and hold back what completes it until its usage is safe."""
    missing = answer.content_length
    async for chunk in answer.chunks():
        meter.feed(chunk)
        if missing is not None:
            missing -= len(chunk)
        if meter.is_complete or missing == 0:
            await reservation.settle()
        shown = chunk if remover is None else remover.feed(chunk)
        if shown:
            await write(response, shown)
    await reservation.settle()
    if remover is not None and (rest := remover.rest()):
        await write(response, rest)
    await response.write_eof()


def _usage_remover(answer: Answer) -> UsageChunkRemover | None:
    """Where the gateway asked for the usage of a stream, its client did not, and must not see it."""
    is_plain_stream = answer.content_type.startswith("text/event-stream") and not answer.content_encoding
    return UsageChunkRemover() if answer.tells_spliced_usage and is_plain_stream else None
