"""View tickets: how a page leads to the next one without the key.

The key is typed once and sent in a POST. Links to older requests and exports carry a random ticket instead. A
ticket lives in memory only, for 15 minutes, and opens the data of one key and nothing else.
"""

import secrets
from dataclasses import dataclass

from gateway.core.amounts import MINUTE_MS
from gateway.core.records import KeyRow

LIFETIME_MS = 15 * MINUTE_MS
MOST_TICKETS_OF_A_KEY = 20
"""When one more is wanted, the key's oldest goes."""
MOST_TICKETS = 1_000
"""Together some 200 kB. When one more is wanted, the oldest goes: its holder types the key again."""


@dataclass(frozen=True, slots=True)
class View:
    """What a ticket opens: the data of a key, as long as the secret holds with which it was asked for."""

    key: KeyRow
    key_id: str


@dataclass(frozen=True, slots=True)
class _Grant:
    view: View
    ends_ms: int


class Tickets:
    """The tickets that are out. Whether their keys still exist is for the caller to see."""

    __slots__ = ("_grants", "_most")

    def __init__(self, most: int = MOST_TICKETS) -> None:
        self._most = most
        self._grants: dict[str, _Grant] = {}  # oldest first: all live equally long

    def issue(self, view: View, now_ms: int) -> str:
        """A new ticket for `view`."""
        self._drop_ended(now_ms)
        own = [ticket for ticket, grant in self._grants.items() if grant.view.key == view.key]
        if len(own) >= MOST_TICKETS_OF_A_KEY:
            del self._grants[own[0]]
        while len(self._grants) >= self._most:
            self._drop_oldest()
        ticket = secrets.token_urlsafe(32)
        self._grants[ticket] = _Grant(view, now_ms + LIFETIME_MS)
        return ticket

    def redeem(self, ticket: str, now_ms: int) -> View | None:
        """The view that `ticket` was issued for; `None` if it has ended or never was. It stays valid."""
        self._drop_ended(now_ms)
        grant = self._grants.get(ticket)
        return grant.view if grant else None

    def _drop_ended(self, now_ms: int) -> None:
        while self._grants and next(iter(self._grants.values())).ends_ms <= now_ms:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        del self._grants[next(iter(self._grants))]
