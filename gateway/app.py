"""The application: its parts put together, one table of routes, one start and one stop."""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiosqlite
from aiohttp import web

from gateway import database, erasure, history, keystore, ledger, upgrade
from gateway.admission import Admission
from gateway.auth import Authenticator
from gateway.catalog import Catalog
from gateway.clock import Clock
from gateway.core.records import Budget, Key
from gateway.core.refusals import Signpost
from gateway.core.settings import Settings
from gateway.core.shared_budgets import INSTANCE
from gateway.core.upstreams import Access
from gateway.core.wire import Endpoint
from gateway.dispatch import Handler, Routes, dispatching
from gateway.figures import Answers, CountedLedger
from gateway.handover import Handover
from gateway.logs import Event
from gateway.lookups import Lookups
from gateway.pages import Pages
from gateway.relay import Relay
from gateway.responses import OWN_HEADERS
from gateway.tasks import background
from gateway.upstreams import Upstreams

ERASURE_LOOK_SECONDS = 2
"""How often the server looks for an erasure that nobody finishes."""
CLOCK_LOOK_SECONDS = 10
CLOCK_STEP_MS = 2_000
"""A smaller difference is the slow correction of a clock, not a step."""

_log = logging.getLogger("opusmax")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """The running parts that the server itself needs."""

    handler: Handler
    admission: Admission
    ledger: CountedLedger
    handover: Handover
    answers: Answers


@asynccontextmanager
async def running(settings: Settings, accesses: Sequence[Access]) -> AsyncIterator[Gateway]:
    """The application with everything behind it: database, ledger, upstream. Stops in the opposite order.

    Raises `DatabaseError` where the database cannot be used or belongs to another server.
    """
    path = Path(settings.database)
    async with AsyncExitStack() as stack:
        stack.callback(_take_lock(path).release)
        await _upgrade(path)
        writer, reader, janitor = [await stack.enter_async_context(database.connect(path)) for _ in range(3)]
        clock = await _take_over(writer, path)
        signpost = Signpost(usage_url=f"{settings.origin}/usage", contact=settings.contact)
        catalog = Catalog(settings.models, lambda: handover.refresh_lists())

        async def follow(connection: aiosqlite.Connection) -> None:
            directory = await keystore.read_directory(connection)
            await admission.follow(connection, directory)
            authenticator.replace(directory)
            _log.info(Event.KEYS_FOLLOWED)

        def handler_for(upstreams: Upstreams) -> Handler:
            return dispatching(
                _routes(
                    Relay(settings, authenticator, admission, upstreams),
                    Lookups(settings, authenticator, admission, upstreams),
                    pages,
                    admission,
                ),
                answers.count,
            )

        answers = Answers()
        book = CountedLedger(writer, follow)
        shared_budgets = await history.read_shared_budgets(reader, _budgets(settings, accesses), clock.now_ms())
        admission = Admission(reader, clock, book, catalog, signpost, shared_budgets)
        authenticator = Authenticator(clock, signpost, book.count_refusal)
        stack.callback(authenticator.close)
        pages = _pages(settings, reader, authenticator, admission, clock)
        handover = Handover(accesses, lambda opened: Upstreams(opened, clock), handler_for)
        stack.push_async_callback(handover.close)
        await book.start()
        stack.push_async_callback(book.close)
        await stack.enter_async_context(background(catalog.run()))
        await stack.enter_async_context(background(_finish_erasures(janitor, path)))
        await stack.enter_async_context(background(_report_clock_steps(clock)))
        yield Gateway(
            handler=handover.handle,
            admission=admission,
            ledger=book,
            handover=handover,
            answers=answers,
        )


def _take_lock(path: Path) -> database.FileLock:
    lock = database.FileLock(path, "server")
    try:
        is_ours = lock.acquire()
    except OSError as error:
        raise database.unusable(path, error) from None
    if not is_ours:
        raise database.DatabaseError(f"another server is running on {path}")
    return lock


