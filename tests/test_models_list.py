"""The list of models: merged of all upstreams, no more than a key may use, in the shape that its reader knows."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from gateway import server
from gateway.clock import Clock
from gateway.core.errors import GatewayError
from gateway.core.protocols import Protocol
from gateway.core.records import UNKNOWN_MODEL, Key
from gateway.core.settings import Settings
from gateway.credentials import open_upstreams
from gateway.simulator import ANTHROPIC, OPENAI, Script, Simulator
from gateway.upstreams import LISTS_LAST_MS, LISTS_RETRY_MS, MOST_LISTS_LAST_MS, Upstreams
from tests.harness import Database, ask, until

AliceKey = tuple[str, Key]

CLAUDES = [f"claude-{number}" for number in range(25)]
GPTS = ["gpt-1", "shared-1"]
LLAMAS = ["shared-1", "llama-1", "llama-2"]
BROKEN = Script(status=500)


@dataclass(frozen=True, slots=True)
class Providers:
    """Of whom the upstreams are: one speaks Anthropic's protocol, two OpenAI's. They take any name of a model."""

    claude: Simulator
    gpt: Simulator
    llama: Simulator

    def table(self, name: str, fields: str = "") -> str:
        """The upstream of one of them; on this machine it needs no credential."""
        protocol = "anthropic" if name == "claude" else "openai"
        url = getattr(self, name).origin
        return f'[[upstream]]\nname = "{name}"\nprotocol = "{protocol}"\nurl = "{url}"\n{fields}\n'

    @property
    def tables(self) -> str:
        return "".join(map(self.table, ("claude", "gpt", "llama")))


@pytest.fixture
async def providers() -> AsyncIterator[Providers]:
    async with (
        Simulator(protocol=ANTHROPIC, models=CLAUDES, accept_any_model=True) as claude,
        Simulator(protocol=OPENAI, openai_models=GPTS, accept_any_model=True) as gpt,
        Simulator(protocol=OPENAI, openai_models=LLAMAS, accept_any_model=True) as llama,
    ):
        yield Providers(claude, gpt, llama)


@asynccontextmanager
async def gateway(database: Database, tables: str) -> AsyncIterator[str]:
    """A gateway in front of these upstreams; gives its origin."""
    settings = Settings.load({"database": str(database.path), "listen": "127.0.0.1:0"}, {}, tables)
    async with server.listening(settings, open_upstreams(settings, {})) as origin:
        yield origin


async def get(origin: str, key: str, path: str, protocol: str) -> tuple[int, bytes]:
    """As a client of a protocol asks."""
    theirs = {"authorization": f"Bearer {key}"}
    headers = theirs if protocol == "openai" else {"x-api-key": key, "anthropic-version": "2023-06-01"}
    async with aiohttp.ClientSession(origin) as session, session.get(path, headers=headers) as answer:
        return answer.status, await answer.read()


async def listed(origin: str, key: str, protocol: str, query: str = "?limit=1000") -> list[str]:
    """The ids of a list."""
    status, body = await get(origin, key, f"/v1/models{query}", protocol)
    assert status == 200, body
    return [model["id"] for model in json.loads(body)["data"]]


# Merged, in both shapes


async def test_a_list_holds_the_models_of_all_upstreams_of_its_readers_protocol_once(
    providers: Providers, database: Database, alice: AliceKey
) -> None:
    async with gateway(database, providers.tables) as origin:
        assert await listed(origin, alice[0], "openai") == ["gpt-1", "shared-1", "llama-1", "llama-2"]
        assert await listed(origin, alice[0], "anthropic") == CLAUDES


async def test_an_upstream_lists_those_models_only_that_it_serves(
    providers: Providers, database: Database, alice: AliceKey
) -> None:
    tables = providers.table("gpt", 'models = ["gpt-*"]') + providers.table("llama", 'models = ["*-1"]')
    async with gateway(database, tables) as origin:
        assert await listed(origin, alice[0], "openai") == ["gpt-1", "shared-1", "llama-1"]


async def test_entries_stay_as_their_provider_wrote_them(providers: Providers, database: Database) -> None:
    """The gateway's own answer, since the key may not use all."""
    key, _ = await database.create_key("bob", models=("claude-1*", "gpt-*"))
    async with gateway(database, providers.tables) as origin:
        for protocol, simulator in (("anthropic", providers.claude), ("openai", providers.gpt)):
            theirs = await get(simulator.origin, "any", "/v1/models?limit=1000", protocol)
            ours = await get(origin, key, "/v1/models?limit=1000", protocol)
            entries = {model["id"]: model for model in json.loads(theirs[1])["data"]}
            shown = json.loads(ours[1])["data"]
            assert shown
            assert all(model == entries[model["id"]] for model in shown)


