"""The id of a request: the one that its client reads in the gateway's own errors, and the log beside what happened.

It is random and made when somebody asks for it first: most requests need none.
"""

import secrets
from contextvars import ContextVar

_ids: ContextVar[list[str] | None] = ContextVar("request_id", default=None)
"""Of the request that runs: empty until its id is made. The tasks that it starts share the list, and so the id."""


def begin() -> None:
    """A new request runs in this task from here on."""
    _ids.set([])


def end() -> None:
    """No request runs in this task any more."""
    _ids.set(None)


def current() -> str | None:
    """The id of the request that runs here; `None` outside of requests."""
    ids = _ids.get()
    if ids is None:
        return None
    if not ids:
        ids.append(mint())
    return ids[0]


def mint() -> str:
    """A new id."""
    return f"req_{secrets.token_hex(12)}"
