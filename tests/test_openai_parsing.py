"""OpenAI's bodies are read as strictly as Anthropic's, and hold what they may cost."""

import json
from collections.abc import Callable

import pytest

from gateway.core.errors import BadRequest
from gateway.core.estimate import DEFAULT_OUTPUT_TOKENS, Estimator
from gateway.core.openai_parsing import MAX_CHOICES, parse_chat, parse_embeddings, parse_responses
from gateway.core.parsing import MAX_OUTPUT_TOKENS, ParsedRequest, parse_messages
from gateway.core.settings import Settings

DEFAULT = 7_000
ESTIMATOR = Estimator(Settings(), default_output_tokens=DEFAULT)
PARSERS = {"chat": parse_chat, "responses": parse_responses, "embeddings": parse_embeddings}


def parse(kind: str, fields: str = "", model: str = '"gpt-x"') -> ParsedRequest:
    """A good body with `fields`, spelled out, in it."""
    return PARSERS[kind](f'{{"model": {model}{", " if fields else ""}{fields}}}'.encode(), ESTIMATOR)


def refusal(kind: str, fields: str, model: str = '"gpt-x"') -> str:
    with pytest.raises(BadRequest) as caught:
        parse(kind, fields, model)
    assert caught.value.status == 400
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value.message


# What every endpoint refuses


@pytest.mark.parametrize("kind", PARSERS)
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"model":"a","x":NaN}', b"\xff", b'{"model":"a"}{}', b'{"x":1}', b"{}"]
)
def test_what_is_no_body_is_refused(kind: str, body: bytes) -> None:
    with pytest.raises(BadRequest):
        PARSERS[kind](body, ESTIMATOR)


@pytest.mark.parametrize("kind", PARSERS)
@pytest.mark.parametrize(
    "fields", ['"model": "b"', '"\\u006dodel": "b"', '"input": "a", "input": "b"', '"x": 1, "x": 1']
)
def test_a_name_that_stands_twice_is_refused(kind: str, fields: str) -> None:
    assert refusal(kind, fields) == "The request body names a field twice."


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("chat", "max_completion_tokens max_tokens n stream stream_options messages tools web_search_options"),
        ("responses", "max_output_tokens stream background input tools previous_response_id conversation prompt"),
        ("embeddings", "input"),
    ],
)
def test_a_field_that_is_read_is_known_in_lower_case_only(kind: str, names: str) -> None:
    for name in names.split():
        for spelled in (name.upper(), name.capitalize(), name.capitalize() + '": null, "x'):
            assert refusal(kind, f'"{spelled}": null') == f"{name}: Field names are written in lower case."
        assert parse(kind, f'"{name}": null').model == "gpt-x"


@pytest.mark.parametrize("kind", PARSERS)
@pytest.mark.parametrize("written", ["1", "null", "[]", '""', '"%s"' % ("m" * 257)])
def test_a_model_is_a_text_of_sane_length(kind: str, written: str) -> None:
    assert refusal(kind, "", written).startswith("model: Input should ")


# The output that is held


MAXIMA = [("chat", "max_tokens"), ("chat", "max_completion_tokens"), ("responses", "max_output_tokens")]


@pytest.mark.parametrize(("kind", "name"), MAXIMA)
def test_the_largest_output_is_held(kind: str, name: str) -> None:
    assert parse(kind, f'"{name}": 64').hold.output == 64
    assert parse(kind, f'"{name}": {MAX_OUTPUT_TOKENS}').hold.output == MAX_OUTPUT_TOKENS
    assert parse(kind).hold.output == parse(kind, f'"{name}": null').hold.output == DEFAULT
    assert Estimator(Settings()).default_output_tokens == DEFAULT_OUTPUT_TOKENS


@pytest.mark.parametrize(("kind", "name"), [*MAXIMA, ("chat", "n")])
@pytest.mark.parametrize(
    "written",
    [*("0", "-1", "-0", "1.0", "1.5", "1e3", "true", '"64"', "[64]", "{}"), str(2**31), str(2**63), "9" * 5_000],
)
def test_a_count_is_a_whole_number_above_nothing(kind: str, name: str, written: str) -> None:
    assert refusal(kind, f'"{name}": {written}').startswith(f"{name}: Input should be ")


def test_of_two_maxima_the_larger_one_is_held_since_vendors_differ_in_which_they_obey() -> None:
    assert parse("chat", '"max_tokens": 10, "max_completion_tokens": 90').hold.output == 90
    assert parse("chat", '"max_tokens": 90, "max_completion_tokens": 10').hold.output == 90
    assert parse("chat", '"max_tokens": 10, "max_completion_tokens": null').hold.output == 10


