"""The straight path of a request: authenticate, parse, reserve, forward, stream and meter, settle, last bytes.

Bytes pass as they come, in both directions; passage.py has the way back. An answer that breaks upstream breaks for
the client: it is never ended as if it were whole.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from gateway import passage
from gateway.admission import Admission
from gateway.auth import Authenticator
from gateway.clients import ClientConnection
from gateway.core import wire
from gateway.core.estimate import Estimator
from gateway.core.metering import meter_for
from gateway.core.openai_parsing import parse_chat, parse_embeddings, parse_responses
from gateway.core.parsing import ParsedRequest, parse_messages
from gateway.core.protocols import Api
from gateway.core.settings import Settings
from gateway.core.splice import UsageChunkRemover
from gateway.core.wire import Endpoint
from gateway.dispatch import Handler
from gateway.intake import parse, read_body
from gateway.passage import Passage
from gateway.streamed import StreamedResponse
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
        key = await self._authenticator.authenticate(request.headers)
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
        with StreamedResponse(request) as response:
            async with (
                self._admission.reserve(key, parsed, call.api.protocol, upstream) as reservation,
                self._upstreams.send(attempts, sent, reservation.move) as answer,
            ):
                del attempts, body, headers, sent  # an answer may take minutes, and needs them no more
                ClientConnection.of(request).release_upload()
                meter = meter_for(
                    parsed.hold, answer.status, answer.content_type, answer.content_encoding, call.api
                )
                remover = _usage_remover(answer)
                passage.begin(
                    response, answer, reservation.begin(answer.status, meter), keeps_length=remover is None
                )
                await Passage(response, answer, meter, remover).run(reservation)
        return response


def _usage_remover(answer: Answer) -> UsageChunkRemover | None:
    """Where the gateway asked for the usage of a stream, its client did not, and must not see it."""
    is_plain_stream = answer.content_type.startswith("text/event-stream") and not answer.content_encoding
    return UsageChunkRemover() if answer.tells_spliced_usage and is_plain_stream else None
