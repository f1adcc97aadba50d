"""A chat stream is asked for its usage, and the answer to that is taken out again: no other byte changes."""

import json
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.core.estimate import Estimator
from gateway.core.openai_parsing import parse_chat
from gateway.core.settings import Settings
from gateway.core.splice import MAX_USAGE_CHUNK_BYTES, UsageChunkRemover, ask_for_usage
from tests.test_metering import LINE_ENDS, cuts

ESTIMATOR = Estimator(Settings())
hypothesis = settings(deadline=None, max_examples=300)


def spliced(body: bytes) -> bytes:
    splice = parse_chat(body, ESTIMATOR).usage_splice
    return body if splice is None else splice.apply(body)


# The request


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            '{"model": "m", "stream": true}',
            '{"stream_options":{"include_usage":true},"model": "m", "stream": true}',
        ),
        (
            ' \r\n\t{ "model":"m","stream":true } ',
            ' \r\n\t{"stream_options":{"include_usage":true}, "model":"m","stream":true } ',
        ),
        (
            '{"model":"m","stream_options" : null ,"stream":true}',
            '{"model":"m","stream_options" : {"include_usage":true} ,"stream":true}',
        ),
        (
            '{"model":"m","stream":true,"stream_options":\n{}}',
            '{"model":"m","stream":true,"stream_options":\n{"include_usage":true}}',
        ),
        (
            '{"stream_options":{ "x": [1, {"y": "}"}] },"model":"m","stream":true}',
            '{"stream_options":{"include_usage":true, "x": [1, {"y": "}"}] },"model":"m","stream":true}',
        ),
        (
            '{"model":"m","stream_options":{"x":"{","include_usage" : false,"y":1},"stream":true}',
            '{"model":"m","stream_options":{"x":"{","include_usage" : true,"y":1},"stream":true}',
        ),
        (
            '{"model":"m","stream\\u005foptions":{"include\\u005fusage":null},"stream":true}',
            '{"model":"m","stream\\u005foptions":{"include\\u005fusage":true},"stream":true}',
        ),
        (
            '{"user":"\\"stream_options\\":{","tools":[{"stream_options":{}}],"model":"m","x":"stream_options",'
            '"stream_options":{},"stream":true}',
            '{"user":"\\"stream_options\\":{","tools":[{"stream_options":{}}],"model":"m","x":"stream_options",'
            '"stream_options":{"include_usage":true},"stream":true}',
        ),
    ],
    ids=["absent", "spaced", "null", "empty", "extended", "false", "escaped", "elsewhere too"],
)
def test_a_stream_is_asked_for_its_usage_and_no_other_byte_changes(before: str, after: str) -> None:
    assert spliced(before.encode()) == after.encode()


def test_an_object_without_fields_gets_no_comma() -> None:
    assert ask_for_usage(b"{}", {}, None).apply(b"{}") == b'{"stream_options":{"include_usage":true}}'


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"m"}',
        '{"model":"m","stream":false}',
        '{"model":"m","stream":null,"stream_options":{}}',
        '{"model":"m","stream":true,"stream_options":{"include_usage":true}}',
        '{"model":"m","stream":true,"stream_options":{"x":1, "include_usage" : true }}',
    ],
)
def test_what_is_no_stream_or_asks_itself_stays_as_it_is(body: str) -> None:
    assert spliced(body.encode()) == body.encode()


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ['"stream_options":{', "stream_options", "include_usage", "{", "}", ",", "\\", '\\"', ":"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
READ = {"model", "n", "stream", "max_tokens", "max_completion_tokens", "stream_options", "include_usage"}
OTHERS = st.dictionaries(TEXTS.filter(lambda name: name.casefold() not in READ), VALUES, max_size=4)
OPTIONS = st.none() | st.builds(
    lambda others, asked: others | asked,
    OTHERS,
    st.sampled_from([{}, {"include_usage": None}, {"include_usage": False}, {"include_usage": True}]),
)
SPELLINGS: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{"separators": (",", ":")}, {"separators": (" ,\r\n", "\t: ")}, {"indent": 2}, {"ensure_ascii": False}]
)


