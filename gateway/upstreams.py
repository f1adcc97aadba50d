"""All upstreams: which of them takes a request, with which credential, and who is asked next where nobody took it.

A request goes to the first upstream of its protocol that serves its model, with its credentials in turn
(core/routing.py decides). It moves on only where it was certainly not processed, and before the client has seen
anything of an answer. The lists of models of all upstreams are kept here too.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from gateway.answer import Answer
from gateway.clock import Clock
from gateway.core import listing
from gateway.core.amounts import DAY_MS, MINUTE_MS
from gateway.core.errors import GatewayError, UpstreamCredentialRefused, UpstreamUnreachable
from gateway.core.listing import ListedModel
from gateway.core.protocols import Protocol
from gateway.core.rests import Resting
from gateway.core.routing import Attempts, Router, Trouble
from gateway.core.splice import Splice
from gateway.core.upstreams import Access
from gateway.core.waits import read_retry_after
from gateway.core.wire import Endpoint
from gateway.logs import Event
from gateway.upstream import Headers, Sending, Upstream

LISTS_LAST_MS = 5 * MINUTE_MS
MOST_LISTS_LAST_MS = DAY_MS
"""So long an upstream that gives no new list is taken to have the models that it had."""
LISTS_RETRY_MS = MINUTE_MS
"""If none came, those that are known are given out for so long before the upstreams are asked again."""

_log = logging.getLogger("opusmax.upstream")

MayGoTo = Callable[[str], bool]


def _anywhere(_upstream: str) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be sent, to whomever."""

    endpoint: Endpoint
    headers: Headers
    query: str = ""
    body: bytes | None = None
    usage_splice: Splice | None = None
    """For upstreams that are to be asked for the usage of a stream."""
    model_id: str = ""
    """In the path."""


class Upstreams:
    """The providers."""

    def __init__(self, accesses: Sequence[Access], clock: Clock) -> None:
        self._router = Router(accesses)
        self._upstreams = [Upstream(access) for access in accesses]
        self._clock = clock
        self._lists: list[_KnownList | None] = [None] * len(accesses)
        self._lists_due_ms = 0
        self._listing = asyncio.Lock()

    async def close(self) -> None:
        for upstream in self._upstreams:
            await upstream.close()

    def attempts(self, protocol: Protocol, model: str) -> Attempts:
        """Who may take a request. Raises `ModelNotServed`."""
        return self._router.attempts(protocol, model, self._clock.now_ms())

    def name_of(self, attempts: Attempts) -> str:
        """The name of the upstream that is to take a request."""
        return self._upstreams[attempts.current.upstream].settings.name

    def send(self, attempts: Attempts, request: Request, may_go_to: MayGoTo = _anywhere) -> "Asking":
        """Send a request, as an `async with` block that gives its answer. Raises a `GatewayError`.

        `may_go_to` is asked before it goes on to another upstream, whose name it takes.
        """
        return Asking(self._upstreams, attempts, request, may_go_to, self._clock)

    def resting(self) -> tuple[Resting, ...]:
        """What rests of each upstream, in the order of the configuration."""
        return self._router.resting(self._clock.now_ms())

    def may_relay_list(self, form: Protocol, globs: Sequence[str]) -> bool:
        """Whether an upstream's own list is what a key may see."""
        return listing.may_relay(self._router, form, globs)

    async def models(self, form: Protocol, globs: Sequence[str]) -> tuple[ListedModel, ...]:
        """The models that a key may use, of all upstreams. Raises `GatewayError` while no list is known."""
        if self._are_lists_due():
            async with self._listing:
                if self._are_lists_due():  # another request may have asked meanwhile
                    await self._renew_lists()
        lists = [() if known is None else known.models for known in self._known_lists()]
        return listing.allowed(listing.merge(lists, self._router, form), globs)

    async def refresh_lists(self) -> list[str]:
        """Ask all upstreams for their lists; returns the ids. Raises a `GatewayError` if none came."""
        outcomes = await asyncio.gather(*map(_list_of, self._upstreams))
        now_ms = self._clock.now_ms()
        for place, outcome in enumerate(outcomes):
            if not isinstance(outcome, GatewayError):
                self._lists[place] = _KnownList(outcome, now_ms)
        failures = [outcome for outcome in outcomes if isinstance(outcome, GatewayError)]
        if len(failures) == len(outcomes):
            raise failures[-1]
        self._lists_due_ms = now_ms + LISTS_LAST_MS
        return [model.id for known in self._known_lists() if known is not None for model in known.models]

    async def _renew_lists(self) -> None:
        try:
            await self.refresh_lists()
        except GatewayError:
            if not any(self._known_lists()):
                raise
            self._lists_due_ms = self._clock.now_ms() + LISTS_RETRY_MS

    def _are_lists_due(self) -> bool:
        return self._clock.now_ms() >= self._lists_due_ms or not any(self._known_lists())

    def _known_lists(self) -> "list[_KnownList | None]":
        """One for each upstream; `None`: there is none, or it is too old."""
        oldest_ms = self._clock.now_ms() - MOST_LISTS_LAST_MS
        return [known if known is not None and known.at_ms > oldest_ms else None for known in self._lists]


