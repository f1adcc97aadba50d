"""Which upstream, and which of its credentials, takes a request; and what its answer means for the next ones.

Theory: the *route* of a model is every upstream of the protocol that serves it, in the order of the configuration.
A request goes to the first of them, whose credentials take turns. A credential that the upstream refuses (401)
rests for a minute; one that is out of its own limits (429, 529) rests for that model as long as the upstream says.
An upstream that cannot be reached rests as a whole, for some seconds, and then one request tries it for all; where
nobody else serves a model, it never rests. What rests is passed over and comes back by itself.

    team (2 credentials), spare (1)    1st request: team 1, team 2, spare 1
                                       2nd request: team 2, team 1, spare 1
    team 2 answered 429, 30 s          3rd request: team 1, spare 1

Only the first of these is asked, unless it turns out that the request was certainly not processed (no connection,
401, 429): then the same request may go to the next one, never to the same one twice. If all of a route rest, the
one that comes back first is asked all the same, alone: its answer is truer than one of ours. So a lone credential
never really rests.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from fnmatch import translate
from itertools import repeat

from gateway.core import amounts
from gateway.core.errors import ModelNotServed
from gateway.core.protocols import Protocol
from gateway.core.rests import Candidate, Origin, Resting
from gateway.core.upstreams import Access, UpstreamSettings

BUSY_REST_MS = 10 * amounts.SECOND_MS
"""For a 429 or 529 that does not say how long."""
LEAST_BUSY_REST_MS = amounts.SECOND_MS
MOST_BUSY_REST_MS = 10 * amounts.MINUTE_MS
"""Whatever an upstream says, it is asked again after so long."""
MOST_ROUTES = 1_024
"""Clients choose the names of models, so what is remembered of them has a bound."""


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
        return next(self.order(self.turn, now_ms), None) or self._first_to_wake(now_ms)

    def order(self, turn: int, now_ms: int) -> Iterator[Candidate]:
        """Who is awake, one after the other."""
        for group in self.groups:
            if self._is_reachable(group, now_ms):
                yield from self._in_turn(group, turn, now_ms)

    def last_resort(self, turn: int, now_ms: int) -> Iterator[Candidate]:
        """Who would be awake, but that the origin rests."""
        for group in self.groups:
            if not self._is_reachable(group, now_ms):
                yield from self._in_turn(group, turn, now_ms)

    def _in_turn(self, group: Sequence[Candidate], turn: int, now_ms: int) -> Iterator[Candidate]:
        awake = [candidate for candidate in group if candidate.is_awake(self.model, now_ms)]
        for place in range(len(awake)):
            yield awake[(turn + place) % len(awake)]

    def _first_to_wake(self, now_ms: int) -> Candidate:
        """Of those that can be reached, if there are any: to ask one that is busy costs no time."""
        reachable = [group for group in self.groups if self._is_reachable(group, now_ms)] or self.groups
        return min((one for group in reachable for one in group), key=lambda one: one.rests_until(self.model))

    def _is_reachable(self, group: Sequence[Candidate], now_ms: int) -> bool:
        """As far as is known. Where nobody else serves the model, it is assumed: to wait would help nobody."""
        return len(self.groups) == 1 or group[0].origin.rests_until_ms <= now_ms


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

    def begin(self, now_ms: int) -> None:
        """The request is sent now. Not before: who is refused by a limit must not use up the try of an upstream."""
        self.current.origin.send(now_ms)

    def note(self, trouble: Trouble | None, now_ms: int, rest_ms: int | None = None) -> bool:
        """Remember what an answer says of the current credential and its upstream; `None`: no trouble.

        `rest_ms`: what its `retry-after` asked for. Returns whether the operator is to be told: once for each rest
        of a refused credential, or of an upstream that cannot be reached.
        """
        if trouble is Trouble.UNREACHABLE:
            return self.current.origin.lose(now_ms)
        self.current.origin.reach()
        if trouble is Trouble.REFUSED:
            return self.current.refuse(now_ms)
        if trouble is not None and not self.is_lone:
            rest_ms = BUSY_REST_MS if rest_ms is None else rest_ms
            bounded_ms = min(max(rest_ms, LEAST_BUSY_REST_MS), MOST_BUSY_REST_MS)
            self.current.rest(self._route.model, now_ms + bounded_ms, now_ms)
        return False

    def go_on(self, trouble: Trouble, now_ms: int, may_go_to: Callable[[int], bool]) -> bool:
        """Turn to the next candidate, if the request may be sent again and there is one. False: it has its answer.

        Only before the first byte to the client. An upstream that cannot be reached is not asked again with another
        credential. `may_go_to` takes the place of an upstream; the first for which it is true is the one.
        """
        if trouble not in _SURELY_NOT_PROCESSED:
            return False
        here = self.current.upstream
        self._asked.append(self.current)
        if trouble is Trouble.UNREACHABLE:
            self._asked += [one for group in self._route.groups for one in group if one.upstream == here]
        others = (one for one in self._others(trouble, now_ms) if one not in self._asked)
        next_one = next((one for one in others if may_go_to(one.upstream)), None)
        if next_one is None:
            return False
        self.current = next_one
        next_one.origin.send(now_ms)
        return True

    def _others(self, trouble: Trouble, now_ms: int) -> Iterator[Candidate]:
        yield from self._route.order(self._turn, now_ms)
        if trouble is Trouble.UNREACHABLE:  # else there is an answer, which is truer than that there is none
            yield from self._route.last_resort(self._turn, now_ms)


class Router:
    """All upstreams, and how their credentials stand."""

    def __init__(self, accesses: Sequence[Access]) -> None:
        self.upstreams: tuple[UpstreamSettings, ...] = tuple(access.upstream for access in accesses)
        self._candidates = tuple(_candidates(place, access) for place, access in enumerate(accesses))
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
        """What rests of each upstream, in order."""
        return tuple(map(_resting, self.upstreams, self._candidates, repeat(now_ms)))

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


def _candidates(place: int, access: Access) -> tuple[Candidate, ...]:
    origin = Origin()
    return tuple(Candidate(place, credential, origin) for credential in range(len(access.credentials)))


def _resting(upstream: UpstreamSettings, candidates: Sequence[Candidate], now_ms: int) -> Resting:
    ends = [until_ms for one in candidates if (until_ms := one.rests_at_all_until(now_ms))]
    seconds = -(-(max(ends, default=now_ms) - now_ms) // amounts.SECOND_MS)
    return Resting(upstream=upstream.name, credentials=len(ends), seconds=seconds)


def _pattern(globs: Sequence[str]) -> re.Pattern[str] | None:
    """One that a model's name matches if it matches any of the globs; `None`: there are none, so all match."""
    return re.compile("|".join(map(translate, globs))) if globs else None


def _not_served(speaks: bool) -> ModelNotServed:
    if speaks:
        return ModelNotServed("model: no provider of this server has a model of that name.")
    return ModelNotServed("This server has no provider that speaks this protocol.")
