"""Only listed endpoints reach the provider, at constant addresses, however a request is addressed, named or framed.

Here are the tricks one by one and some hundred random mixtures of them; `make prove` runs 2,000, with a key and
without.
"""

import itertools
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest

from gateway.core.keys import PREFIX
from gateway.core.protocols import Protocol
from gateway.core.records import Key
from gateway.simulator import Received, Simulator
from tests.gate_corpus import (
    BAD_HOSTS,
    BAD_TARGETS,
    CHAT,
    EXTRA_HEADERS,
    HOSTS,
    MESSAGES,
    METERED,
    METHODS,
    NO_METHODS,
    NOT_SERVED,
    OPENAI_ALIASES,
    Attempt,
    Seen,
    aliases,
    attempts,
    body_of,
    exchange,
    number_of,
    provider_of_both,
    report_number,
    send_all,
    serving_both,
)
from tests.gate_framings import BAD_FRAMINGS, ECHO, FRAMINGS
from tests.harness import OPERATOR_CREDENTIAL, Database

FEW = 150
REFUSALS = {400, 401, 404, 405, 411, 413, 415, 417, 429, 431}
"""Statuses of the gateway's own refusals here (429: lookups have a pace); 500 is none of them."""
HEAD_REFUSALS = {400, 431}
"""Where it may be that nothing of the request was understood, and so not either whose it is."""
_VALUE = "(?:[A-Za-z0-9._-]|%3A|%40|%3D)+"
_LISTED = re.compile(
    rf"POST /v1/messages(?:/count_tokens)?(?:\?beta={_VALUE}(?:&beta={_VALUE})*)?"
    r"|POST /v1/(?:chat/completions|responses|embeddings)"
    rf"|GET /v1/models(?:\?(?:(?:beta|limit|after_id|before_id|lifecycle)={_VALUE}&?)+)?"
    rf"|GET /v1/models/[A-Za-z0-9][A-Za-z0-9._:@-]*(?:\?beta={_VALUE}(?:&beta={_VALUE})*)?"
)
"""All that a provider may ever be asked; written down a second time on purpose."""
_OWN_LISTS = {"/v1/models?limit=1000", "/v1/models"}
"""What the gateway itself asks at its start, of either protocol."""
NO_MODEL_IDS = (
    *("a%2fb", "..%2f..%2ffiles", "%2e%2e", "a%3fbeta=true", "a%23b", "a%20HTTP/1.1", "a%0d%0ahost:%20evil"),
    *("%00", "a;b", "-a", "_a", ".a", "%25", "a%5cb", "a%c3%a9", "%ff", "a*", "{model_id}", "%7Bmodel_id%7D"),
    *("a" * 129, "a/b"),
)
_PLAIN_TEXTS = {b"ok\n", b"ready\n"}
AliceKey = tuple[str, Key]


async def sent_all(origin: str, sent: Sequence[Attempt], *credentials: str) -> list[tuple[Attempt, Seen]]:
    """Each numbered by its place."""
    requests = [attempt.request(number, *credentials) for number, attempt in enumerate(sent)]
    return list(zip(sent, await send_all(origin, requests), strict=True))


def require_clean_answer(attempt: Attempt, seen: Seen, *credentials: str) -> None:
    """One answer, in its protocol's envelope or a page of ours, that repeats nothing of what was sent."""
    assert seen.answers == 1 + ("100-continue" in "".join(attempt.headers) and seen.raw.count(b"HTTP/1.1 100 "))
    assert 200 <= seen.status < 300 or seen.status in REFUSALS, seen.status
    if seen.is_of_the_provider:
        return
    assert ECHO.encode() not in seen.raw
    assert seen.headers["server"] == "opusmax"
    if attempt.method == "HEAD":
        return
    if seen.headers["content-type"].startswith(("text/html", "text/css", "text/csv")):
        assert seen.headers["content-security-policy"].startswith("default-src 'none'")
    elif seen.status >= 400:
        seen.require_envelope(None if seen.status in HEAD_REFUSALS else attempt.protocol(*credentials))
    elif seen.headers["content-type"].startswith("text/plain"):
        assert seen.body in _PLAIN_TEXTS


@dataclass(frozen=True, slots=True)
class Reached:
    """What the provider was asked in a run."""

    numbers: list[int]
    """Of the metered calls."""
    lookups: int


def is_own_list(received: Received) -> bool:
    return received.path in _OWN_LISTS and received.header("user-agent") is None


