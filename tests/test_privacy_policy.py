"""The privacy page says every fact of the policy and lists every column; the usage page shows all data held."""

import html
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pytest_aiohttp import AiohttpClient

from gateway.core import policy
from gateway.core.account import HASH_HELD, HOUR_COLUMNS, KEY_COLUMNS, REQUEST_COLUMNS
from gateway.database import connect
from gateway.reports import read_columns, read_record
from tests.held_data import NOW, REQUEST, Columns, Site, insert, live_columns

SECTIONS = [
    "never-kept",
    "kept",
    "flow",
    "keys",
    "retention",
    "third-parties",
    "security",
    "children",
    "rights",
    "changes",
    "contact",
]

FACTS = {
    "never-kept": [
        "Messages, instructions and system prompts are dropped as soon as they have been forwarded",
        "stream through to you and are not stored",
        "Images and files",
        "Conversation history",
        "No names, mail addresses, IP addresses or browser fingerprints",
        "set no cookies",
        "no analytics, no scripts, and nothing is loaded from anyone else",
    ],
    "kept": [
        "Token counts , input and output",
        "whether a count is the provider's own or an estimate",
        "for rolling windows and the history",
        "The model's name",
        "The HTTP status",
        "how many milliseconds",
        "Which key made the request. The full key is held as a hash, and never stands in plain text in a log",
        "purely operational: no conversation can be rebuilt from it",
        "Counting tokens and listing models is free, and leaves no row",
        "requests that are refused, only their number and the kind of reason are kept for each key, without times",
        "While an erasure is under way, a mark says so",
    ],
    "flow": [
        "arrives over HTTPS. Your key is checked, then its limits. The request is forwarded to the AI provider over"
        " HTTPS. The answer is streamed back to you in real time",
        "The usage data named above is recorded, and nothing else",
        "It was in memory only, while it was in transit",
        "never written to a disk, a log file or a database",
    ],
    "keys": [
        "stored to authenticate requests",
        "a name, rate limits, token budgets, an expiration date",
        "how many requests may run at once, an overdraft and the models allowed",
        "a prefix is kept for display",
        "the full key as a hash only",
        "(total tokens, usage in its windows, when it was last used) is updated with each request",
    ],
    "retention": [
        "Content: not at all, for no time",
        "as long as the key exists. When an administrator deletes a key, all its usage data is permanently deleted",
        "Key records: until an administrator deletes them",
        "erased from the database and its files",
        "the storage cells of a disk, or a copy that the administrator made",
    ],
    "third-parties": [
        "upstream AI model providers, which have their own policies",
        "outside our control",
        "read the policies of the providers whose models you use",
    ],
    "security": [
        "All traffic runs over HTTPS (TLS)",
        "Keys are checked on every request",
        "Rate limits and token budgets guard against abuse",
        "No content is in persistent storage",
        "Access to the database is restricted, and credentials are managed securely",
    ],
    "children": [
        "not directed at children under 13",
        "do not knowingly collect personal information from them",
        "contact the administrator",
    ],
    "rights": [
        "Access. See your usage data at any time with your API key",
        "Deletion. Ask the administrator to delete your key and all its usage data",
        "Portability. The Check usage page shows all data held about your key",
    ],
    "changes": [
        "may change",
        "count from the moment they stand on this page",
        "look here now and then",
        "going on using the service means that you accept them",
    ],
    "contact": ["the administrator who gave you your key", "team through its support channel", "ops@example.org"],
}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with connect(tmp_path / "opusmax.db") as connection:
        yield Site(connection, contact="ops@example.org")


@pytest.fixture
async def privacy_page(site: Site, aiohttp_client: AiohttpClient) -> str:
    client = await aiohttp_client(site.application())
    return await (await client.get("/privacy")).text()


