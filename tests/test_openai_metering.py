"""OpenAI's usage is read off chat completions, responses and embeddings, also as compatible vendors write it."""

import json
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.counts import MOST_BELIEVED_TOKENS, Reported
from gateway.core.limits import Hold
from gateway.core.metering import Measurement, Meter, meter_for
from gateway.core.openai import read_answer
from gateway.core.protocols import Api
from gateway.core.usage import Usage
from tests.test_metering import COMPACT, LINE_ENDS, ODD, SPACINGS, cuts, measure, pack

HOLD = Hold(input=400, output=1_000)
SSE, JSON = "text/event-stream", "application/json"
hypothesis = settings(deadline=None, max_examples=150)
Event = dict[str, object]

COUNTS: Event = {
    "prompt_tokens": 1_200,
    "completion_tokens": 90,
    "total_tokens": 1_290,
    "prompt_tokens_details": {"cached_tokens": 1_000, "audio_tokens": 0, "cache_write_tokens": 50},
    "completion_tokens_details": {"reasoning_tokens": 64},
}
RESPONSE_COUNTS: Event = {
    "input_tokens": 1_200,
    "input_tokens_details": {"cached_tokens": 1_000},
    "output_tokens": 90,
    "output_tokens_details": {"reasoning_tokens": 64},
    "total_tokens": 1_290,
}
USAGE = Usage(input=200, cache_read=1_000, output=90)
EXACT = Measurement(USAGE, estimated=False)


def chunk(text: str | None = None, *, index: int = 0, finish: str | None = None, **fields: object) -> Event:
    delta = {} if text is None else {"content": text}
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice], "usage": None, **fields}


def usage_chunk(usage: object = COUNTS) -> Event:
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], "usage": usage}


def delta(text: str, kind: str = "response.output_text.delta") -> Event:
    return {"type": kind, "sequence_number": 4, "item_id": "msg_1", "delta": text, "obfuscation": "aXbYcZ"}


def last(kind: str = "response.completed", usage: object = RESPONSE_COUNTS, **fields: object) -> Event:
    return {"type": kind, "sequence_number": 9, "response": {"id": "resp_1", "usage": usage, **fields}}


DONE = "[DONE]"
CHAT: list[Event | str] = [
    chunk("", prompt_filter_results=[]),
    chunk('Å \u2028 "usage": {"prompt_tokens": 9}\r\n\r\n [DONE]'),
    chunk("x" * 40),
    chunk(finish="stop"),
    usage_chunk(),
    DONE,
]
RESPONSE: list[Event | str] = [
    {"type": "response.created", "response": {"id": "resp_1", "usage": None}},
    delta('Å "type":"response.completed"\r\n\r\n'),
    delta("x" * 40),
    {"type": "an_event_of_tomorrow", "data": [1, 2]},
    last(output=[{"type": "message", "content": [{"type": "output_text", "text": "x" * 400}]}]),
]


def spell(event: Event | str, line_end: bytes = b"\n", spacing: tuple[str, str] = COMPACT) -> bytes:
    data = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False, separators=spacing)
    kind = b"event: %b%b" % (str(event["type"]).encode(), line_end) if "type" in event else b""  # type: ignore[index]
    return b"%bdata: %b%b%b" % (kind, data.encode(), line_end, line_end)


def spell_all(events: Iterable[Event | str], line_end: bytes = b"\n", spacing: tuple[str, str] = COMPACT) -> bytes:
    return b"".join(spell(event, line_end, spacing) for event in events)


def meter(api: Api, content_type: str = SSE, hold: Hold = HOLD) -> Meter:
    return meter_for(hold, 200, content_type, "", api)


def chat(*events: Event | str) -> Measurement:
    return measure(meter(Api.CHAT), [spell_all(events)])


def response(*events: Event | str) -> Measurement:
    return measure(meter(Api.RESPONSES), [spell_all(events)])


