"""An upstream's answer, between the connection that fills it and the request that takes it.

What was received is given out before a failure is told: an upstream that reported usage and then reset the
connection has still reported it. For a chunk there is no task, no timer and no lock: `pass_on` hands it over in the
turn of the loop that received it, and the request's task is woken only when there is something to wait for.
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


Take = Callable[[bytes], bool]
"""Takes a chunk; false: no more for now."""


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

    status = 0
    headers: Headers = ()
    """In order, names in lower case."""
    content_type = ""
    content_encoding = ""
    content_length: int | None = None
    tells_spliced_usage = False
    """It was asked for its usage by the gateway and not by its client, who must not see it."""
    has_ended = False
    """Whether the upstream has sent all of it."""
    deadline = math.inf
    """Until when something has to come. Set only while somebody waits: the time that a slow client takes is never
    held against the upstream."""
    _ends_with_connection = False
    _withholding: Withholding | None = None
    _take: Take | None = None
    _error: Exception | None = None
    """What `_take` has raised."""
    _failure: Event | None = None
    _waiter: asyncio.Future[None] | None = None

    def __init__(self, upstream: str, patience: Patience, on_taken: Callable[[], None]) -> None:
        """`upstream`: its name. `on_taken` is called whenever all that was received so far has been taken."""
        self._upstream = upstream
        self._patience = patience
        self._on_taken = on_taken
        self._pieces: list[bytes] = []

    @property
    def is_exhausted(self) -> bool:
        """Whether the chunk given last was the last one."""
        return self.has_ended and not self._pieces

    @property
    def has_received(self) -> bool:
        """Whether the next chunk is there, or the end."""
        return bool(self._pieces) or self.has_ended

    async def pass_on(self, take: Take) -> bool:
        """Give each chunk to `take` as soon as it is received. Returns true at the end of the body, and false when
        `take` wants no more for now. Raises what `chunks` does, and what `take` does."""
        self._take = take
        try:
            while self._flow():
                if self.has_ended:
                    return True
                await self._progress(self._patience.silence)
            return False
        finally:
            self._take = self._error = None  # the error's traceback leads back here: a circle

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
                raise StopAsyncIteration
            await self._progress(self._patience.silence)
        return self._received()

    def _received(self) -> bytes:
        """What has come, of which there is something."""
        pieces, self._pieces = self._pieces, []
        self._on_taken()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _flow(self) -> bool:
        """Hand over what has come. False if it is not wanted, or what comes next is not."""
        if self._error is not None:
            raise self._error
        if self._take is not None and self._pieces and not self._take(self._received()):
            self._take = None
        return self._take is not None

    async def arrive(self) -> None:
        """Return once the head is there. Raises `UpstreamBroke` or `UpstreamTimeout`."""
        while not self.status:
            await self._progress(self._patience.first_byte)

    async def withhold(self, secrets: Sequence[bytes]) -> None:
        """Break off before any of `secrets` can pass, in a header that is passed on or in the body.

        Raises `UpstreamBroke` if one is there already when the body begins, and whatever `chunks` raises.
        """
        while not self.has_received:
            await self._progress(self._patience.silence)
        said = "\n".join(value for _, value in answer_headers(self.headers)).encode("utf-8", "surrogateescape")
        said += b"\n" + b"".join(self._pieces)
        if any(secret in said for secret in secrets):
            self._failure = Event.UPSTREAM_CREDENTIAL_REPEATED
            raise self._failed(self._failure)
        if not self.has_ended:
            self._withholding = Withholding(secrets)
            pieces, self._pieces = self._pieces, []
            for piece in pieces:
                self.add(piece)

    def _failed(self, failure: Event) -> GatewayError:
        """The error that tells of a failure, which is logged."""
        match failure:
            case Event.UPSTREAM_TIMED_OUT:
                error: GatewayError = UpstreamTimeout("The provider did not answer in time.")
            case Event.UPSTREAM_CREDENTIAL_REPEATED:
                error = UpstreamBroke("The provider gave an answer that is not passed on.")
            case _:
                error = UpstreamBroke("The connection to the provider broke.")
        return report(failure, self._upstream, error)

    async def _progress(self, seconds: float) -> None:
        """Return when something has happened that was not handed over in its own turn."""
        if self._failure is not None:
            raise self._failed(self._failure)
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
        """A piece of the body; `deliver` follows. Raises `Refused` if a secret would pass."""
        if self._withholding is not None:
            try:
                piece = self._withholding.feed(piece)
            except RepeatsSecret:
                self.fail(Event.UPSTREAM_CREDENTIAL_REPEATED)
                raise Refused from None
        if piece:
            self._pieces.append(piece)

    def deliver(self) -> None:
        """All that one read held has been added: hand it over, or wake whoever waits for it."""
        if self._take is None:
            if self._pieces:
                self._wake()
            return
        try:
            is_flowing = self._flow()
        except Exception as error:  # for the request's task
            self._error = error
            is_flowing = False
        if is_flowing and not self.has_ended:
            self.deadline = asyncio.get_running_loop().time() + self._patience.silence
        else:
            self._wake()

    def end(self) -> None:
        """All of it is there."""
        rest = b"" if self._withholding is None else self._withholding.rest()
        if rest:
            self._pieces.append(rest)
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

    def leave(self) -> None:
        """Its connection is gone, and must not be kept by it."""
        self._on_taken = _do_nothing

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _do_nothing() -> None:
    pass