def text_of(page: str) -> str:
    """What a reader sees, with single spaces."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split()).replace(" .", ".").replace(" :", ":")


def section(page: str, name: str) -> str:
    match = re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL)
    assert match is not None, f"there is no section {name}"
    return text_of(match[0])


def record_column(page: str, column: str) -> str:
    """What the usage page's record says of a column."""
    match = re.search(rf'<th scope="row">{re.escape(column)}</th>\s*<td>(.*?)</td>', page)
    assert match is not None, f"{column} is not on the page"
    return html.unescape(match[1])


def test_the_sections_come_in_their_order(privacy_page: str) -> None:
    assert re.findall(r'<section id="([^"]+)"', privacy_page) == SECTIONS


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_states_its_facts(privacy_page: str, name: str) -> None:
    text = section(privacy_page, name)
    assert [fact for fact in FACTS[name] if fact not in text] == []


def test_the_overview_says_in_one_breath_what_is_stored_and_what_is_not(privacy_page: str) -> None:
    text = text_of(privacy_page)
    assert "a gateway that gives managed access to AI language models" in text
    assert "does not store your prompts, messages or answers" in text
    assert "keeps only the little usage data that limits and usage pages need" in text
    assert f"Last updated {policy.LAST_UPDATED}" in text


async def test_the_page_lists_exactly_the_columns_of_the_live_schema(site: Site, privacy_page: str) -> None:
    columns = [f"{table}.{column}" for table, column in await read_columns(site.connection)]
    assert re.findall(r'<th scope="row"><code>([^<]+)</code></th>', privacy_page) == columns
    assert policy.UNDESCRIBED not in privacy_page


async def test_every_column_has_its_line_and_every_line_its_column(site: Site) -> None:
    gaps = policy.check(await read_columns(site.connection))
    assert (gaps.missing, gaps.stale) == ((), ())
    assert set(policy.TABLES) == {table for table, _ in await read_columns(site.connection)}


@pytest.mark.parametrize("table", ["key", "secret", "budget", "request", "erasure"])
async def test_a_column_without_a_line_fails_the_check_and_shows_on_the_page(
    site: Site, aiohttp_client: AiohttpClient, table: str
) -> None:
    await site.connection.execute(f"ALTER TABLE {table} ADD COLUMN added TEXT")
    gaps = policy.check(await read_columns(site.connection))
    assert (gaps.missing, gaps.stale) == (((table, "added"),), ())
    client = await aiohttp_client(site.application())
    page = await (await client.get("/privacy")).text()
    assert f"<code>{table}.added</code>" in page
    assert policy.UNDESCRIBED in page


async def test_a_table_without_lines_fails_the_check(site: Site) -> None:
    await site.connection.execute("CREATE TABLE diary (entry TEXT) STRICT")
    assert policy.check(await read_columns(site.connection)).missing == (("diary", "entry"),)


async def test_a_line_whose_column_is_gone_fails_the_check(site: Site) -> None:
    await site.connection.execute("ALTER TABLE key DROP COLUMN refused_size")
    assert policy.check(await read_columns(site.connection)).stale == (("key", "refused_size"),)


async def fill(site: Site) -> tuple[str, dict[str, int]]:
    """A key whose every figure is its own; returns what its holder types, and the figures by column."""
    names = [name for name in await live_columns(site.connection, "key") if name.startswith(("total", "refused"))]
    limits = ["requests_per_minute", "tokens_per_minute", "concurrency", "overdraft"]
    figures = {name: 1_000_001 + 7 * number for number, name in enumerate(names + limits)}
    times = {"expires": NOW + 10**9, "last_used": NOW - 10**7}
    key, typed = await site.add_key(2**46 + 1, "research", models="claude-*", disabled=1, **times, **figures)
    await insert(site.connection, "budget", {"key": key, "window": 18_000_000, "tokens": 2_000_003})
    counts = {"input": 3_000_017, "output": 3_000_029, "cache_write": 3_000_047, "cache_read": 3_000_061}
    row: Columns = {
        **REQUEST,
        **counts,
        "key": key,
        "sequence": 5,
        "latency": 8_123,
        "status": 499,
        "model": "claude-own",
    }
    await insert(site.connection, "request", row)  # as it is: settling it would add to the totals
    hour: Columns = {
        "key": key,
        "hour": NOW,
        "model": "claude-own",
        "status": 499,
        "requests": 1,
        "charge": 9_300_100,
    }
    await insert(site.connection, "usage_by_hour", {**hour, **counts})
    return typed, figures


