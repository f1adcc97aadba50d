"""The pages under attack, at full size: hostile names, fifty keys side by side, a key typed into a browser.

The small versions are in tests/test_pages_in_a_browser.py and tests/test_cross_key.py.
"""

import csv
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Browser

from gateway.core import keys
from gateway.simulator import Simulator
from prove.conftest import Figure
from tests.attacked_site import (
    FORMULAS,
    HARMLESS,
    MODELS_SHOWN,
    PAYLOADS,
    SHAPE,
    TEXT_OF,
    Site,
    as_shown,
    attacked,
    harm_in,
)
from tests.browser import CHROMIUM, ON_THE_BROWSERS_LOOP, Tab, browser, opened
from tests.harness import OPERATOR_CREDENTIAL, Database, serving
from tests.test_cross_key import team_of, wrong_answers
from tests.test_server_process import run

__all__ = ["browser"]

KEYS = 50
WIDTHS = (320, 1280)
MARKED = "seen-in-an-address-4711"
PAGES_WITHOUT_A_KEY = ("/", "/usage", "/privacy", "/usage?key=x", "/usage?ticket=x", "/usage?ticket=x&before=1")


@ON_THE_BROWSERS_LOOP
@pytest.mark.parametrize("bypass_csp", [True, False], ids=["escaping alone", "with the policy"])
async def test_no_hostile_name_of_a_key_or_model_becomes_markup(
    browser: Browser, tmp_path: Path, figure: Figure, bypass_csp: bool
) -> None:
    pages, wrong = 0, []
    async with attacked(tmp_path / "opusmax.db", PAYLOADS, PAYLOADS) as site:
        for width in WIDTHS:
            async with opened(browser, bypass_csp=bypass_csp, viewport={"width": width, "height": 800}) as tab:
                await tab.show_usage(site.origin, site.keys[HARMLESS])
                shape = await tab.run(SHAPE)
                for name in PAYLOADS:
                    await tab.show_usage(site.origin, site.keys[name])
                    wrong += await _wrong_with(tab, site, name, f"{name!r} at {width}")
                    wrong += [] if name == PAYLOADS[0] or await tab.run(SHAPE) == shape else [f"shape of {name!r}"]
                    pages += 1
                await tab.page.goto(await tab.view(site.origin, site.keys[PAYLOADS[0]]))
                await tab.press("Older requests")
                wrong += await _wrong_with(tab, site, f"Requests of {PAYLOADS[0]}", f"older requests at {width}")
                wrong += tab.complaints
                pages += 1
    figure(
        "pages",
        f"{len(PAYLOADS)} payloads in names, globs and models, {'no' if bypass_csp else 'with'} content policy:"
        f" scripts, handlers, foreign elements or requests, changed texts {len(wrong)} on {pages} pages",
    )
    assert wrong == []


async def _wrong_with(tab: Tab, site: Site, heading: str, where: str) -> list[str]:
    """What is wrong with a page that shows a key of the attacked site."""
    wrong = await harm_in(tab, site.origin)
    if await tab.run(TEXT_OF, "h1") != as_shown(heading):
        wrong.append("the heading is another")
    if (await tab.run(MODELS_SHOWN))[: len(PAYLOADS)] != [as_shown(payload) for payload in PAYLOADS]:
        wrong.append("the models are others")
    if await tab.run("() => document.documentElement.scrollWidth > innerWidth"):
        wrong.append("wider than the window")
    return [f"{where}: {what}" for what in wrong]


@ON_THE_BROWSERS_LOOP
async def test_no_hostile_name_of_a_service_becomes_markup(
    browser: Browser, tmp_path: Path, figure: Figure
) -> None:
    """The operator's own words may contain anything as well."""
    pages, wrong = 0, []
    async with opened(browser, bypass_csp=True) as tab:
        shapes = await _shapes(tab, tmp_path / "harmless.db", HARMLESS)
        for number, payload in enumerate(PAYLOADS):
            attacked_shapes = await _shapes(tab, tmp_path / f"{number}.db", payload)
            wrong += [
                f"{payload!r} at {address}" for address in shapes if attacked_shapes[address] != shapes[address]
            ]
            pages += len(shapes)
        wrong += tab.dialogs
    figure(
        "pages",
        f"{len(PAYLOADS)} payloads as the service's name and contact: pages changed {len(wrong)} of {pages}",
    )
    assert wrong == []