async def _upgrade(path: Path) -> None:
    try:
        if await upgrade.upgrade(path):
            _log.warning(Event.DATABASE_UPGRADED)
    except OSError as error:
        raise database.unusable(path, error) from None


def _budgets(settings: Settings, accesses: Sequence[Access]) -> Mapping[str, Sequence[Budget]]:
    """Those that all keys share, by whose they are."""
    return {INSTANCE: settings.budgets} | {access.upstream.name: access.upstream.budgets for access in accesses}


def _pages(
    settings: Settings,
    reader: aiosqlite.Connection,
    authenticator: Authenticator,
    admission: Admission,
    clock: Clock,
) -> Pages:
    async def authenticate(text: str) -> Key:
        key = await authenticator.authenticate_owner(text)
        await admission.ready(key.row)
        return key

    return Pages(
        settings=settings,
        reader=reader,
        authenticate=authenticate,
        limits_status=admission.status,
        now_ms=clock.now_ms,
    )


async def _take_over(writer: aiosqlite.Connection, path: Path) -> Clock:
    """Finish what the process before left unfinished, and start the clock after its newest row."""
    await database.require_undamaged(writer, path)
    await _finish_erasure(writer, path)
    try:
        if await ledger.settle_left_in_flight(writer):  # before all that a lock would make wait in vain
            _log.warning(Event.REQUESTS_RECOVERED)
        await writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # of a crash, unless somebody reads just now
        clock = Clock(await ledger.newest_start(writer))
    except sqlite3.Error as error:
        raise database.unusable(path, error) from None
    if clock.stepped_ms() < 0:
        _log.warning(Event.CLOCK_BEHIND_LEDGER)
    return clock


async def _report_clock_steps(clock: Clock) -> None:
    """Tell the operator when somebody sets the wall clock: limits go on as if nothing had happened."""
    before_ms = clock.stepped_ms()
    while True:
        await asyncio.sleep(CLOCK_LOOK_SECONDS)
        if abs(clock.stepped_ms() - before_ms) > CLOCK_STEP_MS:
            before_ms = clock.stepped_ms()
            _log.warning(Event.CLOCK_STEPPED)


async def _finish_erasures(connection: aiosqlite.Connection, path: Path) -> None:
    """Finish erasures whose command was killed half-way, as long as the server runs."""
    while True:
        await asyncio.sleep(ERASURE_LOOK_SECONDS)
        await _finish_erasure(connection, path)


async def _finish_erasure(connection: aiosqlite.Connection, path: Path) -> None:
    """One try; what cannot be finished now (a full disk, a reader that stays) is tried again."""
    try:
        if await erasure.finish_pending_erasure(connection, path):
            _log.warning(Event.ERASURE_FINISHED)
    except (database.DatabaseError, sqlite3.Error, OSError) as error:
        _log.error(Event.ERASURE_FAILING, exc_info=error)


def _routes(relay: Relay, lookups: Lookups, pages: Pages, admission: Admission) -> Routes:
    """Everything that is answered; every other method is 405, and every other path 404."""
    relayed: dict[Endpoint, Handler] = {
        **relay.handlers(),
        Endpoint.COUNT_TOKENS: lookups.count_tokens,
        Endpoint.MODELS: lookups.models,
        Endpoint.MODEL: lookups.model,
    }
    return {
        **{path: {endpoint.method: handler} for endpoint, handler in relayed.items() for path in endpoint.paths},
        **pages.routes(),
        "/api/hello": {"HEAD": _healthy},
        "/healthz": {"GET": _healthy, "HEAD": _healthy},
        "/readyz": {"GET": _ready(admission), "HEAD": _ready(admission)},
    }


async def _healthy(_request: web.BaseRequest) -> web.Response:
    return web.Response(text="ok\n", headers=OWN_HEADERS)


def _ready(admission: Admission) -> Handler:
    async def ready(_request: web.BaseRequest) -> web.Response:
        admission.check_open()
        return web.Response(text="ready\n", headers=OWN_HEADERS)

    return ready
