"""The pages are for everybody: axe-core finds nothing to object to on any page, in any state, at any width.

What axe cannot see is tried by hand here: that the keyboard reaches what scrolls, that nothing is wider than the
screen, that the page is small.
"""

from collections.abc import AsyncIterator
from importlib.resources import files
from importlib.util import find_spec
from itertools import pairwise
from typing import Any
from urllib.parse import urljoin

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.browser import ON_THE_BROWSERS_LOOP, Tab, browser, opened
from tests.sample_site import BUSY, DISABLED, EMPTY, EXPIRED, PRICES, USED_UP, SampleSite, sample_site

__all__ = ["browser"]
pytestmark = ON_THE_BROWSERS_LOOP

AXE = "axe_playwright_python"
"""The package that brings axe-core along as a file."""
MOST_BYTES = 60_000
"""Of a page and its stylesheet, as they are sent."""
FITS = "() => document.documentElement.scrollWidth <= document.documentElement.clientWidth"

SCROLLS_OUT_OF_REACH = """() => [...document.querySelectorAll('main *')].filter(element =>
    ['auto', 'scroll'].includes(getComputedStyle(element).overflowX)
    && element.scrollWidth > element.clientWidth
    && element.tabIndex < 0
).map(element => element.outerHTML)"""
LEVELS = "() => [...document.querySelectorAll('h1, h2, h3')].map(heading => Number(heading.tagName[1]))"
WHAT_TABLES_HAVE = """() => [...document.querySelectorAll('table')].map(table => [
    Boolean(table.caption?.textContent),
    [...table.querySelectorAll('th')].every(heading => heading.scope),
    [...table.rows].every(row => row.cells[0].tagName === 'TH'),
])"""

STATES = [
    "landing",
    "privacy",
    "form",
    "wrong key",
    "ended view",
    BUSY,
    USED_UP,
    EXPIRED,
    DISABLED,
    EMPTY,
    "older requests",
]
SCREENS = [(320, "light"), (320, "dark"), (1280, "light"), (1280, "dark")]

