"""A real browser for the tests of the pages: Debian's Chromium, started once for all of them.

A browser belongs to the event loop that started it, so the tests that use it share the loop of the session. Such a
file says

    from tests.browser import ON_THE_BROWSERS_LOOP, browser, opened

    __all__ = ["browser"]
    pytestmark = ON_THE_BROWSERS_LOOP

and serves what it looks at on that loop as well. Where there is no Chromium, its tests are skipped.
"""

import re
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Download,
    Error,
    Page,
    Request,
    async_playwright,
)

CHROMIUM = Path("/usr/bin/chromium")
ON_THE_BROWSERS_LOOP = pytest.mark.asyncio(loop_scope="session")
LONGEST_WAIT_MS = 10_000

LEFT_BEHIND = """async () => [
    ...Object.entries(localStorage), ...Object.entries(sessionStorage), document.cookie, document.referrer,
    ...(await indexedDB.databases()), ...(await caches.keys()), history.state, window.name,
    ...(await navigator.serviceWorker.getRegistrations()).map(worker => worker.scope),
].filter(Boolean)"""
EVERYTHING = """() => [
    document.documentElement.outerHTML, ...[...document.querySelectorAll('input')].map(input => input.value),
    ...navigation.entries().map(entry => entry.url), ...performance.getEntries().map(entry => entry.name),
].join('\\n')"""


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """The browser, with no profile open."""
    if not CHROMIUM.exists():  # noqa: ASYNC240 - before anything runs
        pytest.skip(f"needs a browser: there is no {CHROMIUM} (Debian: apt install chromium)")
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM)
        yield chromium
        await chromium.close()


class Tab:
    """A page in a profile of its own, and all that has happened in it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[Request] = []
        self.dialogs: list[str] = []
        self.complaints: list[str] = []
        """What stands in the console: broken rules of the content policy among it."""
        page.context.on("request", lambda request: self.requests.append(request))
        page.context.on("dialog", self._note_dialog)
        page.context.on("console", self._note_console)
        page.context.on("weberror", lambda error: self.complaints.append(str(error.error)))

    @property
    def addresses(self) -> list[str]:
        """All that was asked for, here and elsewhere."""
        return [request.url for request in self.requests]

    async def show_usage(self, origin: str, key: str) -> int:
        """Type a key into the form and press the button; returns the status of what came."""
        await self.page.goto(f"{origin}/usage")
        await self.page.get_by_label("API key").fill(key)
        async with self.page.expect_navigation() as navigation:
            await self.page.get_by_role("button", name="Show usage").click()
        answer = await navigation.value
        return answer.status

    async def view(self, origin: str, key: str) -> str:
        """The address of a key's data, of the kind that pages link to: quicker than typing the key."""
        answer = await self.page.request.post(f"{origin}/usage", form={"key": key})
        found = re.search(r"\?ticket=[\w-]+", await answer.text())
        assert found is not None, "no data came"
        return f"{origin}/usage{found[0]}"

    async def press(self, link: str) -> None:
        """Follow a link of the page by its text."""
        async with self.page.expect_navigation():
            await self.page.get_by_role("link", name=link, exact=True).first.click()

    async def download(self, link: str) -> str:
        """Press a link that gives a file; returns what is in it."""
        async with self.page.expect_download() as downloading:
            await self.page.get_by_role("link", name=link, exact=True).click()
        download: Download = await downloading.value
        return Path(await download.path()).read_bytes().decode()  # noqa: ASYNC240 - a small local file

    async def run(self, script: str, argument: object = None) -> Any:
        """The value of a script. It runs from outside: no policy of the page is in its way."""
        return await self.page.evaluate(script, argument)

    async def left_behind(self) -> Any:
        """Everything that the page has put into the browser."""
        return await self.run(LEFT_BEHIND)

    async def everything(self) -> str:
        """All text of the page, its source, its fields, and every address in its history."""
        return str(await self.run(EVERYTHING))

    async def _note_dialog(self, dialog: Dialog) -> None:
        self.dialogs.append(dialog.message)
        await dialog.dismiss()

    def _note_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)


@asynccontextmanager
async def opened(browser: Browser, **profile: Any) -> AsyncIterator[Tab]:
    """A tab in a new profile; `profile` are options of playwright's `new_context`."""
    context: BrowserContext = await browser.new_context(**profile)
    context.set_default_timeout(LONGEST_WAIT_MS)
    try:
        yield Tab(await context.new_page())
    finally:
        await context.close()


async def is_refused(journey: Awaitable[object]) -> bool:
    """Whether the browser shows an error of its own in place of where `journey` leads."""
    try:
        await journey
    except Error as error:
        return "net::ERR_" in error.message
    return False


@asynccontextmanager
async def elsewhere(body: str) -> AsyncIterator[str]:
    """A page of somebody else's; gives its address."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=body, content_type="text/html")

    application = web.Application()
    application.router.add_get("/", answer)
    async with TestServer(application) as server:
        yield f"http://localhost:{server.port}/"