@dataclass(frozen=True, slots=True)
class _KnownList:
    """The models that an upstream listed, and when."""

    models: tuple[ListedModel, ...]
    at_ms: int


class Asking:
    """One request on its way, from one upstream to the next, until there is an answer for the client."""

    __slots__ = ("_attempts", "_clock", "_may_go_to", "_request", "_sending", "_upstreams")

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        attempts: Attempts,
        request: Request,
        may_go_to: MayGoTo,
        clock: Clock,
    ) -> None:
        self._upstreams = upstreams
        self._may_go_to = may_go_to
        self._attempts = attempts
        self._request = request
        self._clock = clock
        self._sending: Sending | None = None

    async def __aenter__(self) -> Answer:
        self._attempts.begin(self._clock.now_ms())
        outcome = await self._try(self._request)
        while self._goes_on(outcome):
            await self.__aexit__(None, None, None)
            outcome = await self._try(self._request)
        del self._request, self._attempts, self._may_go_to  # it has been sent, and an answer may take minutes
        if isinstance(outcome, Answer):
            return outcome
        try:
            raise outcome
        finally:
            del outcome  # with its traceback it is a circle, which would keep what the request had at hand

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._sending is not None:
            await self._sending.__aexit__(kind, error, traceback)
            self._sending = None

    async def _try(self, request: Request) -> Answer | GatewayError:
        """One attempt: an answer, or why there is none. Raises the errors after which nobody else may be asked."""
        current = self._attempts.current
        upstream = self._upstreams[current.upstream]
        is_spliced = request.usage_splice is not None and upstream.settings.splice_usage
        body = request.body
        if body is not None and request.usage_splice is not None and is_spliced:
            body = request.usage_splice.apply(body)
        sending = upstream.send(
            request.endpoint, request.headers, request.query, body, request.model_id, current.credential
        )
        try:
            answer = await sending.__aenter__()
        except (UpstreamUnreachable, UpstreamCredentialRefused) as error:
            return error
        self._sending = sending
        answer.tells_spliced_usage = is_spliced
        return answer

    def _goes_on(self, outcome: Answer | GatewayError) -> bool:
        """Take note of an outcome, and turn to the next one who may take the request. False: it has its answer."""
        now_ms = self._clock.now_ms()
        trouble = _trouble_of(outcome)
        rest_ms = None
        if trouble is not None and isinstance(outcome, Answer):
            rest_ms = read_retry_after(outcome.headers, now_ms)
        if self._attempts.note(trouble, now_ms, rest_ms):
            self._tell(outcome)
        return trouble is not None and self._attempts.go_on(
            trouble, now_ms, lambda place: self._may_go_to(self._upstreams[place].settings.name)
        )

    def _tell(self, outcome: Answer | GatewayError) -> None:
        current = self._attempts.current
        upstream = self._upstreams[current.upstream]
        if isinstance(outcome, UpstreamUnreachable):
            extra = {"upstream": upstream.settings.name}
            _log.warning(Event.UPSTREAM_UNREACHABLE, exc_info=outcome.__cause__, extra=extra)
        else:
            _log.warning(Event.UPSTREAM_CREDENTIAL_REFUSED, extra=_named(upstream, current.credential))


def _trouble_of(outcome: Answer | GatewayError) -> Trouble | None:
    if isinstance(outcome, Answer):
        return Trouble.of(outcome.status)
    return Trouble.REFUSED if isinstance(outcome, UpstreamCredentialRefused) else Trouble.UNREACHABLE


async def _list_of(upstream: Upstream) -> tuple[ListedModel, ...] | GatewayError:
    """Its first credential that is not refused is enough."""
    for credential in range(upstream.credentials):
        try:
            return await upstream.list_models(credential)
        except GatewayError as error:
            outcome = error
            if not isinstance(error, UpstreamCredentialRefused):
                break
    cause = outcome.__cause__ or outcome
    _log.warning(Event.MODELS_NOT_LISTED, exc_info=cause, extra=_named(upstream, credential))
    return outcome


def _named(upstream: Upstream, credential: int) -> dict[str, object]:
    """What a line of the log says of a credential: whose it is, and its place among how many."""
    return {"upstream": upstream.settings.name, "credential": (credential + 1, upstream.credentials)}
