"""An upstream's answer, between the connection that fills it and the request that takes it.

What was received is given out before a failure is told: an upstream that reported usage and then reset the
connection has still reported it. For a chunk there is no task, no timer and no lock; whoever takes the last piece
waits for a future, and only then.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Self

from gateway.core.errors import GatewayError, UpstreamBroke, UpstreamTimeout
from gateway.core.wire import Headers, answer_headers
from gateway.core.withholding import RepeatsSecret, Withholding
from gateway.logs import Event

_log = logging.getLogger("opusmax.upstream")


def report(event: Event, upstream: str, error: GatewayError) -> GatewayError:
    """Log what went wrong with the upstream of that name, and return the error that tells of it."""
    _log.warning(event, extra={"upstream": upstream})
    return error


class Refused(Exception):
    """An answer has a form that cannot be passed on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for an upstream, in seconds."""

    connect: float
    first_byte: float
    """From a request to the head of its answer."""
    silence: float
    """Within an answer."""
    idle: float
    """For the next request; then the connection is closed."""


class Answer(AsyncIterator[bytes]):
    """An upstream's answer: its head known, its body still to come."""

    def __init__(self, upstream: str, patience: Patience, on_taken: Callable[[], None]) -> None:
        """`upstream`: its name. `on_taken` is called whenever all that was received so far has been taken."""
        self.status = 0
        self.headers: Headers = ()
        """In order, names in lower case."""
        self.content_type = ""
        self.content_encoding = ""
        self.content_length: int | None = None
        self.tells_spliced_usage = False
        """It was asked for its usage by the gateway and not by its client, who must not see it."""
        self.has_ended = False
        """Whether the upstream has sent all of it."""
        self.deadline = math.inf
        """Until when something has to come. Set only while somebody waits: the time that a slow client takes is
        never held against the upstream."""
        self._upstream = upstream
        self._patience = patience
        self._on_taken = on_taken
        self._ends_with_connection = False
        self._withholding: Withholding | None = None
        self._pieces: list[bytes] = []
        self._failure: Event | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_exhausted(self) -> bool:
        """Whether the chunk given last was the last one."""
        return self.has_ended and not self._pieces

    def chunks(self) -> AsyncIterator[bytes]:
        """The body, in pieces as they were received. Ends only where the upstream ended it properly.

        Otherwise it raises `UpstreamBroke` or `UpstreamTimeout`, after everything that was received.
        """
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._pieces:
            if self.has_ended:
                return self._rest()
            await self._progress(self._patience.silence)
        pieces, self._pieces = self._pieces, []
        self._on_taken()
        chunk = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return chunk if self._withholding is None else self._checked(chunk, self._withholding)

    def _checked(self, chunk: bytes, withholding: Withholding) -> bytes:
        try:
            return withholding.feed(chunk)
        except RepeatsSecret:
            raise self._repeats_secret() from None

    def _rest(self) -> bytes:
        rest = b"" if self._withholding is None else self._withholding.rest()
        if not rest:
            raise StopAsyncIteration
        return rest

    async def arrive(self) -> None:
        """Return once the head is there. Raises `UpstreamBroke` or `UpstreamTimeout`."""
        while not self.status:
            await self._progress(self._patience.first_byte)

    async def withhold(self, secrets: Sequence[bytes]) -> None:
        """Break off before any of `secrets` can pass, in a header that is passed on or in the body.

        Raises `UpstreamBroke` if one is there already when the body begins, and whatever `chunks` raises.
        """
        while not self._pieces and not self.has_ended:
            await self._progress(self._patience.silence)
        said = "\n".join(value for _, value in answer_headers(self.headers)).encode("utf-8", "surrogateescape")
        said += b"\n" + b"".join(self._pieces)
        if any(secret in said for secret in secrets):
            raise self._repeats_secret()
        self._withholding = Withholding(secrets)

    def _repeats_secret(self) -> GatewayError:
        not_passed = UpstreamBroke("The provider gave an answer that is not passed on.")
        return report(Event.UPSTREAM_CREDENTIAL_REPEATED, self._upstream, not_passed)

    async def _progress(self, seconds: float) -> None:
        """Return when something has happened."""
        if self._failure is Event.UPSTREAM_TIMED_OUT:
            raise report(self._failure, self._upstream, UpstreamTimeout("The provider did not answer in time."))
        if self._failure is not None:
            raise report(self._failure, self._upstream, UpstreamBroke("The connection to the provider broke."))
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        self.deadline = loop.time() + seconds
        try:
            await self._waiter
        finally:
            self._waiter = None
            self.deadline = math.inf

    # What its connection tells it:

    def begin(self, status: int, headers: list[tuple[str, str]]) -> None:
        """The head is there. Raises `Refused` if the body is coded in a way that could not be passed on."""
        first = dict(reversed(headers))
        length, coding = first.get("content-length"), first.get("transfer-encoding")
        if coding is not None and coding.lower() != "chunked":
            raise Refused
        self.status = status
        self.headers = headers
        self.content_type = first.get("content-type", "")
        self.content_encoding = first.get("content-encoding", "")
        self.content_length = None if length is None else int(length)
        self._ends_with_connection = length is None and coding is None
        self._wake()

    def add(self, piece: bytes) -> None:
        """A piece of the body."""
        self._pieces.append(piece)
        self._wake()

    def end(self) -> None:
        """All of it is there."""
        self.has_ended = True
        self._wake()

    def end_with_connection(self) -> None:
        """The upstream has closed the connection in good order, and some answers have no other end."""
        if self.status and self._ends_with_connection:
            self.end()

    def fail(self, event: Event) -> None:
        """Nothing more will come. To an answer that has ended, or failed before, this means nothing."""
        if not self.has_ended and self._failure is None:
            self._failure = event
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
