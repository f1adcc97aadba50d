"""A body is taken only if it can be read in one way: strict JSON, in which no field stands twice."""

import json
import traceback
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.errors import BadRequest
from gateway.core.estimate import Estimator
from gateway.core.parsing import (
    MAX_MODEL_LENGTH,
    MAX_OUTPUT_TOKENS,
    ParsedRequest,
    parse_count_tokens,
    parse_messages,
)
from gateway.core.settings import Settings

ESTIMATOR = Estimator(Settings())
NOT_JSON = "The request body is not valid JSON in UTF-8."
NO_OBJECT = "The request body is not a JSON object."
TWICE = "The request body names a field twice."
TOO_DEEP = "The request body is nested too deeply."
hypothesis = settings(deadline=None, max_examples=150)


def parse(body: bytes) -> ParsedRequest:
    return parse_messages(body, ESTIMATOR)


def refusal(body: bytes) -> str:
    """What the refused body is told; both endpoints read the top level in the same way."""
    with pytest.raises(BadRequest) as caught:
        parse(body)
    assert caught.value.status == 400
    return caught.value.message


def body_with(fields: str) -> bytes:
    """A good body, and in it `fields`, spelled out."""
    return f'{{"model": "claude-x", {fields}, "max_tokens": 64}}'.encode()


GOOD = b'{"model":"claude-x","max_tokens":64}'


def test_what_the_limits_need_is_read() -> None:
    parsed = parse(b'{"model": "claude-x", "max_tokens": 64, "stream": true, "messages": []}')
    assert (parsed.model, parsed.hold.output, parsed.hold.input) == ("claude-x", 64, 24)


def test_a_count_of_tokens_needs_no_max_tokens_and_holds_nothing() -> None:
    parsed = parse_count_tokens(b'{"model": "claude-x", "messages": []}')
    assert (parsed.model, parsed.hold.charge) == ("claude-x", 0)
    for body in (b"", b"[]", b'{"model":1}', b'{"model":"a","model":"a"}'):
        with pytest.raises(BadRequest):
            parse_count_tokens(body)


# One JSON object in UTF-8


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"\x00",
        b"\xef\xbb\xbf" + GOOD,
        GOOD.decode().encode("utf-16"),
        GOOD.decode().encode("utf-16-le"),
        GOOD.decode().encode("utf-16-be"),
        GOOD.decode().encode("utf-32"),
        GOOD.replace(b"claude", b"cl\xe4ude"),
        body_with('"x": "\x7f"').replace(b"\x7f", b"\xff"),
        body_with('"x": "\x7f"').replace(b"\x7f", b"\xc0\xaf"),
        body_with('"x": "\x7f"').replace(b"\x7f", b"\xed\xa0\x80"),
        body_with('"x": "\\ud800"'),
        body_with('"\\udfff": 1'),
        GOOD + b"x",
        GOOD + GOOD,
        GOOD + b"\x00",
        b"\x00" + GOOD,
        b"\x0b" + GOOD,
        b"\xc2\xa0" + GOOD,
        GOOD[:-1],
        GOOD[:-1] + b",}",
        GOOD[:-1] + b"]",
        GOOD.replace(b'"', b"'"),
        GOOD.replace(b":", b"="),
        b"model=claude-x&max_tokens=64",
        *(
            body_with(f'"x": {value}')
            for value in (
                *("NaN", "Infinity", "-Infinity", "nan", "True", "None", "undefined", "tru", "nulll", "''"),
                *("01", "-", "+1", ".5", "5.", "1e", "0x10", "1_000", "--1", "1 2"),
                *('"\\x"', '"\\u12"', '"\\u12g4"', '"a\nb"', '"a\tb"', '"\x01"', '"', '"\\"'),
                *("[1,]", "[,1]", "[1 2]", '{"a":}', '{"a" 1}', "{a:1}", "{1:1}", '{"a":1,}', "[}", "{]"),
                *("1 // a", "1 /* a */", "1 # a"),
            )
        ),
    ],
)
def test_what_is_not_strict_json_is_refused(body: bytes) -> None:
    assert refusal(body) == NOT_JSON


@pytest.mark.parametrize("body", [b"[]", b"1", b'"model"', b"null", b"true", b"[" + GOOD + b"]"])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    assert refusal(body) == NO_OBJECT


@pytest.mark.parametrize(
    ("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"content":', b"}]"), (b'{"content":', b"}")]
)
@pytest.mark.parametrize("name", [b"x", b"messages", b"model", b"tools"])
def test_depth_is_refused_and_never_breaks_the_parser(name: bytes, opening: bytes, closing: bytes) -> None:
    for depth in (10, 400, 480, 900, 950, 1_000, 2_000, 100_000):
        nested = opening * depth + b'"image"' + closing * depth
        body = b'{"%b":%b,"max_tokens":64,"model":"claude-x"}' % (name, nested)
        try:
            parse(body)
        except BadRequest:
            continue
        assert name != b"model"
        assert depth < 100_000


