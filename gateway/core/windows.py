"""A rolling window: what was charged in the last W milliseconds, and when how much of it comes back.

Theory: charges are added up by the second in which their request started, so a window of a week has at most
604,800 slots however many requests there were, and the window rebuilt from the ledger equals the living one. A
slot leaves as a whole, W after its second is over: never earlier than its requests, at most a second later.

    window 5h; 1,000 tokens charged to a request that started at 10:00:00.250
    they stand in the window until 15:00:01.000

So at a time `now` the window holds the slots from `(now - W) // SLOT_MS` on.

Slots are kept in two flat arrays, 16 bytes each; what has left stands before `_first` until there is enough of it
to be worth cutting off.
"""

from array import array
from collections.abc import Iterable

SLOT_MS = 1_000
_CUT_OFF_AT = 1_024


class RollingWindow:
    """The settled charges of one budget."""

    __slots__ = ("_charges", "_first", "_slots", "used", "window_ms")

    def __init__(self, window_ms: int | None) -> None:
        """An empty window; `None`: one that nothing ever leaves."""
        self.window_ms = window_ms
        self.used = 0
        self._slots = array("q")
        """The seconds, in order; stays empty in a window that nothing leaves."""
        self._charges = array("q")
        """What was charged in each."""
        self._first = 0

    def add(self, started_ms: int, charge: int, now_ms: int) -> None:
        """Count a settled request, at the time it started, however long ago that was."""
        if self.window_ms is None:
            self.used += charge
            return
        slot = started_ms // SLOT_MS
        if charge and slot >= (now_ms - self.window_ms) // SLOT_MS:
            self._insert(slot, charge)
            self.used += charge

    def fill(self, slots: Iterable[tuple[int, int]], now_ms: int) -> None:
        """Count what the ledger holds in an empty window: (slot, charge) in order of time."""
        for slot, charge in slots:
            if charge:
                self._slots.append(slot)
                self._charges.append(charge)
        self.used = sum(self._charges)
        self.advance(now_ms)

    def advance(self, now_ms: int) -> None:
        """Let go of what has left the window."""
        if self.window_ms is None:
            return
        slots, oldest = self._slots, (now_ms - self.window_ms) // SLOT_MS
        while self._first < len(slots) and slots[self._first] < oldest:
            self.used -= self._charges[self._first]
            self._first += 1
        if self._first > _CUT_OFF_AT and self._first * 2 > len(slots):
            del slots[: self._first], self._charges[: self._first]
            self._first = 0

    def below_at(self, ceiling: int) -> int | None:
        """When `used` will have fallen to `ceiling`, if nothing is added; `None`: never. Advance first."""
        if ceiling < 0 or self.window_ms is None:
            return None
        remaining = self.used
        for place in range(self._first, len(self._slots)):
            remaining -= self._charges[place]
            if remaining <= ceiling:
                return (self._slots[place] + 1) * SLOT_MS + self.window_ms
        return None

    def falls_at(self) -> int | None:
        """When the first of it will leave; `None`: never, or nothing is used. Advance first."""
        if self.window_ms is None or self._first == len(self._slots):
            return None
        return (self._slots[self._first] + 1) * SLOT_MS + self.window_ms

    def empty_at(self) -> int | None:
        """When the last of it will have left; `None`: never, or nothing is used. Advance first."""
        if self.window_ms is None or self._first == len(self._slots):
            return None
        return (self._slots[-1] + 1) * SLOT_MS + self.window_ms

    def _insert(self, slot: int, charge: int) -> None:
        """Nearly always at the end; a request that ran long goes a little further in."""
        place = len(self._slots)
        while place > self._first and self._slots[place - 1] > slot:
            place -= 1
        if place > self._first and self._slots[place - 1] == slot:
            self._charges[place - 1] += charge
        else:
            self._slots.insert(place, slot)
            self._charges.insert(place, charge)