async def _shapes(tab: Tab, path: Path, name: str) -> dict[str, list[str]]:
    """The elements of all pages that need no key, and all harm done there, by address."""
    shapes = {}
    async with (
        Simulator(credentials={OPERATOR_CREDENTIAL}) as provider,
        serving(provider, path, service_name=name, contact=f"https://a.example/{name}") as origin,
    ):
        tab.requests.clear()
        for address in PAGES_WITHOUT_A_KEY:
            await tab.page.goto(f"{origin}{address}")
            shapes[address] = [*await tab.run(SHAPE), *await harm_in(tab, origin)]
            assert await tab.run(TEXT_OF, ".brand") == as_shown(name)
        await tab.show_usage(origin, name)
        shapes["a wrong key"] = [*await tab.run(SHAPE), *await harm_in(tab, origin)]
    return shapes


async def test_no_answer_tells_anything_of_another_key(
    provider: Simulator, database: Database, figure: Figure
) -> None:
    async with team_of(KEYS, provider, database.path) as team:
        answers, wrong = await wrong_answers(team)
    figure(
        "pages", f"{KEYS} x {KEYS} keys, each asked with every other: wrong or foreign {len(wrong)} of {answers:,}"
    )
    assert wrong == []


@asynccontextmanager
async def profile_on_disk(browser: Browser, folder: Path) -> AsyncIterator[Tab]:
    """A tab in a browser that keeps what a browser keeps."""
    context = await browser.browser_type.launch_persistent_context(folder, executable_path=CHROMIUM)
    try:
        yield Tab(context.pages[0])
    finally:
        await context.close()


@ON_THE_BROWSERS_LOOP
async def test_a_typed_key_is_in_no_file_of_the_browser(browser: Browser, tmp_path: Path, figure: Figure) -> None:
    """An address that was visited is found in the same files, so the search would find a key as well."""
    async with (
        attacked(tmp_path / "opusmax.db", ["somebody"], ["model", "another"]) as site,
        profile_on_disk(browser, tmp_path / "profile") as tab,
    ):
        api_key = keys.parse(site.keys["somebody"])
        assert api_key is not None
        await tab.page.goto(f"{site.origin}/usage?{MARKED}")
        await tab.show_usage(site.origin, api_key.text)
        await tab.press("Older requests")
        await tab.press("Back to the overview")
        await tab.download("requests as CSV")
        await tab.press("Privacy")
    files = [file.read_bytes() for file in (tmp_path / "profile").rglob("*") if file.is_file()]
    marked, hits = (sum(text.encode() in file for file in files) for text in (MARKED, api_key.secret))
    figure("P10", f"a key typed into a browser: files of its profile with it {hits} of {len(files)}")
    assert marked > 0
    assert hits == 0


async def test_no_cell_of_the_administrators_csv_is_a_formula(tmp_path: Path, figure: Figure) -> None:
    cells: list[str] = []
    path = tmp_path / "opusmax.db"
    async with attacked(path, FORMULAS, FORMULAS):
        pass
    for by in ("key", "model"):
        code, table, errors = await run("usage", "--by", by, "--csv", database=path)
        assert code == 0, errors
        cells += [row[by] for row in csv.DictReader(io.StringIO(table, newline=""))]
    inert = [cell for cell in cells if cell.removeprefix("'") in FORMULAS and cell.startswith("'")]
    figure(
        "pages",
        f"{len(FORMULAS)} formulas as names of keys and models, in the administrator's CSV: inert {len(inert)}",
    )
    assert len(inert) == 2 * len(FORMULAS)