# No field twice


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","model":"b","max_tokens":64}',
        b'{"model":"a","max_tokens":64,"model":"a"}',
        b'{"model":"a","max_tokens":64,"max_tokens":6}',
        b'{"model":"a","max_tokens":6,"max_tokens":64}',
        b'{"model":"a","max_tokens":64,"max_tokens":64 }',
        b'{"model":"a","max_tokens":64,"stream":true,"stream":false}',
        b'{"model":"a","max_tokens":64,"messages":[],"messages":[]}',
        b'{"model":"a","\\u006dodel":"b","max_tokens":64}',
        b'{"\\u006dodel":"a","\\u006Dodel":"b","max_tokens":64}',
        b'{"model":"a","max\\u005ftokens":1,"max_tokens":64}',
        b'{"\\u006d\\u006f\\u0064\\u0065\\u006c":"a","mod\\u0065l":"a","max_tokens":64}',
        b'{"model":"a","max_tokens":64,"\\/":1,"/":1}',
        b'{"model":"a","max_tokens":64,"\\ud83d\\ude00":1,"\xf0\x9f\x98\x80":1}',
        b'{"model":"a","max_tokens":64,"":1,"":1}',
        b'{"model":"a","max_tokens":64,"\\"":1,"\\u0022":1}',
        b'{"model":"a","max_tokens":64,"x": {"q":1,"model":"b"}, "x": 12345}',
        b'{"model":"a","max_tokens":64,"x":{"q":1,"y":2},"x":123456,"y":2}',
        b'{"max_tokens":64,"x":{"q":1,"model":"a"},"x":123456,"model":"a"}',
        b'{"x": 12345, "x": {"q":1,"model":"b"},"model":"a","max_tokens":64}',
        b'{"x": {"q":1,"model":"b"}, "x": {"q":1,"model":"b"},"model":"a","max_tokens":64}',
        b'{"x":"\\",\\"model\\":\\"b\\"","x":"","model":"a","max_tokens":64}',
        b'{"x":1,"x":12,"model":"a","max_tokens":64}',
        b'{"x":12,"x":1,"model":"a","max_tokens":64}',
        b'{"x":1,"x":1.0,"model":"a","max_tokens":64}',
        b'{"x":1.0,"x":1,"model":"a","max_tokens":64}',
        b'{"x":1 ,"x":1,"model":"a","max_tokens":64}',
        b'{"x":[],"x":[[]],"model":"a","max_tokens":64}',
        b'{"x":{"model":"b"},"x":"{","model":"a","max_tokens":64}',
        b'{"x":"a\\u0062","x":"ab","model":"a","max_tokens":64}',
        b'{"x":null,"x":null,"model":"a","max_tokens":64}',
    ],
)
def test_a_name_that_stands_twice_is_refused_however_it_is_spelled(body: bytes) -> None:
    assert len(json.loads(body, object_pairs_hook=list)) > len(json.loads(body))
    assert refusal(body) == TWICE


@pytest.mark.parametrize(
    "fields",
    [
        '"x": {"model": "b", "max_tokens": 1}',
        '"x": "\\"model\\": \\"b\\", \\"max_tokens\\": 1"',
        '"x": [{"a": 1}, {"a": 1}], "y": {"a": 1}',
        '"model ": "d", " model": "e", "models": "f"',
        '"x": 1, "x\\u0000": 1, "\\u0000x": 1',
        '"a\\\\": "\\\\", "a\\"": "}", "{": "{", "}": ",", ",": ":"',
        '"": 1, " ": 1, "\\t": 1',
        '"x" \t\r\n: \t\r\n 1 \t\r\n',
        '"x": 1e999, "y": -0.0, "z": 123456789012345678901234567890',
        '"\u2028": "\u2029", "\x7f": "\x85", "\U0001f600": "\\ud83d\\ude00"',
    ],
)
def test_a_name_that_only_seems_to_stand_twice_is_taken(fields: str) -> None:
    parsed = parse(body_with(fields))
    assert (parsed.model, parsed.hold.output) == ("claude-x", 64)


@pytest.mark.parametrize("name", ["Model", "MODEL", "Max_Tokens", "\\u004dODEL", "max_to\u212aens", "\u017ftream"])
def test_a_name_in_another_case_is_refused_since_some_parsers_take_it_for_the_same(name: str) -> None:
    assert refusal(body_with(f'"{name}": 1')) in (TWICE, "stream: Field names are written in lower case.")


