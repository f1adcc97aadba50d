"""Several upstreams: who is asked, what rests, what moves on to the next one, and what never does.

One simulated provider plays them all: whom the gateway asked shows in the credential.
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway import server
from gateway.core.records import Key
from gateway.core.settings import Settings
from gateway.credentials import open_upstreams
from gateway.logs import Event
from gateway.simulator import MODELS, Script, Simulator
from tests.harness import Database, ask, until
from tests.raw_provider import RawProvider, Reader, Writer, reset
from tests.upstream_tables import BUSY, OPENAI_MODEL, PATHS, Client, asked, gateway, table

AliceKey = tuple[str, Key]

README = Path(__file__).parent.parent / "README.md"
REFUSED = Script(status=401)


@pytest.fixture
async def provider() -> AsyncIterator[Simulator]:
    """It takes any credential."""
    async with Simulator() as simulator:
        yield simulator


@pytest.fixture(autouse=True)
def hear_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "opusmax")


def count(caplog: pytest.LogCaptureFixture, event: Event) -> int:
    """How often the operator was told of something."""
    return sum(record.msg is event for record in caplog.records)


# Who is asked.


async def test_a_request_goes_to_the_first_upstream_of_its_protocol_that_serves_its_model(
    provider: Simulator, database: Database, alice: AliceKey
) -> None:
    tables = [
        table("other", provider.origin, "openai", models=["llama-*"]),
        table("small", provider.origin, models=["claude-haiku-*"]),
        table("all", provider.origin),
        table("gpt", provider.origin, "openai"),
        table("never", provider.origin),
    ]
    names = {"other": "other", "small": "small", "all": "all", "gpt": "gpt", "never": "never"}
    async with gateway(database, alice[0], *tables, **names) as client:
        for model in (MODELS[2], MODELS[0]):
            assert await client.statuses(2, model=model) == [200, 200]
        assert await client.statuses(2, "openai") == [200, 200]
    assert asked(provider) == ["small", "small", "all", "all", "gpt", "gpt"]


@pytest.mark.parametrize("protocol", PATHS)
async def test_the_credentials_of_an_upstream_take_turns(
    provider: Simulator, database: Database, alice: AliceKey, protocol: str
) -> None:
    async with gateway(database, alice[0], table("a", provider.origin, protocol), a="a1,a2,a3") as client:
        await client.statuses(9, protocol)
    order = asked(provider)
    assert {*order[:3]} == {"a1", "a2", "a3"}
    assert order == order[:3] * 3


@pytest.mark.parametrize(
    ("protocol", "url", "path"),
    [
        ("anthropic", "", "/v1/messages"),
        ("anthropic", "/v1", "/v1/messages"),
        ("anthropic", "/api/", "/api/v1/messages"),
        ("anthropic", "/api/v1", "/api/v1/messages"),
        ("openai", "", "/v1/chat/completions"),
        ("openai", "/v1/", "/v1/chat/completions"),
        ("openai", "/openai/v1", "/openai/v1/chat/completions"),
        ("openai", "/v1beta/openai", "/v1beta/openai/chat/completions"),
    ],
)
async def test_the_path_of_an_upstreams_address_comes_before_that_of_the_endpoint(
    provider: Simulator, database: Database, alice: AliceKey, protocol: str, url: str, path: str
) -> None:
    async with gateway(database, alice[0], table("a", provider.origin + url, protocol), a="a") as client:
        await client.post(protocol)
    assert [received.path for received in provider.received if received.method == "POST"] == [path]


@pytest.mark.parametrize("protocol", PATHS)
@pytest.mark.parametrize(
    ("header", "value"), [("authorization", "Bearer a1"), ("x-api-key", "a1"), ("api-key", "a1")]
)
async def test_the_credential_is_in_the_header_of_the_table_and_in_no_other(
    provider: Simulator, database: Database, alice: AliceKey, protocol: str, header: str, value: str
) -> None:
    upstream = table("a", provider.origin, protocol, credential_header=header)
    async with gateway(database, alice[0], upstream, a="a1") as client:
        assert (await client.post(protocol)).status == 200
    [received] = provider.messages()
    sent = [(name.lower(), text) for name, text in received.headers]
    assert [each for each in sent if each[1].removeprefix("Bearer ") == "a1"] == [(header, value)]
    assert not any(alice[0] in text for _, text in sent)


async def test_the_headers_of_the_table_are_sent_in_place_of_the_clients(
    provider: Simulator, database: Database, alice: AliceKey
) -> None:
    upstream = table("a", provider.origin, headers={"X-Title": "our team", "X-App": "opusmax"})
    async with gateway(database, alice[0], upstream, a="a") as client:
        assert (await client.post(x_app="the client's", x_stainless_lang="python")).status == 200
    sent = [(name, value) for name, value in provider.messages()[0].headers if name.startswith("x-")]
    assert sorted(sent) == [
        ("x-api-key", "a"),
        ("x-app", "opusmax"),
        ("x-stainless-lang", "python"),
        ("x-title", "our team"),
    ]


@pytest.mark.parametrize("protocol", PATHS)
async def test_a_model_that_no_upstream_serves_is_a_404_that_clients_know(
    provider: Simulator, database: Database, alice: AliceKey, protocol: str
) -> None:
    upstream = table("a", provider.origin, protocol, models=["something-else-*"])
    async with gateway(database, alice[0], upstream, a="a") as client:
        reply = await client.post(protocol)
    assert reply.status == 404
    assert reply.error["message"].startswith("model:")
    assert reply.error["type"] == {"anthropic": "not_found_error", "openai": "invalid_request_error"}[protocol]
    assert (asked(provider), database.rows(alice[1])) == ([], [])


@pytest.mark.parametrize(("spoken", "wanted"), [("anthropic", "openai"), ("openai", "anthropic")])
async def test_a_protocol_that_no_upstream_speaks_is_a_clear_404(
    provider: Simulator, database: Database, alice: AliceKey, spoken: str, wanted: str
) -> None:
    async with gateway(database, alice[0], table("a", provider.origin, spoken), a="a") as client:
        reply = await client.post(wanted)
    assert reply.status == 404
    assert "no provider that speaks this protocol" in reply.error["message"]
    assert (json.loads(reply.body).get("type") == "error") == (wanted == "anthropic")
    assert (asked(provider), database.rows(alice[1])) == ([], [])


# What rests, and what moves on.


@pytest.mark.parametrize("protocol", PATHS)
async def test_a_refused_credential_rests_and_its_request_goes_on_to_the_next(
    provider: Simulator, database: Database, alice: AliceKey, protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    provider.when(REFUSED, credential="a1")
    async with gateway(database, alice[0], table("a", provider.origin, protocol), a="a1,a2") as client:
        assert await client.statuses(8, protocol) == [200] * 8
    assert asked(provider).count("a1") == 1
    assert asked(provider).count("a2") == 8
    assert count(caplog, Event.UPSTREAM_CREDENTIAL_REFUSED) == 1
    assert [row.status for row in database.rows(alice[1])] == [200] * 8


async def test_the_operator_is_told_once_though_many_requests_hear_the_refusal(
    provider: Simulator, database: Database, alice: AliceKey, caplog: pytest.LogCaptureFixture
) -> None:
    provider.when(Script(status=401, first_byte_delay_seconds=0.3), credential="a1")
    async with gateway(database, alice[0], table("a", provider.origin), a="a1,a2") as client:
        replies = await asyncio.gather(*(client.post() for _ in range(12)))
    assert {reply.status for reply in replies} == {200}
    assert asked(provider).count("a1") > 1
    assert count(caplog, Event.UPSTREAM_CREDENTIAL_REFUSED) == 1


async def test_if_every_credential_is_refused_the_client_is_told_that_its_key_is_not_the_cause(
    provider: Simulator, database: Database, alice: AliceKey, caplog: pytest.LogCaptureFixture
) -> None:
    provider.script = REFUSED
    async with gateway(database, alice[0], table("a", provider.origin), a="a1,a2") as client:
        reply = await client.post()
    assert (reply.status, reply.headers["x-should-retry"]) == (502, "false")
    assert "Your API key is not the cause" in reply.error["message"]
    assert sorted(map(str, asked(provider))) == ["a1", "a2"]
    assert count(caplog, Event.UPSTREAM_CREDENTIAL_REFUSED) == 2


@pytest.mark.parametrize("protocol", PATHS)
async def test_the_bytes_of_the_body_are_the_same_at_each_attempt(
    provider: Simulator, database: Database, alice: AliceKey, dead_origin: str, protocol: str
) -> None:
    """A long one too, which is sent in pieces and counted against the memory for uploads."""
    provider.when(REFUSED, credential="a1")
    provider.when(BUSY, credential="a2")
    model = MODELS[0] if protocol == "anthropic" else OPENAI_MODEL
    long = [{"role": "user", "content": "ü " * 200_000}]
    bodies = [json.dumps(ask(model=model), indent=3).encode() + b" \r\n"]
    bodies += [json.dumps(ask(model=model, messages=long), ensure_ascii=False).encode()]
    tables = [table("dead", dead_origin, protocol)]
    tables += [table(name, provider.origin, protocol) for name in ("one", "two", "three")]
    for body in bodies:
        provider.received.clear()
        async with gateway(database, alice[0], *tables, dead="d", one="a1", two="a2", three="a3") as client:
            assert (await client.post(protocol, body)).status == 200
        assert asked(provider) == ["a1", "a2", "a3"]
        assert {received.body_sha256 for received in provider.messages()} == {sha256(body).hexdigest()}


@pytest.mark.parametrize("protocol", PATHS)
async def test_a_credential_that_is_out_of_its_limits_rests_for_that_model_only(
    provider: Simulator, database: Database, alice: AliceKey, protocol: str
) -> None:
    busy, other = MODELS[:2] if protocol == "anthropic" else (OPENAI_MODEL, "gpt-5.6-mini-2026-07-15")
    provider.when(BUSY, credential="a1", model=busy)
    async with gateway(database, alice[0], table("a", provider.origin, protocol), a="a1,a2") as client:
        assert await client.statuses(6, protocol, model=busy) == [200] * 6
        assert (asked(provider).count("a1"), asked(provider).count("a2")) == (1, 6)
        provider.received.clear()
        assert await client.statuses(6, protocol, model=other) == [200] * 6
    assert (asked(provider).count("a1"), asked(provider).count("a2")) == (3, 3)


async def test_an_overloaded_answer_passes_and_its_credential_rests(
    provider: Simulator, database: Database, alice: AliceKey
) -> None:
    """It may have been processed in part, so it is for the client to say it again."""
    provider.when(Script(status=529), credential="a1")
    async with gateway(database, alice[0], table("a", provider.origin), a="a1,a2") as client:
        statuses = await client.statuses(6)
    assert statuses.count(529) == 1
    assert len(asked(provider)) == 6
    assert asked(provider).count("a1") == 1


async def test_a_rest_ends_when_the_provider_said_so(
    provider: Simulator, database: Database, alice: AliceKey
) -> None:
    provider.when(Script(status=429, retry_after_seconds=1), credential="a1")
    async with gateway(database, alice[0], table("a", provider.origin), a="a1,a2") as client:
        await client.statuses(2)
        provider.when(None, credential="a1")
        provider.received.clear()
        await client.statuses(2)
        assert asked(provider) == ["a2", "a2"]
        await asyncio.sleep(1.1)
        await client.statuses(2)
    assert sorted(map(str, asked(provider)[2:])) == ["a1", "a2"]


@pytest.mark.parametrize("protocol", PATHS)
async def test_a_lone_credential_never_rests_and_its_429_is_the_clients(
    provider: Simulator, database: Database, alice: AliceKey, protocol: str
) -> None:
    provider.script = Script(status=429, retry_after_seconds=7)
    async with gateway(database, alice[0], table("a", provider.origin, protocol), a="a1") as client:
        replies = [await client.post(protocol) for _ in range(3)]
    assert [(reply.status, reply.headers["retry-after"]) for reply in replies] == [(429, "7")] * 3
    sent = [received.answer_sha256 for received in provider.messages()]
    assert [sha256(reply.body).hexdigest() for reply in replies] == sent


async def test_if_all_of_them_rest_one_is_asked_and_its_answer_is_the_clients(
    provider: Simulator, database: Database, alice: AliceKey
) -> None:
    provider.when(Script(status=429, retry_after_seconds=9), credential="a1")
    provider.when(Script(status=429, retry_after_seconds=5), credential="a2")
    async with gateway(database, alice[0], table("a", provider.origin), a="a1,a2") as client:
        assert (await client.post()).status == 429
        assert sorted(map(str, asked(provider))) == ["a1", "a2"]
        replies = [await client.post() for _ in range(3)]
    assert [(reply.status, reply.headers["retry-after"]) for reply in replies] == [(429, "5")] * 3
    assert asked(provider)[2:] == ["a2"] * 3


@pytest.mark.parametrize("status", [400, 403, 404, 500, 502, 503])
async def test_an_answer_that_the_client_may_have_caused_passes_and_rests_nobody(
    provider: Simulator, database: Database, alice: AliceKey, status: int
) -> None:
    provider.when(Script(status=status), credential="a1")
    tables = [table("a", provider.origin), table("b", provider.origin)]
    async with gateway(database, alice[0], *tables, a="a1,a2", b="b") as client:
        statuses = await client.statuses(8)
    assert (statuses.count(status), statuses.count(200)) == (4, 4)
    assert (asked(provider).count("a1"), asked(provider).count("a2")) == (4, 4)


@pytest.mark.parametrize("protocol", PATHS)
async def test_where_no_connection_comes_about_the_next_origin_is_asked(
    provider: Simulator,
    database: Database,
    alice: AliceKey,
    dead_origin: str,
    protocol: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And not the same one again, neither with its other credential nor with the requests of the next seconds."""
    tables = [table("dead", dead_origin, protocol), table("b", provider.origin, protocol)]
    async with gateway(database, alice[0], *tables, dead="d1,d2", b="b") as client:
        await until(lambda: count(caplog, Event.MODELS_NOT_LISTED) == 1)
        caplog.clear()
        assert await client.statuses(3, protocol) == [200] * 3
    assert asked(provider) == ["b"] * 3
    assert count(caplog, Event.UPSTREAM_UNREACHABLE) == 1
    assert [row.status for row in database.rows(alice[1])] == [200] * 3


