"""The operator's credential goes to the provider only, clients' keys go to nobody, and headers only if listed."""

from collections.abc import Iterator
from itertools import product

import aiohttp
import pytest

from gateway.core.records import Key
from gateway.core.wire import Endpoint
from gateway.simulator import MODELS, Script, Simulator
from tests.canaries import Search
from tests.harness import OPERATOR_CREDENTIAL, Database, ask, serving
from tests.test_wire import NOT_TO_CLIENT, NOT_TO_UPSTREAM, TO_CLIENT, TO_UPSTREAM

Alice = tuple[str, Key]

OWN_TO_UPSTREAM = {"host", "x-api-key", "accept-encoding"}
OWN_TO_CLIENT = {"server", "date"}
OF_THE_MESSAGE = {"content-length", "content-encoding", "content-type", "transfer-encoding", "connection"}
"""What tells how a message is to be read cannot be made up; both sides send what is true."""
OF_A_REQUEST = {"x-api-key", "authorization", "host", "upgrade", "te", "trailer", "keep-alive", "expect"}
AT_LEAST = 60


def requests() -> Iterator[tuple[str, str, bool]]:
    """Method, path and whether to stream: all that a client can ask a provider for."""
    for endpoint, streams in product(Endpoint, (False, True)):
        yield endpoint.method, endpoint.path.format(model_id=MODELS[0]), streams


def telling(names: list[str], left_out: set[str]) -> dict[str, str]:
    """A header of each name that can be sent."""
    return {name: f"value-of-{name}" for name in names if name and name == name.strip() and name not in left_out}


def filled_up(headers: dict[str, str]) -> dict[str, str]:
    return headers | {f"x-unknown-{number}": "1" for number in range(AT_LEAST - len(headers))}


async def test_of_sixty_headers_of_a_client_the_provider_sees_those_that_are_listed(
    http: aiohttp.ClientSession, provider: Simulator, alice: Alice
) -> None:
    left_out = OF_THE_MESSAGE | OF_A_REQUEST
    listed = telling(TO_UPSTREAM, left_out)
    sent = filled_up(listed | telling(NOT_TO_UPSTREAM, left_out))
    credentials = {"x-api-key": alice[0], "authorization": f"Bearer {alice[0]}"}
    for method, path, streams in requests():
        async with http.request(method, path, json=ask(stream=streams), headers=sent | credentials) as answer:
            assert answer.status == 200
        values = {name.lower(): value for name, value in provider.received[-1].headers}
        about_the_body = {"content-type", "content-length"} if method == "POST" else {"content-type"}
        assert values.keys() == listed.keys() | OWN_TO_UPSTREAM | about_the_body
        assert {name: values[name] for name in listed} == listed
        assert (values["x-api-key"], values["accept-encoding"]) == (OPERATOR_CREDENTIAL, "identity")


async def test_of_sixty_headers_of_a_provider_the_client_sees_those_that_are_listed(
    http: aiohttp.ClientSession, provider: Simulator, alice: Alice
) -> None:
    left_out = OF_THE_MESSAGE | OWN_TO_CLIENT | {"request-id"}
    listed = telling(TO_CLIENT, left_out)
    sent = filled_up(listed | telling(NOT_TO_CLIENT, left_out))
    for status, (method, path, streams) in product((200, 400, 429, 529), requests()):
        script = Script(status=status, extra_headers=tuple(sent.items()))
        provider.choose = lambda _received, script=script: script
        headers = {"x-api-key": alice[0]}
        async with http.request(method, path, json=ask(stream=streams), headers=headers) as answer:
            assert answer.status == status
            values = {name.lower(): value for name, value in answer.headers.items()}
        own = OWN_TO_CLIENT | {"content-type", "request-id"}
        framing = "transfer-encoding" if "event-stream" in values["content-type"] else "content-length"
        buffering = {"x-accel-buffering"} if "event-stream" in values["content-type"] else set()
        assert values.keys() == listed.keys() | own | {framing} | buffering
        assert {name: values[name] for name in listed} == listed


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_leads_nobody_anywhere(
    http: aiohttp.ClientSession, provider: Simulator, alice: Alice, status: int
) -> None:
    async with Simulator() as elsewhere:
        for method, path, streams in requests():
            location = (("location", f"{elsewhere.origin}{path}"),)
            script = Script(status=status, body=b"", extra_headers=location)
            provider.choose = lambda _received, script=script: script
            headers = {"x-api-key": alice[0]}
            async with http.request(
                method, path, json=ask(stream=streams), headers=headers, allow_redirects=False
            ) as answer:
                assert answer.status == 502
                assert "location" not in answer.headers
    assert elsewhere.received == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 500, 529])
@pytest.mark.parametrize("where", ["body", "header"])
async def test_a_provider_that_repeats_our_credential_in_an_error_does_not_give_it_to_the_client(
    http: aiohttp.ClientSession, provider: Simulator, alice: Alice, status: int, where: str
) -> None:
    repeated = f"invalid x-api-key: {OPERATOR_CREDENTIAL}"
    in_body = Script(status=status, error_message=repeated)
    in_header = Script(status=status, extra_headers=(("anthropic-news", repeated),))
    provider.choose = lambda _received: in_body if where == "body" else in_header
    search = Search(OPERATOR_CREDENTIAL)
    for method, path, streams in requests():
        async with http.request(method, path, json=ask(stream=streams), headers={"x-api-key": alice[0]}) as answer:
            search.look(f"{method} {path}", str(answer.raw_headers).encode() + await answer.read())
    assert search.hits == []


async def test_a_key_that_stands_where_it_does_not_belong_does_not_reach_the_provider(
    http: aiohttp.ClientSession, provider: Simulator, alice: Alice
) -> None:
    key = alice[0]
    for name in ("user-agent", "anthropic-beta", "x-stainless-os", "idempotency-key", "cookie", "x-unknown"):
        async with http.post("/v1/messages", json=ask(), headers={"x-api-key": key, name: f"x {key}"}) as answer:
            await answer.read()
    for path in (f"/v1/models/{key}", f"/v1/models?after_id={key}", f"/v1/messages/{key}", f"/{key}"):
        async with http.get(path, headers={"x-api-key": key}) as answer:
            await answer.read()
    search = Search(key)
    for received in provider.received:
        search.look(received.path, f"{received.path} {received.headers}".encode())
    assert search.hits == []


async def test_no_answer_and_no_page_repeats_a_key_or_the_credential(
    provider: Simulator, database: Database
) -> None:
    keys = [
        (await database.create_key("good"))[0],
        (await database.create_key("disabled", disabled=True))[0],
        (await database.create_key("expired", expires=1))[0],
        (await database.create_key("small", budgets=[(10, 3_600_000)]))[0],
    ]
    keys.append(keys[0][:-1] + "x")
    search = Search(OPERATOR_CREDENTIAL, *keys)
    async with serving(provider, database.path) as origin, aiohttp.ClientSession(origin) as http:
        for key in keys:
            for method, path, streams in requests():
                async with http.request(
                    method, path, json=ask(stream=streams), headers={"x-api-key": key}
                ) as answer:
                    search.look(path, str(answer.raw_headers).encode() + await answer.read())
            for path in ("/usage.json", "/usage.csv", f"/usage.json?key={key}", f"/usage?ticket={key}", f"/{key}"):
                async with http.get(path, headers={"authorization": f"Bearer {key}"}) as answer:
                    search.look(path, str(answer.raw_headers).encode() + await answer.read())
            async with http.post("/usage", data={"key": key}) as answer:
                search.look("the page", str(answer.raw_headers).encode() + await answer.read())
    assert search.hits == []
