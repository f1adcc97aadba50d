"""Who may start: the living limits of all keys.

`reserve` decides and takes in one plain step with nothing awaited in it, so two requests can never both pass on the
same last tokens.
"""

import asyncio
import fnmatch
from collections.abc import Mapping

import aiosqlite

from gateway.catalog import Catalog
from gateway.clock import Clock
from gateway.core.amounts import SECOND_MS
from gateway.core.errors import (
    BudgetExceeded,
    GatewayError,
    InvalidKey,
    LimitExceeded,
    ModelNotAllowed,
    Unavailable,
)
from gateway.core.limits import KeyLimits
from gateway.core.lookups import LookupPace
from gateway.core.parsing import ParsedRequest
from gateway.core.protocols import Protocol
from gateway.core.ratelimits import budget_headers, limit_headers
from gateway.core.records import Key, KeyRow, Refusal
from gateway.core.refusals import Signpost, explain
from gateway.core.shared_budgets import SharedBudgets, SharedDenial
from gateway.core.status import LimitsStatus
from gateway.history import read_limits
from gateway.keystore import Directory
from gateway.ledger import Ledger
from gateway.reservation import Reservation

UNAVAILABLE_RETRY_SECONDS = 5
"""For a ledger that cannot be written and a server that stops: both are over soon, or need the operator."""