async def test_if_nobody_can_be_reached_the_client_may_try_again(
    database: Database, alice: AliceKey, dead_origin: str
) -> None:
    tables = [table("a", dead_origin), table("b", dead_origin)]
    async with gateway(database, alice[0], *tables, a="a", b="b") as client:
        reply = await client.post()
    assert (reply.status, reply.error["type"]) == (502, "api_error")
    assert reply.headers.get("x-should-retry") != "false"
    [row] = database.rows(alice[1])
    assert (row.status, row.usage.charge) == (502, 0)


# What never moves on.


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200", b"nonsense\r\n\r\n", None], ids=str)
async def test_a_request_that_was_sent_is_never_sent_again(
    provider: Simulator, database: Database, alice: AliceKey, answer: bytes | None
) -> None:
    """The provider may have worked on it: a second one would be charged twice. `None`: a reset."""
    calls = []

    async def break_off(reader: Reader, writer: Writer) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"POST"):
            return  # the list of models
        calls.append(head)
        if answer is None:
            reset(writer)
        else:
            writer.write(answer)

    async with RawProvider(break_off) as raw:
        tables = [table("raw", raw.origin), table("b", provider.origin)]
        async with gateway(database, alice[0], *tables, raw="r1,r2", b="b") as client:
            reply = await client.post()
    assert (reply.status, len(calls), asked(provider)) == (502, 1, [])
    assert [row.status for row in database.rows(alice[1])] == [502]


