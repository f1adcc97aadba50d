"""The pages for people: landing, Check Usage with its exports, privacy.

A key is typed into a form and sent by POST, or stands in a header; never in an address, never on a page. Links
that lead on from a key's page carry a view ticket (core/tickets.py). Every template is compiled at start.
"""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

import aiosqlite
from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from gateway import exports, reports
from gateway.clock import Clock
from gateway.core import keys, policy, views
from gateway.core.account import Account, KeyRecord
from gateway.core.charts import last_days, last_hours
from gateway.core.errors import BadRequest, GatewayError, InvalidKey
from gateway.core.prices import Prices
from gateway.core.records import Key, KeyRow
from gateway.core.site import UNKNOWN_ORIGIN, own_origin, site_view
from gateway.core.status import LimitsStatus
from gateway.core.tickets import Tickets, View
from gateway.dispatch import Routes
from gateway.forms import check_address, header_key, read_typed_key
from gateway.responses import OWN_HEADERS
from gateway.streamed import StreamedResponse

TEMPLATES = Path(__file__).parent.parent / "templates"

STATIC_HEADERS = OWN_HEADERS | {"cache-control": "public, max-age=86400"}
"""Stylesheet and icon may be cached: their address changes with their content."""

ROWS_PER_PAGE = 25
"""The whole page stays small enough to be there at once on a slow line."""


class PageSettings(Protocol):
    """What the pages say about this installation; empty = not configured."""

    @property
    def public_url(self) -> str: ...
    @property
    def contact(self) -> str: ...
    @property
    def service_name(self) -> str: ...
    @property
    def prices(self) -> Prices: ...


