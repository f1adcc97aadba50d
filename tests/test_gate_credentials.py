"""A credential that is not exactly a key in force opens nothing: no call of the provider, no row.

Here are some hundred; `make prove` sends 5,000. Most of them are not even formed like a key; some share all but the
last character with one that works.
"""

import base64
import string
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from multidict import CIMultiDict

from gateway import database as gateway_database
from gateway.auth import Authenticator
from gateway.clock import Clock
from gateway.core import keys
from gateway.core.errors import InvalidKey
from gateway.core.keys import ApiKey
from gateway.core.records import Key, Secret
from gateway.core.refusals import Signpost
from gateway.keystore import Directory, new_key_row, rotate
from gateway.simulator import Simulator
from tests.gate_corpus import (
    METERED,
    Attempt,
    Seen,
    Serving,
    exchange,
    provider_of_both,
    report_number,
    send_all,
    serving_both,
)
from tests.harness import Database, now_ms, secret_of
from tests.test_gate_paths import Reached, require_clean_answer, require_one_row_each, require_only_listed

FEW = 400
FEW_TIMES = 100
BETWEEN = 200
"""So many wrong ones come between two right ones."""
REFUSED = {400, 401, 429, 431}
"""400: a key in the address, or no HTTP; 429: too many wrong secrets of one key id at once; 431: too long."""
LETTERS = string.ascii_letters + string.digits
RELAYED = (
    *[
        Attempt(target=path)
        for path in (*METERED, "/v1/messages/count_tokens", "/chat/completions", "/v1/v1/responses")
    ],
    Attempt(target="/v1/models", method="GET"),
    Attempt(target="/messages?beta=true"),
    Attempt(target="/v1/models/claude-opus-5-5", method="GET"),
)
FOREIGN = (
    *("sk-ant-api03-" + "A" * 95, "sk-proj-" + "b" * 48, "sk-" + "c" * 48, "ghp_" + "d" * 36),
    *("AKIAIOSFODNN7EXAMPLE", "AIza" + "e" * 35, "xoxb-1-2-abc", "hf_" + "f" * 34, "glpat-" + "g" * 20),
    *("eyJhbGciOiJub25lIn0.eyJhIjoxfQ.", "sk-ant-oat01-" + "h" * 80, "sk-ant-om2-" + "a" * 61, "sk-ant-om1-"),
    *("sk-ant-om1", "dummy", "null", "undefined", "", " ", "-", "0", "true", "{}", "[]", "*", "%", "../../key"),
    *("alice", "admin:admin", "\u00e9", "\u4e2d\u6587", "\ud83d", "' OR '1'='1", "' OR 1=1 --"),
    *("1; DROP TABLE key", "' UNION SELECT hash FROM secret --", '" OR ""="', "%27--", "${jndi:ldap://a/b}"),
    *("{{7*7}}", "<script>1</script>", "x" * 8_000, "sk-ant-om1-" + "x" * 8_000),
)
BLANKS = ("\u00a0", "\u2003", "\u0085", "\ufeff", "\u200b", "\x0b", "\x0c", "\x1f", "\x7f", "\0")
"""All but those that HTTP takes away around a value."""
HEADERS = ("x-api-key: {}", "X-API-KEY: {}", "authorization: Bearer {}", "Authorization: bearer {}")
OTHER_HEADERS = (
    *("authorization: {}", "authorization: Basic {}", "authorization: Token {}", "authorization: ApiKey {}"),
    *("authorization: Digest username={}", "authorization: Bearer\t{}", "authorization: Bearer={}"),
    *("authorization: Bearer{}", "proxy-authorization: Bearer {}", "x_api_key: {}", "api-key: {}"),
    *("x-goog-api-key: {}", "x-api-key-2: {}", "cookie: x-api-key={}", "anthropic-api-key: {}"),
    *("anthropic-beta: {}", "x-api: key: {}", "x-apikey: {}", "x-forwarded-authorization: Bearer {}"),
    *("x-api-key : {}", "x-api-key: a\0{}", "x-api-key: Bearer {}"),
)


@dataclass(frozen=True, slots=True)
class Ring:
    """Texts of keys: two that work, and some that did or will not."""

    alice: str
    bob: str
    dead: Sequence[str]

    @property
    def parts(self) -> ApiKey:
        key = keys.parse(self.alice)
        assert key is not None
        return key


