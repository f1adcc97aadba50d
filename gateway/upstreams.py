"""All upstreams: which of them takes a request, with which credential, and who is asked next where nobody took it.

A request goes to the first upstream of its protocol that serves its model, with its credentials in turn
(core/routing.py decides). It moves on only where it was certainly not processed, and before the client has seen
anything of an answer. The lists of models of all upstreams are kept here too.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from gateway.answer import Answer
from gateway.clock import Clock
from gateway.core import listing
from gateway.core.amounts import MINUTE_MS
from gateway.core.errors import GatewayError, UpstreamCredentialRefused, UpstreamUnreachable
from gateway.core.listing import ListedModel
from gateway.core.protocols import Protocol
from gateway.core.routing import Attempts, Router, Trouble, read_retry_after
from gateway.core.splice import Splice
from gateway.core.upstreams import Access
from gateway.core.wire import Endpoint
from gateway.logs import Event
from gateway.upstream import Headers, Sending, Upstream

LISTS_LAST_MS = 5 * MINUTE_MS

_log = logging.getLogger("opusmax.upstream")


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
        self._lists: list[tuple[ListedModel, ...]] = [()] * len(accesses)
        self._listed_at_ms: int | None = None
        self._listing = asyncio.Lock()

    async def close(self) -> None:
        for upstream in self._upstreams:
            await upstream.close()

    def attempts(self, protocol: Protocol, model: str) -> Attempts:
        """Who may take a request. Raises `ModelNotServed`."""
        return self._router.attempts(protocol, model, self._clock.now_ms())

    def send(self, attempts: Attempts, request: Request) -> "Asking":
        """Send a request, as an `async with` block that gives its answer. Raises a `GatewayError`."""
        return Asking(self._upstreams, attempts, request, self._clock)

    def may_relay_list(self, form: Protocol, globs: Sequence[str]) -> bool:
        """Whether an upstream's own list is what a key may see."""
        return listing.may_relay(self._router, form, globs)

    async def models(self, form: Protocol, globs: Sequence[str]) -> tuple[ListedModel, ...]:
        """The models that a key may use, of all upstreams. Raises `GatewayError` while no list is known."""
        if not self._are_lists_fresh():
            async with self._listing:
                if not self._are_lists_fresh():  # another request may have asked meanwhile
                    await self.refresh_lists()
        return listing.allowed(listing.merge(self._lists, self._router, form), globs)

    def _are_lists_fresh(self) -> bool:
        return self._listed_at_ms is not None and self._clock.now_ms() <= self._listed_at_ms + LISTS_LAST_MS

    async def refresh_lists(self) -> list[str]:
        """Ask all upstreams for their lists; returns the ids. Raises a `GatewayError` if none came."""
        outcomes = await asyncio.gather(*map(_list_of, self._upstreams))
        for place, outcome in enumerate(outcomes):
            if not isinstance(outcome, GatewayError):
                self._lists[place] = outcome
        failures = [outcome for outcome in outcomes if isinstance(outcome, GatewayError)]
        if len(failures) == len(outcomes):
            raise failures[-1]
        self._listed_at_ms = self._clock.now_ms()
        return [model.id for models in self._lists for model in models]


class Asking:
    """One request on its way, from one upstream to the next, until there is an answer for the client."""

    def __init__(self, upstreams: Sequence[Upstream], attempts: Attempts, request: Request, clock: Clock) -> None:
        self._upstreams = upstreams
        self._attempts = attempts
        self._request: Request | None = request
        """Until it has been sent: its body is not kept any longer."""
        self._clock = clock
        self._sending: Sending | None = None

    async def __aenter__(self) -> Answer:
        outcome: Answer | GatewayError = UpstreamUnreachable("Nobody was asked.")
        while self._request is not None:
            outcome = await self._try(self._request)
            trouble = _trouble_of(outcome)
            if trouble is not None and self._goes_on(trouble, outcome):
                await self.__aexit__(None, None, None)
            else:
                self._request = None
        if isinstance(outcome, GatewayError):
            raise outcome
        return outcome

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

    def _goes_on(self, trouble: Trouble, outcome: Answer | GatewayError) -> bool:
        now_ms = self._clock.now_ms()
        rest_ms = None if isinstance(outcome, GatewayError) else read_retry_after(outcome.headers, now_ms)
        if self._attempts.note(trouble, now_ms, rest_ms):
            _log.warning(Event.UPSTREAM_CREDENTIAL_REFUSED)
        return self._attempts.go_on(trouble, now_ms)


def _trouble_of(outcome: Answer | GatewayError) -> Trouble | None:
    if isinstance(outcome, Answer):
        return Trouble.of(outcome.status)
    return Trouble.REFUSED if isinstance(outcome, UpstreamCredentialRefused) else Trouble.UNREACHABLE


async def _list_of(upstream: Upstream) -> tuple[ListedModel, ...] | GatewayError:
    """Its first credential that is not refused is enough."""
    outcome: tuple[ListedModel, ...] | GatewayError = ()
    for credential in range(upstream.credentials):
        try:
            return await upstream.list_models(credential)
        except GatewayError as error:
            outcome = error
            if not isinstance(error, UpstreamCredentialRefused):
                break
    _log.warning(Event.MODELS_NOT_LISTED)
    return outcome
