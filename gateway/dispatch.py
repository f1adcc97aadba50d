"""Which handler a request gets, and that it gets an answer whatever happens.

What is served is a closed list, so a table is looked up and no pattern is matched: nothing that is not on the list
reaches a handler, and no library answers in words of its own.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from gateway import request_ids
from gateway.clients import ClientConnection
from gateway.core.errors import GatewayError, MethodNotAllowed, UnknownPath
from gateway.core.heads import UnsafeHead, check_head
from gateway.core.wire import Endpoint, is_of_a_model, protocol_of
from gateway.logs import Event
from gateway.reservation import CLIENT_LEFT
from gateway.responses import error_response

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Routes = Mapping[str, Mapping[str, Handler]]
"""Path -> method -> handler."""
Count = Callable[[str, int], None]
"""Takes note of an answer: the request's path, and the status; 499 where its client left before."""

_log = logging.getLogger("opusmax")


def dispatching(routes: Routes, count: Count) -> Handler:
    """The one handler that aiohttp's server calls."""

    async def dispatch(request: web.BaseRequest) -> web.StreamResponse:
        connection = ClientConnection.of(request)
        connection.begin()
        request_ids.begin()
        status = CLIENT_LEFT
        try:
            try:
                check_head(request.raw_path, request.version, request.headers)
                response = await _handler(routes, request)(request)
            except Exception as error:
                response = _failed(request, error)
            status = response.status
        finally:
            count(request.path, status)
            request_ids.end()
            connection.end(is_read=request.content.is_eof())
        if not request.content.is_eof():
            response.force_close()
        return response

    return dispatch


def _failed(request: web.BaseRequest, error: Exception) -> web.Response:
    """The one place where an error becomes an answer. What is not a `GatewayError` is told as an internal error and
    logged by its class: its text may hold what a client sent. Where an answer had begun, its connection is closed
    already, and the response goes nowhere."""
    if not isinstance(error, GatewayError):
        _log.error(Event.HANDLER_FAILED, exc_info=error)
        error = GatewayError("Internal error of the gateway.")
    response = error_response(error, protocol_of(request.path, request.headers))
    if isinstance(error, UnsafeHead):
        response.force_close()  # where the next request begins is not certain
    return response


def _handler(routes: Routes, request: web.BaseRequest) -> Handler:
    """Raises `UnknownPath` or `MethodNotAllowed`."""
    path = request.path
    methods = routes.get(Endpoint.MODEL.path if is_of_a_model(path) else path)
    if methods is None:
        raise UnknownPath(
            "Nothing is served at this address. A client's base address is this server's own, with or without /v1."
        )
    if request.method not in methods:
        raise MethodNotAllowed("This address takes another method.")
    return methods[request.method]