def require_one_credential(received: Received) -> Protocol:
    """The operator's, and no other, as one of the protocols has it."""
    names = ("x-api-key", "authorization", "api-key", "proxy-authorization")
    sent = [(name.lower(), value) for name, value in received.headers if name.lower() in names]
    forms = {
        ("x-api-key", OPERATOR_CREDENTIAL): Protocol.ANTHROPIC,
        ("authorization", f"Bearer {OPERATOR_CREDENTIAL}"): Protocol.OPENAI,
    }
    assert len(sent) == 1
    return forms[sent[0]]


def protocols_of(endpoint: str) -> set[Protocol]:
    """The models are asked for in both."""
    if endpoint.startswith("/v1/models"):
        return set(Protocol)
    return {Protocol.OPENAI if endpoint in OPENAI_ALIASES else Protocol.ANTHROPIC}


def require_only_listed(provider: Simulator) -> Reached:
    """Every call went to a listed address, with the operator's credential for it and no other, and a whole body."""
    calls = [received for received in provider.received if not is_own_list(received)]
    for received in calls:
        assert _LISTED.fullmatch(f"{received.method} {received.path}"), received.path
        assert require_one_credential(received) in protocols_of(received.endpoint)
        assert received.header("host") == provider.origin.removeprefix("http://")
        assert [name.lower() for name, _ in received.headers].count("host") == 1
        assert PREFIX not in received.path + str(received.headers)
        assert not received.is_message or received.body == body_of(number_of(received))
    numbers = [number_of(received) for received in calls if received.is_message]
    return Reached(numbers, len(calls) - len(numbers))


def require_one_row_each(database: Database, numbers: Sequence[int]) -> None:
    """The provider reported the number of each attempt as its usage."""
    rows = database.query("SELECT input, status, estimated FROM request ORDER BY input")
    assert rows == [(number, 200, 0) for number in sorted(numbers)]


async def require_refused(origin: str, sent: Sequence[Attempt], key: str, *statuses: int) -> None:
    """All of them, with one of these statuses."""
    line = f"x-api-key: {key}"
    results = await sent_all(origin, sent, line)
    odd = [(seen.status, attempt.request(0)[:100]) for attempt, seen in results if seen.status not in statuses]
    assert odd == []
    for attempt, seen in results:
        require_clean_answer(attempt, seen, line)


@pytest.fixture
async def provider() -> AsyncIterator[Simulator]:
    async with provider_of_both() as simulator:
        simulator.choose = report_number
        yield simulator


@pytest.fixture
async def gate(provider: Simulator, database: Database, alice: AliceKey) -> AsyncIterator[str]:
    del alice  # the gateway knows her
    async with serving_both(provider, database.path) as origin:
        yield origin


@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS", "CONNECT"])
async def test_only_the_path_of_an_address_is_taken(
    gate: str, provider: Simulator, alice: AliceKey, method: str
) -> None:
    await require_refused(gate, [Attempt(target=target, method=method) for target in BAD_TARGETS], alice[0], 400)
    assert require_only_listed(provider) == Reached([], 0)


@pytest.mark.parametrize(
    ("method", "target"), [("POST", MESSAGES), ("POST", CHAT), ("GET", "/v1/models"), ("GET", "/")]
)
async def test_a_host_that_is_none_is_refused(
    gate: str, provider: Simulator, alice: AliceKey, method: str, target: str
) -> None:
    bad = [*[(host,) for host in BAD_HOSTS], (), ("a", "a"), ("a", "b")]
    sent = [Attempt(method=method, target=target, hosts=hosts) for hosts in bad]
    await require_refused(gate, sent, alice[0], 400)
    assert require_only_listed(provider) == Reached([], 0)


async def test_a_body_that_two_servers_could_end_in_two_places_is_refused(
    gate: str, provider: Simulator, alice: AliceKey
) -> None:
    """And nothing more is read on such a connection, though its client would keep it."""
    pairs = itertools.product(METERED, BAD_FRAMINGS.values())
    sent = [Attempt(target=target, framing=framing, connection="keep-alive") for target, framing in pairs]
    await require_refused(gate, sent, alice[0], 400)
    assert require_only_listed(provider) == Reached([], 0)