@pytest.mark.parametrize("protocol", PATHS)
async def test_a_stream_that_breaks_is_charged_once_and_asked_of_nobody_else(
    provider: Simulator, database: Database, alice: AliceKey, protocol: str
) -> None:
    for credential in ("a1", "a2"):
        provider.when(Script(cut_after_events=3), credential=credential)
    model = MODELS[0] if protocol == "anthropic" else OPENAI_MODEL
    tables = [table("a", provider.origin, protocol), table("b", provider.origin, protocol)]
    async with gateway(database, alice[0], *tables, a="a1,a2", b="b") as client:
        with pytest.raises(aiohttp.ClientPayloadError):
            await client.post(protocol, json.dumps(ask(model=model, stream=True)).encode())
    assert len(asked(provider)) == 1
    [row] = database.rows(alice[1])
    assert (row.status, row.estimated) == (502, True)
    assert row.usage.charge > 0


# The one case in which bytes differ.


@pytest.mark.parametrize("splice", [True, False])
async def test_each_upstream_has_its_own_switch_for_asking_a_stream_for_its_usage(
    provider: Simulator, database: Database, alice: AliceKey, splice: bool
) -> None:
    """The request moves on from an upstream with the other setting: each gets the body that is meant for it."""
    provider.when(BUSY, credential="first")
    tables = [
        table("first", provider.origin, "openai", splice_usage=not splice),
        table("second", provider.origin, "openai", splice_usage=splice),
    ]
    body = json.dumps(ask(model=OPENAI_MODEL, stream=True)).encode()
    async with gateway(database, alice[0], *tables, first="first", second="second") as client:
        reply = await client.post("openai", body)
    assert reply.status == 200
    assert b'"usage":{' not in reply.body
    asks = {received.credential: json.loads(received.body) for received in provider.messages()}
    spliced, plain = ("second", "first") if splice else ("first", "second")
    assert asks[spliced].pop("stream_options") == {"include_usage": True}
    assert asks[spliced] == asks[plain]
    assert provider.messages()[0 if splice else 1].body == body
    [row] = database.rows(alice[1])
    assert row.estimated is not splice