async def make_ring(database: Database) -> Ring:
    alice, _ = await database.create_key("alice")
    bob, _ = await database.create_key("bob")
    disabled, _ = await database.create_key("disabled", disabled=True)
    expired, _ = await database.create_key("expired", expires=now_ms() - 1)
    deleted, key = await database.create_key("deleted")
    replaced, rotated = await database.create_key("rotated")
    async with gateway_database.connect(database.path) as connection:
        await connection.execute("DELETE FROM key WHERE id = ?", (key.row,))
        await rotate(connection, secret_of(rotated, keys.mint()), grace_ms=0)
    return Ring(alice, bob, (disabled, expired, deleted, replaced))


def misspelled(random: Random, text: str) -> str:
    """A key with something wrong about it, which its checksum tells."""
    place, other = random.randrange(len(text)), random.choice("abcXYZ019-_ \t\u00e9\u0430\uff41")
    ways: list[Callable[[], str]] = [
        lambda: text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :],
        lambda: text[:place] + other + text[place:],
        lambda: text[:place] + text[place + 1 :],
        lambda: text[: max(place, 1)],
        lambda: text[:-1] + chr(ord(text[-1]) + 1),
        lambda: text[:-1] + chr(ord(text[-1]) - 1),
        text.swapcase,
        text.upper,
        lambda: text + text,
        lambda: f"{text},{text}",
        lambda: f"{text}, {text}",
        lambda: f'"{text}"',
        lambda: f"{text};",
        lambda: text[::-1],
        lambda: text.replace("-", "%2d"),
        lambda: (
            text + random.choice(["\u00a0", "\u2003", "\u0085", "\x0b", "\x0c", "\x1f", "\x7f", "\0", "\ufeff"])
        ),
        lambda: random.choice(["\u00a0", "\ufeff", "\u200b", "\x0b"]) + text,
        lambda: base64.b64encode(f"{text}:".encode()).decode(),
    ]
    wrong = random.choice(ways)()
    return wrong if wrong.strip(" \t") != text else "x"  # HTTP takes blanks around a value away


def wrong_secret(random: Random, ring: Ring) -> str:
    """Well-formed, with a key id that is known and all but one character of its secret."""
    right = ring.parts
    place = random.choice([0, 20, keys.SECRET_LENGTH - 1])
    other = next(letter for letter in random.sample(LETTERS, 2) if letter != right.secret[place])
    return ApiKey(right.key_id, right.secret[:place] + other + right.secret[place + 1 :]).text


def wrong_credentials(random: Random, ring: Ring) -> tuple[str, ...]:
    """Header lines, without one key that would open the gate alone."""
    header, second = random.choice(HEADERS), random.choice(HEADERS)
    other_id = ApiKey(keys.mint().key_id, ring.parts.secret).text
    ways: list[Callable[[], tuple[str, ...]]] = [
        lambda: (header.format(random.choice(FOREIGN)),),
        lambda: (header.format(misspelled(random, ring.alice)),),
        lambda: (header.format(misspelled(random, ring.alice)),),
        lambda: (header.format(misspelled(random, ring.alice)), second.format(random.choice(FOREIGN))),
        lambda: (header.format(random.choice([keys.mint().text, other_id])),),
        lambda: (random.choice(OTHER_HEADERS).format(ring.alice),),
        lambda: (header.format(ring.alice), second.format(ring.bob)),
        lambda: (header.format(ring.bob), second.format(keys.mint().text)),
        lambda: (header.format(random.choice(ring.dead)),),
        lambda: (header.format("Bearer " + ring.alice),),
        tuple,
    ]
    return random.choice(ways)()


def in_the_address(random: Random, key: str) -> Attempt:
    spelled = random.choice(
        [key, key.replace("-", "%2d"), key.replace("sk", "%73k"), "".join(f"%{ord(c):x}" for c in key)]
    )
    name = random.choice(["key", "api_key", "x-api-key", "beta", "after_id", "limit", "access_token"])
    target = random.choice([f"/v1/models?{name}={spelled}", f"/v1/models/{spelled}", f"/models?{spelled}"])
    return Attempt(target=target, method="GET")


def wrong_attempts(seed: int, ring: Ring) -> Iterator[tuple[Attempt, tuple[str, ...]]]:
    """Requests to what is relayed, each with credentials that must not open it."""
    random = Random(seed)
    while True:
        if random.random() < 0.05:
            yield in_the_address(random, ring.alice), (f"x-api-key: {ring.alice}",)[: random.randrange(2)]
        elif random.random() < 0.05:
            yield random.choice(RELAYED), (random.choice(HEADERS).format(wrong_secret(random, ring)),)
        else:
            yield random.choice(RELAYED), wrong_credentials(random, ring)


