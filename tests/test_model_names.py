"""`GET /v1/models/{id}` for names with a slash, as gateways of gateways have them."""

from collections.abc import AsyncIterator
from urllib.parse import quote

import aiohttp
import anthropic
import openai
import pytest
from yarl import URL

from gateway.core.records import Key
from gateway.simulator import OPENAI, Simulator
from tests.harness import Database
from tests.test_models_list import gateway, get

AliceKey = tuple[str, Key]
NAMES = ["qwen/qwen3-32b", "openai/gpt-4o:free", "accounts/team/models/x-1"]
NO_NAMES = ("qwen/../x", "qwen/..", "../x", "qwen//x", "/x", "qwen/", "qwen/.x", "qwen/%2e%2e", "a/b%00", "a/b%0a")
TOO_LONG = "a/" * 64 + "b"


@pytest.fixture
async def provider() -> AsyncIterator[Simulator]:
    async with Simulator(protocol=OPENAI, openai_models=NAMES, accept_any_model=True) as simulator:
        yield simulator


def tables(provider: Simulator, upstreams: int) -> str:
    return "".join(
        f'[[upstream]]\nname = "u{n}"\nprotocol = "openai"\nurl = "{provider.origin}"\n' for n in range(upstreams)
    )


@pytest.mark.parametrize("upstreams", [1, 2])
@pytest.mark.parametrize("name", NAMES)
async def test_a_name_with_a_slash_is_found_however_the_slash_is_written(
    provider: Simulator, database: Database, alice: AliceKey, name: str, upstreams: int
) -> None:
    async with gateway(database, tables(provider, upstreams)) as origin:
        for path in (f"/v1/models/{name}", f"/models/{name}", f"/v1/v1/models/{quote(name, safe='')}"):
            status, body = await get(origin, alice[0], path, "openai")
            assert (status, f'"{name}"'.encode() in body) == (200, True), path
        async with openai.AsyncOpenAI(api_key=alice[0], base_url=f"{origin}/v1") as client:
            assert (await client.models.retrieve(name)).id == name
        async with anthropic.AsyncAnthropic(api_key=alice[0], base_url=origin) as claude:
            assert (await claude.models.retrieve(name)).id == name
    assert {received.endpoint for received in provider.received} == {"/v1/models"}


async def test_a_name_with_a_slash_is_told_of_by_the_keys_own_rules(
    provider: Simulator, database: Database, alice: AliceKey
) -> None:
    key, _ = await database.create_key("bob", models=("qwen/*",))
    async with gateway(database, tables(provider, 1)) as origin:
        assert (await get(origin, key, f"/v1/models/{NAMES[0]}", "openai"))[0] == 200
        assert (await get(origin, key, f"/v1/models/{NAMES[1]}", "openai"))[0] == 403
        assert (await get(origin, alice[0], "/v1/models/qwen/none", "openai"))[0] == 404
        assert (await get(origin, "no key", f"/v1/models/{NAMES[0]}", "openai"))[0] == 401


@pytest.mark.parametrize("name", [*NO_NAMES, TOO_LONG])
async def test_what_is_no_name_is_not_found_and_asks_nobody(
    provider: Simulator, database: Database, alice: AliceKey, name: str
) -> None:
    async with gateway(database, tables(provider, 1)) as origin:
        for spelling in (name, name.replace("/", "%2F")):
            target = URL(f"{origin}/v1/models/{spelling}", encoded=True)  # as it is, with its dots
            headers = {"authorization": f"Bearer {alice[0]}"}
            async with aiohttp.ClientSession() as session, session.get(target, headers=headers) as answer:
                assert answer.status in (400, 404)
    assert {received.endpoint for received in provider.received} <= {"/v1/models"}
