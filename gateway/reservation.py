"""What one running request holds, from its admission until it is settled.

A reservation is *open* until it is *settled*, once, whatever way the request ends. Settling is a plain step: the
hold goes back, the real charge counts, the ledger's row is on its way; only waiting for the disk is awaited. Found
open after a crash, its row keeps what it held (`ledger.settle_left_in_flight`).
"""

import asyncio
from types import TracebackType

from gateway.catalog import Catalog
from gateway.clock import Clock
from gateway.core.errors import ClientLeft, GatewayError
from gateway.core.limits import KeyLimits
from gateway.core.metering import Measurement, Meter, unanswered
from gateway.core.parsing import ParsedRequest
from gateway.core.ratelimits import anthropic_headers
from gateway.core.records import UNKNOWN_MODEL, LedgerRow
from gateway.core.usage import NO_USAGE, Usage
from gateway.ledger import Ledger

CLIENT_LEFT = 499
SHUT_DOWN = 503
INTERNAL_ERROR = 500
"""What the ledger tells of requests that neither an upstream's status nor a `GatewayError` ended."""


class Reservation:
    """What one running request holds. Leaving the `with` block settles it, if nothing has before."""

    def __init__(
        self,
        limits: KeyLimits,
        parsed: ParsedRequest,
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
        self._parsed = parsed
        self._started, self._sequence = start
        self._clock = clock
        self._ledger = ledger
        self._catalog = catalog
        self._running = running
        self._meter: Meter | None = None
        self._answer_status = 0
        self._cancel_status = CLIENT_LEFT
        self._settled: asyncio.Future[None] | None = None
        hold = parsed.hold
        self.on_ledger = ledger.open(
            self._row(None, Measurement(Usage(input=hold.input, output=hold.output), estimated=True))
        )
        """Done once the admission is recorded: no byte of an answer goes out before."""

    def __enter__(self) -> "Reservation":
        self._running.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._settled is None:
            self._settle(self._status_of(error), self._measure_failed(error))
        self._running.discard(self)

    def begin(self, answer_status: int, meter: Meter) -> dict[str, str]:
        """An answer has begun; `meter` looks at it. Returns the headers that tell of the key's own limits."""
        self._answer_status = answer_status
        self._meter = meter
        now_ms = self._clock.now_ms()
        return anthropic_headers(self._limits.status(now_ms), now_ms, with_windows=self._has_succeeded)

    def settle(self) -> asyncio.Future[None]:
        """The answer is whole: count what it used. The future is done once that cannot be lost; asking again
        gives the same one."""
        if self._settled is None:
            measurement = self._meter.measure(ended=True) if self._meter else Measurement(NO_USAGE, False)
            self._settle(self._answer_status, measurement)
        assert self._settled is not None  # noqa: S101 - tells the type checker what the line above did
        return self._settled

    def cancel(self, status: int) -> None:
        """End the request from outside, with the status that the ledger shall tell."""
        self._cancel_status = status
        if self.task is not None:
            self.task.cancel()

    def _settle(self, status: int, measurement: Measurement) -> None:
        now_ms = self._clock.now_ms()
        self._limits.settle(self._parsed.hold, self._started, measurement.usage.charge, now_ms)
        self._settled = self._ledger.settle(self._row(status, measurement))

    def _row(self, status: int | None, measurement: Measurement) -> LedgerRow:
        return LedgerRow(
            key=self.key,
            started=self._started,
            sequence=self._sequence,
            model=self._catalog.name(self._parsed.model) if self._has_succeeded else UNKNOWN_MODEL,
            status=status,
            latency_ms=None if status is None else self._clock.now_ms() - self._started,
            usage=measurement.usage,
            estimated=measurement.estimated,
        )

    @property
    def _has_succeeded(self) -> bool:
        return 200 <= self._answer_status < 300

    def _status_of(self, error: BaseException | None) -> int:
        if isinstance(error, asyncio.CancelledError):
            return self._cancel_status
        if isinstance(error, GatewayError):
            return error.status
        return INTERNAL_ERROR

    def _measure_failed(self, error: BaseException | None) -> Measurement:
        """What a request that did not come to its end has used."""
        if self._meter is not None:
            return self._meter.measure(ended=False)
        if isinstance(error, (asyncio.CancelledError, ClientLeft)):
            return unanswered(self._parsed.hold)  # the upstream has it and may be working on it
        return Measurement(NO_USAGE, estimated=False)