async def test_where_no_upstream_speaks_the_readers_protocol_the_others_models_have_its_shape(
    providers: Providers, database: Database, alice: AliceKey
) -> None:
    async with gateway(database, providers.table("gpt")) as origin:
        status, body = await get(origin, alice[0], "/v1/models", "anthropic")
        page = json.loads(body)
        assert (status, page["has_more"], page["first_id"], page["last_id"]) == (200, False, "gpt-1", "shared-1")
        assert [(model["type"], model["display_name"]) for model in page["data"]] == [
            ("model", name) for name in GPTS
        ]
    async with gateway(database, providers.table("claude")) as origin:
        status, body = await get(origin, alice[0], "/v1/models", "openai")
        assert json.loads(body)["object"] == "list"
        assert [(model["object"], model["id"]) for model in json.loads(body)["data"]] == [
            ("model", name) for name in CLAUDES
        ]


# What a key may use


@pytest.mark.parametrize("tables", ["one upstream", "three upstreams"])
async def test_a_key_sees_the_models_that_it_may_use(providers: Providers, database: Database, tables: str) -> None:
    key, _ = await database.create_key("bob", models=("claude-2", "*-1"))
    text = providers.table("gpt") if tables == "one upstream" else providers.tables
    async with gateway(database, text) as origin:
        expected = GPTS if tables == "one upstream" else ["gpt-1", "shared-1", "llama-1"]
        assert await listed(origin, key, "openai") == expected
        if tables == "three upstreams":
            assert await listed(origin, key, "anthropic") == ["claude-1", "claude-2"]


@pytest.mark.parametrize("upstreams", [1, 2])
async def test_one_model_is_told_of_by_the_same_rules_as_the_list(
    providers: Providers, database: Database, alice: AliceKey, upstreams: int
) -> None:
    key, _ = await database.create_key("bob", models=("gpt-*",))
    tables = providers.table("gpt") + providers.table("llama") * (upstreams - 1)
    async with gateway(database, tables) as origin:
        status, body = await get(origin, key, "/v1/models/gpt-1", "openai")
        assert (status, json.loads(body)["id"]) == (200, "gpt-1")
        status, body = await get(origin, key, "/v1/models/shared-1", "openai")
        assert (status, json.loads(body)["error"]["code"]) == (403, "model_not_found")
        if upstreams == 2:
            status, body = await get(origin, alice[0], "/v1/models/none-such", "openai")
            assert (status, json.loads(body)["error"]["message"][:6]) == (404, "model:")
            status, body = await get(origin, alice[0], "/v1/models/llama-2", "openai")
            assert (status, json.loads(body)["id"]) == (200, "llama-2")


# Pages


@pytest.mark.parametrize("models", [(), ("claude-?", "claude-1?")])
async def test_pages_of_any_size_hold_every_model_once(
    providers: Providers, database: Database, models: tuple[str, ...]
) -> None:
    """Relayed, and as the gateway's own answer."""
    key, _ = await database.create_key("bob", models=models)
    expected = CLAUDES[:20] if models else CLAUDES
    async with gateway(database, providers.tables) as origin:
        assert await listed(origin, key, "anthropic", "") == expected[:20]
        assert await listed(origin, key, "anthropic", "?limit=1000") == expected
        for limit in (1, 7, 25):
            found: list[str] = []
            while len(found) < len(expected):
                after = f"&after_id={found[-1]}" if found else ""
                found += await listed(origin, key, "anthropic", f"?limit={limit}{after}")
            assert found == expected
        assert await listed(origin, key, "anthropic", "?limit=3&before_id=claude-5") == CLAUDES[2:5]
        for query in ("?limit=0", "?limit=1001", "?limit=x", "?after_id=claude-99"):
            status, body = await get(origin, key, f"/v1/models{query}", "anthropic")
            assert (status, json.loads(body)["error"]["type"]) == (400, "invalid_request_error"), query


async def test_the_sdks_of_both_protocols_read_the_whole_list(
    providers: Providers, database: Database, alice: AliceKey
) -> None:
    key, _ = await database.create_key("bob", models=("*",))
    async with gateway(database, providers.tables) as origin:
        async with anthropic.AsyncAnthropic(api_key=key, base_url=origin) as claude:
            assert [model.id async for model in claude.models.list(limit=4)] == CLAUDES
        for text in (key, alice[0]):
            async with openai.AsyncOpenAI(api_key=text, base_url=f"{origin}/v1") as gpt:
                found: list[Any] = [model async for model in gpt.models.list()]
                assert [model.id for model in found] == ["gpt-1", "shared-1", "llama-1", "llama-2"]


# The provider's own answer


