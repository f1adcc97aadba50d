"""A body passes only if every parser reads the same model, the same max_tokens and the same stream out of it.

The tricks over real sockets, one by one; some thousand random bodies at the parser (`make prove`: 20,000), each
that passes read again by parsers that take the first of two fields, the last, and names in any case. And of what
does pass, a model's name is kept only if somebody else wrote it before.
"""

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import aiohttp

from gateway.core.errors import BadRequest
from gateway.core.estimate import Estimator
from gateway.core.parsing import parse_messages
from gateway.core.records import Key
from gateway.core.settings import Settings
from gateway.simulator import Simulator
from tests.harness import Database, ask, serving, until
from tests.test_bad_input import error_of

FEW = 2_000
ESTIMATOR = Estimator(Settings())
GOOD = json.dumps(ask()).encode()
READ = ("model", "max_tokens", "stream")
KELVIN, LONG_S = "\u212a", "\u017f"
"""Letters that are k and s to whoever takes no notice of case."""


def with_field(spelled: str) -> bytes:
    """A good body with one field more, spelled out."""
    return b"{" + spelled.encode("utf-8", "surrogatepass") + b"," + GOOD[1:]


def with_max_tokens(spelled: str) -> bytes:
    return GOOD.replace(b'"max_tokens": 100', f'"max_tokens": {spelled}'.encode())


DOUBLES = [
    *('"model": "other"', '"max_tokens": 1', '"stream": true, "stream": false', '"messages": []'),
    *('"\\u006dodel": "other"', '"max\\u005ftokens": 1', '"\\u0073tream": true, "stream": false'),
    *('"Model": "other"', '"MODEL": "other"', '"MAX_TOKENS": 1', '"Max_Tokens": 1', '"mAX\\u005fTOKENS": 1'),
    *('"Stream": true', '"STREAM": true', '"stream": false, "Stream": true', '"\\u0053tream": true'),
    *(f'"max_to{KELVIN}ens": 1', f'"max_token{LONG_S}": 1', f'"{LONG_S}tream": true', '"max_to\\u212aens": 1'),
    *('"\\u017ftream": true', f'"MAX_TO{KELVIN}EN{LONG_S}": 1', '"stream": true, "\\u017fTREAM": false'),
]
NUMBERS = [
    *("NaN", "Infinity", "-Infinity", "1e400", "-1", "0", "-0", "1.0", "1.5", "1e2", "true", "false", "null"),
    *('"5"', "9" * 4_000, "1" + "0" * 400, str(2**31), str(2**63), str(2**64 + 100), "[100]", "{}", "0x64"),
    *("0100", "+100", "1_00", "100.", ".5", "- 1", "1e", "\u0661\u0660\u0660", "\uff11\uff10\uff10", "100 100"),
    *("", "NaN100"),
]
TRICKS = [
    *(*map(with_field, DOUBLES), *map(with_max_tokens, NUMBERS), b"", b" ", b"null", b"[]", b"[" + GOOD + b"]"),
    *(b'"model"', b"5", b"{}", b"\x00", b"{", b'{"', b'{"model"', GOOD[:-1], GOOD[:-1] + b",}", GOOD + b"}"),
    *(GOOD + b"x", GOOD + GOOD, GOOD + b"\n" + GOOD, GOOD + b"\x00", b"\xef\xbb\xbf" + GOOD),
    *(GOOD.decode().encode(code) for code in ("utf-16", "utf-16-be", "utf-32", "utf-32-le")),
    *(GOOD.replace(b'"', b"'"), GOOD.replace(b":", b"="), GOOD[:-1] + b"/* a */}", b"// a\n" + GOOD),
    *(b"# a\n" + GOOD, with_field('"x": "\\ud800"'), with_field('"\\ud800": 1'), with_field('"x": "\ud800"')),
    *(with_field('"x": "\t"'), with_field('"x": "\\x41"'), with_field('"x": "\0"'), with_field("x: 1")),
    *(with_field("'x': 1"), with_field('"x": NaN'), with_field('"x": 1, "x": 1')),
    *(with_field('"x": ' + "[" * 100_000 + "]" * 100_000), with_field('"x": ' + '{"a":' * 100_000)),
    *(GOOD.replace(b"claude", b"\xff"), GOOD.replace(b"claude", b"\xc0\xaf")),
    *(GOOD.replace(b"claude", b"cl\xed\xa0\x80"), GOOD.replace(b"claude", b"\\ud800")),
    *(GOOD.replace(b"claude", b"\\ud83d\\u0041"), GOOD.replace(b"claude", b"\x00")),
    GOOD.replace(b'"claude', b'"' + b"c" * 300),
]


async def test_a_body_with_a_trick_in_it_is_refused_and_goes_nowhere(
    http: aiohttp.ClientSession, provider: Simulator, database: Database, alice: tuple[str, Key]
) -> None:
    headers = {"x-api-key": alice[0], "content-type": "application/json"}
    for body in TRICKS:
        async with http.post("/v1/messages", data=body, headers=headers) as answer:
            assert answer.status == 400, body[:100]
            assert (await error_of(answer))["type"] == "invalid_request_error"
    assert provider.messages() == []
    assert database.rows(alice[1]) == []
    async with http.post("/v1/messages", data=GOOD, headers=headers) as answer:
        assert answer.status == 200


# Random bodies


