"""The pages as a browser gets them: the right key's data, the key itself nowhere, nothing from elsewhere."""

import csv
import io
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, make_mocked_request
from pytest_aiohttp import AiohttpClient

from gateway.clock import Clock
from gateway.core.amounts import DAY_MS
from gateway.core.errors import InvalidKey
from gateway.core.keys import mint
from gateway.core.prices import read_prices
from gateway.core.site import UNKNOWN_ORIGIN
from gateway.core.tickets import LIFETIME_MS
from gateway.database import connect
from gateway.forms import header_key
from gateway.pages import ROWS_PER_PAGE
from gateway.responses import OWN_HEADERS
from tests.held_data import NOW, Site, add_request

Client = TestClient[Any, Any]

MULTIPART = "multipart/form-data; boundary=b"

PAYLOADS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'-alert(1)-'",
    "</title><script>1</script>",
    "{{ 7 * 7 }}",
]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with connect(tmp_path / "opusmax.db") as connection:
        yield Site(connection)


@pytest.fixture
async def client(site: Site, aiohttp_client: AiohttpClient) -> Client:
    return await aiohttp_client(site.application())


async def post_key(client: Client, key: str) -> tuple[int, str]:
    async with client.post("/usage", data={"key": key}) as answer:
        return answer.status, await answer.text()


async def get(client: Client, path: str, **headers: str) -> tuple[int, str]:
    async with client.get(path, headers=headers) as answer:
        return answer.status, await answer.text()


def link(page: str, start: str) -> str:
    """The first link of a page that begins so."""
    match = re.search(rf'href="({re.escape(start)}[^"]*)"', page)
    assert match is not None, f"no link to {start}"
    return match[1].replace("&amp;", "&")


def is_form(page: str) -> bool:
    return 'type="password"' in page


async def test_a_typed_key_shows_its_data_and_stands_nowhere_on_the_page(site: Site, client: Client) -> None:
    _, typed = await site.add_key(1, "research")
    status, page = await post_key(client, f" {typed}\n")
    assert status == 200
    assert "<h1>research</h1>" in page
    assert typed not in page


@pytest.mark.parametrize("column", ["disabled", "expires"])
async def test_a_key_that_no_longer_works_still_shows_its_data(site: Site, client: Client, column: str) -> None:
    _, typed = await site.add_key(1, "research", **{column: 1})
    status, page = await post_key(client, typed)
    assert status == 200
    assert {"disabled": "This key is disabled", "expires": "This key expired"}[column] in page


async def test_an_unknown_key_gets_the_form_again_with_the_reason(client: Client) -> None:
    status, page = await post_key(client, "sk-ant-om1-unknown")
    assert status == 401
    assert is_form(page)
    assert "This API key is not known here." in page
    assert "sk-ant-om1-unknown" not in page


async def test_when_too_many_keys_are_checked_the_form_says_when_to_come_back(site: Site, client: Client) -> None:
    site.is_busy = True
    async with client.post("/usage", data={"key": "any"}) as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (429, "2")
        assert "Too many keys just now." in await answer.text()


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", "application/x-www-form-urlencoded", 400),
        (b"key=", "application/x-www-form-urlencoded", 400),
        (b"other=1", "application/x-www-form-urlencoded", 400),
        (b"a=1&" * 20, "application/x-www-form-urlencoded", 400),
        (b"key=\xff\xfe", "application/x-www-form-urlencoded", 401),
        (b"key=" + b"x" * 4_096, "application/x-www-form-urlencoded", 413),
        (b'{"key": "x"}', "application/json", 415),
        (
            b'--b\r\nContent-Disposition: form-data; name="key"\r\n\r\nx\r\n--b--',
            "multipart/form-data; boundary=b",
            415,
        ),
    ],
)
async def test_a_form_that_is_none_is_refused_with_the_form(
    client: Client, body: bytes, content_type: str, status: int
) -> None:
    async with client.post("/usage", data=body, headers={"Content-Type": content_type}) as answer:
        assert answer.status == status
        assert is_form(await answer.text())