@pytest.mark.parametrize(("name", "protocol"), [("claude", "anthropic"), ("gpt", "openai")])
async def test_where_it_says_the_same_the_providers_own_answer_passes_byte_for_byte(
    providers: Providers, database: Database, alice: AliceKey, name: str, protocol: str
) -> None:
    simulator: Simulator = getattr(providers, name)
    model = {"claude": CLAUDES[0], "gpt": GPTS[0]}[name]
    async with gateway(database, providers.table(name)) as origin:
        simulator.when(Script(spaced_json=True))
        for path in ("/v1/models", f"/v1/models/{model}"):
            status, body = await get(origin, alice[0], path, protocol)
            received = simulator.received[-1]
            assert (status, received.endpoint) == (200, path)
            assert sha256(body).hexdigest() == received.answer_sha256
            assert not any(alice[0] in value for _, value in received.headers)


async def test_a_page_of_the_providers_own_list_is_the_one_that_was_asked_for(
    providers: Providers, database: Database, alice: AliceKey
) -> None:
    async with gateway(database, providers.table("claude")) as origin:
        query = "?limit=2&after_id=claude-3"
        assert await listed(origin, alice[0], "anthropic", query) == ["claude-4", "claude-5"]
        assert providers.claude.received[-1].path == f"/v1/models{query}"


# A list that does not come


@pytest.mark.parametrize("broken", ["gpt", "llama"])
async def test_a_provider_that_gives_no_list_leaves_those_of_the_others(
    providers: Providers, database: Database, alice: AliceKey, broken: str
) -> None:
    getattr(providers, broken).when(BROKEN)
    async with gateway(database, providers.tables) as origin:
        expected = LLAMAS if broken == "gpt" else GPTS
        assert await listed(origin, alice[0], "openai") == expected
        assert await listed(origin, alice[0], "anthropic") == CLAUDES


async def test_a_provider_that_cannot_be_reached_leaves_the_lists_of_the_others(
    providers: Providers, database: Database, alice: AliceKey
) -> None:
    await providers.gpt.stop()
    async with gateway(database, providers.tables) as origin:
        assert await listed(origin, alice[0], "openai") == LLAMAS


async def test_if_no_list_comes_the_reader_is_told_in_its_own_form_and_may_try_again(
    providers: Providers, database: Database, alice: AliceKey
) -> None:
    for simulator in (providers.gpt, providers.llama):
        simulator.when(BROKEN)
    async with gateway(database, providers.table("gpt") + providers.table("llama")) as origin:
        status, body = await get(origin, alice[0], "/v1/models", "openai")
        assert (status, json.loads(body)["error"]["type"]) == (502, "server_error")
        status, body = await get(origin, alice[0], "/v1/models", "anthropic")
        assert (status, json.loads(body)["error"]["type"]) == (502, "api_error")
        providers.gpt.when(None)
        assert await listed(origin, alice[0], "openai") == GPTS


class HandTurned(Clock):
    """A clock that a test puts forward."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


async def test_lists_that_are_known_are_given_out_for_a_day_while_no_new_one_comes(providers: Providers) -> None:
    clock = HandTurned()
    settings = Settings.load({}, {}, providers.table("gpt") + providers.table("llama"))
    upstreams = Upstreams(open_upstreams(settings, {}), clock)

    async def ids() -> list[str]:
        return [model.id for model in await upstreams.models(Protocol.OPENAI, ())]

    known = await ids()
    assert known == ["gpt-1", "shared-1", "llama-1", "llama-2"]
    for simulator in (providers.gpt, providers.llama):
        simulator.when(BROKEN)
    clock.ahead_ms = LISTS_LAST_MS + 1_000
    asked = len(providers.gpt.received)
    assert [await ids() for _ in range(3)] == [known] * 3
    assert len(providers.gpt.received) == asked + 1  # not with every request
    clock.ahead_ms += LISTS_RETRY_MS
    providers.gpt.when(None)
    assert await ids() == known
    assert len(providers.gpt.received) == asked + 2
    clock.ahead_ms = MOST_LISTS_LAST_MS + 1_000
    assert await ids() == GPTS
    providers.gpt.when(BROKEN)
    clock.ahead_ms += MOST_LISTS_LAST_MS + LISTS_LAST_MS
    with pytest.raises(GatewayError):
        await ids()
    await upstreams.close()


# What the ledger calls them


async def test_the_ledger_keeps_the_names_that_any_upstream_lists_and_no_other(
    providers: Providers, database: Database, alice: AliceKey
) -> None:
    simulators = (providers.claude, providers.gpt, providers.llama)
    names = [*CLAUDES[:1], *GPTS, *LLAMAS, "a-name-of-the-clients", "gpt-1-but-longer"]
    async with gateway(database, providers.tables) as origin, aiohttp.ClientSession(origin) as session:
        await until(lambda: all(any(each.status for each in one.received) for one in simulators))
        for name in names:
            path = "/v1/messages" if name in CLAUDES else "/v1/chat/completions"
            headers = {"authorization": f"Bearer {alice[0]}"}
            async with session.post(path, json=ask(model=name), headers=headers) as answer:
                assert answer.status == 200, await answer.read()
    kept = [row.model for row in database.rows(alice[1])]
    assert kept == [*names[:-2], UNKNOWN_MODEL, UNKNOWN_MODEL]