def whole(api: Api, body: object) -> Measurement:
    return measure(meter(api, JSON), [json.dumps(body).encode()], ended=True)


# Streams that end well


@pytest.mark.parametrize("line_end", LINE_ENDS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("api", "events"), [(Api.CHAT, CHAT), (Api.RESPONSES, RESPONSE)])
def test_a_stream_cut_at_any_byte_is_measured_the_same(
    api: Api, events: list[Event | str], line_end: bytes, spacing: tuple[str, str]
) -> None:
    spelled = spell_all(events, line_end, spacing)
    for place in range(len(spelled) + 1):
        cut = meter(api)
        assert measure(cut, cuts(spelled, [place])) == EXACT
        assert cut.is_complete
    assert measure(meter(api), cuts(spelled, range(len(spelled)))) == EXACT


@pytest.mark.parametrize(("api", "events"), [(Api.CHAT, CHAT), (Api.RESPONSES, RESPONSE)])
def test_a_stream_is_complete_with_its_terminal_event_and_not_before(api: Api, events: list[Event | str]) -> None:
    stream = meter(api)
    seen = []
    for event in events:
        stream.feed(spell(event))
        seen.append(stream.is_complete)
    assert seen == [False] * (len(events) - 1) + [True]


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete", "response.failed"])
def test_every_terminal_event_of_a_response_ends_it_and_says_its_usage(kind: str) -> None:
    stream = meter(Api.RESPONSES)
    assert measure(stream, [spell(last(kind))]) == EXACT
    assert stream.is_complete


def test_an_error_event_ends_a_response_which_is_then_estimated() -> None:
    stream = meter(Api.RESPONSES)
    measured = measure(stream, [spell_all([delta("x" * 400), {"type": "error", "code": "server_error"}])])
    assert stream.is_complete
    assert measured == Measurement(Usage(input=400, output=100), estimated=True)


def test_a_failed_response_without_usage_is_estimated() -> None:
    assert response(delta("x" * 400), last("response.failed", None)) == Measurement(
        Usage(input=400, output=100), estimated=True
    )


def test_a_terminal_event_of_megabytes_is_read_wherever_it_is_cut() -> None:
    picture = {"type": "image_generation_call", "result": "A" * 5_000_000}
    spelled = spell_all([delta("x"), last(output=[picture])])
    for size in (65_536, 1_000_003):
        stream = meter(Api.RESPONSES)
        assert measure(stream, cuts(spelled, range(0, len(spelled), size))) == EXACT
        assert stream.is_complete


@pytest.mark.parametrize("text", ["[DONE]", "response.completed", '"usage":{"prompt_tokens":5}', "error"])
def test_nothing_that_a_model_says_ends_a_stream_or_counts(text: str) -> None:
    for api, event in ((Api.CHAT, chunk(text)), (Api.RESPONSES, delta(text))):
        stream = meter(api)
        assert measure(stream, [spell(event), b"data: no " + text.encode() + b"\n\n"]).usage.input == HOLD.input
        assert not stream.is_complete


def test_a_packed_stream_is_measured() -> None:
    packed = pack([spell(event) for event in CHAT], 31)
    assert measure(meter_for(HOLD, 200, SSE, "gzip", Api.CHAT), [packed], ended=True) == EXACT


