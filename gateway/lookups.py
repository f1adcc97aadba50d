"""What is asked of a provider for free: counting tokens, and which models there are. Paced, and not recorded."""

from collections.abc import Sequence

from aiohttp import web

from gateway import passage
from gateway.admission import Admission
from gateway.auth import Authenticator
from gateway.core import listing, wire
from gateway.core.errors import UnknownPath
from gateway.core.parsing import parse_count_tokens
from gateway.core.protocols import Protocol
from gateway.core.records import Key
from gateway.core.settings import Settings
from gateway.core.wire import Endpoint
from gateway.intake import parse, read_body
from gateway.responses import OWN_HEADERS
from gateway.streamed import StreamedResponse
from gateway.upstream import Answer
from gateway.upstreams import Request, Upstreams

JSON_HEADERS = OWN_HEADERS | {"content-type": "application/json"}


class Lookups:
    """The handlers."""

    def __init__(
        self, settings: Settings, authenticator: Authenticator, admission: Admission, upstreams: Upstreams
    ) -> None:
        self._max_body_bytes = settings.max_body_bytes
        self._authenticator = authenticator
        self._admission = admission
        self._upstreams = upstreams

    async def count_tokens(self, request: web.BaseRequest) -> web.StreamResponse:
        """`POST /v1/messages/count_tokens`."""
        query = wire.upstream_query(Endpoint.COUNT_TOKENS, request.rel_url.raw_query_string)
        key = await self._admit(request)
        body = await read_body(request, self._max_body_bytes)
        model = (await parse(parse_count_tokens, body)).model
        self._admission.check_model(key, model)
        headers = wire.request_headers(request.headers.items())
        sent = Request(endpoint=Endpoint.COUNT_TOKENS, headers=headers, query=query, body=body)
        return await self._relay(request, Protocol.ANTHROPIC, model, sent)

    async def models(self, request: web.BaseRequest) -> web.StreamResponse:
        """`GET /v1/models`: the provider's own answer where it says the same as ours would."""
        query = wire.upstream_query(Endpoint.MODELS, request.rel_url.raw_query_string)
        key = await self._admit(request)
        form = wire.protocol_of(request.path, request.headers)
        if not self._upstreams.may_relay_list(form, key.models):
            models = await self._upstreams.models(form, key.models)
            return _own_answer(listing.list_answer(models, form, query))
        headers = wire.request_headers(request.headers.items())
        return await self._relay(request, form, "", Request(endpoint=Endpoint.MODELS, headers=headers, query=query))

    async def model(self, request: web.BaseRequest) -> web.StreamResponse:
        """`GET /v1/models/{id}`, likewise; a name with a slash is looked up in the list, and asked of nobody."""
        query = wire.upstream_query(Endpoint.MODEL, request.rel_url.raw_query_string)
        key = await self._admit(request)
        form = wire.protocol_of(request.path, request.headers)
        model_id = wire.model_in_path(request.path)
        self._admission.check_model(key, model_id)
        if "/" in model_id or not self._upstreams.may_relay_list(form, ()):
            return await self._own_model(form, key.models, model_id)
        headers = wire.request_headers(request.headers.items())
        sent = Request(endpoint=Endpoint.MODEL, headers=headers, query=query, model_id=model_id)
        return await self._relay(request, form, model_id, sent)

    async def _admit(self, request: web.BaseRequest) -> Key:
        key = await self._authenticator.authenticate(request.headers)
        self._admission.pace_lookup(key)
        return key

    async def _own_model(self, form: Protocol, globs: Sequence[str], model_id: str) -> web.Response:
        body = listing.model_answer(await self._upstreams.models(form, globs), form, model_id)
        if body is None:
            raise UnknownPath("model: there is none with such a name.")
        return _own_answer(body)

    async def _relay(
        self, request: web.BaseRequest, protocol: Protocol, model: str, sent: Request
    ) -> web.StreamResponse:
        attempts = self._upstreams.attempts(protocol, model)
        async with self._upstreams.send(attempts, sent) as answer:
            return await _pass_on(request, answer)


def _own_answer(body: bytes) -> web.Response:
    return web.Response(body=body, headers=JSON_HEADERS)


async def _pass_on(request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
    """Pass on an answer that costs nothing."""
    with StreamedResponse(request) as response:
        passage.begin(response, answer, {})
        async for chunk in answer.chunks():
            response.send(chunk)
            await response.drain()
        await response.write_eof()
    return response
