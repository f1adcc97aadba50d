"""An upstream's answer on its way to the client: which of its headers pass, and how its body does.

Bytes pass as they come, each chunk in the turn of the loop that received it. What completes an answer for the
client - the chunk with the protocol's terminal event, the last byte of its Content-Length, or its end - waits until
the usage is on disk.
"""

from collections.abc import Mapping
from http import HTTPStatus

from gateway.core import wire
from gateway.core.metering import Meter
from gateway.core.splice import UsageChunkRemover
from gateway.reservation import Reservation
from gateway.responses import SERVER
from gateway.streamed import StreamedResponse
from gateway.upstream import Answer


def begin(
    response: StreamedResponse, answer: Answer, limits: Mapping[str, str], *, keeps_length: bool = True
) -> None:
    """Give the response its head; `limits` are the headers that tell of the key's."""
    has_body = answer.status != HTTPStatus.NO_CONTENT and answer.content_length != 0
    dropped = {
        "content-length": not keeps_length or answer.status == HTTPStatus.NO_CONTENT,  # RFC 9110, 8.6
        "content-type": not answer.content_type,
    }
    headers = [header for header in wire.answer_headers(answer.headers) if not dropped.get(header[0])]
    answer.headers = ()  # an answer may take minutes
    if has_body and not answer.content_type:
        headers.append(("content-type", "application/octet-stream"))  # nobody is to guess
    if answer.content_type.startswith("text/event-stream"):
        headers.append(("x-accel-buffering", "no"))  # a proxy in front must not gather events
        if all(name != "cache-control" for name, _ in headers):
            headers.append(("cache-control", "no-cache, no-transform"))
    headers += [*limits.items(), ("server", SERVER)]
    response.begin(answer.status, headers, answer.content_length if keeps_length else None)


class Passage:
    """The body of a metered answer."""

    __slots__ = ("_answer", "_held", "_meter", "_missing", "_remover", "_response")

    def __init__(
        self,
        response: StreamedResponse,
        answer: Answer,
        meter: Meter,
        remover: UsageChunkRemover | None,
    ) -> None:
        """`remover`: takes out what the client did not ask for."""
        self._response = response
        self._answer = answer
        self._meter = meter
        self._remover = remover
        self._missing = answer.content_length
        """Bytes; `None`: nobody knows."""
        self._held = b""
        """What completes the answer."""

    async def run(self, reservation: Reservation) -> None:
        """Pass all of it on. Raises a `GatewayError` where that fails, on either side or at the disk."""
        if not self._answer.has_received:
            self._response.flush()
        while not await self._answer.pass_on(self._take):
            if self._is_complete:
                await reservation.settle()
                self._response.send(self._held)
            await self._response.drain()
        await reservation.settle()
        if self._remover is not None:
            self._response.send(self._remover.rest())
        await self._response.write_eof()

    @property
    def _is_complete(self) -> bool:
        return self._meter.is_complete or self._missing == 0

    def _take(self, chunk: bytes) -> bool:
        """Meter a chunk and send it on. False: before the next one, wait for the disk or the client."""
        self._meter.feed(chunk)
        if self._missing is not None:
            self._missing -= len(chunk)
        shown = chunk if self._remover is None else self._remover.feed(chunk)
        if self._is_complete:
            self._held = shown
            return False
        self._response.send(shown)
        return not self._response.is_slow