async def refusals(origin: str, provider: Simulator, ring: Ring, count: int, seed: int) -> Counter[int]:
    """Send so many wrong ones, and right ones before, between and after them; the statuses of the wrong ones."""
    told: Counter[int] = Counter()
    corpus = wrong_attempts(seed, ring)
    for number, size in enumerate([0, *[BETWEEN] * (count // BETWEEN)]):
        wrong = [next(corpus) for _ in range(size)]
        seen = await send_all(origin, [attempt.request(10**6, *lines) for attempt, lines in wrong])
        for (attempt, lines), answer in zip(wrong, seen, strict=True):
            require_refusal(attempt, lines, answer)
        told.update(answer.status for answer in seen)
        attempt = Attempt(target=METERED[number % len(METERED)])
        right = await exchange(origin, attempt.request(number, f"x-api-key: {ring.alice}"))
        assert right.status == 200
        assert len(provider.messages()) == number + 1
    return told


def require_refusal(attempt: Attempt, lines: Sequence[str], seen: Seen) -> None:
    assert seen.status in REFUSED, (seen.status, attempt.target, lines)
    require_clean_answer(attempt, seen, *lines)
    assert keys.PREFIX not in seen.raw.decode("latin-1").replace(f"starts with {keys.PREFIX}.", "")
    error = seen.require_envelope()
    if "code" in error:
        assert error["type"] == ("rate_limit_error" if seen.status == 429 else "invalid_request_error")
        assert (error["code"] == "invalid_api_key") is (seen.status == 401)
    else:
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        assert error["type"] == kinds.get(seen.status, "invalid_request_error")


async def require_closed(
    provider: Simulator, database: Database, count: int, seed: int, serve: Serving = serving_both
) -> Counter[int]:
    """A server that is tried so often is used by nobody but the holder of a key."""
    provider.choose = report_number
    ring = await make_ring(database)
    async with serve(provider, database.path) as origin:
        told = await refusals(origin, provider, ring, count, seed)
    reached = require_only_listed(provider)
    assert reached == Reached(list(range(count // BETWEEN + 1)), 0)
    require_one_row_each(database, reached.numbers)
    assert told[401] > 0.8 * count
    return told


async def test_what_is_not_a_key_in_force_opens_nothing(database: Database) -> None:
    async with provider_of_both() as provider:
        await require_closed(provider, database, FEW, seed=11)


# Expiry


@dataclass(frozen=True, slots=True)
class Ending:
    """A key, and when it is no longer one."""

    text: str
    at_ms: int


@dataclass(slots=True)
class Door:
    """The authentication alone, with as many keys as are made, and a calendar to turn."""

    monkeypatch: pytest.MonkeyPatch
    directory: Directory = field(default_factory=lambda: Directory(keys={}, secrets={}))

    def make_key(self, at_ms: int, *, by_secret: bool) -> Ending:
        """The key ends, or its secret does that was replaced."""
        api_key = keys.mint()
        key = Key(row=new_key_row(), name=api_key.key_id, created=0, expires=None if by_secret else at_ms)
        secret: Secret = replace(secret_of(key, api_key), expires=at_ms if by_secret else None)
        self.directory = Directory(
            keys={**self.directory.keys, key.row: key}, secrets={**self.directory.secrets, secret.key_id: secret}
        )
        return Ending(api_key.text, at_ms)

    async def is_open(self, authenticator: Authenticator, ending: Ending, at_ms: int) -> bool:
        self.monkeypatch.setattr(time, "time_ns", lambda: at_ms * 1_000_000)
        try:
            key = await authenticator.authenticate(CIMultiDict([("x-api-key", ending.text)]))
        except InvalidKey:
            return False
        return key.name == ending.text.removeprefix(keys.PREFIX)[: keys.KEY_ID_LENGTH]


async def require_ends_in_time(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Each at a random time of this century: open in the millisecond before, and never from then on."""
    random, door = Random(count), Door(monkeypatch)
    times = [random.randrange(1_600_000_000_000, 4_100_000_000_000) for _ in range(count)]
    endings = [door.make_key(at_ms, by_secret=bool(number % 2)) for number, at_ms in enumerate(times)]
    authenticator = Authenticator(Clock(), Signpost(usage_url="", contact=""), lambda _key, _refusal: None)
    authenticator.replace(door.directory)
    try:
        for ending in endings:
            later = ending.at_ms + random.randrange(10**10)
            moments = (ending.at_ms - 1, ending.at_ms, ending.at_ms + 1, later)
            opened = [await door.is_open(authenticator, ending, at_ms) for at_ms in moments]
            assert opened == [True, False, False, False]
    finally:
        authenticator.close()


async def test_a_key_that_ends_at_a_time_is_refused_at_that_time(monkeypatch: pytest.MonkeyPatch) -> None:
    await require_ends_in_time(monkeypatch, FEW_TIMES)
