"""Usage is read off the passing bytes, however they are cut, spelled or packed, whatever nonsense is in them."""

import json
import re
import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.core.anthropic import MessageStream, read_message
from gateway.core.counts import MOST_BELIEVED_TOKENS, Reported
from gateway.core.limits import Hold
from gateway.core.metering import (
    MAX_JSON_BYTES,
    JsonMeter,
    Measurement,
    Meter,
    StreamMeter,
    meter_for,
    unanswered,
)
from gateway.core.protocols import Api
from gateway.core.sse import MAX_EVENT_BYTES, EventReader
from gateway.core.usage import NO_USAGE, Usage

HOLD = Hold(input=400, output=1_000)
SSE = "text/event-stream; charset=utf-8"
COMPACT, SPACED = (",", ":"), (", ", ": ")
SPACINGS = [COMPACT, SPACED]
LINE_ENDS = [b"\n", b"\r", b"\r\n"]
hypothesis = settings(deadline=None, max_examples=150)

Event = dict[str, object]


def start(**usage: object) -> Event:
    message: Event = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "usage": usage}
    return {"type": "message_start", "message": message}


def text(words: str, index: int = 0) -> Event:
    return {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": words}}


def delta(stop_reason: object = "end_turn", **usage: object) -> Event:
    return {"type": "message_delta", "delta": {"stop_reason": stop_reason, "stop_sequence": None}, "usage": usage}


STOP: Event = {"type": "message_stop"}
PING: Event = {"type": "ping"}
WHOLE: list[Event] = [
    start(input_tokens=25, cache_creation_input_tokens=7, cache_read_input_tokens=1_001, output_tokens=1),
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    PING,
    text('\u00c5ngstr\u00f6m \u2028 "usage": {"output_tokens": 999}\r\n\r\n'),
    text("x" * 40),
    {"type": "content_block_stop", "index": 0},
    {"type": "an_event_of_tomorrow", "data": [1, 2]},
    delta(None, output_tokens=30),
    delta(output_tokens=90),
    STOP,
]
WHOLE_USAGE = Usage(input=25, cache_write=7, cache_read=1_001, output=90)


def spell(event: Event, line_end: bytes = b"\n", spacing: tuple[str, str] = COMPACT) -> bytes:
    data = json.dumps(event, ensure_ascii=False, separators=spacing).encode()
    return b"event: %b%bdata: %b%b%b" % (str(event["type"]).encode(), line_end, data, line_end, line_end)


def spell_all(events: Iterable[Event], line_end: bytes = b"\n", spacing: tuple[str, str] = COMPACT) -> bytes:
    return b"".join(spell(event, line_end, spacing) for event in events)


def cuts(whole: bytes, places: Iterable[int]) -> Iterator[bytes]:
    """`whole` in pieces; some may be empty."""
    edges = [0, *sorted(place % (len(whole) + 1) for place in places), len(whole)]
    return (whole[begin:end] for begin, end in pairwise(edges))


def measure(meter: Meter, chunks: Iterable[bytes], *, ended: bool = False) -> Measurement:
    for chunk in chunks:
        meter.feed(chunk)
    return meter.measure(ended=ended)


def measure_stream(*events: Event) -> Measurement:
    return measure(StreamMeter(HOLD, MessageStream()), [spell_all(events)])


def measure_json(body: object, *, ended: bool = True) -> Measurement:
    return measure(JsonMeter(HOLD, read_message), [json.dumps(body).encode()], ended=ended)


# Events out of bytes


def events_of(whole: bytes) -> list[bytes]:
    """What the standard makes of a stream: the slow and plain way."""
    events: list[bytes] = []
    data: list[bytes] = []
    for line in re.sub(rb"\r\n|\r", b"\n", whole).split(b"\n")[:-1]:
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif not line and data:
            events.append(b"\n".join(data))
            data = []
    return events


LINES = st.sampled_from(
    [
        b"data: a",
        b"data:b",
        b"data:  c",
        b"",
        b"",
        b": note",
        b"event: x",
        b"id:1",
        b"data: \xe2\x80\xa8\xc3\x85\x0b\x0c\x1c",
    ]
)
STREAMS = st.lists(st.tuples(LINES, st.sampled_from(LINE_ENDS)), max_size=12).map(
    lambda lines: b"".join(line + end for line, end in lines)
)


@hypothesis
@given(STREAMS, st.lists(st.integers(0, 200), max_size=8))
@example(b"data: a\r\n\ndata: b\n\n", [8, 9])
@example(b"data: a\r\n\r\n", range(12))
def test_events_are_the_same_wherever_their_bytes_are_cut(whole: bytes, places: Iterable[int]) -> None:
    reader = EventReader()
    assert [event for chunk in cuts(whole, places) for event in reader.feed(chunk)] == events_of(whole)


WHOLE_READS = st.sampled_from(
    [b"data: a\n\n", b"event: x\ndata:b\n\ndata:  c\n\n", b": data: no\n\n", b"id: 1\n data: no\n\n", b"\n\n"]
)


@hypothesis
@given(st.lists(WHOLE_READS | STREAMS, max_size=8))
@example([b"data: a\n\n", b"data: b\ndata: c\n\n"])
@example([b"data: a\n\n", b"data: b\nid: 1\ndata: c\n\n"])
@example([b"data: a\n\n", b"data: b\nid: 1\n\n", b"data: data: c\n\n"])
@example([b"data: a\n\n", b"event: x\rdata: b\n\n"])
@example([b"data: a\n\n", b"data: b\n", b"event: x\ndata: c\n\n"])
@example([b"data: a\n\n", b"da", b"ta: b\n\n", b"data:\n\n\n\n"])
@example([b"data: a\n\n", b"data: b\r", b"\ndata: c\n\n"])
@example([b"data: a\n\n", b": x", b"data: no\n\n"])
def test_events_are_the_same_whether_a_read_holds_whole_ones_or_not(reads: list[bytes]) -> None:
    """Reads of whole events are looked through in one go, all others line by line."""
    reader = EventReader()
    assert [event for read in reads for event in reader.feed(read)] == events_of(b"".join(reads))


def test_an_event_larger_than_the_cap_is_passed_over_and_the_next_one_is_seen() -> None:
    reader = EventReader()
    mebibyte = b"x" * 2**20
    events = [event for chunk in [b"data: ", *[mebibyte] * 20, b"\n\n"] for event in reader.feed(chunk)]
    assert sum(map(len, events)) <= MAX_EVENT_BYTES
    many_lines = (b"data: " + mebibyte + b"\n") * 20 + b"\n"
    assert sum(map(len, reader.feed(many_lines))) <= MAX_EVENT_BYTES
    assert sum(map(len, reader.feed(b"data: " + mebibyte * 20 + b"\n\n"))) <= MAX_EVENT_BYTES
    assert reader.feed(b"data: next\n\n") == [b"next"]


def test_a_line_without_end_takes_no_more_memory_than_the_cap() -> None:
    reader = EventReader()
    tracemalloc.start()
    try:
        for _ in range(40):
            reader.feed(b"data: " + b"x" * 2**20)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < MAX_EVENT_BYTES + 2**21


def test_a_byte_order_mark_at_the_start_of_a_stream_is_no_part_of_it() -> None:
    for before in ([], [b""]):
        reader = EventReader()
        assert [reader.feed(read) for read in before] == [[] for _ in before]
        assert reader.feed(b"\xef\xbb\xbfdata: first\n\n") == [b"first"]


# Streams


@pytest.mark.parametrize("line_end", LINE_ENDS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_stream_cut_at_any_byte_is_measured_the_same(line_end: bytes, spacing: tuple[str, str]) -> None:
    whole = spell_all(WHOLE, line_end, spacing)
    for place in range(len(whole) + 1):
        meter = StreamMeter(HOLD, MessageStream())
        assert measure(meter, cuts(whole, [place])) == Measurement(WHOLE_USAGE, estimated=False)
        assert meter.is_complete
    assert measure(StreamMeter(HOLD, MessageStream()), cuts(whole, range(len(whole)))).usage == WHOLE_USAGE


@pytest.mark.parametrize("line_end", LINE_ENDS)
def test_a_stream_is_complete_once_its_terminal_event_is_and_not_before(line_end: bytes) -> None:
    whole = spell_all(WHOLE, line_end)
    meter = StreamMeter(HOLD, MessageStream())
    seen = []
    for chunk in cuts(whole, range(len(whole))):
        meter.feed(chunk)
        seen.append(meter.is_complete)
    last = len(whole) - (line_end == b"\r\n")  # the blank line is there with its CR
    assert seen.index(True) == last
    assert all(seen[last:])


@pytest.mark.parametrize(
    "event",
    [
        text("message_stop"),
        text('"message_stop"'),
        {"type": "content_block_start", "content_block": {"type": "tool_use", "name": "message_stop", "input": {}}},
        {"type": "content_block_start", "content_block": {"type": "tool_use", "input": {"message_stop": 1}}},
    ],
)
def test_nothing_that_a_model_says_ends_a_stream(event: Event) -> None:
    meter = StreamMeter(HOLD, MessageStream())
    measure(meter, [spell_all([*WHOLE[:3], event])])
    assert not meter.is_complete
    assert measure(meter, [spell_all(WHOLE[3:])]) == Measurement(WHOLE_USAGE, estimated=False)
    assert meter.is_complete


def test_a_terminal_event_ends_a_stream_whatever_else_stands_in_it() -> None:
    meter = StreamMeter(HOLD, MessageStream())
    meter.feed(spell(STOP | {"usage": {"output_tokens": 5}}))
    assert meter.is_complete


def test_counts_that_are_stated_again_replace_those_before_and_are_never_added() -> None:
    measured = measure_stream(
        start(input_tokens=2_679, cache_creation_input_tokens=3, cache_read_input_tokens=5, output_tokens=3),
        delta(None, input_tokens=5_000, output_tokens=200),
        delta(input_tokens=10_682, output_tokens=510, cache_read_input_tokens=None),
        STOP,
    )
    assert measured == Measurement(Usage(input=10_682, output=510, cache_write=3, cache_read=5), estimated=False)


ATTEMPT = {"type": "message", "input_tokens": 100, "output_tokens": 50, "cache_read_input_tokens": 10}
COMPACTION = {"type": "compaction", "input_tokens": 900, "output_tokens": 40, "cache_creation_input_tokens": 6}
TOP: Event = {
    "input_tokens": 100,
    "output_tokens": 50,
    "cache_read_input_tokens": 10,
    "cache_creation_input_tokens": 0,
}
TOGETHER = Usage(input=1_000, output=90, cache_read=10, cache_write=6)


def test_iterations_count_together_where_the_top_level_leaves_them_out() -> None:
    usage = TOP | {"iterations": [ATTEMPT, COMPACTION]}
    assert measure_json({"usage": usage}) == Measurement(TOGETHER, estimated=False)
    assert measure_stream(start(**TOP), delta(**usage), STOP).usage == TOGETHER


def test_iterations_never_make_a_count_smaller_than_the_top_level() -> None:
    usage = TOP | {"output_tokens": 70, "iterations": [ATTEMPT]}
    assert measure_json({"usage": usage}).usage == Usage(input=100, output=70, cache_read=10)
    assert measure_json({"usage": TOP | {"iterations": []}}).usage.output == 50
    assert measure_json({"usage": TOP | {"iterations": None}}).usage.output == 50


def test_iterations_count_also_for_the_fields_that_an_event_does_not_state_again() -> None:
    ended = delta(output_tokens=50, iterations=[ATTEMPT, COMPACTION])
    assert measure_stream(start(**TOP), ended, STOP).usage == TOGETHER


def test_iterations_go_on_counting_when_a_later_event_leaves_them_out() -> None:
    before = delta(None, **TOP, iterations=[ATTEMPT, COMPACTION])
    assert measure_stream(start(**TOP), before, delta(output_tokens=60), STOP).usage == TOGETHER


@pytest.mark.parametrize(
    ("written", "believed"),
    [
        ("0", 0),
        ("5", 5),
        ("-5", 0),
        ("-0", 0),
        (str(MOST_BELIEVED_TOKENS), MOST_BELIEVED_TOKENS),
        (str(MOST_BELIEVED_TOKENS + 1), None),
        (str(2**63), None),
        (str(-(2**63) - 1), 0),
        (str(10**30), None),
        ("9" * 5_000, None),
        ("1e400", None),
        ("1.5", None),
        ("5.0", None),
        ("5e3", None),
        ('"5"', None),
        ("true", None),
        ("false", None),
        ("null", None),
        ("[5]", None),
        ('{"input_tokens": 5}', None),
    ],
)
def test_a_count_that_makes_no_sense_is_passed_over_alone(written: str, believed: int | None) -> None:
    """The counts beside it hold, and a count from before stays in force."""
    odd = delta(input_tokens=40, output_tokens="ODD")
    meter = StreamMeter(HOLD, MessageStream())
    meter.feed(spell(start(input_tokens=25, output_tokens=3)))
    meter.feed(spell(odd).replace(b'"ODD"', written.encode()))
    expected = Usage(input=40, output=3 if believed is None else believed)
    assert meter.measure(ended=True) == Measurement(expected, estimated=False)
    body = json.dumps({"usage": {"input_tokens": 40, "output_tokens": "ODD"}}).replace('"ODD"', written)
    in_json = measure(JsonMeter(HOLD, read_message), [body.encode()], ended=True)
    assert in_json.usage.input == 40
    assert in_json.estimated == (believed is None)


COUNTS = st.sampled_from([0, 1, 25, 900, MOST_BELIEVED_TOKENS])
COUNTED = {
    "input_tokens": COUNTS,
    "output_tokens": COUNTS,
    "cache_creation_input_tokens": COUNTS,
    "cache_creation": st.fixed_dictionaries({}, optional={"ephemeral_5m_input_tokens": COUNTS}),
    "cache_read_input_tokens": COUNTS,
}
NAMED = {
    "type": st.sampled_from(["message", "fallback_message"]),
    "model": st.sampled_from(["claude-a", "claude-b"]),
}
ITERATIONS = st.fixed_dictionaries({}, optional=COUNTED | NAMED)
USAGES = st.fixed_dictionaries({}, optional=COUNTED | {"iterations": st.lists(ITERATIONS, max_size=3)})
ODD = st.sampled_from([1.5, True, [None], 10**30])


def reported_in(usage: Event) -> Reported:
    return read_message(json.dumps({"usage": usage}).encode())


@hypothesis
@given(USAGES, ITERATIONS, st.sampled_from([*COUNTED, *NAMED, "iterations"]), ODD)
def test_a_value_that_makes_no_sense_is_as_good_as_none(usage: Event, step: Event, name: str, odd: object) -> None:
    """Counts are read in one go where all make sense, else one by one, and both say the same."""
    usage.pop(name, None)
    step.pop(name, None)
    assert reported_in(usage | {name: odd}) == reported_in(usage)
    assert reported_in(usage | {"iterations": [step | {name: odd}]}) == reported_in(usage | {"iterations": [step]})
    split: Event = {"ephemeral_1h_input_tokens": 7}
    odd_split: Event = {"ephemeral_5m_input_tokens": odd, **split}
    assert reported_in(usage | {"cache_creation": odd_split}) == reported_in(usage | {"cache_creation": split})


@pytest.mark.parametrize("iterations", [5, {}, [None], [COMPACTION, None]])
def test_iterations_that_make_no_sense_leave_the_counts_beside_them(iterations: object) -> None:
    usage = TOP | {"iterations": iterations}
    expected = Usage(input=100, output=50, cache_read=10)
    assert measure_json({"usage": usage}).usage == expected
    assert measure_stream(start(**usage), delta(**usage), STOP).usage == expected


def test_an_iteration_below_nothing_takes_nothing_from_the_others() -> None:
    usage = TOP | {"iterations": [ATTEMPT, COMPACTION, {"input_tokens": -500, "output_tokens": -(2**63)}]}
    assert measure_json({"usage": usage}).usage == TOGETHER


def test_iterations_together_are_believed_no_more_than_a_single_count() -> None:
    entry = {"input_tokens": MOST_BELIEVED_TOKENS}
    assert measure_json({"usage": TOP | {"iterations": [entry] * 50}}).usage.input <= MOST_BELIEVED_TOKENS


@pytest.mark.parametrize(
    "events",
    [
        [start(), STOP],
        [{"type": "message_start", "message": {"usage": None}}, delta(), STOP],
        [{"type": "message_start", "message": None, "usage": 5}, STOP],
        [{"type": "message_start"}, {"type": "message_delta", "delta": None, "usage": None}, STOP],
        [{"type": ["message_start"], "usage": {"input_tokens": 1}}, STOP],
        [STOP],
        [],
    ],
)
def test_a_stream_without_counts_is_estimated(events: list[Event]) -> None:
    assert measure_stream(*events) == Measurement(Usage(input=HOLD.input), estimated=True)


@pytest.mark.parametrize(
    "data", [b"[DONE]", b"", b"{", b'"usage"', b'{"usage"', b"\xff\xfe", b'{"usage":' + b"[" * 9_999]
)
def test_data_that_is_no_event_is_passed_over(data: bytes) -> None:
    meter = StreamMeter(HOLD, MessageStream())
    assert (
        measure(meter, [spell_all(WHOLE[:5]), b"data: " + data + b"\n\n", spell_all(WHOLE[5:])]).usage
        == WHOLE_USAGE
    )
    assert meter.is_complete


# Streams that do not end well


@pytest.mark.parametrize("spacing", SPACINGS)
def test_text_that_came_before_a_cut_counts_four_bytes_a_token(spacing: tuple[str, str]) -> None:
    spelled = spell_all(
        [start(input_tokens=25, cache_read_input_tokens=100), *[text("abcd" * 6)] * 10], b"\n", spacing
    )
    measured = measure(StreamMeter(HOLD, MessageStream()), [spelled])
    assert measured.estimated
    assert (measured.usage.input, measured.usage.cache_read) == (25, 100)
    assert 60 <= measured.usage.output <= 120


@pytest.mark.parametrize(
    "block",
    [
        {"type": "thinking_delta", "thinking": "t" * 400},
        {"type": "input_json_delta", "partial_json": '{"a":"' + "j" * 400},
        {"type": "text_delta", "text": "usage" * 80},
        {"type": "text_delta", "text": "\u4e2d" * 400},
    ],
)
def test_all_that_a_model_writes_counts_at_a_cut(block: Event) -> None:
    event: Event = {"type": "content_block_delta", "index": 0, "delta": block}
    assert measure_stream(start(input_tokens=25), event).usage.output >= 100


def test_a_delta_that_only_says_usage_counts_at_a_cut_like_any_other() -> None:
    assert measure_stream(*[text("usage")] * 80) == measure_stream(*[text("other")] * 80)


def test_a_stream_cut_before_its_first_event_is_charged_for_its_input() -> None:
    assert measure_stream() == unanswered(HOLD) == Measurement(Usage(input=HOLD.input), estimated=True)


@pytest.mark.parametrize("stop_reason", [None, "end_turn"])
def test_counts_are_final_only_once_a_stop_reason_is_given(stop_reason: str | None) -> None:
    measured = measure_stream(start(input_tokens=25), delta(stop_reason, output_tokens=3), text("x" * 400))
    is_final = stop_reason is not None
    assert measured.estimated is not is_final
    assert measured.usage.output == (3 if is_final else 100)


COUNTS = st.sampled_from([0, 1, 25, 900, 5_000, -7, 2**63, 1.5, "7", True, None])
USAGES = st.dictionaries(
    st.sampled_from(["input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"]),
    COUNTS,
)
EVENTS = st.one_of(
    USAGES.map(lambda usage: start(**usage)),
    st.builds(lambda stop, usage: delta(stop, **usage), st.sampled_from([None, None, "end_turn"]), USAGES),
    st.text(max_size=300).map(text),
    st.just(PING),
)


def reported_by(events: Iterable[Event]) -> dict[str, int]:
    """The newest count of each kind that an upstream gave, as the SDKs accumulate them."""
    counts: dict[str, int] = {}
    for event in events:
        message = event.get("message")
        usage = message["usage"] if isinstance(message, dict) else event.get("usage", {})
        assert isinstance(usage, dict)
        for name, count in usage.items():
            if type(count) is int and count <= MOST_BELIEVED_TOKENS:
                counts[name] = max(0, count)
    return counts


@hypothesis
@given(
    st.lists(EVENTS, max_size=10),
    st.builds(Hold, input=st.integers(0, 2_000), output=st.integers(1, 2_000)),
    st.sampled_from(LINE_ENDS),
    st.sampled_from(SPACINGS),
    st.lists(st.integers(0, 5_000), max_size=6),
    st.integers(0, 200),
)
def test_a_stream_cut_anywhere_is_charged_no_less_than_it_reported_and_no_more_than_that_or_its_hold(
    events: list[Event], taken: Hold, line_end: bytes, spacing: tuple[str, str], places: list[int], lost: int
) -> None:
    spelled = [spell(event, line_end, spacing) for event in events]
    whole = b"".join(spelled)
    arrived = whole[: max(0, len(whole) - lost)]
    measured = measure(StreamMeter(taken, MessageStream()), cuts(arrived, places))
    seen = len(events_of(arrived))
    counts = reported_by(events[:seen])
    reported = Usage(
        input=counts.get("input_tokens", 0),
        output=counts.get("output_tokens", 0),
        cache_write=counts.get("cache_creation_input_tokens", 0),
        cache_read=counts.get("cache_read_input_tokens", 0),
    )
    unreported_input = 0 if "input_tokens" in counts else taken.input
    assert reported.charge <= measured.usage.charge <= max(reported.charge + unreported_input, taken.charge)
    assert measured.usage.output >= reported.output
    if not measured.estimated:
        assert measured.usage == reported


@pytest.mark.parametrize("line_end", LINE_ENDS)
def test_a_stream_cut_at_any_event_is_charged_what_it_reported_until_then(line_end: bytes) -> None:
    spelled = [spell(event, line_end) for event in WHOLE]
    charges = [
        measure(StreamMeter(HOLD, MessageStream()), spelled[:count]).usage.charge
        for count in range(len(spelled) + 1)
    ]
    before_start, after_start, final = HOLD.input, 25 + 7 + 101 + 1, WHOLE_USAGE.charge
    assert charges[0] == before_start
    assert charges[1] == after_start
    assert charges[-1] == charges[-2] == final
    assert all(after_start <= charge <= HOLD.charge for charge in charges)


# Whole messages


def test_a_message_is_measured_by_its_own_counts_wherever_it_is_cut() -> None:
    usage = {
        "input_tokens": 25,
        "cache_creation_input_tokens": 7,
        "cache_read_input_tokens": 1_001,
        "output_tokens": 90,
        "server_tool_use": None,
        "service_tier": "standard",
    }
    content = [{"type": "text", "text": '"usage": {"input_tokens": 9}'}]
    for spacing in SPACINGS:
        body = json.dumps({"id": "msg_1", "content": content, "usage": usage}, separators=spacing).encode()
        for place in range(len(body)):
            measured = measure(JsonMeter(HOLD, read_message), cuts(body, [place]), ended=True)
            assert measured == Measurement(WHOLE_USAGE, estimated=False)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'{"usage":null}',
        b'{"usage":5}',
        b'{"usage":{}}',
        b"<html>",
        b"\xff",
        b"[" * 99_999,
    ],
)
def test_a_message_without_counts_is_estimated_by_its_length(body: bytes) -> None:
    measured = measure(JsonMeter(HOLD, read_message), [body], ended=True)
    output = min(HOLD.output, -(-len(body) // 4))
    assert measured == Measurement(Usage(input=HOLD.input, output=output), estimated=True)


def test_a_message_that_broke_off_is_estimated_and_never_above_its_hold() -> None:
    short = measure(JsonMeter(HOLD, read_message), [b"x" * 400])
    assert short == Measurement(Usage(input=HOLD.input, output=100), estimated=True)
    long = measure(JsonMeter(HOLD, read_message), [b"x" * 400_000])
    assert long == Measurement(Usage(input=HOLD.input, output=HOLD.output), estimated=True)


def test_a_message_larger_than_the_cap_is_estimated() -> None:
    chunk = b" " * 2**20
    body = [json.dumps({"usage": TOP}).encode(), *[chunk] * (MAX_JSON_BYTES // len(chunk))]
    assert measure(JsonMeter(HOLD, read_message), body, ended=True) == Measurement(
        Usage(input=400, output=1_000), estimated=True
    )


# Packed answers


def pack(pieces: Iterable[bytes], wbits: int) -> bytes:
    """Compressed and flushed piece by piece, as a server sends a stream."""
    packer = zlib.compressobj(wbits=wbits)
    packed = [packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH) for piece in pieces]
    return b"".join([*packed, packer.flush()])


@pytest.mark.parametrize(
    ("encoding", "wbits"),
    [("gzip", 31), ("GZIP", 31), ("deflate", 15), pytest.param("deflate", -15, id="raw deflate")],
)
def test_a_packed_answer_cut_at_any_byte_is_measured(encoding: str, wbits: int) -> None:
    stream = pack([spell(event) for event in WHOLE], wbits)
    body = pack([json.dumps({"usage": TOP}).encode()], wbits)
    for packed, content_type, expected in (
        (stream, SSE, WHOLE_USAGE),
        (body, "application/json", Usage(input=100, output=50, cache_read=10)),
    ):
        for place in range(len(packed)):
            meter = meter_for(HOLD, 200, content_type, encoding)
            assert measure(meter, cuts(packed, [place]), ended=True) == Measurement(expected, estimated=False)
            assert meter.is_complete == (content_type == SSE)


def test_a_packed_stream_is_complete_only_with_its_terminal_event() -> None:
    meter = meter_for(HOLD, 200, SSE, "gzip")
    packer = zlib.compressobj(wbits=31)
    seen = []
    for event in WHOLE:
        meter.feed(packer.compress(spell(event)) + packer.flush(zlib.Z_SYNC_FLUSH))
        seen.append(meter.is_complete)
    assert seen == [False] * (len(WHOLE) - 1) + [True]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
@pytest.mark.parametrize("content_type", [SSE, "application/json"])
def test_an_answer_that_cannot_be_unpacked_is_estimated_by_its_length(encoding: str, content_type: str) -> None:
    meter = meter_for(HOLD, 200, content_type, encoding)
    measured = measure(meter, [bytes(range(128, 256))] * 10, ended=True)
    assert measured.estimated
    assert HOLD.input + 1_280 // 4 <= measured.usage.charge <= HOLD.charge


def test_a_packed_answer_that_swells_beyond_the_cap_is_estimated() -> None:
    meter = meter_for(HOLD, 200, "application/json", "gzip")
    bomb = pack([b" " * 2**20] * 65, 31)
    assert measure(meter, [bomb], ended=True).estimated


# Which meter


@pytest.mark.parametrize("status", [101, 199, 300, 304, 400, 401, 429, 500, 529])
def test_an_answer_that_is_no_success_costs_nothing(status: int) -> None:
    for content_type, body in ((SSE, spell_all(WHOLE)), ("application/json", json.dumps({"usage": TOP}).encode())):
        meter = meter_for(HOLD, status, content_type, "")
        assert measure(meter, [body], ended=True) == Measurement(NO_USAGE, estimated=False)


@pytest.mark.parametrize(
    "content_type",
    ["text/event-stream", "text/event-stream; charset=utf-8", "Text/Event-Stream;x", " text/event-stream "],
)
def test_what_comes_decides_how_it_is_measured(content_type: str) -> None:
    assert measure(meter_for(HOLD, 200, content_type, ""), [spell_all(WHOLE)]).usage == WHOLE_USAGE
    whole = json.dumps({"usage": TOP}).encode()
    for other in ("application/json", "", "text/html", "text/event-stream-not"):
        assert measure(meter_for(HOLD, 200, other, "identity"), [whole], ended=True).usage.output == 50


def test_cache_reads_count_a_tenth_rounded_up() -> None:
    charge: Callable[[int], int] = lambda reads: Usage(cache_read=reads).charge  # noqa: E731
    assert [charge(reads) for reads in (0, 1, 9, 10, 11, 1_001)] == [0, 1, 1, 1, 2, 101]
    assert Usage(input=100, output=50, cache_write=20, cache_read=1_001).charge == 271


def test_an_estimate_leaves_out_what_hosted_tools_may_not_have_read() -> None:
    hold = Hold(input=60_000, output=500, hosted_tools=50_000)
    assert unanswered(hold).usage == Usage(input=10_000)
    broken = meter_for(hold, 200, "text/event-stream", "", Api.RESPONSES)
    broken.feed(b'event: response.created\ndata: {"type": "response.created", "response": {"usage": null}}\n\n')
    assert broken.measure(ended=False).usage.input == 10_000
