"""What one running request holds, from its admission until it is settled.

A reservation is *open* until it is *settled*, once, whatever way the request ends. Settling is a plain step: the
hold goes back, the real charge counts, the ledger's row is on its way; only the disk is waited for. Found open
after a crash, its row keeps what it held (`ledger.settle_left_in_flight`).
"""

import asyncio
from types import TracebackType

from gateway.catalog import Catalog
from gateway.clock import Clock
from gateway.core.errors import ClientLeft, GatewayError, Unavailable
from gateway.core.limits import KeyLimits
from gateway.core.metering import Measurement, Meter, unanswered
from gateway.core.parsing import ParsedRequest
from gateway.core.protocols import Protocol
from gateway.core.ratelimits import limit_headers
from gateway.core.records import UNKNOWN_MODEL, LedgerRow
from gateway.core.shared_budgets import SharedHold
from gateway.core.usage import NO_USAGE, Usage
from gateway.ledger import Ledger

CLIENT_LEFT = 499
INTERNAL_ERROR = 500
"""What the ledger tells of requests that neither an upstream's status nor a `GatewayError` ended."""


class Reservation:
    """What one running request holds. Leaving the `async with` block settles it, if nothing has before."""

    __slots__ = (
        "_answer_status",
        "_cancelled_with",
        "_catalog",
        "_clock",
        "_ledger",
        "_limits",
        "_may_be_sent",
        "_meter",
        "_opened",
        "_parsed",
        "_protocol",
        "_running",
        "_sequence",
        "_settled",
        "_shared_hold",
        "_started",
        "key",
        "task",
    )

    def __init__(
        self,
        limits: KeyLimits,
        shared_hold: SharedHold,
        parsed: ParsedRequest,
        protocol: Protocol,
        *,
        start: tuple[int, int],
        clock: Clock,
        ledger: Ledger,
        catalog: Catalog,
        running: "set[Reservation]",
    ) -> None:
        """`limits` have admitted the request already. `start`: (started, sequence), never the same twice.
        `running`: where it stands as long as it runs."""
        self.key = limits.key.row
        self.task: asyncio.Task[object] | None = asyncio.current_task()
        self._limits = limits
        self._shared_hold = shared_hold
        self._parsed = parsed
        self._protocol = protocol
        self._started, self._sequence = start
        self._clock = clock
        self._ledger = ledger
        self._catalog = catalog
        self._running = running
        self._meter: Meter | None = None
        self._answer_status = 0
        self._may_be_sent = False
        self._cancelled_with: GatewayError | None = None
        self._settled: asyncio.Future[None] | None = None
        hold = parsed.hold
        held = Measurement(Usage(input=hold.input, output=hold.output), estimated=True)
        self._opened = ledger.open(self._row(None, held))

    async def __aenter__(self) -> "Reservation":
        """Returns once the admission cannot be lost any more: nothing is sent that is not on the ledger. Raises
        `Unavailable` if the disk does not take it in time."""
        self._running.add(self)
        try:
            await _committed(self._opened)
        except BaseException as error:
            await self.__aexit__(type(error), error, None)
            raise
        self._may_be_sent = True
        del self._opened
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._running.discard(self)
        reason = self._reason(error)
        if self._settled is None:
            self._settled = self._settle(self._status_of(reason), self._measure_failed(reason))
            if not isinstance(reason, (asyncio.CancelledError, Unavailable)):  # a disk was waited for already
                await self.settle()
        if reason is not error and reason is not None:
            try:
                raise reason from None
            finally:
                del reason  # with its traceback it is a circle, which would keep what the request had at hand

    def move(self, upstream: str) -> bool:
        """The request goes on to another upstream, unless `False`: its budget has no room."""
        return self._shared_hold.move(upstream, self._clock.now_ms())

    def begin(self, answer_status: int, meter: Meter) -> dict[str, str]:
        """An answer has begun; `meter` looks at it. Returns the headers that tell of the key's own limits."""
        self._answer_status = answer_status
        self._meter = meter
        now_ms = self._clock.now_ms()
        status = self._limits.status(now_ms)
        return limit_headers(self._protocol, status, now_ms, with_windows=self._has_succeeded)

    async def settle(self) -> None:
        """The answer is whole: count what it used, and return once that cannot be lost any more.

        Doing it again does nothing. Raises `Unavailable` if the disk does not take it in time; it is counted then,
        and written later.
        """
        if self._settled is None:
            measurement = self._meter.measure(ended=True) if self._meter else Measurement(NO_USAGE, estimated=False)
            self._settled = self._settle(self._answer_status, measurement)
        await _committed(self._settled)

    def cancel(self, error: GatewayError) -> None:
        """End the request from outside: it goes on as if it had met `error`."""
        if self.task is not None and self._cancelled_with is None:
            self._cancelled_with = error
            self.task.cancel()

    def _reason(self, error: BaseException | None) -> BaseException | None:
        """Why the block was left. A cancellation that is none of ours means that the client has gone."""
        if isinstance(error, asyncio.CancelledError) and self._cancelled_with is not None and self.task is not None:
            self.task.uncancel()
            return self._cancelled_with
        return error

    def _settle(self, status: int, measurement: Measurement) -> asyncio.Future[None]:
        now_ms = self._clock.now_ms()
        self._limits.settle(self._parsed.hold, self._started, measurement.usage.charge, now_ms)
        self._shared_hold.settle(self._started, measurement.usage.charge, now_ms)
        return self._ledger.settle(self._row(status, measurement))

    def _row(self, status: int | None, measurement: Measurement) -> LedgerRow:
        return LedgerRow(
            key=self.key,
            started=self._started,
            sequence=self._sequence,
            model=self._model(measurement.served_by),
            status=status,
            latency_ms=None if status is None else self._clock.now_ms() - self._started,
            usage=measurement.usage,
            estimated=measurement.estimated,
            upstream=self._shared_hold.upstream,
        )

    def _model(self, served_by: str) -> str:
        """The name for the ledger: the model that answered, if its name is a known one."""
        if not self._has_succeeded:
            return UNKNOWN_MODEL
        is_known = bool(served_by) and self._catalog.knows(served_by)
        return served_by if is_known else self._catalog.name(self._parsed.model)

    @property
    def _has_succeeded(self) -> bool:
        return 200 <= self._answer_status < 300

    def _status_of(self, error: BaseException | None) -> int:
        if isinstance(error, asyncio.CancelledError):
            return CLIENT_LEFT
        if isinstance(error, GatewayError):
            return error.status
        return INTERNAL_ERROR

    def _measure_failed(self, error: BaseException | None) -> Measurement:
        """What a request that did not come to its end has used."""
        if self._meter is not None:
            return self._meter.measure(ended=False)
        has_gone = (
            isinstance(error, (asyncio.CancelledError, ClientLeft)) or error is self._cancelled_with is not None
        )
        if self._may_be_sent and has_gone:
            return unanswered(self._parsed.hold)  # the upstream has it and may be working on it
        return Measurement(NO_USAGE, estimated=False)


async def _committed(commit: asyncio.Future[None]) -> None:
    """Raises `Unavailable` where the ledger has given up."""
    try:
        if not commit.done():
            await commit
        elif not commit.cancelled():
            commit.result()
        return
    except Unavailable as error:
        text = error.message
    raise Unavailable(text)  # the future keeps its own, whose traceback would lead back to it: a circle
