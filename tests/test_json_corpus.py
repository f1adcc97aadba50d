"""A body passes only if every parser reads the same model, the same maxima and the same stream out of it.

The tricks over real sockets, one by one; some thousand random bodies at the parser (`make prove`: 20,000), each
that passes read again by parsers that take the first of two fields, the last, and names in any case. And of what
does pass, a model's name is kept only if somebody else wrote it before.
"""

import json
from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import Any

import aiohttp
import pytest

from gateway.core.errors import BadRequest
from gateway.core.parsing import ParsedRequest
from gateway.core.records import Key
from gateway.simulator import Simulator
from tests.gate_corpus import provider_of_both, serving_both
from tests.harness import Database, ask, serving, until
from tests.json_forms import ESTIMATOR, FORMS, KELVIN, LONG_S, Form, Read, doubles

FEW = 1_500
"""Random bodies for each endpoint."""
NUMBERS = [
    *("NaN", "Infinity", "-Infinity", "1e400", "-1", "0", "-0", "1.0", "1.5", "1e2", "true", "false", "null"),
    *('"5"', "9" * 4_000, "1" + "0" * 400, str(2**31), str(2**63), str(2**64 + 100), "[100]", "{}", "0x64"),
    *("0100", "+100", "1_00", "100.", ".5", "- 1", "1e", "\u0661\u0660\u0660", "\uff11\uff10\uff10", "100 100"),
    *("", "NaN100"),
]


def tricks(form: Form) -> list[bytes]:
    good, add = form.good, form.with_field
    numbers = [number for number in NUMBERS if number != "null" or form.path == "/v1/messages"]
    return [
        *(*map(add, doubles(form)), *map(add, form.tricks), b"", b" ", b"null", b"[]", b"[" + good + b"]"),
        *(map(form.with_maximum, numbers) if form.maximum else ()),
        *(b'"model"', b"5", b"{}", b"\x00", b"{", b'{"', b'{"model"', good[:-1], good[:-1] + b",}", good + b"}"),
        *(good + b"x", good + good, good + b"\n" + good, good + b"\x00", b"\xef\xbb\xbf" + good),
        *(good.decode().encode(code) for code in ("utf-16", "utf-16-be", "utf-32", "utf-32-le")),
        *(good.replace(b'"', b"'"), good.replace(b":", b"="), good[:-1] + b"/* a */}", b"// a\n" + good),
        *(b"# a\n" + good, add('"x": "\\ud800"'), add('"\\ud800": 1'), add('"x": "\ud800"')),
        *(add('"x": "\t"'), add('"x": "\\x41"'), add('"x": "\0"'), add("x: 1")),
        *(add("'x': 1"), add('"x": NaN'), add('"x": 1, "x": 1')),
        *(add('"x": ' + "[" * 100_000 + "]" * 100_000), add('"x": ' + '{"a":' * 100_000)),
        *(good.replace(b"claude", b"\xff"), good.replace(b"claude", b"\xc0\xaf")),
        *(good.replace(b"claude", b"cl\xed\xa0\x80"), good.replace(b"claude", b"\\ud800")),
        *(good.replace(b"claude", b"\\ud83d\\u0041"), good.replace(b"claude", b"\x00")),
        good.replace(b'"claude', b'"' + b"c" * 300),
    ]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
async def test_a_body_with_a_trick_in_it_is_refused_and_goes_nowhere(database: Database, form: Form) -> None:
    text, key = await database.create_key()
    headers = {"authorization": f"Bearer {text}", "content-type": "application/json"}
    async with (
        provider_of_both() as provider,
        serving_both(provider, database.path) as origin,
        aiohttp.ClientSession(origin) as http,
    ):
        for body in tricks(form):
            async with http.post(form.path, data=body, headers=headers) as answer:
                assert answer.status == 400, body[:100]
                assert (await answer.json())["error"]["type"] == "invalid_request_error"
        assert provider.messages() == []
        assert database.rows(key) == []
        async with http.post(form.path, data=form.good, headers=headers) as answer:
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


def spelled_fields(random: Random, form: Form) -> list[str]:
    """The fields of a valid body in any order, sometimes with one that nearly stands there already."""
    values = {**form.values, **form.others}
    needed = ("model", "max_tokens") if form.path == "/v1/messages" else ("model",)
    rest = [name for name in values if name not in needed]
    names = [*needed, *random.sample(rest, random.randrange(1 + min(4, len(rest))))]
    if random.random() < 0.6:
        names.append(random.choice(list(form.values)))
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


def random_body(random: Random, form: Form) -> bytes:
    gap = random.choice(["", " ", "\r\n\t"])
    body = "{" + gap + f"{gap},{gap}".join(spelled_fields(random, form)) + gap + "}"
    for _ in range(random.choice([0, 0, 0, 1, 2])):
        body = mutated(random, body)
    return body.encode()


Pairs = list[tuple[str, Any]]
PARSERS: Sequence[Callable[[Pairs], Read]] = (
    dict,
    lambda pairs: dict(pairs[::-1]),
    lambda pairs: {name.casefold(): value for name, value in pairs},
    lambda pairs: {name.casefold(): value for name, value in pairs[::-1]},
)
"""They take the last field of a name, the first, and so of any name like it; within objects as well."""


def readings(body: bytes, names: Collection[str]) -> list[Read]:
    """What some fields are to each of the parsers; one that does not stand there is null."""
    ways = [json.loads(body.decode(), object_pairs_hook=parser) for parser in PARSERS]
    return [{name: read.get(name) for name in names} for read in ways]


def require_one_reading(form: Form, count: int, seed: int) -> int:
    """How many of so many bodies passed; all that did are read in one way, and asked for their usage in one way."""
    random, passed = Random(seed), 0
    for _ in range(count):
        body = random_body(random, form)
        try:
            parsed = form.parse(body, ESTIMATOR)
        except BadRequest:
            continue
        passed += 1
        read, *others = readings(body, [name for name in form.values if name != "stream_options"])
        assert others == [read] * 3, body
        assert (parsed.model, parsed.hold.output) == (read["model"], form.output(read)), body
        assert parsed.stream is bool(read.get("stream")), body
        if form.path == "/v1/chat/completions":
            require_usage_asked(form, body, parsed)
    return passed


def require_usage_asked(form: Form, body: bytes, parsed: ParsedRequest) -> None:
    """The body that leaves asks for the usage of a stream, whoever reads it, and is the same in all else."""
    sent = parsed.usage_splice.apply(body) if parsed.usage_splice else body
    names = {*form.values, *form.others}
    before, after = readings(body, names), readings(sent, names)
    if not parsed.stream:
        assert sent == body
        return
    for old, new in zip(before, after, strict=True):
        assert new["stream_options"] == (old["stream_options"] or {}) | {"include_usage": True}, body
        assert {**new, "stream_options": None} == {**old, "stream_options": None}, body


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_body_that_passes_is_read_in_one_way_by_every_parser(form: Form) -> None:
    passed = require_one_reading(form, FEW, seed=12)
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