@pytest.mark.parametrize(
    ("methods", "targets", "statuses"),
    [
        (NO_METHODS, [*METERED, "/v1/models", "/v1/files", "/"], [400]),
        (["TRACE", "CONNECT"], [*METERED, "/v1/models", "/v1/files", "/", "*", "a:1"], [400, 404, 405]),
        ([*METHODS, "GET"], [*aliases(*METERED), "/v1/v1/messages/count_tokens"], [405]),
        ([*METHODS, "POST"], ["/v1/models", "/models", "/v1/models/claude-opus-5-5"], [405]),
        ([*METHODS, "GET", "POST"], NOT_SERVED, [404]),
    ],
)
async def test_no_other_method_gets_anywhere(
    gate: str,
    provider: Simulator,
    alice: AliceKey,
    methods: Sequence[str],
    targets: Sequence[str],
    statuses: list[int],
) -> None:
    sent = [Attempt(method=method, target=target) for method in methods for target in targets]
    await require_refused(gate, sent, alice[0], *statuses)
    assert require_only_listed(provider) == Reached([], 0)


async def test_what_is_no_name_of_a_model_is_no_address(gate: str, provider: Simulator, alice: AliceKey) -> None:
    odd = [Attempt(target=f"/v1/models/{name}", method="GET") for name in NO_MODEL_IDS]
    await require_refused(gate, odd, alice[0], 400, 404)
    assert require_only_listed(provider) == Reached([], 0)


async def test_headers_are_taken_up_to_a_total_size(gate: str, provider: Simulator, alice: AliceKey) -> None:
    large = [tuple(f"x-{n}: {'a' * size}" for n in range(lines)) for lines, size in ((3, 12_000), (40, 900))]
    await require_refused(gate, [Attempt(headers=headers) for headers in large], alice[0], 431)
    fitting = tuple(f"x-{number}: {'a' * 900}" for number in range(30))
    seen = await exchange(gate, Attempt(headers=fitting).request(7, f"x-api-key: {alice[0]}"))
    assert seen.status == 200
    assert require_only_listed(provider) == Reached([7], 0)


async def test_what_is_odd_and_clear_is_taken_and_leaves_in_one_form(
    gate: str, provider: Simulator, database: Database, alice: AliceKey
) -> None:
    framings = [framing for name, framing in FRAMINGS.items() if name != "no body"]
    odd = [
        *[Attempt(framing=framing) for framing in framings],
        *[Attempt(hosts=(host,)) for host in HOSTS],
        *[Attempt(headers=(line,)) for line in EXTRA_HEADERS if not line.startswith("content-")],
        *[
            Attempt(target=target)
            for target in (*aliases(*METERED), "/v1/%6dessages", "/v1/messages?x=1", "/v1/chat%2fcompletions?x=1")
        ],
    ]
    line = f"authorization: Bearer {alice[0]}"
    sent = await sent_all(gate, odd, line)
    for attempt, seen in sent:
        require_clean_answer(attempt, seen, line)
    taken = [number for number, (_, seen) in enumerate(sent) if seen.status == 200]
    # Chunk extensions, trailers and upgrades may be refused as well as taken; never half.
    assert len(taken) >= len(odd) - 5
    assert sorted(require_only_listed(provider).numbers) == taken
    require_one_row_each(database, taken)


@pytest.mark.parametrize("framing", ["content-length: 5", "content-length: 5\r\ntransfer-encoding: chunked"])
async def test_a_request_inside_of_another_is_none(
    gate: str, provider: Simulator, alice: AliceKey, framing: str
) -> None:
    """Whatever follows the length that was told is another request, and needs a key of its own."""
    hidden = Attempt().request(1)
    head = f"POST /v1/messages HTTP/1.1\r\nhost: a\r\nx-api-key: {alice[0]}\r\n{framing}\r\n\r\n0\r\n\r\n".encode()
    seen = await exchange(gate, head + hidden)
    assert seen.status in REFUSALS
    assert require_only_listed(provider) == Reached([], 0)


async def test_mixtures_reach_listed_addresses_only_and_each_message_has_its_row(
    gate: str, provider: Simulator, database: Database, alice: AliceKey
) -> None:
    line = f"authorization: Bearer {alice[0]}"
    sent = await sent_all(gate, list(itertools.islice(attempts(seed=4), FEW)), line)
    for attempt, seen in sent:
        require_clean_answer(attempt, seen, line)
    reached = require_only_listed(provider)
    assert reached.numbers
    assert reached.lookups
    require_one_row_each(database, reached.numbers)


async def test_mixtures_without_a_key_reach_nothing(gate: str, provider: Simulator, database: Database) -> None:
    for attempt, seen in await sent_all(gate, list(itertools.islice(attempts(seed=5), FEW))):
        require_clean_answer(attempt, seen)
    assert require_only_listed(provider) == Reached([], 0)
    require_one_row_each(database, [])