@pytest.mark.parametrize("name", ["Stream", "STREAM"])
def test_a_field_that_is_read_is_known_in_lower_case_only(name: str) -> None:
    assert refusal(body_with(f'"{name}": true')) == "stream: Field names are written in lower case."


@pytest.mark.parametrize(
    "source",
    [
        '"source": {"type": "text", "data": "LONG", "type": "base64"}',
        '"source": {"type": "text", "data": "LONG"}, "type": "image"',
    ],
)
def test_a_name_that_stands_twice_deep_within_does_not_make_a_hold_smaller(source: str) -> None:
    """Else a text is taken for the bytes of a file here, and read as text by an upstream that takes the first."""
    block = f'{{"type": "document", {source.replace("LONG", "x" * 300_000)}}}'
    try:
        parsed = parse(body_with(f'"messages": [{{"role": "user", "content": [{block}]}}]'))
    except BadRequest:
        return
    assert parsed.hold.input >= 100_000


# The fields that are read


@pytest.mark.parametrize(
    ("written", "output"),
    [
        ("1", 1),
        ("64000", 64_000),
        (" \n64\t", 64),
        (str(MAX_OUTPUT_TOKENS), MAX_OUTPUT_TOKENS),
        (str(MAX_OUTPUT_TOKENS + 1), None),
        ("0", None),
        ("-0", None),
        ("-1", None),
        ("-64000", None),
        (str(2**32 + 1), None),
        (str(2**63 - 1), None),
        (str(2**63), None),
        (str(2**64 + 1), None),
        (str(-(2**63) - 1), None),
        (str(10**30), None),
        ("9" * 400, None),
        ("9" * 5_000, None),
        ("1.0", None),
        ("1.5", None),
        ("0.5", None),
        ("1e3", None),
        ("1E+3", None),
        ("1e-3", None),
        ("1e400", None),
        ("true", None),
        ("false", None),
        ("null", None),
        ('"64"', None),
        ('""', None),
        ("[64]", None),
        ("[]", None),
        ('{"value": 64}', None),
        ("{}", None),
    ],
)
def test_max_tokens_is_a_whole_number_above_nothing(written: str, output: int | None) -> None:
    body = f'{{"model": "claude-x", "max_tokens": {written}}}'.encode()
    if output is None:
        assert refusal(body).startswith("max_tokens: Input should be ")
    else:
        assert parse(body).hold.output == output


@pytest.mark.parametrize("written", ["1", "null", "true", "[]", "{}", '["claude-x"]', '""', '"%s"' % ("m" * 257)])
def test_a_model_is_a_text_of_sane_length(written: str) -> None:
    assert refusal(f'{{"model": {written}, "max_tokens": 64}}'.encode()).startswith("model: Input should ")


@pytest.mark.parametrize(
    ("written", "model"),
    [
        ("claude\\u002dx", "claude-x"),
        ("\\u0063laude-x", "claude-x"),
        ("a\\/b", "a/b"),
        ("m" * MAX_MODEL_LENGTH, "m" * MAX_MODEL_LENGTH),
        ("\u4e2d\\ud83d\\ude00", "\u4e2d\U0001f600"),
    ],
)
def test_a_model_is_read_as_its_upstream_reads_it(written: str, model: str) -> None:
    assert parse(f'{{"model": "{written}", "max_tokens": 64}}'.encode()).model == model


def test_names_are_read_however_they_are_escaped() -> None:
    parsed = parse(b'{"\\u006dodel": "a", "max\\u005Ftokens": 9}')
    assert (parsed.model, parsed.hold.output) == ("a", 9)


@pytest.mark.parametrize("written", ["true", "false", "null"])
def test_stream_is_true_or_false(written: str) -> None:
    assert parse(body_with(f'"stream": {written}')).model == "claude-x"


@pytest.mark.parametrize("written", ["1", "0", '"true"', "[]", "{}"])
def test_stream_is_nothing_else(written: str) -> None:
    assert refusal(body_with(f'"stream": {written}')) == "stream: Input should be true or false"


def test_fields_that_are_missing_are_named() -> None:
    assert refusal(b'{"model":"a"}') == "max_tokens: Field required"
    assert refusal(b'{"max_tokens":1}') == "model: Field required"
    assert refusal(b"{}") == "max_tokens: Field required"


