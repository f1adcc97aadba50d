"""What the pages do in a real browser with hostile names in them: show them as text, run nothing, keep no key.

The browser is told to overlook the content policy of the attacked pages, so that escaping alone has to hold; the
policy is tried by itself.
"""

import csv
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from gateway import admin, database
from gateway.core import keys
from gateway.core.account import REQUEST_COLUMNS
from gateway.pages import ROWS_PER_PAGE
from tests.attacked_site import (
    FORMULAS,
    HARMLESS,
    MODELS_SHOWN,
    PAYLOADS,
    REFUSED_AS_NAMES,
    SHAPE,
    SITE_NAME,
    TEXT_OF,
    Site,
    as_shown,
    attacked,
    harm_in,
)
from tests.browser import ON_THE_BROWSERS_LOOP, Tab, browser, elsewhere, is_refused, opened
from tests.harness import now_ms, until

__all__ = ["browser"]
pytestmark = ON_THE_BROWSERS_LOOP

IN_AN_ADDRESS = PAYLOADS[6]
PAGED = PAYLOADS[0]
"""The key with more requests than a page shows."""
FEW = PAYLOADS[::4]
"""Here; all of them in the proof."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    path = tmp_path_factory.mktemp("attacked") / "opusmax.db"
    async with attacked(path, PAYLOADS, PAYLOADS, service_name=SITE_NAME, contact=SITE_NAME) as running:
        yield running


async def test_a_hostile_name_is_shown_as_text_and_makes_no_element(browser: Browser, site: Site) -> None:
    async with opened(browser, bypass_csp=True, viewport={"width": 320, "height": 640}) as tab:
        await tab.show_usage(site.origin, site.keys[HARMLESS])
        shape = await tab.run(SHAPE)
        for payload in FEW[1:]:
            await tab.page.goto(await tab.view(site.origin, site.keys[payload]))
            assert await tab.run(TEXT_OF, "h1") == as_shown(payload)
            assert await tab.run(SHAPE) == shape, payload
            assert await harm_in(tab, site.origin) == []
            assert await tab.run("() => document.documentElement.scrollWidth") <= 320, payload


async def test_hostile_models_are_shown_as_text_on_every_page_of_requests(browser: Browser, site: Site) -> None:
    shown = [as_shown(payload) for payload in PAYLOADS]
    async with opened(browser, bypass_csp=True) as tab:
        await tab.show_usage(site.origin, site.keys[PAGED])
        assert (await tab.run(MODELS_SHOWN))[: len(shown)] == shown
        await tab.press("Older requests")
        assert await tab.run(MODELS_SHOWN) == shown
        assert await tab.run(TEXT_OF, "h1") == f"Requests of {PAGED}"
        assert await tab.run("() => document.querySelectorAll('td *, h1 *').length") == 0
        assert await harm_in(tab, site.origin) == []


async def test_hostile_addresses_and_keys_leave_no_trace_on_a_page(browser: Browser, site: Site) -> None:
    async with opened(browser, bypass_csp=True) as tab:
        for address in ("/", "/usage", "/privacy"):
            await tab.page.goto(f"{site.origin}{address}")
            assert await tab.run(TEXT_OF, ".brand") == SITE_NAME
            assert await harm_in(tab, site.origin) == []
        for name in ("ticket", "key", "before"):
            await tab.page.goto(f"{site.origin}/usage?{name}={IN_AN_ADDRESS}")
            assert IN_AN_ADDRESS not in await tab.page.inner_text("main")
            assert await harm_in(tab, site.origin) == []
        assert await tab.show_usage(site.origin, IN_AN_ADDRESS) == 401
        assert IN_AN_ADDRESS not in await tab.page.inner_text("main")
        assert await harm_in(tab, site.origin) == []


async def test_should_markup_ever_get_through_the_content_policy_stops_it(browser: Browser, site: Site) -> None:
    async with opened(browser) as tab:
        await tab.show_usage(site.origin, site.keys[HARMLESS])
        quiet = list(tab.complaints)
        for payload in (payload for payload in PAYLOADS if "refresh" not in payload):
            await tab.run("markup => { document.querySelector('main').innerHTML = markup }", payload)
        await tab.run(
            """() => {
                const script = document.createElement('script');
                script.textContent = 'window.ran = 1';
                document.body.append(script);
            }"""
        )
        assert await tab.run("() => window.ran") is None
        assert quiet == []
        assert any("Content Security Policy" in complaint for complaint in tab.complaints)


@pytest.mark.parametrize("has_scripts", [False, True], ids=["scripts off", "scripts on"])
async def test_the_pages_work_with_and_without_scripts(browser: Browser, site: Site, *, has_scripts: bool) -> None:
    async with opened(browser, java_script_enabled=has_scripts) as tab:
        assert await tab.show_usage(site.origin, site.keys[PAGED]) == 200
        await tab.press("Older requests")
        assert await tab.page.inner_text("h1") == f"Requests of {PAGED}"
        await tab.press("Back to the overview")
        assert await tab.page.inner_text("h1") == PAGED
        assert tab.complaints == []


async def test_a_typed_key_is_kept_nowhere_in_the_browser(browser: Browser, site: Site) -> None:
    text = site.keys[PAGED]
    api_key = keys.parse(text)
    assert api_key is not None
    async with opened(browser) as tab:
        await tab.page.goto(f"{site.origin}/usage")
        field = tab.page.get_by_label("API key")
        assert [await field.get_attribute(name) for name in ("type", "autocomplete")] == ["password", "off"]
        await tab.show_usage(site.origin, text)
        for step in ("Older requests", "Back to the overview", "Privacy", "Check usage"):
            assert api_key.secret not in await tab.everything(), step
            assert await tab.left_behind() == [], step
            if step == "Privacy":
                await tab.download("requests as CSV")
                await tab.download("JSON")
            await tab.press(step)
        await assert_requests_are_discreet(tab, site.origin, api_key.secret)
        assert (await tab.page.context.storage_state())["cookies"] == []


async def assert_requests_are_discreet(tab: Tab, origin: str, secret: str) -> None:
    assert [address for address in tab.addresses if secret in address or not address.startswith(origin)] == []
    sent = [request for request in tab.requests if secret in (request.post_data or "")]
    assert {(request.method, request.url) for request in sent} == {("POST", f"{origin}/usage")}
    for request in tab.requests:
        headers = await request.all_headers()
        assert [headers.get(name, "") for name in ("cookie", "referer", "authorization")] == [""] * 3


async def test_going_back_shows_no_data_that_is_not_asked_for_again(browser: Browser, site: Site) -> None:
    async with opened(browser) as tab:
        await tab.show_usage(site.origin, site.keys[PAGED])
        await tab.press("Older requests")
        await tab.press("Privacy")
        asked = len(tab.requests)
        await tab.page.go_back()
        assert "/usage?ticket=" in next(address for address in tab.addresses[asked:] if "/static/" not in address)
        assert await is_refused(tab.page.go_back())
        await tab.page.wait_for_url("chrome-error://**")
        assert PAGED not in await tab.page.inner_text("body")
        await tab.page.go_back()
        assert await tab.page.get_by_label("API key").input_value() == ""


async def test_no_page_can_be_framed_by_another_site(browser: Browser, site: Site) -> None:
    addresses = ("/", "/usage", "/privacy", "/usage?ticket=x", "/usage.json", "/nothing", "/healthz")
    frames = "".join(f'<iframe src="{site.origin}{address}"></iframe>' for address in addresses)
    async with elsewhere(frames) as trap, opened(browser) as tab:
        await tab.page.goto(trap)
        shown = tab.page.main_frame.child_frames
        assert len(shown) == len(addresses)
        await until(lambda: all(frame.url not in ("", "about:blank") for frame in shown))
        assert {frame.url for frame in shown} == {"chrome-error://chromewebdata/"}


READ = """async ([address, options]) => {
    try {
        const answer = await fetch(address, options);
        return answer.type + await answer.text();
    } catch { return 'refused' }
}"""


async def test_another_site_reads_nothing_even_with_a_key_or_a_ticket(browser: Browser, site: Site) -> None:
    key = site.keys[HARMLESS]
    form = {"content-type": "application/x-www-form-urlencoded"}
    attempts: list[tuple[str, dict[str, Any]]] = [
        ("/usage", {"credentials": "include"}),
        ("/usage", {"method": "POST", "body": f"key={key}", "headers": form, "credentials": "include"}),
        ("/usage.json", {"headers": {"x-api-key": key}}),
        ("/v1/models", {"headers": {"authorization": f"Bearer {key}"}}),
        ("/healthz", {}),
    ]
    async with elsewhere("") as trap, opened(browser) as tab:
        view = await tab.view(site.origin, key)
        await tab.page.goto(trap)
        for address, options in [(view, {}), *((f"{site.origin}{path}", options) for path, options in attempts)]:
            assert await tab.run(READ, [address, options]) == "refused", address
            assert await tab.run(READ, [address, options | {"mode": "no-cors"}]) in ("opaque", "refused"), address


async def test_a_form_posted_from_another_site_carries_nothing_of_the_visitors(
    browser: Browser, site: Site
) -> None:
    form = f'<form method=post action="{site.origin}/usage"><input name=key value=" "><button>Press</button></form>'
    async with elsewhere(form) as trap, opened(browser) as tab:
        await tab.show_usage(site.origin, site.keys[HARMLESS])
        await tab.page.goto(trap)
        async with tab.page.expect_navigation() as navigation:
            await tab.page.get_by_role("button").click()
        answer = await navigation.value
        assert answer.status == 400
        assert not {"cookie", "authorization"} & (await answer.request.all_headers()).keys()
        assert HARMLESS not in await tab.page.content()


async def test_downloads_are_inert_in_a_spreadsheet_and_exact_as_json(browser: Browser, tmp_path: Path) -> None:
    models = (*FORMULAS, *PAYLOADS)
    async with attacked(tmp_path / "opusmax.db", ["=name"], models) as site, opened(browser) as tab:
        await tab.page.goto(await tab.view(site.origin, site.keys["=name"]))
        table, data = await tab.download("requests as CSV"), json.loads(await tab.download("JSON"))
    rows = list(csv.DictReader(io.StringIO(table, newline="")))
    assert [row["model"] for row in rows][: len(FORMULAS)] == [f"'{formula}" for formula in FORMULAS]
    assert [request["model"] for request in data["requests"]][: len(models)] == list(models)
    assert len(rows) == len(data["requests"]) == max(ROWS_PER_PAGE, len(models)) + len(models)
    assert {len(row) for row in csv.reader(io.StringIO(table, newline=""))} == {len(REQUEST_COLUMNS)}
    assert (data["key"]["name"], data["key"]["models"]) == ("=name", "=name")


async def test_the_command_line_takes_only_names_that_can_be_read_and_typed(tmp_path: Path) -> None:
    refused = []
    async with database.connect(tmp_path / "opusmax.db") as connection:
        for payload in PAYLOADS:
            try:
                await admin.create_key(connection, payload, {}, now_ms())
            except admin.BadName:
                refused.append(payload)
    assert tuple(refused) == REFUSED_AS_NAMES
