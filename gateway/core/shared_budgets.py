"""Budgets that all keys share: of the whole instance, and of single upstreams. One bill has one lid.

A lid is the budgets of a key that nobody has: the same windows, holds and denials (limits.py). A request is
admitted here before its key's own limits are asked, because this hold can be given back without a trace. When the
request goes on to another upstream, its hold moves along, if that upstream's lid has room.

    instance 200M/30d; upstream groq 50M/24h    a request to groq fits under both, or is refused by the one that it
                                                would have to wait for longest
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.core.limits import BudgetDenial, Hold, KeyLimits
from gateway.core.records import Budget, Key, KeyRow, Refusal
from gateway.core.status import BudgetStatus
from gateway.core.windows import RollingWindow

INSTANCE = ""
"""The name of the instance among those of upstreams, which are never empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedDenial:
    """A lid under which a hold does not fit."""

    lid: Key
    """It stands in the place of the key."""
    denial: BudgetDenial

    @property
    def whose(self) -> str:
        """Who shares it, for texts."""
        return f"all keys at {self.lid.name}" if self.lid.name else "all keys together"


def make_lid(owner: str, budgets: Sequence[Budget], windows: Sequence[RollingWindow]) -> KeyLimits:
    """A lid whose windows hold what the ledger does; one for each budget, in their order."""
    return KeyLimits(Key(row=KeyRow(0), name=owner, created=0, budgets=tuple(budgets)), windows, None, None)


class SharedBudgets:
    """The lids of an instance and its upstreams, by name. One that is not named has none."""

    __slots__ = ("_lids",)

    def __init__(self, lids: Mapping[str, KeyLimits]) -> None:
        self._lids = lids

    def admit(self, upstream: str, hold: Hold, now_ms: int) -> "SharedHold | SharedDenial":
        """Take the hold under all lids, or take nothing and return what forbids it longest."""
        if not self._lids:
            return SharedHold(self._lids, upstream, hold)
        lids = [self._lids[owner] for owner in (INSTANCE, upstream) if owner in self._lids]
        denials = [(lid, lid.admit(hold, now_ms)) for lid in lids]
        denied = [
            SharedDenial(lid=lid.key, denial=denial) for lid, denial in denials if isinstance(denial, BudgetDenial)
        ]
        if not denied:
            return SharedHold(self._lids, upstream, hold)
        for lid, denial in denials:
            if denial is None:
                lid.settle(hold, now_ms, 0, now_ms)
        return max(denied, key=_lasts)

    def statuses(self, now_ms: int) -> dict[str, tuple[BudgetStatus, ...]]:
        """How the lids stand, by name."""
        return {owner: lid.status(now_ms).budgets for owner, lid in self._lids.items()}


class SharedHold:
    """What one running request holds under the lids."""

    __slots__ = ("_hold", "_lids", "_upstream")

    def __init__(self, lids: Mapping[str, KeyLimits], upstream: str, hold: Hold) -> None:
        """The lids have admitted it."""
        self._lids = lids
        self._upstream = upstream
        self._hold = hold

    @property
    def upstream(self) -> str | None:
        """Where it is held, if that upstream has a lid: nobody else needs to be remembered."""
        return self._upstream if self._upstream in self._lids else None

    def move(self, there: str, now_ms: int) -> bool:
        """Take it along to another upstream; `False`: it does not fit there, and stays."""
        if there == self._upstream:
            return True
        arriving, leaving = self._lids.get(there), self._lids.get(self._upstream)
        if arriving is not None and arriving.admit(self._hold, now_ms) is not None:
            return False
        if leaving is not None:
            leaving.settle(self._hold, now_ms, 0, now_ms)
        self._upstream = there
        return True

    def settle(self, started_ms: int, charge: int, now_ms: int) -> None:
        """Give it back and count what was used. Call it once."""
        for owner in (INSTANCE, self._upstream):
            if owner in self._lids:
                self._lids[owner].settle(self._hold, started_ms, charge, now_ms)

    def release(self, now_ms: int) -> None:
        """Give it back: it was taken in vain."""
        self.settle(now_ms, 0, now_ms)


def _lasts(found: SharedDenial) -> tuple[bool, bool, int]:
    """Orders denials as those of a key are: too large for ever, then without an end, then by their end."""
    denial = found.denial
    return denial.refusal is Refusal.SIZE, denial.at_ms is None, denial.at_ms or 0
