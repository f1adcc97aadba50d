"""Which upstream, and which of its credentials, takes a request; and what its answer means for the next ones.

Theory: the *route* of a model is every upstream of the protocol that serves it, in the order of the configuration.
A request goes to the first of them, whose credentials take turns. A credential that the upstream refuses (401)
rests for a minute; one that is out of its own limits (429, 529) rests for that model as long as the upstream says.
What rests is passed over and comes back by itself.

    team (2 credentials), spare (1)    1st request: team 1, team 2, spare 1
                                       2nd request: team 2, team 1, spare 1
    team 2 answered 429, 30 s          3rd request: team 1, spare 1

Only the first of these is asked, unless it turns out that the request was certainly not processed (no connection,
401, 429): then the same request may go to the next one, never to the same one twice. If all of a route rest, the
one that comes back first is asked all the same, alone: its answer is truer than one of ours. So a lone credential
never really rests.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum
from fnmatch import translate

from gateway.core import amounts
from gateway.core.errors import ModelNotServed
from gateway.core.protocols import Protocol
from gateway.core.upstreams import Access, UpstreamSettings

REFUSED_REST_MS = 60 * amounts.SECOND_MS
BUSY_REST_MS = 10 * amounts.SECOND_MS
"""For a 429 or 529 that does not say how long."""
LEAST_BUSY_REST_MS = amounts.SECOND_MS
MOST_BUSY_REST_MS = 10 * amounts.MINUTE_MS
"""Whatever an upstream says, it is asked again after so long."""
MOST_BUSY_MODELS = 256
"""Clients choose the names of models, so what is remembered of them has a bound, here and below."""
MOST_ROUTES = 1_024

_SECONDS = re.compile(r"\d{1,9}(?:\.\d{1,9})?", re.ASCII)


class Trouble(Enum):
    """What tells of a credential or its upstream, and not of the request."""

    UNREACHABLE = 0
    """No connection, so nothing was sent."""
    REFUSED = 401
    BUSY = 429
    OVERLOADED = 529

    @classmethod
    def of(cls, status: int) -> "Trouble | None":
        """`None`: the answer is the client's. A 403 is: clients can cause it."""
        return _TROUBLES.get(status)


_TROUBLES = {trouble.value: trouble for trouble in Trouble if trouble is not Trouble.UNREACHABLE}
_SURELY_NOT_PROCESSED = frozenset({Trouble.UNREACHABLE, Trouble.REFUSED, Trouble.BUSY})


