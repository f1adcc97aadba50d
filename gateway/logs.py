"""A log that cannot hold content: time, level, logger, event name, whose it was, and the class of an exception.

    2026-01-31T12:00:00Z WARNING opusmax.upstream upstream.unreachable upstream=claude request=req_… TimeoutError …

What libraries log is words around data: request lines, headers, bodies, keys. So only the *names* of things are
written: a message is written only if it is one of the constants below, an exception only as its class and the
place in our own code. That holds for uncaught exceptions, warnings and the event loop's complaints as well, which
otherwise print reprs with prompts and credentials in them.

What an event may say besides: `extra={"upstream": name}`, the name that the operator gave an upstream, and
`"credential": (2, 3)`, which of how many credentials it has, by its place and never by its text. The id of
the request, which its client reads in the gateway's own errors, comes by itself. Nothing else is written, and
nothing that has another form.
"""

import asyncio
import logging
import re
import sys
import threading
import time
import warnings
from collections import Counter
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any

from gateway import request_ids

_PACKAGE = Path(__file__).parent
MAX_LINES_PER_SECOND = 10
"""More are dropped and counted: a fault that repeats must not fill the disk."""


class Event(StrEnum):
    """Everything that the gateway has to say to its operator."""

    SERVER_STARTED = "server.started"
    SERVER_DRAINING = "server.draining"
    SERVER_STOPPED = "server.stopped"
    SERVER_RELOADED = "server.reloaded"
    TLS_RELOADED = "tls.reloaded"
    TLS_NOT_RELOADED = "tls.not_reloaded"
    HANDLER_FAILED = "handler.failed"
    KEYS_FOLLOWED = "keys.followed"
    LEDGER_FAILING = "ledger.failing"
    LEDGER_RECOVERED = "ledger.recovered"
    LEDGER_ROW_REFUSED = "ledger.row_refused"
    LEDGER_LOST_AT_EXIT = "ledger.lost_at_exit"
    DATABASE_UPGRADED = "database.upgraded"
    REQUESTS_RECOVERED = "requests.recovered_as_estimated"
    ERASURE_FINISHED = "erasure.finished"
    ERASURE_FAILING = "erasure.failing"
    CONNECTIONS_FULL = "connections.full"
    CLOCK_BEHIND_LEDGER = "clock.behind_ledger"
    CLOCK_STEPPED = "clock.stepped"
    UPSTREAM_UNREACHABLE = "upstream.unreachable"
    UPSTREAM_BROKE = "upstream.broke"
    UPSTREAM_TIMED_OUT = "upstream.timed_out"
    UPSTREAM_CREDENTIAL_REFUSED = "upstream.credential_refused"
    UPSTREAM_CREDENTIAL_NOT_READ = "upstream.credential_not_read"
    UPSTREAM_CREDENTIAL_REPEATED = "upstream.credential_repeated"
    UPSTREAM_REDIRECTED = "upstream.redirected"
    MODELS_NOT_LISTED = "models.not_listed"


_UPSTREAM_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)
"""As settings have them."""

told: Counter[tuple[Event, str]] = Counter()
"""How often each event was told, with the upstream that it names, or ''. Lines that were dropped count too."""


class _NamesOnly(logging.Handler):
    """Writes one line for each record, made of names only."""

    def __init__(self) -> None:
        super().__init__()
        self._second = 0
        self._lines = 0

    def emit(self, record: logging.LogRecord) -> None:
        upstream = _upstream_of(record)
        if isinstance(record.msg, Event):
            told[record.msg, upstream] += 1
        if int(record.created) != self._second:
            self._second, self._lines = int(record.created), 0
        self._lines += 1
        if self._lines > MAX_LINES_PER_SECOND:
            return
        event = record.msg.value if isinstance(record.msg, Event) else "-"
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        line = f"{stamp} {record.levelname} {record.name} {event}"
        if upstream:
            line += f" upstream={upstream}"
        line += _credential_of(record)
        if request := request_ids.current():
            line += f" request={request}"
        if record.exc_info and record.exc_info[0] is not None:
            line += f" {record.exc_info[0].__name__}{_place(record.exc_info[2])}"
        with suppress(OSError, ValueError):  # a full disk, or nobody reads: it stops nobody
            sys.stderr.write(line + "\n")


def _upstream_of(record: logging.LogRecord) -> str:
    name = getattr(record, "upstream", "")
    return name if isinstance(name, str) and _UPSTREAM_NAME.fullmatch(name) else ""


def _credential_of(record: logging.LogRecord) -> str:
    match getattr(record, "credential", None):
        case int(place), int(count):
            return f" credential={place}/{count}"
    return ""


def _place(traceback: TracebackType | None) -> str:
    """The innermost line of our own code."""
    place = ""
    while traceback is not None:
        file = Path(traceback.tb_frame.f_code.co_filename)
        if file.is_relative_to(_PACKAGE):
            place = f" {file.relative_to(_PACKAGE.parent)}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return place


def install() -> None:
    """Make this log the only one, for the whole process."""
    root = logging.getLogger()
    root.handlers[:] = [_NamesOnly()]
    root.setLevel(logging.WARNING)
    for other in root.manager.loggerDict.values():  # what was imported first may have handlers of its own
        if isinstance(other, logging.Logger):
            other.handlers.clear()
    logging.getLogger("opusmax").setLevel(logging.INFO)
    logging.lastResort = None
    logging.raiseExceptions = False
    sys.excepthook = lambda _kind, error, _traceback: _report(error)
    threading.excepthook = lambda failed: _report(failed.exc_value)
    sys.unraisablehook = lambda unraisable: _report(unraisable.exc_value)
    warnings.showwarning = lambda *_args, **_kwargs: None
    warnings.simplefilter("ignore")  # at the end of the process, warnings about open sockets go past the line above


def install_on_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Report what nobody awaited by its class alone."""

    def report(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        _report(context.get("exception"))

    loop.set_exception_handler(report)


def _report(error: BaseException | None) -> None:
    logging.getLogger("opusmax").error(Event.HANDLER_FAILED, exc_info=error)
