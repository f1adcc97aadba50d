"""One level of a JSON object is read strictly, and in the same way however it is written.

A small object that is written as most clients do is read at once, any other name by name. White space behind an
object changes nothing of what it says, and with enough of it no object is small: so each is read in both ways here.
"""

import json
import tracemalloc

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.core.objects import MOST_NAMES, NameTwice, TooManyNames, Unclear, read_object

REFUSALS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, Unclear)
WHITE_SPACE = b" " * 2**16
hypothesis = settings(deadline=None, max_examples=500)


def reading(data: bytes | msgspec.Raw) -> list[tuple[str, bytes]] | type[Exception]:
    """What stands in an object, in order, or why it is refused."""
    try:
        return [(str(name), bytes(value)) for name, value in read_object(data).items()]
    except REFUSALS as error:
        return type(error)


def require_one_reading(data: bytes) -> None:
    assert reading(data) == reading(data + WHITE_SPACE)
    assert reading(data) == reading(b"\n" + data)


NAMES = st.sampled_from(
    [
        *('"a"', '"A"', '"b"', '""', '"\\u0061"', '"\\u0041"', '"\u00e4"', '"\u00c4"', '"1"', '"a b"', '"\\""'),
        *('"k"', '"\u212a"', '"s"', '"\u017f"', '"\u00df"', '"ss"', '"\ufb06"', '"st"', '"a\\u0000"', '"\\ud800"'),
    ]
)
VALUES = st.sampled_from(
    [
        *("1", "12", "-0.5e9", '"x"', '"a"', '""', '"\\","', "[]", "{}", "[1,2]", '{"a":1}', '{"a":1,"a":2}'),
        *("null", "true", '"\\u0041"', '"\u4e2d"', "nul", "01", "[", '"', ""),
    ]
)
GAPS = st.sampled_from(["", "", "", "", " ", "\n\t"])


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    """Objects with names that are there already or nearly so, written in any way, and some that are no JSON."""
    fields = draw(st.lists(st.tuples(NAMES, VALUES), max_size=5))
    gap = draw(GAPS)
    spelled = f"{gap},{gap}".join(f"{name}{gap}:{gap}{value}" for name, value in fields)
    return f"{{{gap}{spelled}{gap}}}{draw(GAPS)}".encode()


@hypothesis
@given(objects())
@example(b"{}")
@example(b'{"":1}')
@example(b'{"a":1,"b":22}')
@example(b'{"a":1,"a":1}')
@example(b'{"a":1,"a":1')
@example(b'{"a":1,"b": 1}')
@example(b'{"a": 1, "": 1, "": 1}')
@example(b'{"a":1,"A":1}')
@example(b'{"a":"\xff"}')
def test_an_object_says_the_same_however_it_is_read(data: bytes) -> None:
    require_one_reading(data)


@hypothesis
@given(objects(), st.integers(0, 60), st.sampled_from([b"", b",", b'"', b"}", b"\x00", b"\xff", b'"a":1,', b" "]))
def test_a_spoiled_object_is_refused_for_the_same_reason_however_it_is_read(
    data: bytes, place: int, piece: bytes
) -> None:
    require_one_reading(data[:place] + piece + data[place:])
    require_one_reading(data[:place] + piece + data[place + 1 :])


@hypothesis
@given(objects())
def test_no_object_passes_in_which_a_name_stands_twice_in_any_case(data: bytes) -> None:
    found = reading(data)
    if isinstance(found, list):
        names = [name.casefold() for name, _ in json.loads(data, object_pairs_hook=list)]
        assert [name.casefold() for name, _ in found] == names
        assert len(set(names)) == len(names)


@hypothesis
@given(objects())
def test_an_object_within_another_says_the_same(data: bytes) -> None:
    try:
        raw = msgspec.json.decode(b"[%b]" % data, type=list[msgspec.Raw])[0]
    except (msgspec.MsgspecError, IndexError, UnicodeDecodeError):
        return
    assert reading(raw) == reading(data)


@pytest.mark.parametrize("value", ["1", "1" * 1_000])
@pytest.mark.parametrize("gap", ["", " "])
def test_an_object_names_as_many_fields_as_any_protocol_has_and_no_more(gap: str, value: str) -> None:
    fields = [f'"f{number}":{gap}{value}' for number in range(MOST_NAMES + 1)]
    assert len(reading(f"{{{','.join(fields[1:])}}}".encode())) == MOST_NAMES  # type: ignore[arg-type]
    assert reading(f"{{{','.join(fields)}}}".encode()) is TooManyNames


def test_names_without_end_are_refused_before_they_are_all_read() -> None:
    endless = b'{"a":1' + b"".join(b',"f%d":1' % number for number in range(100_000)) + b"}"
    tracemalloc.start()
    try:
        assert reading(endless) is TooManyNames
        assert reading(b'{"a":1,"a":1,' + endless[1:]) is NameTwice
        assert tracemalloc.get_traced_memory()[1] < 3 * len(endless)  # the second one is a copy or two
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("data", "is_plain"),
    [
        (b'{"model":"a","max_tokens":1,"messages":[{"role": "user"}]}', True),
        (b'{"system":"\xe4\xb8\xad\\u4e2d \\n","metadata":{"A": 1, "a": 2}}', True),
        (b'{"model": "a", "max_tokens": 1}', False),
        (b'{"inputSchema":1}', False),
        (b'{"\xc3\xa4":1}', False),
    ],
)
def test_an_object_as_most_clients_write_it_is_read_at_once(data: bytes, is_plain: bool) -> None:
    """Not name by name: each of those would be shown to Python, which makes a name of its own of it."""
    assert ({type(name) for name in read_object(data)} == {str}) is is_plain
