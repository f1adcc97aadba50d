"""New credentials without a restart: new requests go to the newest upstreams, each ends on those it began with.

Upstreams are never changed while they are used. `replace` opens others beside them, and the old ones close when the
last request that uses them has ended.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aiohttp import web

from gateway.core.upstreams import Access
from gateway.dispatch import Handler
from gateway.upstreams import Upstreams


@dataclass(slots=True, eq=False)
class _Shift:
    """Upstreams, the handler that asks them, and how many requests use them now."""

    upstreams: Upstreams
    handler: Handler
    users: int = 0


class Handover:
    """The upstreams that requests are served with."""

    def __init__(
        self,
        accesses: Sequence[Access],
        open_upstreams: Callable[[Sequence[Access]], Upstreams],
        handler_for: Callable[[Upstreams], Handler],
    ) -> None:
        self._open_upstreams = open_upstreams
        self._handler_for = handler_for
        self.accesses = tuple(accesses)
        """What opens the newest upstreams."""
        self._newest = self._open()
        self._older: set[_Shift] = set()

    @property
    def upstreams(self) -> Upstreams:
        """The newest."""
        return self._newest.upstreams

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request."""
        shift = self._newest
        shift.users += 1
        try:
            return await shift.handler(request)
        finally:
            await self._leave(shift)

    async def refresh_lists(self) -> list[str]:
        """As of `Upstreams`."""
        shift = self._newest
        shift.users += 1
        try:
            return await shift.upstreams.refresh_lists()
        finally:
            await self._leave(shift)

    async def replace(self, accesses: Sequence[Access]) -> None:
        """Serve what comes from now on with `accesses`."""
        old, self.accesses = self._newest, tuple(accesses)
        self._newest = self._open()
        self._older.add(old)
        if not old.users:
            await self._close(old)

    async def close(self) -> None:
        """Close them all, whoever uses them."""
        for shift in (self._newest, *self._older):
            await shift.upstreams.close()

    def _open(self) -> _Shift:
        upstreams = self._open_upstreams(self.accesses)
        return _Shift(upstreams, self._handler_for(upstreams))

    async def _leave(self, shift: _Shift) -> None:
        shift.users -= 1
        if not shift.users and shift in self._older:
            await self._close(shift)

    async def _close(self, shift: _Shift) -> None:
        self._older.discard(shift)
        await shift.upstreams.close()