@pytest.mark.parametrize(
    "body",
    [
        b'{"canary-7f3": NaN}',
        b'{"canary-7f3": "\xff"}',
        b'["canary-7f3"]',
        b'{"canary-7f3":1,"canary-7f3":1}',
        b'{"model":["canary-7f3"],"max_tokens":1}',
        b'{"model":"a","max_tokens":"canary-7f3"}',
        b'{"model":"a","max_tokens":1,"stream":"canary-7f3"}',
    ],
)
def test_a_refusal_quotes_nothing_of_the_body(body: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(body)
    assert "canary" not in "".join(traceback.format_exception(caught.value, chain=True, limit=0))
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


# Any body


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
READ = ("model", "max_tokens", "stream")
OTHERS = st.dictionaries(TEXTS.filter(lambda name: name not in READ), VALUES, max_size=5)
SPELLINGS: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {"separators": (",", ":")},
        {"separators": (", ", ": ")},
        {"separators": (" ,\r\n", "\t: ")},
        {"indent": 2},
        {"ensure_ascii": False},
        {"ensure_ascii": False, "separators": (",", ":")},
    ]
)
SOMEWHERE = st.integers(0, 10_000)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Valid bodies in any spelling, with the fields that are read at any place among others."""
    read = {"model": draw(TEXTS.filter(bool)), "max_tokens": draw(st.integers(1, MAX_OUTPUT_TOKENS))}
    fields = list((draw(OTHERS) | read).items())
    spelled: str = json.dumps(dict(draw(st.permutations(fields))), **draw(SPELLINGS))
    return spelled.encode()


@hypothesis
@given(bodies())
def test_every_valid_body_is_taken_and_read_as_others_read_it(body: bytes) -> None:
    parsed, expected = parse(body), json.loads(body)
    assert parsed.model == parse_count_tokens(body).model == expected["model"]
    assert parsed.hold.output == expected["max_tokens"]


def top_level_twice(body: bytes) -> tuple[dict[str, object], dict[str, object]] | None:
    """The top level as a parser reads it that takes the first of two values, and as one that takes the last."""
    try:
        pairs = json.loads(body.decode(), object_pairs_hook=lambda pairs: pairs)
    except (ValueError, RecursionError):
        return None
    if not body.lstrip(b" \t\r\n").startswith(b"{"):
        return None
    return dict(reversed(pairs)), dict(pairs)


PIECES = st.sampled_from(
    [
        *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u006d", b"\\u0022", b" ", b"\n", b"\x00", b"\xff"),
        *(
            b'"model":"b",',
            b',"model":"b"',
            b'"\\u006dodel":1,',
            b'"max_tokens":1,',
            b'"x":{"model":"b"},',
            b'"x":1,',
        ),
        *(b"0", b"1", b"-", b".", b"e9", b"NaN", b"true", b"null", b"//", b"\xef\xbb\xbf", b"\xc2\x85"),
    ]
)


@st.composite
def mutated_bodies(draw: st.DrawFn) -> bytes:
    """Valid bodies with pieces put in, cut out, or doubled."""
    body = draw(bodies())
    for _ in range(draw(st.integers(1, 3))):
        begin, end = sorted((draw(SOMEWHERE) % (len(body) + 1), draw(SOMEWHERE) % (len(body) + 1)))
        match draw(st.sampled_from(["insert", "insert after a comma", "cut", "double"])):
            case "insert":
                body = body[:begin] + draw(PIECES) + body[begin:]
            case "insert after a comma":
                place = body.find(b",", begin) + 1 or body.find(b"{") + 1
                body = body[:place] + draw(PIECES) + body[place:]
            case "cut":
                body = body[:begin] + body[end:]
            case _:
                body = body[:end] + body[begin:]
    return body


@hypothesis
@given(mutated_bodies())
def test_a_body_that_two_parsers_read_differently_is_never_taken(body: bytes) -> None:
    try:
        parsed = parse(body)
    except BadRequest:
        return
    readings = top_level_twice(body)
    assert readings is not None
    first, last = readings
    assert repr(first) == repr({name: last[name] for name in first})
    assert parsed.model == first["model"]
    assert parsed.hold.output == first["max_tokens"]


@st.composite
def bodies_with_a_double(draw: st.DrawFn) -> bytes:
    """Valid bodies but for one name that stands twice, each time in any spelling and with any value."""
    fields = [("model", "a"), ("max_tokens", 64), *draw(OTHERS).items()]
    double = draw(st.sampled_from([name for name, _ in fields]))
    value = draw(VALUES | st.sampled_from([value for name, value in fields if name == double]))
    placed = draw(st.permutations([*fields, (double, value)]))

    def spell(name: str) -> str:
        if name == double and draw(st.booleans()):
            units = name.encode("utf-16-be")
            escapes = [f"\\u{units[place : place + 2].hex()}" for place in range(0, len(units), 2)]
            return f'"{"".join(escapes)}"'
        return json.dumps(name, ensure_ascii=False)

    spelled = [f"{spell(name)}: {json.dumps(value)}" for name, value in placed]
    return f"{{{', '.join(spelled)}}}".encode()


@hypothesis
@given(bodies_with_a_double())
def test_no_double_is_taken_whatever_its_values_are(body: bytes) -> None:
    assert refusal(body) == TWICE
