"""The estimate of the input of OpenAI's requests: text by its bytes, all else by an allowance."""

import json
from typing import Any

import msgspec
import pytest

from gateway.core import openai_estimate
from gateway.core.estimate import Estimator
from gateway.core.settings import Settings

IMAGE, UNBOUNDED = 1_000, 70_000
ESTIMATOR = Estimator(Settings(image_tokens=IMAGE, unbounded_input_tokens=UNBOUNDED))
BASE64 = "A" * 30_000
PICTURE = f"data:image/png;base64,{BASE64}"
Fields = dict[str, Any]


def top_level(body: bytes) -> dict[str, msgspec.Raw]:
    return msgspec.json.decode(body, type=dict[str, msgspec.Raw])


def beyond_text(kind: str, hidden: int = 0, **fields: object) -> int:
    """What is held beyond the body's text, of which `hidden` characters and their quotes are none."""
    body = json.dumps({"model": "gpt-x", **fields}).encode()
    of_kind = openai_estimate.of_chat if kind == "chat" else openai_estimate.of_responses
    text_bytes = len(body) - (hidden + 2 if hidden else 0)
    return of_kind(body, top_level(body), ESTIMATOR).tokens - -(-text_bytes // 3)


def chat(content: object, hidden: int = 0, **fields: object) -> int:
    return beyond_text("chat", hidden, messages=[{"role": "user", "content": content, **fields}])


def response(item: object, hidden: int = 0) -> int:
    return beyond_text("responses", hidden, input=[item])


@pytest.mark.parametrize("content", ["x" * 900, [{"type": "text", "text": "x" * 900}], None, [], 5, [5], [[5]]])
def test_text_counts_three_bytes_a_token(content: object) -> None:
    assert chat(content) == 0
    assert response({"role": "user", "content": content}) == 0
    assert beyond_text("responses", input="x" * 900) == 0
    assert beyond_text("responses") == beyond_text("chat") == 0


@pytest.mark.parametrize(
    ("part", "hidden", "held"),
    [
        ({"type": "image_url", "image_url": {"url": PICTURE, "detail": "high"}}, len(PICTURE), IMAGE),
        ({"type": "image_url", "image_url": PICTURE}, len(PICTURE), IMAGE),
        ({"type": "image_url"}, 0, IMAGE),
        ({"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}}, len(BASE64), UNBOUNDED),
        ({"type": "file", "file": {"filename": "a.pdf", "file_data": BASE64}}, len(BASE64), UNBOUNDED),
        ({"type": "file", "file": {"file_id": "file_1"}}, 0, UNBOUNDED),
        ({"type": "video_url", "video_url": {"url": BASE64}}, len(BASE64), UNBOUNDED),
        ({"type": "text", "text": PICTURE}, 0, 0),
        ({"type": "a_part_of_tomorrow", "data": BASE64}, 0, 0),
    ],
)
def test_a_part_of_a_chat_that_is_no_text_holds_an_allowance(part: Fields, hidden: int, held: int) -> None:
    assert chat([{"type": "text", "text": "See:"}, part], hidden) == held


def test_every_part_holds_an_allowance_of_its_own() -> None:
    part = {"type": "image_url", "image_url": {}}
    assert chat([part] * 7) == 7 * IMAGE


def test_sound_of_an_earlier_answer_holds_an_allowance() -> None:
    assert chat(None, audio={"id": "audio_1"}) == UNBOUNDED
    assert chat("Hi", audio=None) == 0


@pytest.mark.parametrize(
    ("item", "hidden", "held"),
    [
        ({"type": "input_image", "image_url": PICTURE}, len(PICTURE), IMAGE),
        ({"type": "input_image", "file_id": "file_1"}, 0, IMAGE),
        ({"type": "input_file", "file_data": BASE64, "filename": "a.pdf"}, len(BASE64), UNBOUNDED),
        ({"type": "input_file", "file_id": "file_1"}, 0, UNBOUNDED),
        ({"type": "input_file", "file_url": "https://example.org/a.pdf"}, 0, UNBOUNDED),
        ({"type": "input_audio", "input_audio": {"data": BASE64, "format": "mp3"}}, len(BASE64), UNBOUNDED),
    ],
)
def test_a_part_of_a_response_that_is_no_text_holds_an_allowance_wherever_it_stands(
    item: Fields, hidden: int, held: int
) -> None:
    assert response({"role": "user", "content": [item]}, hidden) == held
    assert response({"type": "message", "role": "user", "content": [item]}, hidden) == held
    assert response({"type": "function_call_output", "call_id": "c", "output": [item]}, hidden) == held


@pytest.mark.parametrize(
    ("item", "hidden", "held"),
    [
        ({"type": "item_reference", "id": "msg_1"}, 0, UNBOUNDED),
        ({"id": "msg_1"}, 0, UNBOUNDED),
        ({"type": None, "id": "msg_1"}, 0, UNBOUNDED),
        ({"type": "message", "id": "msg_1", "role": "assistant", "content": []}, 0, 0),
        ({"id": "msg_1", "role": "assistant", "content": "Hi"}, 0, 0),
        ({"type": "computer_call_output", "output": {"type": "computer_screenshot", "file_id": "f"}}, 0, IMAGE),
        ({"type": "image_generation_call", "id": "ig_1", "result": BASE64}, len(BASE64), IMAGE),
        ({"type": "reasoning", "id": "rs_1", "encrypted_content": BASE64, "summary": []}, 0, 0),
        ({"type": "function_call_output", "call_id": "c", "output": '{"type": "input_file"}'}, 0, 0),
        ({"type": "additional_tools", "tools": [{"type": "web_search"}, {"type": "function"}]}, 0, UNBOUNDED),
    ],
)
def test_an_item_of_a_response_holds_what_it_stands_for(item: Fields, hidden: int, held: int) -> None:
    assert response(item, hidden) == held


@pytest.mark.parametrize("spelled", ["item\\u005freference", "\\u0069tem_reference"])
def test_a_type_spelled_with_escapes_is_seen_all_the_same(spelled: str) -> None:
    body = b'{"input": [{"type": "%b"}]}' % spelled.encode()
    held = openai_estimate.of_responses(body, top_level(body), ESTIMATOR).tokens
    assert held == UNBOUNDED + -(-len(body) // 3)


@pytest.mark.parametrize("name", ["previous_response_id", "conversation", "prompt"])
def test_what_is_kept_at_the_provider_holds_an_allowance(name: str) -> None:
    for given, held in (("id_1", UNBOUNDED), ({"id": "id_1"}, UNBOUNDED), ("", UNBOUNDED), (None, 0)):
        fields: Fields = {name: given}
        assert beyond_text("responses", **fields) == held
    both = beyond_text("responses", previous_response_id="resp_1", prompt={"id": "p"})
    assert both == 2 * UNBOUNDED


@pytest.mark.parametrize(
    ("tool", "runs_upstream"),
    [
        ({"type": "function", "name": "mine"}, False),
        ({"type": "custom", "name": "apply_patch"}, False),
        ({"type": "local_shell"}, False),
        ({"type": "apply_patch"}, False),
        ({"type": "namespace", "tools": [{"type": "function"}]}, False),
        ({"name": "mine"}, False),
        ({"type": "web_search"}, True),
        ({"type": "web_search_preview"}, True),
        ({"type": "file_search"}, True),
        ({"type": "code_interpreter"}, True),
        ({"type": "computer_use_preview"}, True),
        ({"type": "image_generation"}, True),
        ({"type": "mcp", "server_url": "https://example.org"}, True),
        ({"type": "a_tool_of_tomorrow"}, True),
        ("web_search", True),
    ],
)
@pytest.mark.parametrize("kind", ["chat", "responses"])
def test_a_tool_that_the_provider_runs_holds_an_allowance(kind: str, tool: object, runs_upstream: bool) -> None:
    assert beyond_text(kind, tools=[tool]) == UNBOUNDED * runs_upstream


def test_searching_the_web_for_a_chat_holds_an_allowance() -> None:
    assert beyond_text("chat", web_search_options={}) == UNBOUNDED
    assert beyond_text("chat", web_search_options=None, tools=None) == 0


@pytest.mark.parametrize(
    "items", [[{"type": "input_image", "image_url": PICTURE}, {"type": 5}], [{"type": "input_image"}] * 10_001]
)
def test_input_of_a_shape_that_is_not_known_counts_as_text_and_more(items: object) -> None:
    assert beyond_text("responses", input=items) == UNBOUNDED


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        ([1, 2, 3], 3),
        ([[1, 2], [3]], 3),
        ([[15_496]] * 90, 90),
        ([7], 1),
        ("x" * 3_000, None),
        (["x" * 900, "y" * 900], None),
        ([[1, 2], "x" * 900], None),
        ([1, {"text": "x" * 900}], None),
        (None, None),
        (5, None),
    ],
)
def test_embeddings_hold_their_text_or_their_tokens(given: object, tokens: int | None) -> None:
    for spacing in ((",", ":"), (", ", ": "), (" ,\n", ": ")):
        body = json.dumps({"model": "e", "input": given}, separators=spacing).encode()
        expected = -(-len(body) // 3) if tokens is None else tokens
        assert openai_estimate.of_embeddings(body, top_level(body)) == expected