def has_one_spelling(fields: object) -> bool:
    """Names that differ in case only are refused."""
    if isinstance(fields, dict):
        return len({name.casefold() for name in fields}) == len(fields)
    return True


@hypothesis
@given(OTHERS.filter(has_one_spelling), OPTIONS.filter(has_one_spelling), st.booleans(), SPELLINGS, st.randoms())
def test_a_spliced_body_says_the_same_and_asks_for_its_usage(
    others: dict[str, object], options: dict[str, object] | None, is_given: bool, spelling: Any, random: Any
) -> None:
    fields = others | {"model": "m", "stream": True} | ({"stream_options": options} if is_given else {})
    names = list(fields)
    random.shuffle(names)
    body = json.dumps({name: fields[name] for name in names}, **spelling).encode()
    changed = spliced(body)
    asked = (options or {} if is_given else {}) | {"include_usage": True}
    expected = fields | {"stream_options": asked}
    assert json.loads(changed) == expected
    assert len(changed) - len(body) <= len('"stream_options":{"include_usage":true},')
    assert len(json.loads(changed, object_pairs_hook=list)) == len(expected)


# The stream


USAGE = '{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}'
EXTRA = f'{{"id":"c","object":"chat.completion.chunk","choices":[],"usage":{USAGE}}}'
WORDS = '{"id":"c","choices":[{"index":0,"delta":{"content":"\\"choices\\":[] \u2028"}}],"usage":null}'


def event(data: str, line_end: bytes = b"\n") -> bytes:
    return b"data: " + data.encode() + line_end + line_end


def removed(chunks: list[bytes]) -> bytes:
    remover = UsageChunkRemover()
    return b"".join([*map(remover.feed, chunks), remover.rest()])


def bytewise(whole: bytes) -> list[bytes]:
    return [whole[place : place + 1] for place in range(len(whole))]


@pytest.mark.parametrize("line_end", LINE_ENDS)
def test_the_extra_chunk_is_taken_out_wherever_the_stream_is_cut(line_end: bytes) -> None:
    before = event(WORDS, line_end) + b": note" + line_end + line_end + event(WORDS, line_end)
    after = event("[DONE]", line_end)
    whole = before + event(EXTRA, line_end) + after
    for place in range(len(whole) + 1):
        assert removed(list(cuts(whole, [place]))) == before + after
    assert removed(bytewise(whole)) == before + after


@pytest.mark.parametrize(
    "extra",
    [
        b"data:%b\n\n" % EXTRA.encode(),
        b"id: 5\nevent: chunk\ndata: %b\nretry: 5\n\n" % EXTRA.encode(),
        b'data: { "usage" : {} ,\r\ndata: "choices" :\ndata: [\ndata: ] }\r\r\n',
        b'data: {"choices":[],"error":null,"usage":{"prompt_tokens":1},"x":{"choices":[]}}\n\n',
    ],
)
def test_the_extra_chunk_is_known_however_it_is_spelled(extra: bytes) -> None:
    whole = event(WORDS) + extra + event("[DONE]")
    for chunks in ([whole], bytewise(whole), [event(WORDS), extra, event("[DONE]")]):
        assert removed(chunks) == event(WORDS) + event("[DONE]")


@pytest.mark.parametrize(
    "kept",
    [
        f'{{"choices":[{{"delta":{{}},"finish_reason":"stop"}}],"usage":{USAGE}}}',
        f'{{"usage":{USAGE},"choices":[{{"delta":{{}}}}]}}',
        '{"choices":[],"prompt_filter_results":[]}',
        '{"choices":[],"usage":null}',
        '{"choices":null,"usage":{}}',
        f'{{"usage":{USAGE}}}',
        f'{{"choices":[],"usage":{USAGE},"error":{{"message":"no"}}}}',
        f'{{"choices":[],"usage":{USAGE}',
        f'[{{"choices":[],"usage":{USAGE}}}]',
        '"{\\"choices\\":[]}"',
        '{"error":{"message":"choices"}}',
        "[DONE]",
        "",
        "{",
        json.dumps({"choices": [], "x": "y" * MAX_USAGE_CHUNK_BYTES, "usage": {}}),
    ],
)
@pytest.mark.parametrize("line_end", LINE_ENDS)
def test_every_other_event_stays(kept: str, line_end: bytes) -> None:
    whole = event(kept, line_end) + event("[DONE]", line_end)
    assert removed([whole]) == removed(list(cuts(whole, [3, 9, 40]))) == whole
    if len(whole) < 500:
        assert removed(bytewise(whole)) == whole


