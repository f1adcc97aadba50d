"""Takes the pictures of the README: the pages of a gateway with sample keys, in a real browser.

    python -m tools.take_pictures [FOLDER]

The keys and their usage come from seeds (tests/sample_site.py), so two runs differ in dates and clock times only.
"""

import asyncio
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from playwright.async_api import Browser, FloatRect, async_playwright

from tests.browser import CHROMIUM, Tab, opened
from tests.sample_site import BUSY, USED_UP, SampleSite, sample_site

FOLDER = Path("docs/pictures")
MARGIN = 24
"""Points around what is shown."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What is to be seen, and how."""

    name: str
    key: str
    """Whose usage; '' = the landing page."""
    width: int
    scheme: Literal["light", "dark"]
    first: str = "body"
    """The picture begins with this element …"""
    last: str = "body"
    """… and ends with this one; CSS selectors."""


PICTURES = (
    Picture(name="usage", key=BUSY, width=1_000, scheme="light", last="section:has(#running-heading)"),
    Picture(
        name="charts",
        key=BUSY,
        width=1_280,
        scheme="light",
        first="section:has(#hours-heading)",
        last="section:has(#days-heading)",
    ),
    Picture(name="used-up", key=USED_UP, width=400, scheme="dark", last="section:has(#budgets-heading)"),
    Picture(name="landing", key="", width=1_000, scheme="dark", last="pre[aria-label*=Anthropic]"),
)


async def take_pictures(folder: Path) -> None:
    """Writes each picture as a PNG and tells its size."""
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nothing else runs yet
    with tempfile.TemporaryDirectory(prefix="opusmax-pictures-") as place:
        async with sample_site(Path(place) / "opusmax.db") as site, async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=CHROMIUM)
            for picture in PICTURES:
                taken = await _take(browser, site, picture)
                (folder / f"{picture.name}.png").write_bytes(taken)
                sys.stdout.write(f"{folder / picture.name}.png: {len(taken) / 1_000:.0f} kB\n")
            await browser.close()


async def _take(browser: Browser, site: SampleSite, picture: Picture) -> bytes:
    async with opened(
        browser, viewport={"width": picture.width, "height": 900}, color_scheme=picture.scheme
    ) as tab:
        if picture.key:
            await tab.show_usage(site.origin, site.keys[picture.key])
        else:
            await tab.page.goto(site.origin)
        return await tab.page.screenshot(full_page=True, clip=await _frame(tab, picture))


async def _frame(tab: Tab, picture: Picture) -> FloatRect:
    """From the top of the first element to the bottom of the last one, over the whole width."""
    first, last = [await tab.page.locator(selector).bounding_box() for selector in (picture.first, picture.last)]
    if first is None or last is None:
        raise LookupError(f"the page has changed: {picture.name} finds no beginning or end")
    top = max(0, first["y"] - MARGIN)
    return {"x": 0, "y": top, "width": picture.width, "height": last["y"] + last["height"] + MARGIN - top}


if __name__ == "__main__":
    asyncio.run(take_pictures(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER))