class Candidate:
    """One credential of one upstream, and until when it rests."""

    __slots__ = ("_busy_until_ms", "_rested_at_ms", "credential", "refused_until_ms", "upstream")

    def __init__(self, upstream: int, credential: int) -> None:
        """`upstream`, `credential`: their places, from 0 on."""
        self.upstream = upstream
        self.credential = credential
        self.refused_until_ms = 0
        self._busy_until_ms: dict[str, int] = {}
        """By model."""
        self._rested_at_ms = 0
        """When the last of all its rests ends: after that nothing needs to be looked up."""

    def is_awake(self, model: str, now_ms: int) -> bool:
        return self._rested_at_ms <= now_ms or self.rests_until(model) <= now_ms

    def rests_until(self, model: str) -> int:
        return max(self.refused_until_ms, self._busy_until_ms.get(model, 0))

    def refuse(self, now_ms: int) -> bool:
        """Rest for every model. Returns whether that is news: requests that ran beside each other hear the same."""
        if now_ms < self.refused_until_ms:
            return False
        self.refused_until_ms = now_ms + REFUSED_REST_MS
        self._rested_at_ms = max(self._rested_at_ms, self.refused_until_ms)
        return True

    def rest(self, model: str, until_ms: int, now_ms: int) -> None:
        """Rest for one model."""
        busy = self._busy_until_ms
        if len(busy) >= MOST_BUSY_MODELS and model not in busy:
            self._busy_until_ms = busy = {name: until for name, until in busy.items() if until > now_ms}
        if len(busy) >= MOST_BUSY_MODELS and model not in busy:
            del busy[min(busy, key=busy.__getitem__)]
        busy[model] = until_ms
        self._rested_at_ms = max(self._rested_at_ms, until_ms)

    def busy_until(self, now_ms: int) -> tuple[int, ...]:
        """The ends of its rests for single models."""
        return tuple(until_ms for until_ms in self._busy_until_ms.values() if until_ms > now_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resting:
    """A credential that rests, for `check` and figures: told by its place, never by its text."""

    upstream: str
    credential: int
    """From 1 on, as people count."""
    refused_until_ms: int | None
    busy_models: int
    """For so many models it is out of its own limits."""
    until_ms: int
    """When the last of these rests ends."""


class _Route:
    """Who serves a model: the candidates of each upstream, in order."""

    __slots__ = ("groups", "is_lone", "model", "turn")

    def __init__(self, model: str, groups: Sequence[Sequence[Candidate]], turn: int) -> None:
        self.model = model
        self.groups = groups
        self.turn = turn - 1
        """Counts the requests on this route: whose turn it was last."""
        self.is_lone = len(groups) == 1 and len(groups[0]) == 1

    def first(self, now_ms: int) -> Candidate:
        """Whom to ask. Somebody always is."""
        if self.is_lone:
            return self.groups[0][0]
        self.turn += 1
        return next(self.order(self.turn, now_ms), None) or self._first_to_wake()

    def order(self, turn: int, now_ms: int) -> Iterator[Candidate]:
        """Who is awake, one after the other."""
        for group in self.groups:
            awake = [candidate for candidate in group if candidate.is_awake(self.model, now_ms)]
            for place in range(len(awake)):
                yield awake[(turn + place) % len(awake)]

    def _first_to_wake(self) -> Candidate:
        return min((one for group in self.groups for one in group), key=lambda one: one.rests_until(self.model))


class Attempts:
    """One request on its way: whom it is sent to, and who may be asked after that."""

    __slots__ = ("_asked", "_route", "_turn", "current")

    def __init__(self, route: _Route, now_ms: int) -> None:
        self.current = route.first(now_ms)
        self._route = route
        self._turn = route.turn
        self._asked: list[Candidate] = []
        """Who is not to be asked, or not again."""

    @property
    def is_lone(self) -> bool:
        """There is nobody else to ask, so the request's body is not needed once it has been sent."""
        return self._route.is_lone

    def note(self, trouble: Trouble, now_ms: int, rest_ms: int | None = None) -> bool:
        """Remember what an answer says of the current credential. `rest_ms`: what its `retry-after` asked for.

        Returns whether the operator is to be told: once for each rest of a refused credential.
        """
        if trouble is Trouble.REFUSED:
            return self.current.refuse(now_ms)
        if trouble is not Trouble.UNREACHABLE and not self.is_lone:
            rest_ms = BUSY_REST_MS if rest_ms is None else rest_ms
            bounded_ms = min(max(rest_ms, LEAST_BUSY_REST_MS), MOST_BUSY_REST_MS)
            self.current.rest(self._route.model, now_ms + bounded_ms, now_ms)
        return False

    def go_on(self, trouble: Trouble, now_ms: int) -> bool:
        """Turn to the next candidate, if the request may be sent again and there is one. False: it has its answer.

        Only before the first byte to the client. An upstream that cannot be reached is not asked again with another
        credential.
        """
        if trouble not in _SURELY_NOT_PROCESSED:
            return False
        here = self.current.upstream
        self._asked.append(self.current)
        if trouble is Trouble.UNREACHABLE:
            self._asked += [one for group in self._route.groups for one in group if one.upstream == here]
        for candidate in self._route.order(self._turn, now_ms):
            if candidate not in self._asked:
                self.current = candidate
                return True
        return False


class Router:
    """All upstreams, and how their credentials stand."""

    def __init__(self, accesses: Sequence[Access]) -> None:
        self.upstreams: tuple[UpstreamSettings, ...] = tuple(access.upstream for access in accesses)
        self._candidates = tuple(
            tuple(Candidate(place, credential) for credential in range(len(access.credentials)))
            for place, access in enumerate(accesses)
        )
        self._patterns = tuple(_pattern(upstream.models) for upstream in self.upstreams)
        self._routes: dict[tuple[Protocol, str], _Route] = {}
        self._made = 0

    def speaks(self, protocol: Protocol) -> bool:
        """Whether there is any upstream of that protocol."""
        return any(upstream.protocol is protocol for upstream in self.upstreams)

    def serving(self, protocol: Protocol, model: str) -> tuple[int, ...]:
        """The places of the upstreams of a protocol that serve a model, in order."""
        return tuple(
            place
            for place, upstream in enumerate(self.upstreams)
            if upstream.protocol is protocol and self.serves(place, model)
        )

    def serves(self, place: int, model: str) -> bool:
        """Whether a model is one of an upstream's."""
        pattern = self._patterns[place]
        return pattern is None or pattern.match(model) is not None

    def attempts(self, protocol: Protocol, model: str, now_ms: int) -> Attempts:
        """Whom to send a request to. Raises `ModelNotServed`."""
        route = self._routes.get((protocol, model)) or self._make_route(protocol, model)
        return Attempts(route, now_ms)

    def resting(self, now_ms: int) -> tuple[Resting, ...]:
        """The credentials that rest. A lone one is asked all the same."""
        candidates = (candidate for group in self._candidates for candidate in group)
        return tuple(resting for one in candidates if (resting := self._resting(one, now_ms)) is not None)

    def _resting(self, candidate: Candidate, now_ms: int) -> Resting | None:
        refused_until_ms = candidate.refused_until_ms if candidate.refused_until_ms > now_ms else None
        busy_until_ms = candidate.busy_until(now_ms)
        if refused_until_ms is None and not busy_until_ms:
            return None
        return Resting(
            upstream=self.upstreams[candidate.upstream].name,
            credential=candidate.credential + 1,
            refused_until_ms=refused_until_ms,
            busy_models=len(busy_until_ms),
            until_ms=max(refused_until_ms or 0, *busy_until_ms, 0),
        )

    def _make_route(self, protocol: Protocol, model: str) -> _Route:
        places = self.serving(protocol, model)
        if not places:
            raise _not_served(self.speaks(protocol))
        if len(self._routes) >= MOST_ROUTES:
            self._routes.clear()
        route = _Route(model, [self._candidates[place] for place in places], self._made)
        self._made += 1  # so that routes that are used once do not all begin with the same credential
        self._routes[protocol, model] = route
        return route


def read_retry_after(headers: Iterable[tuple[str, str]], now_ms: int) -> int | None:
    """The milliseconds that an answer asks to wait, as SDKs read it (PROTOCOLS A.8); `None`: it says nothing clear.

    `retry-after-ms` in milliseconds, else `retry-after` in seconds or as an HTTP date.
    """
    found = {name.lower(): value.strip() for name, value in headers if name.lower().startswith("retry-after")}
    for name, unit_ms in (("retry-after-ms", 1), ("retry-after", amounts.SECOND_MS)):
        if _SECONDS.fullmatch(found.get(name, "")):
            return math.ceil(float(found[name]) * unit_ms)
    return _until_date(found.get("retry-after", ""), now_ms)


def _until_date(text: str, now_ms: int) -> int | None:
    try:
        moment = parsedate_to_datetime(text[:64])
        return max(0, amounts.to_ms(moment.replace(tzinfo=moment.tzinfo or UTC)) - now_ms)
    except (ValueError, TypeError, OverflowError, IndexError):  # the parser's, in one version or another
        return None


def _pattern(globs: Sequence[str]) -> re.Pattern[str] | None:
    """One that a model's name matches if it matches any of the globs; `None`: there are none, so all match."""
    return re.compile("|".join(map(translate, globs))) if globs else None


def _not_served(speaks: bool) -> ModelNotServed:
    if speaks:
        return ModelNotServed("model: no provider of this server has a model of that name.")
    return ModelNotServed("This server has no provider that speaks this protocol.")