RUN_AXE = """async () => {
    const found = await axe.run(document, {resultTypes: ['violations', 'incomplete']});
    const told = (kind, rules) => rules.map(rule => [kind, rule.id, rule.nodes.map(node => node.html)]);
    return {
        violations: told('violation', found.violations),
        unsure: told('unsure', found.incomplete.filter(rule => rule.id !== 'color-contrast')),
        passes: found.passes.length,
    };
}"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SampleSite]:
    async with sample_site(tmp_path_factory.mktemp("sample") / "opusmax.db") as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def priced(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SampleSite]:
    """The same, where the operator has named prices."""
    async with sample_site(tmp_path_factory.mktemp("priced") / "opusmax.db", configuration=PRICES) as running:
        yield running


@pytest.fixture(scope="module")
def axe() -> str:
    """The source of axe-core."""
    if find_spec(AXE) is None:
        pytest.skip(f"needs axe-core: there is no package {AXE}")
    return (files(AXE) / "axe.min.js").read_text()


async def show(tab: Tab, site: SampleSite, state: str) -> None:
    """Bring the tab to one of the states."""
    addresses = {"landing": "/", "privacy": "/privacy", "form": "/usage", "ended view": "/usage?ticket=ended"}
    if state in addresses:
        await tab.page.goto(site.origin + addresses[state])
    elif state == "wrong key":
        assert await tab.show_usage(site.origin, "sk-ant-om1-unknown") == 401
    else:
        await tab.page.goto(await tab.view(site.origin, site.keys[BUSY if state == "older requests" else state]))
    if state == "older requests":
        await tab.press("Older requests")


async def objections(tab: Tab, axe: str) -> dict[str, Any]:
    """What axe finds on the page as it stands."""
    await tab.page.evaluate(axe)
    found: dict[str, Any] = await tab.run(RUN_AXE)
    return found


@pytest.mark.parametrize(("width", "scheme"), SCREENS, ids=[f"{width} px, {scheme}" for width, scheme in SCREENS])
async def test_axe_objects_to_nothing_on_any_page_in_any_state(
    browser: Browser, site: SampleSite, axe: str, width: int, scheme: Any
) -> None:
    profile: dict[str, Any] = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    async with opened(browser, bypass_csp=True, **profile) as tab:
        for state in STATES:
            await show(tab, site, state)
            found = await objections(tab, axe)
            assert (found["violations"], found["unsure"]) == ([], []), state
            assert found["passes"] > 10, state


@pytest.mark.parametrize(("width", "scheme"), SCREENS, ids=[f"{width} px, {scheme}" for width, scheme in SCREENS])
async def test_axe_objects_to_nothing_where_there_are_prices(
    browser: Browser, priced: SampleSite, axe: str, width: int, scheme: Any
) -> None:
    profile: dict[str, Any] = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    async with opened(browser, bypass_csp=True, **profile) as tab:
        await show(tab, priced, BUSY)
        assert "Estimated cost of the last 30 days: $" in await tab.page.inner_text("main")
        found = await objections(tab, axe)
        assert (found["violations"], found["unsure"]) == ([], [])
        assert found["passes"] > 10
        assert await tab.run(FITS)


async def test_axe_would_object_to_a_picture_without_words_and_to_pale_text(
    browser: Browser, site: SampleSite, axe: str
) -> None:
    async with opened(browser, bypass_csp=True) as tab:
        await show(tab, site, BUSY)
        await tab.run(
            """() => {
                document.querySelector('svg.bars').removeAttribute('aria-labelledby');
                document.querySelectorAll('svg.bars > title').forEach(title => title.remove());
                document.querySelector('h1').style.color = '#ddd';
            }"""
        )
        found = await objections(tab, axe)
        assert {rule for _, rule, _ in found["violations"]} == {"svg-img-alt", "color-contrast"}


@pytest.mark.parametrize("width", [320, 768, 1280])
async def test_no_page_is_wider_than_the_screen(browser: Browser, site: SampleSite, width: int) -> None:
    async with opened(browser, viewport={"width": width, "height": 800}) as tab:
        for state in STATES:
            await show(tab, site, state)
            assert await tab.run(FITS), state


async def test_the_keyboard_reaches_everything_that_scrolls_and_shows_where_it_is(
    browser: Browser, site: SampleSite
) -> None:
    async with opened(browser, viewport={"width": 320, "height": 800}) as tab:
        await show(tab, site, BUSY)
        assert await tab.run(SCROLLS_OUT_OF_REACH) == []
        await tab.page.keyboard.press("Tab")
        assert await tab.run("() => document.activeElement.textContent") == "Skip to the content"
        for _ in range(12):
            await tab.page.keyboard.press("Tab")
            assert await tab.run("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"


async def test_every_table_has_a_caption_and_headings_and_headings_come_in_order(
    browser: Browser, site: SampleSite
) -> None:
    async with opened(browser) as tab:
        for state in STATES:
            await show(tab, site, state)
            levels = await tab.run(LEVELS)
            assert (levels[0], levels.count(1)) == (1, 1), state
            assert all(after - before <= 1 for before, after in pairwise(levels)), state
            assert all(map(all, await tab.run(WHAT_TABLES_HAVE))), state


async def bytes_sent(tab: Tab) -> int:
    """Of the page that the tab shows, and of its stylesheet."""
    style = await tab.page.get_attribute("link[rel=stylesheet]", "href")
    addresses = (tab.page.url, urljoin(tab.page.url, style))
    return sum([len(await (await tab.page.request.get(address)).body()) for address in addresses])


async def test_a_page_with_prices_is_small(browser: Browser, priced: SampleSite) -> None:
    async with opened(browser) as tab:
        await show(tab, priced, BUSY)
        assert await bytes_sent(tab) < MOST_BYTES


async def test_a_page_is_small_and_needs_the_stylesheet_only(browser: Browser, site: SampleSite) -> None:
    async with opened(browser) as tab:
        for state in STATES:
            await show(tab, site, state)
            assert await bytes_sent(tab) < MOST_BYTES, state
            asked = {address.partition("?")[0] for address in tab.addresses} - {f"{site.origin}/static/icon.svg"}
            assert (
                asked - {f"{site.origin}{path}" for path in ("/", "/usage", "/privacy", "/static/style.css")}
                == set()
            )
