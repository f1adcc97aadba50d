"""The operator's credential goes to the provider only, clients' keys go to nobody, and headers only if listed."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import aiohttp
import pytest

from gateway.core.protocols import Protocol
from gateway.core.records import Key
from gateway.core.wire import Endpoint
from gateway.simulator import MODELS, Script, Simulator
from tests.canaries import Search
from tests.gate_corpus import provider_of_both, serving_both
from tests.harness import OPERATOR_CREDENTIAL, Database, ask
from tests.test_wire import NOT_TO_CLIENT, NOT_TO_UPSTREAM, TO_CLIENT, TO_UPSTREAM

Alice = tuple[str, Key]

OWN_TO_CLIENT = {"server", "date"}
OF_THE_PROVIDER = {
    Protocol.ANTHROPIC: {"request-id"},
    Protocol.OPENAI: {"x-request-id", "openai-processing-ms", "openai-version"},
}
"""What it sends anyway, of what may pass."""
OF_THE_MESSAGE = {"content-length", "content-encoding", "content-type", "transfer-encoding", "connection"}
"""What tells how a message is to be read cannot be made up; both sides send what is true."""
OF_A_REQUEST = {"x-api-key", "authorization", "host", "upgrade", "te", "trailer", "keep-alive", "expect"}
AT_LEAST = 60


@dataclass(frozen=True, slots=True)
class Call:
    """Something that a client can ask a provider for, in the way of one protocol."""

    endpoint: Endpoint
    protocol: Protocol
    streams: bool

    @property
    def path(self) -> str:
        return self.endpoint.path.format(model_id=MODELS[0])

    @property
    def body(self) -> dict[str, Any]:
        """One that every endpoint takes."""
        return ask(stream=self.streams, input="Hello there")

    @property
    def is_streamed(self) -> bool:
        return self.streams and self.endpoint in {Endpoint.MESSAGES, Endpoint.CHAT, Endpoint.RESPONSES}

    def own_headers(self, credential: str) -> dict[str, str]:
        """How its protocol carries a credential: a client's to the gateway, and the operator's to the provider."""
        is_openai = self.protocol is Protocol.OPENAI
        return {"authorization": f"Bearer {credential}"} if is_openai else {"x-api-key": credential}


def calls() -> Iterator[Call]:
    """All that there are; those for models in both protocols."""
    for endpoint, protocol, streams in product(Endpoint, Protocol, (False, True)):
        is_openai = endpoint in {Endpoint.CHAT, Endpoint.RESPONSES, Endpoint.EMBEDDINGS}
        if endpoint in {Endpoint.MODELS, Endpoint.MODEL} or is_openai is (protocol is Protocol.OPENAI):
            yield Call(endpoint, protocol, streams)


@asynccontextmanager
async def asked(
    http: aiohttp.ClientSession, call: Call, key: str, **headers: str
) -> AsyncIterator[aiohttp.ClientResponse]:
    async with http.request(
        call.endpoint.method,
        call.path,
        json=call.body,
        headers=headers | call.own_headers(key),
        allow_redirects=False,
    ) as answer:
        yield answer


@pytest.fixture
async def provider() -> AsyncIterator[Simulator]:
    async with provider_of_both() as simulator:
        yield simulator


@pytest.fixture
async def origin(provider: Simulator, database: Database, alice: Alice) -> AsyncIterator[str]:
    del alice  # the gateway knows her
    async with serving_both(provider, database.path) as address:
        yield address


def telling(names: list[str], left_out: set[str]) -> dict[str, str]:
    """A header of each name that can be sent."""
    return {name: f"value-of-{name}" for name in names if name and name == name.strip() and name not in left_out}


def filled_up(headers: dict[str, str]) -> dict[str, str]:
    return headers | {f"x-unknown-{number}": "1" for number in range(AT_LEAST - len(headers))}


async def test_of_sixty_headers_of_a_client_the_provider_sees_those_that_are_listed(
    http: aiohttp.ClientSession, provider: Simulator, alice: Alice
) -> None:
    for call in calls():
        is_openai = call.protocol is Protocol.OPENAI
        left_out = OF_THE_MESSAGE | OF_A_REQUEST | ({"anthropic-version"} if is_openai else set())
        listed = telling(TO_UPSTREAM, left_out)
        sent = filled_up(listed | telling(NOT_TO_UPSTREAM, left_out))
        async with asked(http, call, alice[0], **sent) as answer:
            assert answer.status == 200
        values = {name.lower(): value for name, value in provider.received[-1].headers}
        own = call.own_headers(OPERATOR_CREDENTIAL) | {"accept-encoding": "identity"}
        about_the_body = {"content-type", "content-length"} if call.endpoint.method == "POST" else {"content-type"}
        assert values.keys() == listed.keys() | own.keys() | about_the_body | {"host"}
        assert {name: values[name] for name in listed | own} == listed | own


async def test_of_sixty_headers_of_a_provider_the_client_sees_those_that_are_listed(
    http: aiohttp.ClientSession, provider: Simulator, alice: Alice
) -> None:
    for status, call in product((200, 400, 429, 529), calls()):
        own = OF_THE_PROVIDER[call.protocol]
        left_out = OF_THE_MESSAGE | OWN_TO_CLIENT | own
        listed = telling(TO_CLIENT, left_out)
        sent = filled_up(listed | telling(NOT_TO_CLIENT, left_out))
        script = Script(status=status, extra_headers=tuple(sent.items()))
        provider.choose = lambda _received, script=script: script
        async with asked(http, call, alice[0]) as answer:
            assert answer.status == status
            values = {name.lower(): value for name, value in answer.headers.items()}
        is_stream = status == 200 and call.is_streamed
        framing = {"transfer-encoding", "x-accel-buffering"} if is_stream else {"content-length"}
        assert values.keys() == listed.keys() | OWN_TO_CLIENT | own | {"content-type"} | framing
        assert {name: values[name] for name in listed} == listed


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_leads_nobody_anywhere(
    http: aiohttp.ClientSession, provider: Simulator, alice: Alice, status: int
) -> None:
    async with Simulator() as elsewhere:
        for call in calls():
            location = (("location", f"{elsewhere.origin}{call.path}"),)
            script = Script(status=status, body=b"", extra_headers=location)
            provider.choose = lambda _received, script=script: script
            async with asked(http, call, alice[0]) as answer:
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
    in_header = Script(status=status, extra_headers=(("anthropic-news", repeated), ("retry-after", repeated)))
    provider.choose = lambda _received: in_body if where == "body" else in_header
    search = Search(OPERATOR_CREDENTIAL)
    for call in calls():
        async with asked(http, call, alice[0]) as answer:
            search.look(call.path, str(answer.raw_headers).encode() + await answer.read())
    assert search.hits == []


async def test_a_key_that_stands_where_it_does_not_belong_does_not_reach_the_provider(
    http: aiohttp.ClientSession, provider: Simulator, alice: Alice
) -> None:
    key = alice[0]
    for name in ("user-agent", "anthropic-beta", "x-stainless-os", "openai-beta", "cookie", "x-unknown"):
        for call in calls():
            async with asked(http, call, key, **{name: f"x {key}"}) as answer:
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
    async with serving_both(provider, database.path) as origin, aiohttp.ClientSession(origin) as http:
        for key in keys:
            for call in calls():
                async with asked(http, call, key) as answer:
                    search.look(call.path, str(answer.raw_headers).encode() + await answer.read())
            for path in ("/usage.json", "/usage.csv", f"/usage.json?key={key}", f"/usage?ticket={key}", f"/{key}"):
                async with http.get(path, headers={"authorization": f"Bearer {key}"}) as answer:
                    search.look(path, str(answer.raw_headers).encode() + await answer.read())
            async with http.post("/usage", data={"key": key}) as answer:
                search.look("the page", str(answer.raw_headers).encode() + await answer.read())
    assert search.hits == []
