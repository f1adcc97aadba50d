"""The most that a key used at once: in each window, in a minute, and of requests side by side.

Theory: what started within one second is added up before it is looked at, since windows let go of whole seconds
(windows.py). The seconds stand in flat arrays that all windows share; each window knows only how far its own
beginning has come. So a request costs about two additions for each window.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from gateway.core.amounts import MINUTE_MS
from gateway.core.windows import SLOT_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The most of something at once, and when that was first so; `at_ms=None`: there was nothing."""

    amount: int = 0
    at_ms: int | None = None


class Peaks:
    """Sees the requests of a key in the order of their start. What runs counts too, from its start on."""

    __slots__ = (
        "_charge",
        "_charges",
        "_ends",
        "_gauges",
        "_minutes",
        "_requests",
        "_since_ms",
        "_slot",
        "_slots",
        "_starts",
        "at_once",
    )

    def __init__(self, windows: Sequence[int | None], since_ms: int) -> None:
        """`windows` in milliseconds, whole seconds each; `None`: nothing ever leaves.

        What started before `since_ms` fills the windows and makes no peak.
        """
        self._since_ms = since_ms
        self._slots, self._charges, self._starts = array("q"), array("q"), array("q")
        self._gauges = [_Gauge(window_ms) for window_ms in windows]
        self._minutes = (_Gauge(MINUTE_MS), _Gauge(MINUTE_MS))
        """Of requests, and of tokens."""
        self._slot = self._charge = self._requests = 0
        """The second that is being added up."""
        self._ends: list[int] = []
        self.at_once = Peak()

    def see(self, started_ms: int, ended_ms: int, charge: int) -> None:
        """The next request."""
        slot = started_ms // SLOT_MS
        if slot != self._slot:
            self._close_second()
            self._slot = slot
        self._charge += charge
        self._requests += 1
        while self._ends and self._ends[0] <= started_ms:
            heappop(self._ends)
        heappush(self._ends, ended_ms)
        if len(self._ends) > self.at_once.amount and started_ms >= self._since_ms:
            self.at_once = Peak(amount=len(self._ends), at_ms=started_ms)

    def in_windows(self) -> tuple[tuple[int | None, Peak], ...]:
        """Tokens, by window."""
        self._close_second()
        return tuple((gauge.window_ms, gauge.peak) for gauge in self._gauges)

    def in_a_minute(self) -> tuple[Peak, Peak]:
        """Requests, and tokens."""
        self._close_second()
        requests, tokens = self._minutes
        return requests.peak, tokens.peak

    def _close_second(self) -> None:
        if self._requests == 0:
            return
        self._slots.append(self._slot)
        self._charges.append(self._charge)
        self._starts.append(self._requests)
        self._charge = self._requests = 0
        is_counted = (self._slot + 1) * SLOT_MS > self._since_ms
        requests, tokens = self._minutes
        requests.follow(self._slots, self._starts, is_counted)
        for gauge in (tokens, *self._gauges):
            gauge.follow(self._slots, self._charges, is_counted)


class _Gauge:
    """One window over the shared seconds."""

    __slots__ = ("_first", "_used", "peak", "window_ms")

    def __init__(self, window_ms: int | None) -> None:
        self.window_ms = window_ms
        self.peak = Peak()
        self._used = 0
        self._first = 0

    def follow(self, slots: "array[int]", amounts: "array[int]", is_counted: bool) -> None:
        """A second was added at the end."""
        if self.window_ms is not None:
            oldest = slots[-1] - self.window_ms // SLOT_MS
            while slots[self._first] < oldest:
                self._used -= amounts[self._first]
                self._first += 1
        self._used += amounts[-1]
        if is_counted and self._used > self.peak.amount:
            self.peak = Peak(amount=self._used, at_ms=slots[-1] * SLOT_MS)