class Pages:
    """The handlers. `reader` is a connection that only the pages use: a long report then delays nobody else."""

    def __init__(
        self,
        *,
        settings: PageSettings,
        reader: aiosqlite.Connection,
        authenticate: Callable[[str], Awaitable[Key]],
        limits_status: Callable[[KeyRow], LimitsStatus],
        now_ms: Callable[[], int],
        wall_ms: Callable[[], int] = Clock.wall_ms,
    ) -> None:
        """`authenticate` proves a typed key, whether it is usable or not, or raises a `GatewayError`.

        Keys expire by the calendar, `wall_ms`; everything else goes by `now_ms`, as limits do.
        """
        self._settings = settings
        self._reader = reader
        self._authenticate = authenticate
        self._limits_status = limits_status
        self._now_ms = now_ms
        self._wall_ms = wall_ms
        self._tickets = Tickets()
        self._style = (TEMPLATES / "style.css").read_bytes()
        self._icon = (TEMPLATES / "icon.svg").read_bytes()
        version = hashlib.sha256(self._style + self._icon).hexdigest()[:12]
        self._templates = _compile_templates(settings, version)

    def routes(self) -> Routes:
        return {
            "/": {"GET": self.landing, "HEAD": self.landing},
            "/usage": {"GET": self.usage_form, "HEAD": self.usage_form, "POST": self.usage},
            "/usage.json": {"GET": self.usage_json},
            "/usage.csv": {"GET": self.usage_csv},
            "/privacy": {"GET": self.privacy, "HEAD": self.privacy},
            "/static/style.css": {"GET": self.stylesheet, "HEAD": self.stylesheet},
            "/static/icon.svg": {"GET": self.icon, "HEAD": self.icon},
        }

    async def landing(self, request: web.BaseRequest) -> web.Response:
        origin = self._origin(request)
        return self._page("landing.html", origin=origin, is_known=origin != UNKNOWN_ORIGIN)

    async def privacy(self, _: web.BaseRequest) -> web.Response:
        tables = policy.describe(await reports.read_columns(self._reader))
        return self._page("privacy.html", tables=tables, last_updated=policy.LAST_UPDATED)

    async def stylesheet(self, _: web.BaseRequest) -> web.Response:
        return web.Response(body=self._style, content_type="text/css", charset="utf-8", headers=STATIC_HEADERS)

    async def icon(self, _: web.BaseRequest) -> web.Response:
        return web.Response(body=self._icon, content_type="image/svg+xml", headers=STATIC_HEADERS)

    async def usage_form(self, request: web.BaseRequest) -> web.Response:
        """The form; or, with a ticket, the data that it opens."""
        return await self._or_form(request, self._linked_view(request))

    async def usage(self, request: web.BaseRequest) -> web.Response:
        """The data of the key that was typed into the form."""
        return await self._or_form(request, self._typed_view(request))

    async def usage_json(self, request: web.BaseRequest) -> web.StreamResponse:
        record = await self._owned_record(request)
        hours = await reports.read_hours(self._reader, record.id)
        rows = reports.stream_rows(self._reader, record.id)
        pieces = exports.json_pieces(record, self._limits_status(record.id), hours, rows)
        return await _send_file(request, "opusmax-usage.json", "application/json", pieces)

    async def usage_csv(self, request: web.BaseRequest) -> web.StreamResponse:
        record = await self._owned_record(request)
        pieces = exports.csv_pieces(reports.stream_rows(self._reader, record.id))
        return await _send_file(request, "opusmax-usage.csv", "text/csv; charset=utf-8", pieces)

    async def _or_form(self, request: web.BaseRequest, view: Awaitable[web.Response]) -> web.Response:
        """A refusal is told above the form, where the key can be typed again."""
        try:
            return await view
        except GatewayError as error:
            return self._form(request, error)

    def _form(self, request: web.BaseRequest, error: GatewayError | None = None) -> web.Response:
        message = error.message if error else ""
        response = self._page("usage_form.html", error=message, origin=self._origin(request))
        if error:
            response.set_status(error.status)
            if error.retry_after_seconds is not None:
                response.headers["Retry-After"] = str(error.retry_after_seconds)
        return response

    async def _typed_view(self, request: web.BaseRequest) -> web.Response:
        check_address(request)
        typed = await read_typed_key(request)
        key = await self._authenticate(typed)
        record = await self._record(key.row)
        view = View(key.row, keys.key_id(typed))
        return await self._overview(record, self._tickets.issue(view, self._now_ms()))

    async def _linked_view(self, request: web.BaseRequest) -> web.Response:
        check_address(request)
        if "ticket" not in request.query:
            return self._form(request)
        ticket = request.query["ticket"]
        record = await self._ticket_record(ticket)
        if "before" not in request.query:
            return await self._overview(record, ticket)
        before = views.parse_position(request.query["before"])
        if before is None:
            raise BadRequest("This link is not complete. Type the API key again.")
        rows = await reports.read_page(self._reader, record.id, before=before, limit=ROWS_PER_PAGE)
        view = views.requests_view(rows, ticket=ticket)
        return self._page("usage_requests.html", name=record.name, view=view)

    async def _overview(self, record: KeyRecord, ticket: str) -> web.Response:
        account = await self._read_account(record)
        rows = await reports.read_page(self._reader, record.id, before=None, limit=ROWS_PER_PAGE)
        view = views.usage_view(
            account,
            rows,
            ticket=ticket,
            now_ms=self._now_ms(),
            wall_ms=self._wall_ms(),
            prices=self._settings.prices,
        )
        return self._page("usage.html", view=view)

    async def _read_account(self, record: KeyRecord) -> Account:
        now_ms = self._now_ms()
        hours, days = last_hours(now_ms).began, last_days(now_ms).began
        return Account(
            record=record,
            limits=self._limits_status(record.id),
            running=tuple(await reports.read_running(self._reader, record.id)),
            hours=tuple(await reports.read_last_hours(self._reader, record.id, since=hours)),
            history=tuple(await reports.read_history(self._reader, record.id, since=days)),
            latencies=await reports.read_latencies(self._reader, record.id),
        )

    async def _owned_record(self, request: web.BaseRequest) -> KeyRecord:
        """The record of the key whose ticket is in the address or that stands in a header."""
        check_address(request)
        if "ticket" in request.query:
            return await self._ticket_record(request.query["ticket"])
        key = await self._authenticate(header_key(request))
        return await self._record(key.row)

    async def _ticket_record(self, ticket: str) -> KeyRecord:
        view = self._tickets.redeem(ticket, self._now_ms())
        if view is None:
            raise InvalidKey("This view has ended: it lasts 15 minutes. Type the API key again.")
        record = await self._record(view.key)
        if not record.holds(view.key_id, self._wall_ms()):
            raise InvalidKey("This API key was replaced by a new one. Type the new one.")
        return record

    async def _record(self, key: KeyRow) -> KeyRecord:
        record = await reports.read_record(self._reader, key)
        if record is None:
            raise InvalidKey("This API key has been deleted, and all data about it.")
        return record

    def _origin(self, request: web.BaseRequest) -> str:
        listening = request.transport and request.transport.get_extra_info("sockname")
        port = listening[1] if listening else 0
        return own_origin(self._settings.public_url, request.host, port, is_secure=request.secure)

    def _page(self, template: str, **values: object) -> web.Response:
        text = self._templates[template].render(values)
        return web.Response(text=text, content_type="text/html", headers=OWN_HEADERS)


async def _send_file(
    request: web.BaseRequest, name: str, content_type: str, pieces: AsyncIterator[bytes]
) -> web.StreamResponse:
    """Sends the pieces as they are made; a reader who goes away ends it."""
    about = {"content-type": content_type, "content-disposition": f'attachment; filename="{name}"'}
    with StreamedResponse(request) as response:
        response.begin(HTTPStatus.OK, (OWN_HEADERS | about).items())
        async for piece in pieces:
            response.send(piece)
            await response.drain()
        await response.write_eof()
    return response


def _compile_templates(settings: PageSettings, version: str) -> dict[str, Template]:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["site"] = site_view(settings.service_name, settings.contact, version)
    return {name: environment.get_template(name) for name in environment.list_templates(extensions=["html"])}