# The usage object


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 7}, Usage(input=5, output=7)),
        ({"prompt_tokens": 5, "completion_tokens": 7, "prompt_tokens_details": None}, Usage(input=5, output=7)),
        ({"prompt_tokens": 5, "total_tokens": 12}, Usage(input=5, output=7)),
        ({"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 99}, Usage(input=5, output=7)),
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 7,
                "prompt_cache_hit_tokens": 3,
                "prompt_cache_miss_tokens": 2,
            },
            Usage(input=2, cache_read=3, output=7),
        ),
        ({"prompt_tokens": 5, "completion_tokens": 7, "cached_tokens": 3}, Usage(input=2, cache_read=3, output=7)),
        (
            {"prompt_tokens": 5, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 9}},
            Usage(input=0, cache_read=9, output=7),
        ),
        (
            {
                "prompt_tokens": 32,
                "completion_tokens": 9,
                "total_tokens": 135,
                "completion_tokens_details": {"reasoning_tokens": 94},
            },
            Usage(input=32, output=103),
        ),
        ({"prompt_tokens": -5, "completion_tokens": 7}, Usage(input=0, output=7)),
    ],
    ids=["plain", "null", "no output", "odd total", "DeepSeek", "Moonshot", "too many cached", "xAI", "negative"],
)
def test_a_usage_is_read_as_vendors_write_it(usage: Event, expected: Usage) -> None:
    exact = Measurement(expected, estimated=False)
    assert whole(Api.CHAT, {"choices": [], "usage": usage}) == exact
    assert chat(chunk("Hi"), usage_chunk(usage), DONE) == exact


@pytest.mark.parametrize("odd", ["5", 1.5, True, None, [5], {}, MOST_BELIEVED_TOKENS + 1, 10**30])
def test_a_count_that_makes_no_sense_is_passed_over_alone(odd: object) -> None:
    usage = COUNTS | {"completion_tokens": odd, "total_tokens": odd}
    measured = whole(Api.CHAT, {"usage": usage})
    assert measured.estimated
    assert (measured.usage.input, measured.usage.cache_read) == (200, 1_000)
    assert whole(Api.CHAT, {"usage": COUNTS | {"total_tokens": odd, "completion_tokens_details": odd}}) == EXACT


GOOD_COUNTS = st.sampled_from([0, 1, 25, 900])
GOOD_DETAILS = st.fixed_dictionaries({}, optional={"cached_tokens": GOOD_COUNTS, "reasoning_tokens": GOOD_COUNTS})
COUNT_NAMES = ["prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "prompt_cache_hit_tokens"]
DETAIL_NAMES = ["prompt_tokens_details", "input_tokens_details", "completion_tokens_details"]
GOOD_USAGES = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(COUNT_NAMES, GOOD_COUNTS) | dict.fromkeys(DETAIL_NAMES, GOOD_DETAILS)
)


@hypothesis
@given(GOOD_USAGES, st.sampled_from([*COUNT_NAMES, *DETAIL_NAMES]), ODD)
def test_a_value_that_makes_no_sense_is_as_good_as_none(usage: Event, name: str, odd: object) -> None:
    """Counts are read in one go where all make sense, else one by one, and both say the same."""

    def reported_in(answer: Event) -> Reported:
        return read_answer(json.dumps(answer).encode())

    usage.pop(name, None)
    expected = reported_in({"usage": usage})
    assert reported_in({"usage": usage | {name: odd}}) == expected
    assert reported_in({"usage": odd, "x_groq": {"usage": usage | {name: odd}}}) == expected
    details = {"cached_tokens": 7, "reasoning_tokens": odd, "audio_tokens": odd}
    odd_details: Event = {"prompt_tokens": 9, "output_tokens": 1, "prompt_tokens_details": details}
    assert reported_in({"usage": odd_details}) == Reported(input=2, output=1, cache_read=7)


@pytest.mark.parametrize("usage", [None, 5, "usage", [], {}])
@pytest.mark.parametrize("api", [Api.CHAT, Api.RESPONSES])
def test_an_answer_without_counts_is_estimated_and_never_nothing(api: Api, usage: object) -> None:
    measured = whole(api, {"output": "x" * 400, "usage": usage})
    assert measured.estimated
    assert measured.usage.input == HOLD.input
    assert measured.usage.output > 100


def test_a_whole_response_is_measured_by_its_own_counts() -> None:
    assert whole(Api.RESPONSES, {"id": "resp_1", "output": [], "usage": RESPONSE_COUNTS}) == EXACT
    assert whole(Api.CHAT, {"id": "chatcmpl-1", "choices": [{}] * 4, "usage": COUNTS}) == EXACT


