"""No key's holder sees anything of another key, whatever is asked and however two keys are mixed in one request.

Each key has a name, a model, counts and ids that no other has. Every answer is searched for those of all keys.
"""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import pytest

from gateway.core import keys
from gateway.database import connect, transaction
from gateway.simulator import Simulator
from tests.harness import Database, now_ms, serving
from tests.held_data import add_request
from tests.test_server_process import run

KEYS = 5
"""Here; fifty in the proof."""
ROWS = 3
MOST_KEYS = 100


@dataclass(frozen=True)
class Holder:
    """Somebody with a key, and what may be known of it."""

    name: str
    text: str
    newest: str
    """Where their newest request stands, as links to older ones name it."""
    markers: tuple[str, ...]
    ticket: str = ""


@dataclass(frozen=True)
class Answer:
    status: int
    owners: frozenset[str]
    """The names of all holders of whose key it tells anything."""


async def join(path: Path, number: int) -> Holder:
    """A key is made and used. The requests of all keys are mixed in time."""
    name, model, count = f"name-{number:02}", f"model-{number:02}", 1_000_003 + number
    text, key = await Database(path).create_key(name)
    api_key = keys.parse(text)
    assert api_key is not None
    newest = now_ms() - 60_000 + number
    async with connect(path) as connection, transaction(connection):
        for row in range(ROWS):
            started = newest - row * MOST_KEYS
            await add_request(connection, key.row, started=started, model=model, input=count)
    return Holder(name, text, f"{newest}-0", (name, model, str(count), f"{count:,}", str(key.row), api_key.key_id))


class Team:
    """The holders of the keys of one gateway, each looking at their usage."""

    def __init__(self, http: aiohttp.ClientSession, holders: Sequence[Holder]) -> None:
        self.holders = holders
        self._http = http
        self._owners = {marker: holder.name for holder in holders for marker in holder.markers}
        self._markers = re.compile(rf"(?<!\w)(?:{'|'.join(self._owners)})(?!\w)")

    async def open_views(self) -> None:
        self.holders = [await self.opened(holder) for holder in self.holders]

    async def opened(self, holder: Holder) -> Holder:
        """A holder whose ticket is new."""
        async with self._http.post("/usage", data={"key": holder.text}) as answer:
            found = re.search(r"\?ticket=([\w-]+)", await answer.text())
        assert found is not None
        return replace(holder, ticket=found[1])

    async def ask(self, method: str, path: str, *, typed: str = "", **headers: str) -> Answer:
        form = {"key": typed} if typed else None
        async with self._http.request(method, path, data=form, headers=headers) as answer:
            found = self._markers.findall(await answer.text())
            return Answer(answer.status, frozenset(self._owners[marker] for marker in found))


async def answers_to_both(team: Team, one: Holder, other: Holder) -> dict[str, Answer]:
    """All that can be asked with the key or ticket of `one` and something of `other` beside it."""
    foreign = {"x-api-key": other.text}
    view = f"/usage?ticket={one.ticket}"
    return {
        "typed": await team.ask("POST", "/usage", typed=one.text, **foreign),
        "view": await team.ask("GET", view, **foreign),
        "older": await team.ask("GET", f"{view}&before={other.newest}", **foreign),
        "json": await team.ask("GET", f"/usage.json?ticket={one.ticket}", **foreign),
        "csv": await team.ask("GET", f"/usage.csv?ticket={one.ticket}", **foreign),
        "both keys": await team.ask("GET", "/usage.json", Authorization=f"Bearer {one.text}", **foreign),
        "mixed ticket": await team.ask("GET", f"/usage.json?ticket={one.ticket[:20]}{other.ticket[20:]}"),
    }


async def wrong_answers(team: Team) -> tuple[int, list[str]]:
    """How many answers there are to all pairs of keys, and which of them tell of anything but the one key."""
    answers, wrong = 0, []
    for holder in team.holders:
        for other in team.holders:
            one = await team.opened(holder)  # there are only so many tickets at once
            beside = one if other is holder else other
            for asked, answer in (await answers_to_both(team, one, beside)).items():
                is_neither = beside is not one and asked in ("both keys", "mixed ticket")
                expected = Answer(401, frozenset()) if is_neither else Answer(200, frozenset([one.name]))
                answers += 1
                if answer != expected:
                    wrong.append(f"{asked}: {one.name} beside {other.name} got {answer}")
    return answers, wrong


@asynccontextmanager
async def team_of(count: int, provider: Simulator, path: Path) -> AsyncIterator[Team]:
    holders = [await join(path, number) for number in range(count)]
    async with serving(provider, path) as origin, aiohttp.ClientSession(origin) as http:
        team = Team(http, holders)
        await team.open_views()
        yield team


async def test_no_answer_tells_anything_of_another_key(provider: Simulator, database: Database) -> None:
    async with team_of(KEYS, provider, database.path) as team:
        answers, wrong = await wrong_answers(team)
    assert wrong == []
    assert answers == KEYS**2 * 7


@pytest.mark.parametrize(
    ("command", "status"),
    [("disable", 200), ("rotate --grace 1h", 200), ("rotate", 401), ("delete --yes", 401)],
)
async def test_a_view_lasts_no_longer_than_the_secret_that_opened_it(
    provider: Simulator, database: Database, command: str, status: int
) -> None:
    async with team_of(2, provider, database.path) as team:
        one, other = team.holders
        assert await team.ask("GET", f"/usage?ticket={one.ticket}") == Answer(200, frozenset([one.name]))
        code, _, errors = await run("key", *command.split(), one.name, database=database.path)
        assert code == 0, errors
        for path in ("/usage", "/usage.json", "/usage.csv"):
            assert (await team.ask("GET", f"{path}?ticket={one.ticket}")).status == status
            assert (await team.ask("GET", f"{path}?ticket={other.ticket}")).owners == {other.name}


async def test_a_new_key_with_a_deleted_ones_name_is_not_seen_through_its_view(
    provider: Simulator, database: Database
) -> None:
    async with team_of(1, provider, database.path) as team:
        [one] = team.holders
        await run("key", "delete", one.name, "--yes", database=database.path)
        await database.create_key(one.name)
        assert await team.ask("GET", f"/usage.json?ticket={one.ticket}") == Answer(401, frozenset())
