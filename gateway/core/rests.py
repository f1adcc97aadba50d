"""What rests, and until when: an upstream that cannot be reached, a credential that was refused or is busy.

Only the ends of rests are kept; whether one is respected is for the route to say (routing.py).
"""

from dataclasses import dataclass

from gateway.core import amounts

REFUSED_REST_MS = 60 * amounts.SECOND_MS
UNREACHABLE_REST_MS = 10 * amounts.SECOND_MS
"""As long as the attempt to connect may take: nginx has the same default (`fail_timeout`)."""
MOST_BUSY_MODELS = 256
"""Clients choose the names of models, so what is remembered of them has a bound."""


class Origin:
    """Whether an upstream can be reached, as far as is known."""

    __slots__ = ("_is_tried", "rests_until_ms")

    def __init__(self) -> None:
        self.rests_until_ms = 0
        """0: it was reached when it was tried last."""
        self._is_tried = False

    def lose(self, now_ms: int) -> bool:
        """No connection came about. Returns whether that is news, as `Candidate.refuse` does."""
        if now_ms < self.rests_until_ms and not self._is_tried:
            return False
        self.rests_until_ms = now_ms + UNREACHABLE_REST_MS
        self._is_tried = False
        return True

    def send(self, now_ms: int) -> None:
        """A request goes there. After a rest it tries for all: the others wait a rest longer for what it finds."""
        if 0 < self.rests_until_ms <= now_ms:
            self.rests_until_ms = now_ms + UNREACHABLE_REST_MS
            self._is_tried = True

    def reach(self) -> None:
        """It answered, whatever."""
        self.rests_until_ms = 0
        self._is_tried = False


class Candidate:
    """One credential of one upstream, and until when it rests."""

    __slots__ = ("_busy_until_ms", "_rested_at_ms", "credential", "origin", "refused_until_ms", "upstream")

    def __init__(self, upstream: int, credential: int, origin: Origin) -> None:
        """`upstream`, `credential`: their places, from 0 on; `origin` is the same for all of an upstream."""
        self.upstream = upstream
        self.credential = credential
        self.origin = origin
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

    def rests_at_all_until(self, now_ms: int) -> int:
        """When it rests no longer for any model; 0: it does not rest."""
        ends = (self.origin.rests_until_ms, self.refused_until_ms, *self._busy_until_ms.values())
        return max((until_ms for until_ms in ends if until_ms > now_ms), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resting:
    """What rests of an upstream, in figures and in the operator's own words."""

    upstream: str
    """Its name in the configuration."""
    credentials: int
    """So many of them rest, be it for a single model. A lone one is counted though it is asked all the same."""
    seconds: int
    """Until the last of these rests ends; 0: none rests."""