@pytest.mark.parametrize(("written", "choices"), [("1", 1), ("3", 3), ("null", 1), (str(MAX_CHOICES), MAX_CHOICES)])
def test_each_choice_holds_an_output_of_its_own(written: str, choices: int) -> None:
    assert parse("chat", f'"n": {written}, "max_tokens": 50').hold.output == 50 * choices
    assert parse("chat", f'"n": {written}').hold.output == DEFAULT * choices


def test_more_choices_than_anybody_may_ask_for_are_refused() -> None:
    assert refusal("chat", f'"n": {MAX_CHOICES + 1}') == f"n: Input should be between 1 and {MAX_CHOICES}"


def test_embeddings_hold_no_output() -> None:
    parsed = parse("embeddings", '"input": "hello", "max_tokens": 5')
    assert (parsed.model, parsed.hold.output, parsed.stream) == ("gpt-x", 0, False)


# Streams and what cannot be metered


@pytest.mark.parametrize("kind", ["chat", "responses"])
@pytest.mark.parametrize(("written", "stream"), [("true", True), ("false", False), ("null", False)])
def test_whether_a_stream_is_wanted_is_known(kind: str, written: str, stream: bool) -> None:
    assert parse(kind, f'"stream": {written}').stream is stream


@pytest.mark.parametrize("name", ["stream", "background"])
@pytest.mark.parametrize("written", ["1", "0", '"true"', "[]", "{}"])
def test_a_flag_is_true_or_false(name: str, written: str) -> None:
    assert refusal("responses", f'"{name}": {written}') == f"{name}: Input should be true or false"


def test_a_background_response_is_refused_with_the_reason() -> None:
    assert refusal("responses", '"background": true') == (
        "background: This server cannot serve background responses, because it cannot count what they use."
        " Leave it out, or set it to false."
    )
    for written in ("false", "null"):
        assert parse("responses", f'"background": {written}').model == "gpt-x"


@pytest.mark.parametrize(
    ("options", "asks"),
    [
        ("", False),
        ('"stream_options": null', False),
        ('"stream_options": {}', False),
        ('"stream_options": {"include_usage": false}', False),
        ('"stream_options": {"include_usage": null}', False),
        ('"stream_options": {"include_usage": true}', True),
        ('"stream_options": {"include_obfuscation": false, "include\\u005fusage": true}', True),
    ],
)
def test_whether_a_streamed_chat_asks_for_its_usage_is_known(options: str, asks: bool) -> None:
    streamed = parse("chat", ", ".join(filter(None, [options, '"stream": true'])))
    assert (streamed.usage_splice is None) == asks
    assert parse("chat", options).usage_splice is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("5", "stream_options is not a JSON object."),
        ("[]", "stream_options is not a JSON object."),
        ('"include_usage"', "stream_options is not a JSON object."),
        ('{"include_usage": true, "include_usage": false}', "stream_options names a field twice."),
        ('{"include_usage": true, "Include_usage": false}', "stream_options names a field twice."),
        ('{"Include_Usage": true}', "include_usage: Field names are written in lower case."),
        ('{"include_usage": 1}', "include_usage: Input should be true or false"),
    ],
)
def test_stream_options_that_could_be_read_in_two_ways_are_refused(options: str, reason: str) -> None:
    assert refusal("chat", f'"stream": true, "stream_options": {options}') == reason


@pytest.mark.parametrize(
    "fields",
    [
        '"max_tokens": "canary"',
        '"n": "canary"',
        '"stream": "canary"',
        '"stream": true, "stream_options": "canary"',
        '"stream": true, "stream_options": {"include_usage": "canary"}',
        '"stream": true, "stream_options": {"canary": 1, "canary": 1}',
        '"canary": NaN',
    ],
)
def test_a_refusal_quotes_nothing_of_the_body(fields: str) -> None:
    assert "canary" not in refusal("chat", fields)


def test_a_hold_is_the_input_and_the_output() -> None:
    body = json.dumps({"model": "gpt-x", "messages": [{"role": "user", "content": "x" * 3_000}], "max_tokens": 5})
    hold = parse_chat(body.encode(), ESTIMATOR).hold
    assert (hold.input, hold.output) == (-(-len(body) // 3), 5)


@pytest.mark.parametrize(
    ("parse", "body"),
    [
        (parse_messages, {"max_tokens": 5, "messages": [], "tools": [{"type": "web_search_20250305"}]}),
        (parse_chat, {"max_tokens": 5, "messages": [], "web_search_options": {}}),
        (parse_responses, {"max_output_tokens": 5, "input": "x", "tools": [{"type": "web_search"}]}),
    ],
)
def test_what_is_held_for_hosted_tools_is_known_apart(
    parse: Callable[[bytes, Estimator], ParsedRequest], body: dict[str, object]
) -> None:
    hold = parse(json.dumps({"model": "m"} | body).encode(), Estimator(Settings())).hold
    assert hold.hosted_tools == Settings().unbounded_input_tokens
    assert hold.hosted_tools < hold.input < hold.hosted_tools + 100