def test_an_answer_that_broke_off_is_estimated_by_its_length() -> None:
    measured = measure(meter(Api.CHAT, JSON), [b"x" * 400])
    assert measured == Measurement(Usage(input=400, output=100), estimated=True)


@pytest.mark.parametrize("usage", [{"prompt_tokens": 8, "total_tokens": 8}, {"prompt_tokens": 8}])
def test_embeddings_use_input_only(usage: Event) -> None:
    hold = Hold(input=20, output=0)
    body = json.dumps({"data": [{"embedding": [0.5] * 900}], "usage": usage}).encode()
    measured = measure(meter(Api.EMBEDDINGS, JSON, hold), [body], ended=True)
    assert measured == Measurement(Usage(input=8), estimated=False)


@pytest.mark.parametrize("content_type", [JSON, SSE])
def test_embeddings_that_do_not_say_their_usage_cost_what_they_held(content_type: str) -> None:
    hold = Hold(input=20, output=0)
    measured = measure(meter(Api.EMBEDDINGS, content_type, hold), [b'{"data":[' + b"1," * 900], ended=True)
    assert measured == Measurement(Usage(input=20), estimated=True)


# Where vendors put the usage of a stream


@pytest.mark.parametrize(
    "events",
    [
        [chunk("Hi"), chunk(finish="stop", usage=COUNTS), DONE],
        [chunk("Hi"), chunk(finish="stop", usage=COUNTS)],
        [chunk("Hi"), chunk(finish="stop", x_groq={"id": "req_1", "usage": COUNTS}), DONE],
        [chunk("Hi"), {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": COUNTS}]}, DONE],
        [chunk("Hi"), {"choices": None, "usage": COUNTS}, DONE],
        [chunk("Hi"), {"usage": COUNTS}, DONE],
        [chunk("Hi"), chunk(usage=COUNTS), DONE],
        [chunk("Hi"), usage_chunk(), chunk(finish="stop"), DONE],
        [chunk("Hi"), usage_chunk(), usage_chunk(None), usage_chunk({}), DONE],
        [usage_chunk(), "not JSON", '{"choices":[{"delta":5}],"usage":null}', DONE],
        [chunk("Hi"), DONE, usage_chunk()],
    ],
)
def test_usage_in_an_odd_place_is_found(events: list[Event | str]) -> None:
    assert chat(*events) == EXACT


def test_usage_in_each_chunk_is_cumulative_and_the_newest_counts() -> None:
    growing = [chunk("four", usage={"prompt_tokens": 9, "completion_tokens": count}) for count in (1, 2, 3)]
    finished = chunk(finish="stop", usage={"prompt_tokens": 9, "completion_tokens": 5})
    assert chat(*growing, finished, DONE) == Measurement(Usage(input=9, output=5), estimated=False)
    assert chat(*growing) == Measurement(Usage(input=9, output=3), estimated=True)


def test_one_choice_that_is_finished_does_not_finish_the_others() -> None:
    some = {"prompt_tokens": 9, "completion_tokens": 3}
    both: Event = {"choices": [{"finish_reason": "stop"}, {"delta": {"content": "and"}}], "usage": some}
    assert chat(both) == Measurement(Usage(input=9, output=3), estimated=True)
    assert chat(both, chunk(index=1, finish="stop", usage=some)).estimated is False
    assert chat(chunk(finish="stop", usage=some), chunk("and", index=1, usage=some)).estimated


# Streams that do not end well


def test_a_stream_that_never_says_its_usage_is_estimated_by_what_its_choices_say() -> None:
    one = [chunk("x" * 40, index=index, obfuscation="p" * 30) for index in (0, 1, 0, 1)]
    for events in (one, [*one, DONE], [*one, {"error": {"message": "no", "code": None}}]):
        assert chat(*events) == Measurement(Usage(input=400, output=40), estimated=True)
    together: Event = {"choices": [{"index": index, "delta": {"content": "x" * 40}} for index in range(4)]}
    assert chat(together) == Measurement(Usage(input=400, output=40), estimated=True)


@pytest.mark.parametrize(
    ("written", "tokens"),
    [
        ({"content": "x" * 400}, 100),
        ({"role": "assistant", "content": "x" * 400, "refusal": None}, 100),
        ({"role": "assistant", "content": ""}, 0),
        ({"reasoning_content": "x" * 400}, 100),
        ({"reasoning": "x" * 400, "content": ""}, 100),
        ({"refusal": "x" * 400}, 100),
        ({"tool_calls": [{"index": 0, "function": {"arguments": "x" * 400}}]}, 100),
        ({"tool_calls": []}, 0),
        ({}, 0),
        (None, 0),
    ],
)
def test_all_that_a_model_writes_counts_at_a_cut(written: object, tokens: int) -> None:
    assert chat({"choices": [{"index": 0, "delta": written}]}).usage.output == tokens


@pytest.mark.parametrize(
    "kind",
    [
        "response.output_text.delta",
        "response.refusal.delta",
        "response.reasoning_text.delta",
        "response.reasoning_summary_text.delta",
        "response.function_call_arguments.delta",
        "response.custom_tool_call_input.delta",
        "response.a_thing_of_tomorrow.delta",
    ],
)
def test_every_delta_of_a_response_counts_at_a_cut(kind: str) -> None:
    assert response(delta("x" * 400, kind)) == Measurement(Usage(input=400, output=100), estimated=True)


def test_what_a_response_repeats_is_counted_once() -> None:
    repeated: Event = {"type": "response.output_text.done", "text": "x" * 400}
    assert response(delta("x" * 400), repeated, repeated).usage.output == 100


def test_an_estimate_is_never_above_the_hold() -> None:
    for measured in (chat(chunk("x" * 99_999)), response(delta("x" * 99_999))):
        assert measured == Measurement(Usage(input=400, output=1_000), estimated=True)


SOME_COUNTS = st.sampled_from([0, 1, 25, 900, 5_000, -7, 2**63, 1.5, "7", None])
SOME_USAGES = st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens"]), SOME_COUNTS)
SOME_EVENTS = st.one_of(
    st.text(max_size=300).map(chunk),
    st.text(max_size=300).map(delta),
    st.builds(lambda text, usage: chunk(text, usage=usage), st.text(max_size=20), SOME_USAGES),
    SOME_USAGES.map(usage_chunk),
    st.recursive(st.none() | st.integers() | st.text(max_size=9), st.lists, max_leaves=5).map(
        lambda odd: {"choices": odd, "usage": odd, "type": odd, "response": odd, "delta": odd}
    ),
    st.sampled_from(["", "{", "[]", "null", "\ufeff", '{"usage":' + "[" * 9_999]),
)


@hypothesis
@given(
    st.lists(SOME_EVENTS, max_size=8),
    st.sampled_from([Api.CHAT, Api.RESPONSES]),
    st.lists(st.integers(0, 5_000), max_size=6),
)
def test_whatever_comes_is_charged_between_what_was_reported_and_the_hold(
    events: list[Event | str], api: Api, places: list[int]
) -> None:
    spelled = spell_all(events)
    measured = measure(meter(api), cuts(spelled, places))
    reported = {"prompt_tokens": 0, "completion_tokens": 0}
    for event in events if api is Api.CHAT else []:
        usage = event.get("usage") if isinstance(event, dict) else None
        for name, count in usage.items() if isinstance(usage, dict) else []:
            if type(count) is int and count <= MOST_BELIEVED_TOKENS:
                reported[name] = max(0, count)
    assert measured.usage.output >= reported["completion_tokens"]
    assert sum(reported.values()) <= measured.usage.charge <= max(HOLD.charge, sum(reported.values()) + HOLD.input)