def respelled(random: Random, name: str) -> str:
    """A name, or one that somebody may take for it, inside of quotes."""
    letters = list(name)
    for place, letter in enumerate(letters):
        match random.choice(["as it is"] * 8 + ["case", "escape", "escaped case", "look-alike"]):
            case "case":
                letters[place] = letter.swapcase()
            case "escape":
                letters[place] = f"\\u{ord(letter):04x}"
            case "escaped case":
                letters[place] = f"\\u{ord(letter.swapcase()):04X}"
            case "look-alike":
                letters[place] = {"k": KELVIN, "s": LONG_S, "o": "\u043e", "e": "\u0435", "_": "-"}.get(
                    letter, letter
                )
    return "".join(letters)


def spelled_fields(random: Random) -> list[str]:
    """The fields of a valid body in any order, sometimes with one that nearly stands there already."""
    values: dict[str, list[str]] = {
        "model": ['"claude-x"', '"claude-\\u0078"', '"x"'],
        "max_tokens": ["1", "64", "64000"],
        "stream": ["true", "false", "null"],
        "messages": ["[]", '[{"role": "user", "content": "model"}]', '[{"model": "b", "max_tokens": 1}]'],
        "system": ['"x"', '"\\",\\"model\\":\\"b\\""', '"\\\\"'],
        "metadata": ["{}", '{"model": "b", "Model": "c"}', '{"max_tokens": 1}'],
    }
    names = [
        "model",
        "max_tokens",
        *random.sample(["stream", "messages", "system", "metadata"], random.randrange(5)),
    ]
    if random.random() < 0.6:
        names.append(random.choice(READ))
    random.shuffle(names)
    odd = random.random() < 0.5
    return [f'"{respelled(random, name) if odd else name}": {random.choice(values[name])}' for name in names]


PIECES = (
    *("{", "}", "[", "]", ",", ":", '"', "\\", " ", "\n", "\0", "\ufeff", "\u2028", "//", "/**/", "-", ".", "e9"),
    *("0", "1", "NaN", "null", "true", '"model":"b",', ',"Model":"b"', '"max_tokens":1,', ',"stream":true'),
    *("\\u006d", '"x":{"model":"b"},'),
)


def mutated(random: Random, body: str) -> str:
    begin, end = sorted(random.randrange(len(body) + 1) for _ in range(2))
    ways: list[Callable[[], str]] = [
        lambda: body[:begin] + random.choice(PIECES) + body[begin:],
        lambda: body[:begin] + body[min(end, begin + 3) :],
        lambda: body[:end] + body[begin:],
        lambda: body.replace(",", "," + random.choice(PIECES), 1),
        lambda: body[:begin] + body[begin:end].upper() + body[end:],
    ]
    return random.choice(ways)()


def random_body(random: Random) -> bytes:
    gap = random.choice(["", " ", "\r\n\t"])
    body = "{" + gap + f"{gap},{gap}".join(spelled_fields(random)) + gap + "}"
    for _ in range(random.choice([0, 0, 0, 1, 2])):
        body = mutated(random, body)
    return body.encode()


def readings(body: bytes) -> list[list[Any]]:
    """What the three fields are to parsers that take the first or the last, of this name or of any like it."""
    pairs: Sequence[tuple[str, Any]] = json.loads(body.decode(), object_pairs_hook=lambda pairs: pairs)
    orders = [pairs, pairs[::-1]]
    exact = [dict(order) for order in orders]
    caseless = [{name.casefold(): value for name, value in order} for order in orders]
    return [[fields.get(name) for name in READ] for fields in (*exact, *caseless)]


def require_one_reading(count: int, seed: int) -> int:
    """How many of so many bodies passed; all that did are read in one way."""
    random, passed = Random(seed), 0
    for _ in range(count):
        body = random_body(random)
        try:
            parsed = parse_messages(body, ESTIMATOR)
        except BadRequest:
            continue
        passed += 1
        first, *others = readings(body)
        assert others == [first] * 3, body
        assert [parsed.model, parsed.hold.output] == first[:2], body
        assert first[2] is None or isinstance(first[2], bool), body
    return passed


def test_a_body_that_passes_is_read_in_one_way_by_every_parser() -> None:
    passed = require_one_reading(FEW, seed=12)
    assert 0.1 * FEW < passed < 0.9 * FEW


# Names of models


HOSTILE_MODELS = [
    *("my-card-4111-1111-1111-1111", "sk-live-51HvTq", "ada@lovelace.example", "<script>alert(1)</script>"),
    *("=1+1", "claude-opus-5-5-", "xclaude-opus-5-5", "claude-opus-5-5-20991231", "Claude-Opus-5-5", "claude-*"),
    *("unknown ", "'; DROP TABLE request; --", "claude-opus-5-5\0", "claude\u2010opus-5-5", "\u202eedualc"),
    "a" * 256,
]


async def test_a_name_that_only_a_client_wrote_is_not_kept(database: Database, alice: tuple[str, Key]) -> None:
    async with (
        Simulator(accept_any_model=True) as provider,
        serving(provider, database.path) as origin,
        aiohttp.ClientSession(origin) as http,
    ):
        await until(lambda: any(received.path.startswith("/v1/models") for received in provider.received))
        for model in [*HOSTILE_MODELS, "claude-opus-5-5", "claude-haiku-4-5"]:
            async with http.post("/v1/messages", json=ask(model=model), headers={"x-api-key": alice[0]}) as answer:
                assert answer.status == 200
                await answer.read()
    for table in ("request", "usage_by_hour"):
        kept = database.query(f"SELECT DISTINCT model FROM {table} ORDER BY model")
        assert kept == [("claude-haiku-4-5",), ("claude-opus-5-5",), ("unknown",)]
    assert len(database.rows(alice[1])) == len(HOSTILE_MODELS) + 2