def test_a_comment_within_the_extra_chunk_stays() -> None:
    extra = b"data: %b\n: note\n\n" % EXTRA.encode()
    for chunks in ([extra], bytewise(extra), [extra[:-4], extra[-4:]]):
        assert removed(chunks) == b": note\n"


def test_an_extra_chunk_that_never_ends_is_given_back_at_the_end() -> None:
    whole = event(WORDS) + b"data: " + EXTRA.encode()
    remover = UsageChunkRemover()
    assert remover.feed(whole) == event(WORDS)
    assert remover.rest() == b"data: " + EXTRA.encode()
    assert remover.rest() == b""


@pytest.mark.parametrize(
    ("start", "known"),
    [
        ("data: [", True),
        ("data: x", True),
        (": note", True),
        ("\n", True),
        ('data: {"id":"c","choices":[{', True),
        ('data: {"id":"c","choices": n', True),
        ('data: {"id":"c","usage": n', True),
        ('data: {"id":"\\"choices\\":[{', False),
        ('data: {"id":"c","choices":[', False),
        ('data: {"id":"c","choices":[]', False),
        ('data: {"id":"c","usage":{', False),
        ('data: {"id":"c","choi', False),
        ("data: {", False),
        ("data:", False),
        ("dat", False),
        ("id: 5\n", False),
    ],
)
def test_an_event_is_held_back_only_while_it_may_be_the_extra_chunk(start: str, known: bool) -> None:
    remover = UsageChunkRemover()
    given_back = b"".join(map(remover.feed, bytewise(start.encode())))
    assert given_back == (start.encode() if known else b"")


def test_what_is_held_back_has_an_end() -> None:
    remover = UsageChunkRemover()
    held = b'data: {"id":"' + b"x" * (MAX_USAGE_CHUNK_BYTES - 13)
    assert remover.feed(held) == b""
    assert remover.feed(b"x") == held + b"x"
    assert remover.feed(b"y") == b"y"


LINES = st.sampled_from(
    [
        b"",
        b"",
        b"",
        f"data: {EXTRA}".encode(),
        f"data: {EXTRA}".encode(),
        f"data: {WORDS}".encode(),
        b'data: {"choices":[],',
        b'data:"usage":{}}',
        b"data: [DONE]",
        b": note",
        b"id: 5",
        b"data",
        b"\xef\xbb\xbfdata: x",
    ]
)
STREAMS = st.lists(st.tuples(LINES, st.sampled_from(LINE_ENDS)), max_size=14).map(
    lambda lines: b"".join(line + end for line, end in lines)
)


def expected_of(whole: bytes) -> bytes:
    """What the rule says: the slow and plain way, event by event."""
    given_back, event_lines = b"", []
    for line in re.findall(rb"[^\r\n]*(?:\r\n|\n|\r)", whole):
        if line.strip(b"\r\n"):
            event_lines.append(line)
            continue
        data = b"\n".join(one.strip(b"\r\n")[5:] for one in event_lines if one.startswith(b"data:"))
        try:
            chunk = json.loads(data)
            is_extra = chunk["choices"] == [] and isinstance(chunk["usage"], dict)
        except (ValueError, KeyError, TypeError):
            is_extra = False
        kept = [one for one in event_lines if one.startswith(b":")] if is_extra else [*event_lines, line]
        given_back += b"".join(kept)
        event_lines = []
    return given_back + b"".join(event_lines)


@hypothesis
@given(STREAMS, st.lists(st.integers(0, 2_000), max_size=10))
@example(b"data: " + EXTRA.encode() + b"\r\n\r\ndata: x\r\n\r\n", range(200))
def test_any_stream_cut_anywhere_comes_back_by_the_rule(whole: bytes, places: list[int]) -> None:
    assert removed(list(cuts(whole, places))) == expected_of(whole)
