"""A rolling window: what was charged in the last W milliseconds, and when how much of it comes back.

Theory: charges are added up by the second in which their request started, so a window of a week has at most
604,800 slots however many requests there were, and the window rebuilt from the ledger equals the living one. A
slot leaves as a whole, W after its second is over: never earlier than its requests, at most a second later.

    window 5h; 1,000 tokens charged to a request that started at 10:00:00.250
    they stand in the window until 15:00:01.000
"""

from collections import deque
from collections.abc import Iterable

SLOT_MS = 1_000


class RollingWindow:
    """The settled charges of one budget."""

    __slots__ = ("_slots", "used", "window_ms")

    def __init__(self, window_ms: int | None) -> None:
        """An empty window; `None`: one that nothing ever leaves."""
        self.window_ms = window_ms
        self.used = 0
        self._slots: deque[tuple[int, int]] = deque()
        """(slot, charge), oldest first; stays empty in a window that nothing leaves."""

    def add(self, started_ms: int, charge: int, now_ms: int) -> None:
        """Count a settled request, at the time it started, however long ago that was."""
        slot = started_ms // SLOT_MS
        if charge == 0 or self._leaves_at(slot, now_ms) <= now_ms:
            return
        self.used += charge
        if self.window_ms is not None:
            self._insert(slot, charge)

    def fill(self, slots: Iterable[tuple[int, int]], now_ms: int) -> None:
        """Count what the ledger holds: (slot, charge) in order of time."""
        for slot, charge in slots:
            self.add(slot * SLOT_MS, charge, now_ms)

    def advance(self, now_ms: int) -> None:
        """Let go of what has left the window."""
        while self._slots and self._leaves_at(self._slots[0][0], now_ms) <= now_ms:
            self.used -= self._slots.popleft()[1]

    def below_at(self, ceiling: int) -> int | None:
        """When `used` will have fallen to `ceiling`, if nothing is added; `None`: never. Advance first."""
        if ceiling < 0 or self.window_ms is None:
            return None
        remaining = self.used
        for slot, charge in self._slots:
            remaining -= charge
            if remaining <= ceiling:
                return (slot + 1) * SLOT_MS + self.window_ms
        return None

    def _insert(self, slot: int, charge: int) -> None:
        """Nearly always at the end; a request that ran long goes a little further in."""
        position = len(self._slots)
        while position and self._slots[position - 1][0] > slot:
            position -= 1
        if position and self._slots[position - 1][0] == slot:
            self._slots[position - 1] = (slot, self._slots[position - 1][1] + charge)
        else:
            self._slots.insert(position, (slot, charge))

    def _leaves_at(self, slot: int, now_ms: int) -> int:
        """When the slot leaves; after now for ever where nothing leaves."""
        return now_ms + 1 if self.window_ms is None else (slot + 1) * SLOT_MS + self.window_ms