# The example


async def test_the_example_of_the_readme_does_what_it_looks_like(
    provider: Simulator, database: Database, alice: AliceKey, tmp_path: Path
) -> None:
    """Its addresses have another origin here, and its second credential another folder."""
    written = re.findall(r"```toml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    [example] = [block for block in written if "[[upstream]]" in block]
    second = tmp_path / "second.key"
    second.write_text("in-a-file\n")
    tables = re.sub(r'"https?://[^/"]+', f'"{provider.origin}', example).replace(
        "/etc/opusmax/second.key", str(second)
    )
    settings = Settings.load({"database": str(database.path), "listen": "127.0.0.1:0"}, {}, tables)
    names = ("ANTHROPIC_API_KEY", "GROQ_API_KEY", "OPENROUTER_API_KEY")
    async with (
        server.listening(settings, open_upstreams(settings, {name: name.lower() for name in names})) as origin,
        aiohttp.ClientSession(origin) as session,
    ):
        client = Client(session, alice[0])
        await client.statuses(2)
        for model in ("llama-1", "qwen/qwen-1", "gemma-1", "gpt-5.6"):
            await client.statuses(1, "openai", model=model)
    posts = [received for received in provider.received if received.method == "POST"]
    assert {received.credential for received in posts[:2]} == {"anthropic_api_key", "in-a-file"}
    assert [(received.credential, received.path) for received in posts[2:]] == [
        ("groq_api_key", "/openai/v1/chat/completions"),
        ("groq_api_key", "/openai/v1/chat/completions"),
        (None, "/v1/chat/completions"),
        ("openrouter_api_key", "/api/v1/chat/completions"),
    ]


# What the operator is told


async def test_the_log_names_the_upstream_and_the_place_of_its_credential(
    provider: Simulator, database: Database, alice: AliceKey, dead_origin: str, caplog: pytest.LogCaptureFixture
) -> None:
    provider.when(REFUSED, credential="a2")
    tables = [table("dead", dead_origin), table("team", provider.origin)]
    async with gateway(database, alice[0], *tables, dead="d", team="a1,a2,a3") as client:
        await until(lambda: count(caplog, Event.MODELS_NOT_LISTED) == 1)
        assert await client.statuses(6) == [200] * 6
    told: dict[Any, Any] = {record.msg: record for record in caplog.records if hasattr(record, "upstream")}
    assert {event: record.upstream for event, record in told.items()} == {
        Event.MODELS_NOT_LISTED: "dead",
        Event.UPSTREAM_UNREACHABLE: "dead",
        Event.UPSTREAM_CREDENTIAL_REFUSED: "team",
    }
    assert told[Event.UPSTREAM_CREDENTIAL_REFUSED].credential == (2, 3)
    assert told[Event.MODELS_NOT_LISTED].credential == (1, 1)
    for event in (Event.UPSTREAM_UNREACHABLE, Event.MODELS_NOT_LISTED):
        error = told[event].exc_info
        assert error is not None
        assert error[0] is ConnectionRefusedError


@pytest.mark.parametrize(
    ("script", "event"),
    [
        (Script(status=302), Event.UPSTREAM_REDIRECTED),
        (Script(cut_after_events=0), Event.UPSTREAM_BROKE),
    ],
)
async def test_what_breaks_is_told_with_its_upstreams_name(
    provider: Simulator,
    database: Database,
    alice: AliceKey,
    script: Script,
    event: Event,
    caplog: pytest.LogCaptureFixture,
) -> None:
    provider.script = script
    async with gateway(database, alice[0], table("team", provider.origin), team="a1") as client:
        with suppress(aiohttp.ClientPayloadError):
            assert (await client.post()).status == 502
    assert {vars(record)["upstream"] for record in caplog.records if record.msg is event} == {"team"}