class Admission:
    """Decides who may start, and keeps count of what runs."""

    def __init__(
        self,
        reader: aiosqlite.Connection,
        clock: Clock,
        ledger: Ledger,
        catalog: Catalog,
        signpost: Signpost,
        shared_budgets: SharedBudgets,
    ) -> None:
        self.is_draining = False
        """The server is stopping: nobody is admitted any more."""
        self._reader = reader
        self._clock = clock
        self._ledger = ledger
        self._catalog = catalog
        self._signpost = signpost
        self._shared_budgets = shared_budgets
        self._keys: Mapping[KeyRow, Key] = {}
        self._limits: dict[KeyRow, KeyLimits] = {}
        """Of the keys that were used since the start: a long history is read when it is needed first."""
        self._loading: dict[KeyRow, asyncio.Lock] = {}
        self._running: set[Reservation] = set()
        self._lookups = LookupPace()
        self._last_start = (0, 0)

    async def follow(self, connection: aiosqlite.Connection, directory: Directory) -> None:
        """Bring all limits in line with the keys as they are now; the requests of keys that are gone end.

        Called between two commits: what is settled meanwhile is not in the database yet, and is counted here.
        """
        now_ms = self._clock.now_ms()
        fresh = {
            row: await read_limits(connection, directory.keys[row], now_ms)
            for row in self._limits.keys() & directory.keys.keys()
            if self._limits[row].key != directory.keys[row]
        }
        # From here on nothing is awaited, so nothing can be settled in between.
        self._keys = directory.keys
        opened, settled = self._ledger.uncommitted()
        for row in opened:
            if row.key in fresh:
                fresh[row.key].count_start(row.started)
        for row in settled:
            if row.key in fresh:
                fresh[row.key].count(row.started, row.usage.charge, now_ms)
        for key_row, limits in fresh.items():
            self._limits[key_row].adopt(limits)
        for gone in self._limits.keys() - directory.keys.keys():
            del self._limits[gone]
        for reservation in self._running:
            if reservation.key not in directory.keys:
                reservation.cancel(_deleted())

    async def ready(self, key: KeyRow) -> None:
        """Have the limits of a key at hand. Raises `InvalidKey` if it is gone.

        Nothing of a key runs before its limits are loaded, so the database has all of its requests.
        """
        if key in self._limits:
            return
        async with self._loading.setdefault(key, asyncio.Lock()):
            while key not in self._limits and key in self._keys:
                record = self._keys[key]
                limits = await read_limits(self._reader, record, self._clock.now_ms())
                if self._keys.get(key) == record:  # else it was edited or deleted meanwhile
                    self._limits[key] = limits
        self._loading.pop(key, None)
        self._require(key)

    def check_model(self, key: Key, model: str) -> None:
        """Raise `ModelNotAllowed` unless the key may use `model`."""
        if key.models and not any(fnmatch.fnmatchcase(model, glob) for glob in key.models):
            self._ledger.count_refusal(key.row, Refusal.MODEL)
            raise ModelNotAllowed(
                f"This API key may not use that model. Allowed: {', '.join(key.models)}."
                f" Ask {self._signpost.whom_to_ask} for more.",
                refusal=Refusal.MODEL,
            )

    def reserve(self, key: Key, parsed: ParsedRequest, protocol: Protocol, upstream: str) -> Reservation:
        """Take what the request may use at most, or raise the error that says why not and until when.

        The key is `ready`. `protocol` says how the headers are called that tell of its limits; `upstream` who is to
        take the request.
        """
        self.check_open()
        self._ledger.check_key(key.row)
        self.check_model(key, parsed.model)
        limits = self._require(key.row)
        now_ms = self._clock.now_ms()
        shared_hold = self._shared_budgets.admit(upstream, parsed.hold, now_ms)
        if isinstance(shared_hold, SharedDenial):
            found, lid, whose = shared_hold.denial, shared_hold.lid, shared_hold.whose
            raise self._refusal(
                explain(found, parsed.hold, lid, now_ms, self._signpost, whose=whose),
                found.refusal,
                limits,
                protocol,
                now_ms,
            )
        denial = limits.admit(parsed.hold, now_ms)
        if denial is not None:
            shared_hold.release(now_ms)
            raise self._refusal(
                explain(denial, parsed.hold, key, now_ms, self._signpost), denial.refusal, limits, protocol, now_ms
            )
        return Reservation(
            limits,
            shared_hold,
            parsed,
            protocol,
            start=self._next_start(now_ms),
            clock=self._clock,
            ledger=self._ledger,
            catalog=self._catalog,
            running=self._running,
        )

    def _refusal(
        self, error: GatewayError, refusal: Refusal, limits: KeyLimits, protocol: Protocol, now_ms: int
    ) -> GatewayError:
        """Count a refusal; its error, with the headers that tell how the key stands.

        Nobody may give it a name of its own and raise it: with its traceback it would be a circle, which keeps all
        that the request had at hand, body and all, until the garbage collector comes by."""
        self._ledger.count_refusal(limits.key.row, refusal)
        status = limits.status(now_ms)
        if isinstance(error, BudgetExceeded):
            error.headers.update(budget_headers(protocol, status, now_ms, error))
        else:
            error.headers.update(limit_headers(protocol, status, now_ms, with_windows=False))
        return error

    def pace_lookup(self, key: Key) -> None:
        """Admit a free lookup, or raise `LimitExceeded`; `Unavailable` while the server stops."""
        if self.is_draining:
            raise _stopping()
        wait_ms = self._lookups.take(key, self._clock.now_ms())
        if wait_ms:
            self._ledger.count_refusal(key.row, Refusal.REQUESTS)
            raise LimitExceeded(
                "Too many lookups in a minute. Try again in a moment.",
                refusal=Refusal.REQUESTS,
                retry_after_seconds=-(-wait_ms // SECOND_MS),
            )

    def check_open(self) -> None:
        """Raise `Unavailable` while nobody may start."""
        if self.is_draining:
            raise _stopping()
        if not self._ledger.is_writable:
            raise Unavailable(
                "Usage cannot be recorded just now, so nothing is relayed. The administrator needs to look at it.",
                retry_after_seconds=UNAVAILABLE_RETRY_SECONDS,
            )

    def status(self, key: KeyRow) -> LimitsStatus:
        """How a key that is `ready` stands now. Raises `InvalidKey` if it is gone."""
        return self._require(key).status(self._clock.now_ms())

    async def drain(self, seconds: float) -> None:
        """Admit nobody, wait for what runs, and cut off what still runs after `seconds`."""
        self.is_draining = True
        tasks = [reservation.task for reservation in self._running if reservation.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
            for reservation in self._running:
                reservation.cancel(_stopping())
            await asyncio.wait(tasks)

    def _require(self, key: KeyRow) -> KeyLimits:
        if key not in self._limits:
            raise _deleted()
        return self._limits[key]

    def _next_start(self, now_ms: int) -> tuple[int, int]:
        """(started, sequence), never the same twice."""
        started, sequence = self._last_start
        self._last_start = (now_ms, sequence + 1 if started == now_ms else 0)
        return self._last_start


def _deleted() -> InvalidKey:
    return InvalidKey("This API key was deleted.")


def _stopping() -> Unavailable:
    return Unavailable(
        "This server is stopping. Try again in a moment.", retry_after_seconds=UNAVAILABLE_RETRY_SECONDS
    )