@pytest.mark.parametrize(
    "query", ["key=abc", "api_key=abc", "KEY=abc", "ticket=sk-ant-om1-abc", "x", "a=1&before=2-3"]
)
async def test_a_key_in_an_address_is_refused_with_a_warning(client: Client, query: str) -> None:
    status, page = await get(client, f"/usage?{query}")
    assert status == 400
    assert "An API key never belongs in an address" in page
    assert "abc" not in page


@pytest.mark.parametrize("path", ["/", "/usage", "/privacy", "/usage?ticket=no", "/usage?key=no"])
async def test_every_page_has_exactly_the_protecting_headers_and_no_cookie(client: Client, path: str) -> None:
    async with client.get(path) as answer:
        assert {name: answer.headers.get(name) for name in OWN_HEADERS} == OWN_HEADERS
        assert "Set-Cookie" not in answer.headers
        assert not any(name.lower().startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize("path", ["/", "/usage", "/privacy"])
async def test_no_page_runs_a_script_or_loads_anything_from_elsewhere(client: Client, path: str) -> None:
    _, page = await get(client, path)
    assert not re.search(r"<script|<iframe|<img|style=|\son\w+=", page)
    assert {match[:1] for match in re.findall(r'(?:href|src|action)="([^"]*)"', page)} <= {"/", "#"}
    assert page.count("<h1") == 1


async def test_the_stylesheet_loads_nothing_and_its_address_changes_with_it(client: Client) -> None:
    _, page = await get(client, "/")
    async with client.get(link(page, "/static/style.css?")) as answer:
        style = await answer.text()
        assert answer.content_type == "text/css"
        assert "max-age" in answer.headers["Cache-Control"]
    assert "url(" not in style
    assert "@import" not in style


async def test_links_lead_to_older_requests_by_a_ticket_and_back(site: Site, client: Client) -> None:
    key, typed = await site.add_key(1, "research")
    for number in range(ROWS_PER_PAGE + 1):
        await add_request(site.connection, key, started=NOW - number, model=f"model-{number:03}")
    _, page = await post_key(client, typed)
    status, older = await get(client, link(page, "/usage?ticket="))
    assert status == 200
    assert ">model-000</td>" in page
    assert f">model-{ROWS_PER_PAGE:03}</td>" not in page
    assert re.findall(r">(model-\d+)</td>", older) == [f"model-{ROWS_PER_PAGE:03}"]
    status, back = await get(client, link(older, "/usage?ticket="))
    assert (status, ">model-000</td>" in back) == (200, True)


async def test_a_view_ends_after_15_minutes(site: Site, client: Client) -> None:
    _, typed = await site.add_key(1, "research")
    _, page = await post_key(client, typed)
    ticket = link(page, "/usage.json").partition("?")[2]
    assert (await get(client, f"/usage?{ticket}"))[0] == 200
    site.now_ms += LIFETIME_MS
    status, page = await get(client, f"/usage?{ticket}")
    assert (status, is_form(page)) == (401, True)
    assert "This view has ended" in page


async def test_a_view_ends_when_its_key_is_deleted(site: Site, client: Client) -> None:
    key, typed = await site.add_key(1, "research")
    _, page = await post_key(client, typed)
    await site.connection.execute("DELETE FROM key WHERE id = ?", (key,))
    status, page = await get(client, link(page, "/usage.json").replace(".json", ""))
    assert (status, is_form(page)) == (401, True)
    assert "has been deleted" in page


@pytest.mark.parametrize("before", ["", "x", "1", "1-2-3", "%00"])
async def test_a_link_that_was_cut_short_is_told_as_such(site: Site, client: Client, before: str) -> None:
    _, typed = await site.add_key(1, "research")
    _, page = await post_key(client, typed)
    address = link(page, "/usage.json").replace(".json", "")
    assert (await get(client, f"{address}&before={before}"))[0] == 400


async def test_exports_work_by_ticket_and_by_either_header(site: Site, client: Client) -> None:
    key, typed = await site.add_key(1, "research")
    await add_request(site.connection, key)
    _, page = await post_key(client, typed)
    answers = [
        await get(client, link(page, "/usage.json")),
        await get(client, "/usage.json", **{"x-api-key": typed}),
        await get(client, "/usage.json", Authorization=f"Bearer {typed}"),
        await get(client, "/usage.json", **{"x-api-key": typed, "Authorization": "Bearer other-service"}),
        await get(client, "/usage.json", **{"x-api-key": "other-service", "Authorization": f"Bearer {typed}"}),
    ]
    assert len(set(answers)) == 1
    assert answers[0][0] == 200
    assert json.loads(answers[0][1])["requests"][0]["input"] == 100


def test_two_different_keys_of_ours_are_refused_and_no_key_is_an_empty_one() -> None:
    one, other = mint().text, mint().text
    with pytest.raises(InvalidKey, match="Two different"):
        header_key(make_mocked_request("GET", "/", {"x-api-key": one, "Authorization": f"Bearer {other}"}))
    both = {"X-Api-Key": one, "authorization": f"bearer {one}"}
    assert header_key(make_mocked_request("GET", "/", both)) == one
    assert header_key(make_mocked_request("GET", "/", {"Authorization": f"Basic {one}"})) == ""


async def test_an_export_is_a_file_that_nobody_caches(site: Site, client: Client) -> None:
    _, typed = await site.add_key(1, "research")
    async with client.get("/usage.csv", headers={"x-api-key": typed}) as answer:
        assert {name: answer.headers.get(name) for name in OWN_HEADERS} == OWN_HEADERS
        assert answer.headers["Content-Disposition"] == 'attachment; filename="opusmax-usage.csv"'
        assert len((await answer.text()).splitlines()) == 1


async def test_an_export_over_many_batches_is_one_sound_document(site: Site, client: Client) -> None:
    key, typed = await site.add_key(1, "research")
    for number in range(450):
        await add_request(site.connection, key, started=NOW - number)
    _, text = await get(client, "/usage.json", **{"x-api-key": typed})
    _, table = await get(client, "/usage.csv", **{"x-api-key": typed})
    started = [NOW - number for number in range(450)]
    assert [request["started"] for request in json.loads(text)["requests"]] == started
    assert [int(row["started"]) for row in csv.DictReader(io.StringIO(table))] == started


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
async def test_a_cell_that_a_spreadsheet_would_run_is_made_text(site: Site, client: Client, start: str) -> None:
    key, typed = await site.add_key(1, "research")
    await add_request(site.connection, key, model=f'{start}HYPERLINK("x"),y')
    async with client.get("/usage.csv", headers={"x-api-key": typed}) as answer:
        table = (await answer.read()).decode()
    (row,) = csv.DictReader(io.StringIO(table, newline=""))
    assert row["model"] == f'\'{start}HYPERLINK("x"),y'
    assert row["latency"] == "840"


@pytest.mark.parametrize("payload", PAYLOADS)
async def test_markup_in_a_name_is_shown_and_never_run(
    site: Site, aiohttp_client: AiohttpClient, payload: str
) -> None:
    site.contact = site.service_name = payload
    key, typed = await site.add_key(1, payload)
    await add_request(site.connection, key, model=payload)
    client = await aiohttp_client(site.application())
    _, page = await post_key(client, typed)
    assert not re.search(r"<script|<img|<h1>49", page)
    assert payload not in page or not re.search(r"[<>\"]", payload)


async def test_no_key_sees_a_row_of_another(site: Site, client: Client) -> None:
    typed = {}
    for row in range(1, 21):
        key, typed[row] = await site.add_key(row, f"name-{row:02}")
        await add_request(site.connection, key, model=f"model-{row:02}")
    for row, text in typed.items():
        _, page = await post_key(client, text)
        answers = [
            page,
            (await get(client, link(page, "/usage.json")))[1],
            (await get(client, link(page, "/usage.csv")))[1],
        ]
        assert {found for answer in answers for found in re.findall(r"(?:model|name)-(\d\d)", answer)} == {
            f"{row:02}"
        }


async def test_the_landing_page_names_its_own_address(site: Site, client: Client) -> None:
    _, page = await get(client, "/")
    assert f"ANTHROPIC_BASE_URL=http://127.0.0.1:{client.port}" in page
    assert "CLAUDE_CODE_USE_GATEWAY=1" in page
    site.public_url = "https://configured.example.org"
    _, page = await get(client, "/", Host="llm.example.org")
    assert "ANTHROPIC_BASE_URL=https://configured.example.org" in page


@pytest.mark.parametrize("host", ["evil.example.org", "127.0.0.1:1", "a/?x#", "127.0.0.1.evil.example"])
@pytest.mark.parametrize("path", ["/", "/usage"])
async def test_no_page_repeats_an_address_that_only_the_request_names(client: Client, host: str, path: str) -> None:
    _, page = await get(client, path, Host=host)
    assert host not in page
    assert UNKNOWN_ORIGIN in page


@pytest.mark.parametrize("expires", [-(2**63), 2**63 - 1])
async def test_a_key_whose_expiry_no_calendar_knows_still_shows_its_data(
    site: Site, client: Client, expires: int
) -> None:
    _, typed = await site.add_key(1, "research", expires=expires)
    status, page = await post_key(client, typed)
    assert status == 200
    assert {-(2**63): "before the year 1", 2**63 - 1: "after the year 9999"}[expires] in page


async def test_a_key_that_expired_by_the_calendar_is_told_so_although_the_clock_of_the_limits_is_behind(
    site: Site, client: Client
) -> None:
    assert Clock.wall_ms() > NOW + 1
    _, typed = await site.add_key(1, "research", expires=NOW + 1)
    _, page = await post_key(client, typed)
    assert ">expired</span>" in page


async def test_a_key_that_has_not_expired_by_the_calendar_is_active_although_the_clock_of_the_limits_is_ahead(
    site: Site, client: Client
) -> None:
    _, typed = await site.add_key(1, "research", expires=Clock.wall_ms() + DAY_MS)
    site.now_ms = Clock.wall_ms() + 2 * DAY_MS
    _, page = await post_key(client, typed)
    assert ">active</span>" in page


async def test_both_exports_hold_the_same_rows(site: Site, client: Client) -> None:
    key, typed = await site.add_key(1, "research")
    for number in range(5):
        await add_request(
            site.connection, key, started=NOW - number, latency=None if number else 7, estimated=number % 2
        )
    _, page = await post_key(client, typed)
    requests = json.loads((await get(client, link(page, "/usage.json")))[1])["requests"]
    rows = list(csv.DictReader(io.StringIO((await get(client, link(page, "/usage.csv")))[1])))
    assert rows == [
        {
            name: "" if value is None else str(int(value)) if isinstance(value, bool) else str(value)
            for name, value in request.items()
        }
        for request in requests
    ]


async def test_times_are_told_to_machines_as_well(site: Site, client: Client) -> None:
    _, typed = await site.add_key(1, "research")
    _, page = await post_key(client, typed)
    assert '<time datetime="2026-09-21T14:13:20Z">2026-09-21 14:13 UTC</time>' in page


async def test_the_page_tells_the_estimated_cost_where_there_are_prices_and_the_export_only_what_is_held(
    site: Site, client: Client
) -> None:
    key, typed = await site.add_key(1, "research")
    for sequence, model in enumerate(("claude-x", "<b>other")):
        await add_request(site.connection, key, sequence=sequence, model=model, input=10**6, output=0)
    held = await get(client, "/usage.json", **{"x-api-key": typed})
    _, without = await post_key(client, typed)
    assert not re.search(r"cost|\$|price", without, re.IGNORECASE)
    free = {"output": 0, "cache_write": 0, "cache_read": 0}
    site.prices = read_prices({"claude-*": {"input": 5} | free})
    _, page = await post_key(client, typed)
    assert "Estimated cost of the last 30 days: $5.00 +." in page
    assert "where a model has no price: &lt;b&gt;other." in page
    costs = re.findall(r"<td>([$–][^<]*)</td>", page.partition('id="days-table"')[2])
    assert costs == ["$5.00 +", "–", "$5.00", "$5.00 +"]
    assert await get(client, "/usage.json", **{"x-api-key": typed}) == held


async def test_the_icon_is_an_image_without_script_or_style(client: Client) -> None:
    _, page = await get(client, "/")
    async with client.get(link(page, "/static/icon.svg?")) as answer:
        assert (answer.status, answer.content_type) == (200, "image/svg+xml")
        assert not re.search(r"<script|<style|style=|href", await answer.text())


async def test_a_probe_of_the_landing_page_is_answered(client: Client) -> None:
    async with client.head("/") as answer:
        assert answer.status == 200