async def test_the_json_export_holds_every_column_and_no_hash(site: Site, aiohttp_client: AiohttpClient) -> None:
    typed, figures = await fill(site)
    client = await aiohttp_client(site.application())
    text = await (await client.get("/usage.json", headers={"x-api-key": typed})).text()
    held = json.loads(text)
    assert list(held["key"]) == await live_columns(site.connection, "key")
    assert list(held["secrets"][0]) == await live_columns(site.connection, "secret")
    assert set(held["budgets"][0]) >= set(await live_columns(site.connection, "budget"))
    assert list(held["usage_by_hour"][0]) == await live_columns(site.connection, "usage_by_hour")
    assert list(held["requests"][0]) == await live_columns(site.connection, "request")
    assert held["key"].items() >= figures.items()
    assert held["secrets"][0]["hash"] == HASH_HELD
    assert "HASH-OF-IT" not in text


async def test_the_csv_export_has_exactly_the_columns_of_the_ledger(
    site: Site, aiohttp_client: AiohttpClient
) -> None:
    typed, _ = await fill(site)
    client = await aiohttp_client(site.application())
    text = await (await client.get("/usage.csv", headers={"x-api-key": typed})).text()
    assert text.splitlines()[0].split(",") == await live_columns(site.connection, "request")


async def test_the_usage_page_shows_every_column_of_the_key_its_secret_and_its_budget(
    site: Site, aiohttp_client: AiohttpClient
) -> None:
    typed, figures = await fill(site)
    client = await aiohttp_client(site.application())
    page = await (await client.post("/usage", data={"key": typed})).text()
    for table in ("key", "secret", "budget"):
        for column in await live_columns(site.connection, table):
            assert record_column(page, f"{table}.{column}")
    for column, figure in figures.items():
        assert record_column(page, f"key.{column}") == f"{figure:,}"
    assert record_column(page, "key.disabled") == "yes"
    assert record_column(page, "secret.hash") == HASH_HELD
    assert record_column(page, "budget.window") == "5h"
    assert "HASH-OF-IT" not in page


async def test_the_usage_page_shows_every_figure_of_a_request(site: Site, aiohttp_client: AiohttpClient) -> None:
    typed, _ = await fill(site)
    client = await aiohttp_client(site.application())
    page = await (await client.post("/usage", data={"key": typed})).text()
    began = r'<time datetime="2026-09-21T14:13:20Z">2026-09-21 14:13:20\.000</time>'
    row = re.search(rf'<th scope="row">{began}</th>(.*?)</tr>', page, re.DOTALL)
    assert row is not None
    shown = [html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row[1])]
    counts = ["3,000,017", "3,000,029", "3,000,047", "3,000,061", "9,300,100"]
    assert shown == ["5", "claude-own", "499 client left early", "8,123 ms", *counts, "provider"]


async def test_a_column_added_to_the_key_cannot_be_left_off_the_page(site: Site) -> None:
    key, _ = await site.add_key(2**46 + 1, "research")
    await site.connection.execute("ALTER TABLE key ADD COLUMN added TEXT")
    with pytest.raises(TypeError, match="added"):
        await read_record(site.connection, key)


async def test_no_column_of_the_ledger_is_left_out_of_what_is_exported(site: Site) -> None:
    assert list(KEY_COLUMNS) == await live_columns(site.connection, "key")
    assert list(REQUEST_COLUMNS) == await live_columns(site.connection, "request")
    assert list(HOUR_COLUMNS) == await live_columns(site.connection, "usage_by_hour")
